"""The report's first section: what to deploy, how far the score drops, and the cost and drop of every other choice."""

from __future__ import annotations

import math

from evaluation.utils.analysis.decision import Decision, Loss, Option
from evaluation.utils.analysis.model_analysis import ModelAnalysis
from evaluation.utils.analysis.quantization import bytes_per_vector, pareto_front
from evaluation.utils.analysis.recommendation import MIN_SCORE, pairs_that_tell
from evaluation.utils.report import plots
from evaluation.utils.report.content import Plot, Section, Table
from evaluation.utils.report.formatting import NO_VALUE, items_of, join, number
from evaluation.utils.report.material import Material
from evaluation.utils.scoring.rows import set_name

MAX_NAMES = 5  # the most test sets that a sentence names


def build(material: Material) -> Section:
    section = Section("The answer")
    decision = material.decision
    section.leads.add(0)
    if decision.option is None:
        section.paragraphs.append(f"Nothing can be recommended: {_why_nothing(decision)}.")
    else:
        section.paragraphs.append(_sentence(material))
        section.paragraphs += [text for text in (_why_not_smaller(material), _single_sets(material)) if text]
        section.paragraphs += [_other_model(material, model) for model in _others(material)]
        if decision.option.precision != "float32":
            section.paragraphs.append(
                f"docs/deploying.md shows how to store {decision.option.precision} vectors and compare them."
            )
        section.plots.append(_plot(material))
        section.tables.append(_table(material))
    section.paragraphs += _not_counted(material)
    if material.warning:
        section.paragraphs.append(material.warning)
    return section


def _bytes(count: int) -> str:
    return f"{count:,} byte" + "s" * (count != 1)


def _tolerance(decision: Decision) -> str:
    value = f"{100 * decision.tolerance:g}"
    return f"{value} point" + "s" * (value != "1")


def _why_nothing(decision: Decision) -> str:
    if decision.too_low:
        return f"no model reaches {100 * MIN_SCORE:.0f} at full width on any test set"
    return "these tasks have no confidence intervals, or the models have no test set in common"


def _sentence(material: Material) -> str:
    decision = material.decision
    model, option, best = decision.model, decision.option, decision.best
    assert model is not None and option is not None and best is not None
    name = material.name(model)
    if sum(len(m.options) for m in material.models if not m.baseline) == 1:
        return f"For {name}, only the full width of {model.width} dimensions was scored: add smaller dimensions with --dims."
    if (model, option.dim, option.precision) == (best, best.width, "float32"):
        return (
            f"Deploy {name} at all {option.dim} dimensions in float32, {_bytes(option.bytes)} per vector. No smaller vector is "
            f"accepted, because the score may drop by more than {_tolerance(decision)} (--max_loss)."
        )
    return (
        f"Deploy {name} at {_option(option)}: {_bytes(option.bytes)} per vector instead of "
        f"{bytes_per_vector(best.width, 'float32'):,}. {_lost(option.loss)}, compared with {_reference(material, model)}, which score "
        f"{number(decision.full_score)} on {'average over ' if len(decision.sets) > 1 else ''}{_sets(decision)}. The accepted drop is {_tolerance(decision)} (--max_loss)."
    )


def _reference(material: Material, model: ModelAnalysis) -> str:
    """Return what a model's losses are measured against: the full width of the best model."""
    best = material.decision.best
    assert best is not None
    of_best = "" if model is best else f" of {material.name(best)}"
    return f"all {best.width} dimensions{of_best} in float32"


def _lost(loss: Loss) -> str:
    most = f"at most {number(max(0.0, loss.most))} with 95% confidence"
    if loss.value < 0.00005:
        return f"No drop was measured ({most})"
    return f"It loses {number(loss.value)} points ({most})"


def _sets(decision: Decision) -> str:
    names = [set_name(*key) for key in decision.sets]
    if len(names) == 1:
        return names[0]
    return f"{len(names)} test sets" + (f" ({join(names)})" if len(names) <= MAX_NAMES else "")


def _option(option: Option) -> str:
    if option.precision == "binary":
        return f"{option.dim} binary dimensions"
    return f"{option.dim} dimensions in {option.precision}"


def _why_not_smaller(material: Material) -> str:
    """Describe the first smaller choices that were tried and not accepted, with the drop in score of each."""
    decision = material.decision
    model, option = decision.model, decision.option
    assert model is not None and option is not None
    in_float32 = [o for o in model.options if o.precision == "float32" and not o.accepted]
    quantised = [o for o in model.options if o.dim == option.dim and not o.accepted]
    refused = [o for o in in_float32[:1] + quantised[:1] if o.loss.most > decision.tolerance]
    if not refused:
        return ""
    sentences = [_refusal(o, decision.tolerance) for o in refused]
    return "Why not smaller? " + " ".join(f"{text[0].upper()}{text[1:]}." for text in sentences)


def _refusal(option: Option, tolerance: float) -> str:
    loss = option.loss
    if loss.value > 0:
        text = f"{_option(option)} lose {number(loss.value)} points"
    else:
        text = f"for {_option(option)}, no drop was measured"
    if loss.value > tolerance:
        return f"{text}, more than the accepted drop"
    text += f", but a drop of {number(loss.most)} points cannot be ruled out"
    times = pairs_that_tell(1, loss.value, loss.most, tolerance)
    if times >= 1000:
        return text
    return f"{text}: about {_rounded_up(times, digits=2):g} times as many pairs would be needed to tell"


def _rounded_up(value: float, digits: int = 2) -> float:
    scale = 10 ** (math.floor(math.log10(value)) - digits + 1)
    return round(math.ceil(value / scale - 1e-9) * scale, 6)


def _single_sets(material: Material) -> str:
    """Describe the sets where the drop exceeds the tolerance, or that have too few pairs or queries to tell."""
    decision = material.decision
    assert decision.model is not None and decision.option is not None
    if len(decision.sets) == 1:
        return ""
    type_of = {row.set_key: row.task_type for row in decision.model.scored_rows}
    texts: list[str] = []
    for key, loss in decision.option.of_sets.items():
        if text := _single_set(loss, decision.tolerance, items_of(type_of[key])):
            texts.append(f"on {set_name(*key)}, {text}")
    return f"The mean can hide a larger drop on a single set: {'; '.join(texts)}." if texts else ""


def _single_set(loss: Loss, tolerance: float, items: str) -> str:
    if loss.most <= tolerance:
        return ""
    if loss.least > tolerance:
        return f"the score drops by {number(loss.value)} points (at least {number(loss.least)}), more than the accepted drop"
    bound = loss.most if loss.value < tolerance else loss.least
    enough = pairs_that_tell(loss.n, loss.value, bound, tolerance)
    settled_by = f"; about {_rounded_up(enough):,.0f} {items} would be enough" if enough < 1e6 else ""
    return (
        f"the score drops by {number(max(0.0, loss.value))} points, and {loss.n:,} {items} are too few to tell whether the true "
        f"drop is more than the accepted one (it may be anywhere from {number(loss.least)} to {number(loss.most)}, with 90% confidence{settled_by})"
    )


def _others(material: Material) -> list[ModelAnalysis]:
    return [m for m in material.models if not m.baseline and m is not material.decision.model and m.options]


def _other_model(material: Material, model: ModelAnalysis) -> str:
    name, option, best = material.name(model), model.recommended, material.decision.best
    if option is None:
        refusal = _refusal(model.options[0], material.decision.tolerance)
        return f"No vector of {name} is accepted: compared with {_reference(material, model)}, {refusal}."
    against = "" if model is best else f", compared with {_reference(material, model)}"
    return (
        f"By the same rule, the smallest accepted vector of {name} has {_option(option)} ({_bytes(option.bytes)}). "
        f"{_lost(option.loss)}{against}."
    )


def _not_counted(material: Material) -> list[str]:
    """Describe which test sets and precisions the decision excludes, and why."""
    decision = material.decision
    compared = [model for model in material.models if not model.baseline]
    scored = dict.fromkeys(row.set_key for model in compared for row in model.scored_rows)
    others = [set_name(*key) for key in scored if key not in (*decision.sets, *decision.too_low)]
    paragraphs: list[str] = []
    if decision.too_low and decision.sets:
        names = join(set_name(*key) for key in decision.too_low)
        paragraphs.append(
            f"Excluded from the mean, because no model scores {100 * MIN_SCORE:.0f} or more there at full width: {names}."
        )
    if others and decision.sets:
        paragraphs.append(
            f"Excluded from the mean, because at least one model has no score or no confidence interval there: {join(others)}."
        )
    if decision.model is not None:
        sets_with_int8 = [
            key for key in decision.sets if (decision.model.width, "int8") in decision.model.estimates.get(key, {})
        ]
        if 0 < len(sets_with_int8) < len(decision.sets):
            paragraphs.append("int8 and binary vectors are not compared here: they are scored only on sets of pairs.")
    return paragraphs


def _plot(material: Material) -> Plot:
    """Plot score against bytes, with the paired interval of the drop around each score."""
    decision = material.decision
    assert decision.model is not None and decision.option is not None
    full = decision.full_score
    points_of = {
        material.label(model): [
            {
                "dim": option.dim,
                "precision": option.precision,
                "bytes": option.bytes,
                "score": 100 * option.score,
                "low": 100 * (full - option.loss.most),
                "high": 100 * (full - option.loss.least),
                "picked": option is decision.option,
            }
            for option in model.options
        ]
        for model in material.models
        if model.options
    }
    candidates = [p for m in material.models if not m.baseline for p in points_of.get(material.label(m), [])]
    lowest_accepted = 100 * (full - decision.tolerance)
    svg = plots.pareto_plot(points_of, pareto_front(candidates), lowest_accepted, f"drop of {_tolerance(decision)}")
    return Plot("Score against bytes per vector", svg)


def _table(material: Material) -> Table:
    decision, search = material.decision, material.search
    columns = ["model", "vector", "accepted", "bytes per vector", "mean score", "drop", "upper bound of the drop (95%)",
               "encode, ms per text", "search, ms per query"]  # fmt: skip
    rows: list[list[str]] = []
    picked: set[int] = set()
    for model in material.models:
        for option in [] if model.baseline else model.options:
            if option is decision.option:
                picked.add(len(rows))
            reference = (model, option.dim, option.precision) == (decision.best, model.width, "float32")
            rows.append(
                [
                    material.name(model),
                    f"{option.dim} {option.precision}",
                    "yes" if option.accepted else "no" if option.tried else NO_VALUE,
                    f"{option.bytes:,}",
                    number(option.score),
                    NO_VALUE if reference else number(option.loss.value),
                    NO_VALUE if reference else number(option.loss.most),
                    _milliseconds(model.encode_ms),
                    _milliseconds(search.ms.get((option.dim, option.precision))),
                ]
            )
    return Table(
        columns, rows, "Cost and drop in score of each choice", note=_note(material), text_columns=3, picked=picked
    )


def _milliseconds(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _note(material: Material) -> str:
    decision, search = material.decision, material.search
    assert decision.best is not None
    text = (
        "Accepted: dimensions are tried from the full width down, then int8 and binary at the smallest accepted dimension. Each of "
        f"these two sequences ends at the first vector whose score may drop by more than {_tolerance(decision)}; the vectors after it are not tried "
        "(–).\nBytes per vector: equal to megabytes per million vectors, without an index. Mean score: "
        f"{'the mean over ' if len(decision.sets) > 1 else 'the score on '}{_sets(decision)}. Drop: how many points the mean score is below "
        f"that of all {decision.best.width} dimensions of {material.name(decision.best)} in float32. Upper bound of the drop: each bound "
        "has a confidence above 95%, so that the decision as a whole, over all dimensions, precisions and models, has 95%."
    )
    if search.vectors:
        text += (
            f"\nTimes: short measurements on this machine ({material.hardware}), which other processes can distort. Compare them only roughly. "
            f"Encoding takes the same time at every dimension. Search is exhaustive, over {search.vectors:,} random vectors, one query at a "
            "time, in NumPy; int8 search is not timed, because NumPy has no fast int8 dot product."
        )
    if any(option.precision != "float32" for model in material.models for option in model.options):
        text += (
            "\nQuantisation: both sentences of a pair are quantised, with sentence-transformers. The int8 ranges are fitted on "
            f"{material.calibration}, and int8 vectors are converted back to float32 before their cosine similarity is computed. Binary "
            "vectors (one bit for the sign of each dimension) are compared by Hamming distance."
        )
    return text

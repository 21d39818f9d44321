"""The report's first section: the dimension to deploy, and how sure that is."""

from __future__ import annotations

from evaluation.utils.analysis.model_analysis import ModelAnalysis
from evaluation.utils.analysis.quantization import PRECISIONS, bytes_per_vector, gigabytes_per_million
from evaluation.utils.analysis.recommendation import MIN_SCORE, Choice, recommend, retention, sets_that_count
from evaluation.utils.report.content import Section, Table
from evaluation.utils.report.formatting import NO_VALUE, interval, join, number, p_text, signed
from evaluation.utils.report.material import Material
from evaluation.utils.scoring.rows import set_name


def build(material: Material) -> Section:
    section = Section("The answer")
    for model in material.models:
        if not model.baseline:
            _add_model(section, model, material.label(model))
    section.paragraphs.append(
        "“Not significantly below” does not mean “as good”: the intervals above say which losses the pairs at hand cannot rule "
        "out."
    )
    if material.warning:
        section.paragraphs.append(material.warning)
    return section


def _add_model(section: Section, model: ModelAnalysis, name: str) -> None:
    sets = sets_that_count(model.estimates, model.width)
    best = recommend(model.dimensions)
    section.leads.add(len(section.paragraphs))
    if best is None:
        why = (
            f"no set has a score of {100 * MIN_SCORE:.0f} at full width"
            if model.estimates
            else "none of these tasks has an interval"
        )
        section.paragraphs.append(f"No dimension of {name} can be recommended: {why}.")
        return
    section.paragraphs += _recommendation(model, best, name, sets)
    smallest = recommend(model.grid, PRECISIONS)
    if smallest is not None and (smallest.dim, smallest.precision) != (best.dim, "float32"):
        section.paragraphs.append(
            f"With quantised vectors, {smallest.dim} dimensions in {smallest.precision} are the smallest by the same test: "
            f"{_savings(smallest, model.width)}. " + _certainty(smallest, len(sets))
        )
    section.tables.append(_dimension_table(model, best, name))
    if not_counted := [set_name(*key) for key in model.estimates if key not in sets]:
        section.paragraphs.append(
            f"{join(not_counted)} did not count: {name} scores below {100 * MIN_SCORE:.0f} there at full width, so there "
            "is nothing to retain."
        )


def _recommendation(model: ModelAnalysis, best: Choice, name: str, sets: list[tuple[str, str]]) -> list[str]:
    """The paragraphs that say which dimension to deploy, and why."""
    set_names = join(set_name(*key) for key in sets)
    if len(model.dimensions) == 1:
        return [
            f"Of {name} only the full width of {model.width} dimensions was scored: give --dims to choose between several."
        ]
    if best.dim == model.width:
        next_smaller = model.dimensions[-2]
        return [
            f"Keep all {model.width} dimensions of {name}: every smaller one that was tried scores significantly "
            f"lower (p < 0.05), on the mean of {set_names} or on one of these sets.",
            f"What the next smaller, {next_smaller.dim} dimensions, costs: " + _certainty(next_smaller, len(sets)),
        ]
    return [
        f"Deploy {name} at {best.dim} of its {model.width} dimensions: {_savings(best, model.width)}.",
        "It is the smallest dimension tried whose score is not significantly below the full width's (p of 0.05 or more), "
        f"neither on the mean of {set_names} nor, corrected for their number, on any of them. "
        + _certainty(best, len(sets)),
    ]


def _savings(choice: Choice, width: int) -> str:
    full = bytes_per_vector(width, "float32")
    return (
        f"{choice.bytes} bytes a vector instead of {full} ({full / choice.bytes:.3g} times less), or "
        f"{gigabytes_per_million(choice.dim, choice.precision):.3g} GB for a million vectors instead of "
        f"{gigabytes_per_million(width):.3g} GB"
    )


def _certainty(choice: Choice, sets: int) -> str:
    name, value, low, high, p = choice.worst
    text = (
        f"The mean score is {number(choice.score)} there and {number(choice.full)} at the full width, a difference of "
        f"{signed(choice.difference)} points (95% interval {interval(choice.low, choice.high)}, p = {p_text(choice.p)}): "
        f"a mean loss of more than {number(max(0.0, -choice.low))} points is unlikely."
    )
    if sets > 1:
        text += (
            f" On the set that loses most, {name}, the difference is {signed(value)} ({interval(low, high)}, "
            f"p = {p_text(p)}, and {p_text(min(1.0, p * sets))} corrected for {sets} sets)."
        )
    return text


def _dimension_table(model: ModelAnalysis, best: Choice, name: str) -> Table:
    columns = [
        "dimensions",
        "bytes a vector",
        "GB per million",
        "mean score",
        "retention, %",
        "difference",
        "95% interval",
        "p",
    ]
    largest_first = model.dimensions[::-1]
    rows = [
        [
            str(c.dim),
            str(c.bytes),
            f"{gigabytes_per_million(c.dim):.3g}",
            number(c.score),
            number(retention(c.score, c.full), 1),
            *([signed(c.difference), interval(c.low, c.high), p_text(c.p)] if c.dim != model.width else [NO_VALUE] * 3),
        ]
        for c in largest_first
    ]
    picked = {i for i, c in enumerate(largest_first) if c == best}
    return Table(columns, rows, f"{name}: what each dimension costs and keeps", picked=picked)

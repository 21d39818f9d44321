"""What the report says: the answer first, then what it rests on."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from evaluation.utils.analysis.baselines import DRAWS
from evaluation.utils.analysis.model_analysis import ModelAnalysis
from evaluation.utils.analysis.published import neighbours, rank_among_published
from evaluation.utils.analysis.quantization import bytes_per_vector, gigabytes_per_million, pareto_front
from evaluation.utils.analysis.recommendation import MIN_SCORE, Choice, recommend, retention, sets_that_count
from evaluation.utils.analysis.shortlist import TOP
from evaluation.utils.report import plots
from evaluation.utils.report.render import Plot, Section, Table
from evaluation.utils.report.summary import metric_name, names_in, score_cell
from evaluation.utils.scoring.pairs import main_language
from evaluation.utils.scoring.statistics import RESAMPLES, SEED, mean_estimate, unpaired_difference

NO_SCORE = "–"


def number(value: float, digits: int = 2) -> str:
    """A score × 100; a dash for NaN."""
    return NO_SCORE if pd.isna(value) else f"{100 * value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    return NO_SCORE if pd.isna(value) else f"{100 * value:+.{digits}f}".replace("-", "−")


def minus(text: str) -> str:
    """A minus sign for each hyphen before a digit."""
    return re.sub(r"-(?=\d)", "−", text)


def p_text(p: float) -> str:
    return NO_SCORE if pd.isna(p) else "< 0.001" if p < 0.001 + 1e-9 else f"{p:.3f}"


def interval(low: float, high: float, digits: int = 2) -> str:
    return NO_SCORE if pd.isna(low) else f"{signed(low, digits)} to {signed(high, digits)}"


def set_name(key: tuple[str, str]) -> str:
    return " ".join(key).removesuffix(" default")


def join(words: Iterable[str]) -> str:
    words = list(words)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def build_sections(models: list[ModelAnalysis], table: pd.DataFrame, calibration: str | None, made_with: dict[str, str],
                   note: str = "") -> list[Section]:  # fmt: skip
    """All sections that have something to say.

    Args:
        models: The first is the one that others are held against.
        table: The summary's rows of this run.
        calibration: What PCA and the quantisation ranges were fitted on.
        made_with: What to say of the run: command, versions, revisions.
        note: A warning that belongs above everything, such as that the scores are not of MTEB.
    """
    names = names_in(table)
    called = {id(m): names[m.identity.name, m.identity.revision] for m in models}
    label = lambda m: called[id(m)] + (" (baseline)" if m.baseline else "")  # noqa: E731
    made = [
        answer(models, label, note),
        scores(models, table, label),
        model_differences(models, table, label),
        transfer(models, label),
        published(models, label),
        baselines(models, label, calibration),
        grid(models, label, calibration),
        shortlists(models, label),
        errors(models, label),
        Section("made", "How this was made", [f"{name}: {text}" for name, text in made_with.items()] + [
            f"Scores are mteb's main scores × 100. Intervals are 95% bias-corrected and accelerated bootstrap intervals "
            f"({RESAMPLES} resamples of the pairs or queries, seed {SEED}, every resample ranked anew); differences are paired: "
            "each resample takes the same pairs for both sides. p-values are two-sided and not corrected for the number of "
            "comparisons. Intervals tell how far a score would move with other pairs of the same kind, and nothing of texts "
            "of another kind. Means over sets and gaps between them take the sets for independent samples: where they translate "
            "the same sentences, as the subsets of STS17 do, intervals of means are somewhat too narrow and those of gaps too wide.",
        ]),
    ]  # fmt: skip
    return [section for section in made if section is not None]


def _describe(choice: Choice, width: int) -> str:
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
        text += f" On the set that loses most, {name}, the difference is {signed(value)} ({interval(low, high)}, p = {p_text(p)}, and {p_text(min(1.0, p * sets))} corrected for {sets} sets)."
    return text


def answer(models: list[ModelAnalysis], label, note: str) -> Section:
    section = Section("answer", "The answer")
    for model in models:
        if model.baseline:
            continue
        sets = sets_that_count(model.estimates, model.width)
        left_out = [set_name(key) for key in model.estimates if key not in sets]
        best = recommend(model.dimensions)
        section.leads.add(len(section.paragraphs))
        if best is None:
            why = (
                f"no set has a score of {100 * MIN_SCORE:.0f} at full width"
                if model.estimates
                else "none of these tasks has an interval"
            )
            section.paragraphs.append(f"No dimension of {label(model)} can be recommended: {why}.")
            continue
        if len(model.dimensions) == 1:
            section.paragraphs.append(
                f"Of {label(model)} only the full width of {model.width} dimensions was scored: give --dims to choose between several."
            )
        elif best.dim == model.width:
            section.paragraphs.append(
                f"Keep all {model.width} dimensions of {label(model)}: every smaller one that was tried scores significantly "
                f"lower (p < 0.05), on the mean of {join(map(set_name, sets))} or on one of these sets."
            )
            for choice in model.dimensions[-2:-1]:
                section.paragraphs.append(
                    f"What the next smaller, {choice.dim} dimensions, costs: " + _certainty(choice, len(sets))
                )
        else:
            section.paragraphs += [
                f"Deploy {label(model)} at {best.dim} of its {model.width} dimensions: {_describe(best, model.width)}.",
                "It is the smallest dimension tried whose score is not significantly below the full width's (p of 0.05 or more), "
                f"neither on the mean of {join(map(set_name, sets))} nor, corrected for their number, on any of them. "
                + _certainty(best, len(sets)),
            ]
        small = recommend(model.grid, ("float32", "int8", "binary"))
        if small is not None and (small.dim, small.precision) != (best.dim, "float32"):
            section.paragraphs.append(
                f"With quantised vectors, {small.dim} dimensions in {small.precision} are the smallest by the same test: "
                f"{_describe(small, model.width)}. " + _certainty(small, len(sets))
            )
        section.tables.append(_dimension_table(model, best, label(model)))
        if left_out:
            section.paragraphs.append(
                f"{join(left_out)} did not count: {label(model)} scores below {100 * MIN_SCORE:.0f} there at full width, so there "
                "is nothing to retain."
            )
    section.paragraphs.append(
        "“Not significantly below” does not mean “as good”: the intervals above say which losses the pairs at hand cannot rule "
        "out."
    )
    if note:
        section.paragraphs.append(note)
    return section


def _dimension_table(model: ModelAnalysis, best: Choice, name: str) -> Table:
    rows = [
        [str(c.dim), str(c.bytes), f"{gigabytes_per_million(c.dim):.3g}", number(c.score), number(retention(c.score, c.full), 1),
         *([signed(c.difference), interval(c.low, c.high), p_text(c.p)] if c.dim != model.width else [NO_SCORE] * 3)]
        for c in reversed(model.dimensions)
    ]  # fmt: skip
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
    picked = {i for i, c in enumerate(reversed(model.dimensions)) if c == best}
    return Table(columns, rows, f"{name}: what each dimension costs and keeps", picked=picked)


def scores(models: list[ModelAnalysis], table: pd.DataFrame, label) -> Section:
    section = Section("scores", "Scores by dimension")
    what = metric_name(table)
    dims = sorted(table["dim"].unique(), reverse=True)
    for (task, subset), panel in table.groupby(["task", "subset"], sort=False):
        lines: dict[str, list[tuple[int, float, float, float]]] = {}
        rows: list[list[str]] = []
        for model in models:
            chosen = panel[(panel["model"] == model.identity.name) & (panel["revision"] == model.identity.revision)]
            if chosen.empty:
                continue
            by_dim = {row.dim: row for row in chosen.itertuples()}
            lines[label(model)] = [
                (row.dim, 100 * row.score, *(100 * (row.score if pd.isna(x) else x) for x in (row.ci_low, row.ci_high)))
                for row in chosen.itertuples()
            ]
            found = [by_dim.get(dim) for dim in dims]
            cells = [
                ""
                if r is None
                else minus(score_cell(r.score, r.ci_low, r.ci_high, r.p_full if r.diff_full < 0 else np.nan))
                for r in found
            ]
            rows.append([label(model), "score", *cells])
            rows.append(["", "retention, %", *("" if r is None else number(r.retention, 1) for r in found)])
        n = panel["n"].iloc[0]
        name = set_name((task, subset))
        ours = set(panel["model"])
        near = neighbours(task, subset, panel.loc[panel["dim"] == panel["dim"].max(), "score"].max(), each_side=1)
        near = near[~near["model"].isin(ours)]
        for other in near.itertuples():
            rows.append([other.model, "published", number(other.cosine_spearman), *[""] * (len(dims) - 1)])
        references = {row.model.split("/")[-1]: 100 * row.cosine_spearman for row in near.itertuples()}
        section.plots.append(
            Plot(
                f"{name}: score by dimension",
                plots.score_plot(
                    name, lines, "Spearman × 100" if what.startswith("Spearman") else "score × 100", references
                ),
            )
        )
        section.tables.append(
            Table(
                ["model", "", *map(str, dims)], rows, f"{name}, n = {n:.0f}, {panel['metric'].iloc[0]}", text_columns=2
            )
        )
    section.tables[-1].note = (
        "In brackets the 95% interval; no brackets where the task has none (bootstrap intervals are drawn for sentence "
        "similarity, pair classification and retrieval). * significantly below the same model's full width (p < 0.05). "
        f"Retention is the share of the full-width score, and undefined where that is below {100 * MIN_SCORE:.0f}."
    )
    if any(row[1] == "published" for made in section.tables for row in made.rows):
        section.tables[-1].note += (
            " Published: the best score of the Arabic field, GATE-AraBert-v1's, and those next to these models, at the width "
            "they were published for; dotted lines where they lie in the plot."
        )
    return section


def model_differences(models: list[ModelAnalysis], table: pd.DataFrame, label) -> Section | None:
    if len(models) < 2:
        return None
    section = Section("models", "Models compared")
    section.paragraphs.append(
        f"Score minus that of {label(models[0])} at the same dimension (its full width for a full width), paired over the same "
        "pairs or queries."
    )
    for model in models[1:]:
        rows = [
            [set_name((r["task"], r["subset"])), str(r["dim"]), number(r["score"]), signed(r["diff_model"]),
             interval(r["diff_model_low"], r["diff_model_high"]), p_text(r["p_model"])]
            for r in model.rows if "diff_model" in r
        ]  # fmt: skip
        if rows:
            section.tables.append(
                Table(["set", "dimension", "score", "difference", "95% interval", "p"], rows, label(model))
            )
    return section if section.tables else None


def transfer(models: list[ModelAnalysis], label) -> Section | None:
    """Monolingual and cross-lingual subsets of the same task side by side, with the gap."""
    section = Section("languages", "Languages and cross-lingual transfer")
    for model in models:
        for task in dict.fromkeys(task for task, _ in model.languages):
            subsets = {s: langs for (t, s), langs in model.languages.items() if t == task and (t, s) in model.estimates}
            if len(subsets) < 2 or not all(subsets.values()):
                continue
            at = {(s, dim): model.estimates[task, s][dim, "float32"] for s in subsets for dim in model.dims}
            rows = [
                [s, *(minus(score_cell(at[s, d].value, *at[s, d].interval())) for d in model.dims)] for s in subsets
            ]
            order = sorted(subsets, key=lambda s: (len(subsets[s]), s))  # what is said of one language first
            for i, one in enumerate(order):
                for other in order[i + 1 :]:
                    if set(subsets[one]) & set(subsets[other]) or len(subsets[other]) == 1:
                        gaps = [unpaired_difference(at[other, dim], at[one, dim]) for dim in model.dims]
                        rows.append([f"gap, {other} less {one}",
                                     *(f"{signed(gap.value)} ({interval(*gap.interval(), 1)})" for gap in gaps)])  # fmt: skip
            section.tables.append(Table(["subset", *map(str, model.dims)], rows, f"{label(model)}, {task}"))
    arabic = _language_means(models, label)
    if arabic is not None:
        section.tables.append(arabic)
    return section if section.tables else None


def _language_means(models: list[ModelAnalysis], label) -> Table | None:
    names = {"ara": "Arabic", "eng": "English", "cross-lingual": "cross-lingual"}
    rows = []
    dims = sorted({dim for model in models for dim in model.dims}, reverse=True)
    for model in models:
        groups: dict[str, list[tuple[str, str]]] = {}
        for key, languages in model.languages.items():
            if languages and key in model.estimates:
                groups.setdefault(main_language(languages), []).append(key)
        for language, keys in groups.items():
            cells = []
            for dim in dims:
                if dim not in model.dims:
                    cells.append("")
                    continue
                mean = mean_estimate([model.estimates[key][dim, "float32"] for key in keys])
                cells.append(minus(score_cell(mean.value, *mean.interval())))
            rows.append([label(model), names.get(language, language), ", ".join(map(set_name, keys)), *cells])
    if not rows:
        return None
    return Table(["model", "language", "mean of", *map(str, dims)], rows, "Means by language", text_columns=3,
                 note="A mean for one language never takes in a cross-lingual set.")  # fmt: skip


def published(models: list[ModelAnalysis], label) -> Section | None:
    section = Section("published", "Among the published scores of the Arabic field")
    rows: list[list[str]] = []
    tables: list[Table] = []
    first = next((m for m in models if not m.baseline), models[0])
    for model in models:
        for row in model.rows:
            if row["dim"] != model.width or pd.isna(row.get("ci_low", np.nan)):
                continue
            found = rank_among_published(
                row["task"], row["subset"], row["score"], row["ci_low"], row["ci_high"], row["model"]
            )
            if found is None:
                continue
            own = "" if pd.isna(found["own"]) else number(found["own"])
            rows.append([label(model), set_name((row["task"], row["subset"])), number(row["score"]), own, f"{found['rank']} of {found['of']}",
                         f"{found['best']} to {found['worst']}"])  # fmt: skip
            if model is first:
                near = neighbours(row["task"], row["subset"], row["score"])
                lines = [(r.cosine_spearman, r.model, r.source) for r in near.itertuples() if r.model != row["model"]]
                lines = sorted([*lines, (row["score"], f"→ {label(model)}, measured here", "this run")], reverse=True)
                picked = {i for i, (_, _, source) in enumerate(lines) if source == "this run"}
                tables.append(Table(["model", "source", "score"], [[name, source, number(score)] for score, name, source in lines],
                                    f"The best and the nearest on {set_name((row['task'], row['subset']))}", text_columns=2, picked=picked))  # fmt: skip
    if not rows:
        return None
    section.paragraphs.append(
        "Ranks at full width, 1 for the best. The last column takes the rank at both ends of the score's interval: published "
        "scores bear such intervals too."
    )
    section.tables = [
        Table(["model", "set", "score here", "its published score", "rank", "rank by interval"], rows, text_columns=2),
        *tables,
    ]
    section.tables[-1].note = (
        "Sources: mteb-results is the CC0 results repository of MTEB (github.com/embeddings-benchmark/results, commit f4cc6c8); "
        "model-card is the model's own page on the Hugging Face Hub."
    )
    return section


def baselines(models: list[ModelAnalysis], label, calibration: str | None) -> Section | None:
    section = Section("baselines", "Against other ways to make an embedding smaller")
    for model in models:
        sets = sets_that_count(model.estimates, model.width)
        table = pd.DataFrame([row for row in model.baselines if (row["task"], row["subset"]) in sets])
        if table.empty or len(model.dims) < 2:
            continue
        means = table.groupby(["method", "dim"], sort=False)["score"].mean()
        methods = list(dict.fromkeys(table["method"]))
        full = means["prefix", model.width]
        rows = [
            [
                method,
                *(
                    f"{number(means[method, dim])} ({number(retention(means[method, dim], full), 1)}%)"
                    for dim in model.dims
                ),
            ]
            for method in methods
        ]
        lines = {method: [(dim, 100 * means[method, dim]) for dim in model.dims] for method in methods}
        section.plots.append(Plot(f"{label(model)}: baselines", plots.baseline_plot(label(model), lines)))
        section.tables.append(Table(["method", *map(str, model.dims)], rows, f"{label(model)}: mean of {join(map(set_name, sets))}",
                                    picked={methods.index("prefix")}))  # fmt: skip
    if not section.tables:
        return None
    section.paragraphs.append(
        "Matryoshka training orders the dimensions, so that the first ones (prefix) can stand alone. What any embedding gives "
        f"without it: its principal components (PCA, centred, fitted on {calibration}, not on the test sets), a random projection, "
        f"or randomly chosen dimensions (means of {DRAWS} draws). Retention in brackets is against the full embedding as it is."
    )
    return section


def grid(models: list[ModelAnalysis], label, calibration: str | None) -> Section | None:
    section = Section("precision", "Dimension and precision: what a byte buys")
    for model in models:
        if not model.grid:
            continue
        points = [
            {"dim": c.dim, "precision": c.precision, "bytes": c.bytes, "score": 100 * c.score} for c in model.grid
        ]
        front = pareto_front(points)
        on_front = {(p["dim"], p["precision"]) for p in front}
        picked = recommend(model.grid, ("float32", "int8", "binary"))
        rows = [
            [str(c.dim), c.precision, "yes" if (c.dim, c.precision) in on_front else "", str(c.bytes),
             f"{gigabytes_per_million(c.dim, c.precision):.3g}", number(c.score), number(retention(c.score, c.full), 1),
             signed(c.difference), interval(c.low, c.high), p_text(c.p)]
            for c in model.grid
        ]  # fmt: skip
        section.plots.append(
            Plot(f"{label(model)}: score against bytes", plots.pareto_plot(label(model), points, front))
        )
        section.tables.append(
            Table(["dimension", "precision", "Pareto", "bytes a vector", "GB per million", "mean score", "retention, %",
                   "difference", "95% interval", "p"], rows, label(model), text_columns=3,
                  picked={i for i, c in enumerate(model.grid) if c == picked})
        )  # fmt: skip
    if not section.tables:
        return None
    section.paragraphs.append(
        "Both sides of a pair are quantised with sentence-transformers: int8 with ranges taken from "
        f"{calibration}, turned back to numbers before the cosine; binary (the signs) compared by Hamming distance. The difference "
        "is to the full width in float32. Pareto: no cheaper choice scores higher. The marked row is the smallest that is not "
        "significantly below."
    )
    return section


def shortlists(models: list[ModelAnalysis], label) -> Section | None:
    section = Section("shortlist", "Shortlist and rescore: search short, rank long")
    for model in models:
        for name, found in model.shortlists.items():
            if not found or model.baseline:
                continue
            sizes = sorted({row["k"] for row in found})
            rows = []
            for dim in model.dims:
                for precision in ("float32", "binary"):
                    chosen = {r["k"]: r for r in found if r["dim"] == dim and r["precision"] == precision}
                    if chosen:
                        cheapest = chosen[sizes[-1]]
                        rows.append([str(dim), precision, *(number(chosen[k]["recall"], 1) for k in sizes),
                                     f"{cheapest['bytes'] / 1e9:.3f}", f"{cheapest['saving']:.3g}×"])  # fmt: skip
            section.plots.append(
                Plot(f"{label(model)}: recall of a shortlist", plots.shortlist_plot(label(model), found))
            )
            section.tables.append(Table(["dimension", "precision", *(f"k = {k}" for k in sizes), "GB read", "less by"], rows,
                                        f"{label(model)}: recall, %, searching {name}", text_columns=2))  # fmt: skip
    if not section.tables:
        return None
    section.paragraphs.append(
        f"Search with the first dimensions (or their signs), then rescore the best k with the full vectors. Recall is the share of "
        f"the full search's {TOP} nearest texts that come back. GB read: what one query reads of an index of a million vectors by "
        "exhaustive search, short vectors first and then the largest shortlist in full; the last column holds that against a full search. "
        "Recall falls with the size of the corpus: measure yours with a retrieval task."
    )
    return section


def errors(models: list[ModelAnalysis], label) -> Section | None:
    section = Section("errors", "Where truncation hurts")
    for model in models:
        table = pd.DataFrame(model.errors)
        if table.empty or model.baseline or len(model.dims) < 2:
            continue
        for (task, subset), part in table.groupby(["task", "subset"], sort=False):
            rows = []
            for (_, value), line in part.groupby(["group", "value"], sort=False):
                by_dim = dict(zip(line["dim"], line["error"], strict=True))
                rows.append([value, str(line["pairs"].iloc[0]), *(f"{by_dim[dim]:.1f}" for dim in model.dims),
                             f"{by_dim[model.dims[-1]] - by_dim[model.width]:+.1f}".replace("-", "−")])  # fmt: skip
            section.tables.append(Table(["pairs", "n", *map(str, model.dims), f"change at {model.dims[-1]}"], rows,
                                        f"{label(model)}, {set_name((task, subset))}"))  # fmt: skip
    if not section.tables:
        return None
    section.paragraphs.append(
        "How far the rank of a pair by similarity is from its rank by gold score, on average, in percent of the pairs of the set: "
        "0 is the gold order, 33 a random one. The pairs whose rank changes most are quoted in errors.html beside this report."
    )
    return section


def moved_sections(models: list[ModelAnalysis], table: pd.DataFrame) -> list[Section]:
    """The pairs that truncation moves most, for ``errors.html``."""
    names = names_in(table)
    sections = []
    for model in models:
        for name, moved in model.moved.items():
            rows = [
                [m["sentence1"], m["sentence2"], f"{m['gold']:g}", f"{m['gold_rank']:.0f}", f"{m['full_rank']:.0f}",
                 f"{m['cut_rank']:.0f}", "worse" if m["hurt"] else "better"]
                for m in moved
            ]  # fmt: skip
            title = f"{names[model.identity.name, model.identity.revision]}, {name}: from {model.width} to {model.dims[-1]} dimensions"
            columns = [
                "sentence 1",
                "sentence 2",
                "gold score",
                "gold rank",
                f"rank at {model.width}",
                f"rank at {model.dims[-1]}",
                "order",
            ]
            sections.append(Section(f"moved-{len(sections)}", title, tables=[Table(columns, rows, text_columns=2)]))
    return sections

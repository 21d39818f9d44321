"""What an evaluation leaves behind: ``summary.csv``, a Markdown table, and a plot of the score against the dimension."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from common.errors import RunError, one_line
from common.records import quarantine, read_json_file, write_atomically

KEY = ["model", "revision", "dtype", "task", "subset", "dim"]
METRICS = [
    f"{similarity}_{kind}"
    for similarity in ("cosine", "dot", "euclidean", "manhattan")
    for kind in ("spearman", "pearson")
]
INTERVALS = ["retention", "ci_low", "ci_high", "diff_full", "diff_full_low", "diff_full_high", "p_full",
             "compared_with", "diff_model", "diff_model_low", "diff_model_high", "p_model"]  # fmt: skip
NOTE = "note"  # why there is no score
TEXT = ["model", "revision", "dtype", "task", "subset", "dataset_revision", "mteb_version", "task_type", "metric",
        "compared_with", NOTE]  # fmt: skip
COLUMNS = ["model", "revision", "task", "subset", "dim", "n", *METRICS, "dtype", "dataset_revision", "mteb_version",
           "task_type", "metric", "score", *INTERVALS, NOTE]  # fmt: skip


def update_summary(path: Path, rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Put rows into ``summary.csv``: one for each model, revision, precision, task, subset and dimension.

    A row that is there already takes the new values and, where the data is the same, keeps those that are not given again;
    all others stay. Safe when several processes do so at once.

    A file that is no summary, or a damaged one, is set aside.

    Returns:
        The whole summary.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pd.DataFrame(list(rows)).reindex(columns=COLUMNS).set_index(KEY)
    with FileLock(path.with_name(f".{path.name}.lock")):
        table = new
        if path.exists():
            try:
                old = read_summary(path).set_index(KEY)
            except RunError as error:
                quarantine(path, str(error))
            else:
                before, now = (
                    rows["dataset_revision"].astype(object).fillna("") for rows in (old.reindex(new.index), new)
                )
                replaced = new.index[new[NOTE].notna() | (before != now)]  # of which nothing old may stay
                table = new.combine_first(old.drop(index=replaced, errors="ignore"))
                table.loc[new.index[new[NOTE].isna()], NOTE] = None
        table = table.reset_index().reindex(columns=COLUMNS)
        table = table.sort_values(
            ["model", "revision", "dtype", "task", "subset", "dim"], ascending=[True] * 5 + [False]
        )
        text = io.StringIO()
        table.to_csv(text, index=False)
        write_atomically(path, text.getvalue())
    return table


def read_summary(path: Path) -> pd.DataFrame:
    """The rows of a ``summary.csv``. Raises :class:`RunError` where the file is not one, or not whole."""
    numbers = {name: float for name in COLUMNS if name not in (*TEXT, "dim", "n")} | {"dim": int, "n": "Int64"}
    try:
        text = path.read_text(encoding="utf-8")
        lengths = {len(row) for row in csv.reader(io.StringIO(text), strict=True)}  # pandas fills a short line up
        table = pd.read_csv(
            io.StringIO(text), dtype={name: str for name in TEXT} | numbers, keep_default_na=False, na_values=[""]
        )
    except (ValueError, csv.Error) as error:  # pandas' errors are ValueErrors
        raise RunError(one_line(error, 100)) from None
    if missing := [column for column in KEY if column not in table.columns]:
        raise RunError(f"no column {missing[0]!r}")
    if len(lengths) > 1 or not text.endswith("\n") or table[KEY].isna().any(axis=None):
        raise RunError("a line is cut off")
    if table.duplicated(KEY).any():
        raise RunError("a score stands twice")
    return table.reindex(columns=COLUMNS)


LEGEND = (
    "In brackets the 95% interval (paired bootstrap). * significantly below the same model's full width (p < 0.05). "
    "No brackets: the task has no interval."
)


def metric_name(table: pd.DataFrame) -> str:
    """What the scores are, in words, where they are all the same."""
    metrics = set(table["metric"].dropna())
    return (
        "Spearman correlation (cosine)"
        if metrics == {"cosine_spearman"}
        else metrics.pop()
        if len(metrics) == 1
        else "Main score"
    )


def display_names(models: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """What to call each model and revision: its name, with the revision where two share it."""
    models = list(dict.fromkeys(models))
    names = [name for name, _ in models]
    return {(m, r): f"{m} ({r[:8]})" if names.count(m) > 1 else m for m, r in models}


def names_in(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """:func:`display_names` of the models of a summary, in its order."""
    return display_names(zip(table["model"], table["revision"], strict=True))


def score_cell(score: float, low: float = float("nan"), high: float = float("nan"), p: float = float("nan")) -> str:
    """``87.59 (84.0–90.1)``, with a ``*`` where the score is significantly below the full width's."""
    if pd.isna(score):
        return ""
    text = f"{100 * score:.2f}"
    if pd.notna(low) and pd.notna(high):
        text += f" ({100 * low:.1f}–{100 * high:.1f})" if low >= 0 else f" ({100 * low:.1f} to {100 * high:.1f})"
    return text + ("*" if pd.notna(p) and p < 0.05 else "")


def plain(text: str) -> str:
    """Text that is no markup in Markdown, nor ends a table's cell."""
    for character, shown in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("[", "\\[")):
        text = text.replace(character, shown)
    return " ".join(text.split())


def markdown_table(table: pd.DataFrame) -> str:
    """A Markdown table: a line for each model, task and subset, a column for each dimension, main scores times 100 with
    their 95% intervals."""
    dims = sorted(table["dim"].unique(), reverse=True)
    names = names_in(table)
    lines = [
        "| model | task | subset | n | " + " | ".join(str(dim) for dim in dims) + " |",
        "|---|---|---|---:|" + "---:|" * len(dims),
    ]
    for (model, revision, task, subset), group in table.groupby(["model", "revision", "task", "subset"], sort=False):
        cells = {
            row.dim: score_cell(row.score, row.ci_low, row.ci_high, row.p_full if row.diff_full < 0 else float("nan"))
            for row in group.itertuples()
        }
        shown = " | ".join(cells.get(dim, "") for dim in dims)
        name, task, subset = (plain(text) for text in (names[model, revision], task, subset))
        lines.append(f"| {name} | {task} | {subset} | {group['n'].iloc[0]:.0f} | {shown} |")
    return "\n".join(lines) + "\n"


def plot(table: pd.DataFrame, path: Path) -> None:
    """Main score against dimension with its 95% interval, one panel for each task and subset, one line for each model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["text.parse_math"] = False  # a name with dollar signs is a name

    panels = list(table.groupby(["task", "subset"], sort=False))
    names = names_in(table)
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.2 * columns + 0.8, 3.4 * lines + 0.7), squeeze=False)
    dims = sorted(table["dim"].unique())
    for axis, ((task, subset), panel) in zip(axes.flat, panels, strict=False):
        for color, (model, revision) in enumerate(names):
            line = panel[(panel["model"] == model) & (panel["revision"] == revision)].sort_values("dim")
            if not line.empty:
                label = names[model, revision]
                axis.plot(line["dim"], 100 * line["score"], marker="o", color=f"C{color}", label=label)
                axis.fill_between(
                    line["dim"].astype(float), 100 * line["ci_low"].astype(float), 100 * line["ci_high"].astype(float),
                    color=f"C{color}", alpha=0.15, linewidth=0,
                )  # fmt: skip
        low, high = axis.get_ylim()
        if high - low < 10:  # a smaller span would make mountains of what is noise on these test sets
            axis.set_ylim((low + high) / 2 - 5, (low + high) / 2 + 5)
        axis.set_title(f"{task} {subset}" if subset != "default" else task, fontsize=11)
        axis.set_xscale("log", base=2)
        axis.set_xticks(dims, [str(dim) for dim in dims])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel(f"{metric_name(table)} × 100")
    shaded = " (shaded: 95% interval)" if table["ci_low"].notna().any() else ""
    figure.supxlabel(f"embedding dimension{shaded}", fontsize=11)
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="upper center", ncols=min(3, len(handles)), frameon=False, fontsize=9
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight() * (1 + (len(handles) - 1) // 3)))
    temporary = path.with_name(f".{path.name}.partial.png")
    figure.savefig(temporary, dpi=150)
    temporary.replace(path)
    plt.close(figure)


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result file; what it holds of other subsets of the same data stays. Safe when several processes do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        known = read_json_file(path)
        ours = {entry["hf_subset"] for entry in result["scores"]}
        if known.get("dataset_revision") == result["dataset_revision"] and isinstance(known.get("scores"), list):
            kept = [e for e in known["scores"] if isinstance(e, dict) and e.get("hf_subset") not in ours]
            result = result | {"scores": kept + result["scores"]}
        write_atomically(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def unscored_lines(table: pd.DataFrame) -> list[str]:
    """A line of words for each model, task and subset that has no score, with the reason."""
    names = names_in(table)
    missing = table[table[NOTE].notna()]
    lines = []
    for (model, revision, task, subset, note), group in missing.groupby(
        ["model", "revision", "task", "subset", NOTE], sort=False
    ):
        dims = ", ".join(str(dim) for dim in group["dim"])
        where = f"{task} {subset}".removesuffix(" default")
        lines.append(f"{where} at {dims} dimensions has no score with {names[model, revision]}: {note}.")
    return lines

"""``table.md`` and ``plot.png``: the main scores of a run by dimension."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from common.records import write_atomically
from evaluation.utils.report.formatting import escape_markdown, metric_name, names_in, score_cell
from evaluation.utils.report.plots import Line, save_score_panels
from evaluation.utils.report.summary import NOTE
from evaluation.utils.scoring.rows import set_name

LEGEND = (
    "In brackets: the 95% interval (paired bootstrap). * significantly below the same model's full width (p < 0.05)."
)
WITHOUT_INTERVAL = "No brackets: the task has no interval."


def markdown_table(table: pd.DataFrame) -> str:
    """Return a Markdown table: a row for each model, task and subset, a column for each dimension, with main scores × 100 and
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


def plain(text: str) -> str:
    """Escape text for a table that is read both in a terminal and as Markdown."""
    return escape_markdown(text, keep_emphasis=True)


def unscored_lines(table: pd.DataFrame) -> list[str]:
    """Return a sentence for each model, task and subset without a score, with the reason."""
    names = names_in(table)
    lines: list[str] = []
    for (model, revision, task, subset, note), group in table[table[NOTE].notna()].groupby(
        ["model", "revision", "task", "subset", NOTE], sort=False
    ):
        dims = ", ".join(str(dim) for dim in group["dim"])
        lines.append(f"{names[model, revision]} has no score on {set_name(task, subset)} at {dims} dimensions: {note}.")
    return lines


def write_table(path: Path, table: pd.DataFrame, warning: str = "") -> str:
    """Write ``table.md``.

    Args:
        table: Rows of the summary; some may have no score.

    Returns:
        The table, with the reasons for missing scores and the legend, but without the heading.
    """
    scored = table[table["score"].notna()]
    legend = f"{LEGEND} {WITHOUT_INTERVAL}" if scored["ci_low"].isna().any() else LEGEND
    text = markdown_table(table) + "".join(f"\n{plain(line)}\n" for line in unscored_lines(table)) + f"\n{legend}\n"
    heading = f"# {metric_name(scored)} × 100, by embedding dimension\n\n" + (
        f"{plain(warning)}\n\n" if warning else ""
    )
    write_atomically(path, heading + text)
    return text


def write_plot(path: Path, table: pd.DataFrame) -> None:
    """Write ``plot.png``: main score against dimension with 95% intervals, one panel for each task and subset."""
    names = names_in(table)
    panels: list[tuple[str, dict[str, Line]]] = []
    for (task, subset), panel in table.groupby(["task", "subset"], sort=False):
        lines = {
            name: [
                (row.dim, 100 * row.score, 100 * row.ci_low, 100 * row.ci_high)
                for row in panel[(panel["model"] == model) & (panel["revision"] == revision)].itertuples()
            ]
            for (model, revision), name in names.items()
        }
        panels.append((set_name(task, subset), lines))
    shaded = " (shaded: 95% interval)" if table["ci_low"].notna().any() else ""
    save_score_panels(path, panels, f"{metric_name(table)} × 100", f"embedding dimension{shaded}")

"""What an evaluation leaves behind: ``summary.csv``, a Markdown table, and a plot of the score against the dimension."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from common.errors import RunError
from common.records import write_atomically

KEY = ["model", "revision", "dtype", "task", "subset", "dim"]
METRICS = [
    f"{similarity}_{kind}"
    for similarity in ("cosine", "dot", "euclidean", "manhattan")
    for kind in ("spearman", "pearson")
]
COLUMNS = ["model", "revision", "task", "subset", "dim", "n", *METRICS, "dtype", "dataset_revision", "mteb_version"]


def update_summary(path: Path, rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Put rows into ``summary.csv``: one for each model, revision, precision, task, subset and dimension.

    A row that is there already takes the new values and keeps those that are not given again; all others stay. Safe when
    several processes do so at once.

    Returns:
        The whole summary.

    Raises:
        RunError: The file is there but is not a summary; it is left as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pd.DataFrame(list(rows)).reindex(columns=COLUMNS).set_index(KEY)
    with FileLock(path.with_name(f".{path.name}.lock")):
        table = new.combine_first(read_summary(path).set_index(KEY)) if path.exists() else new
        table = table.reset_index().reindex(columns=COLUMNS)
        table = table.sort_values(
            ["model", "revision", "dtype", "task", "subset", "dim"], ascending=[True] * 5 + [False]
        )
        text = io.StringIO()
        table.to_csv(text, index=False)
        write_atomically(path, text.getvalue())
    return table


def read_summary(path: Path) -> pd.DataFrame:
    """The rows of a ``summary.csv``. Raises :class:`RunError` where the file is not one."""
    try:
        table = pd.read_csv(
            path, dtype={"model": str, "revision": str, "subset": str}, keep_default_na=False, na_values=[""]
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}): move it away and evaluate again") from None
    if missing := [column for column in KEY if column not in table.columns]:
        raise RunError(f"{path} is not a summary of scores (no column {missing[0]!r}): move it away and evaluate again")
    return table.reindex(columns=COLUMNS)


def markdown_table(table: pd.DataFrame, metric: str = "cosine_spearman") -> str:
    """A Markdown table: a line for each model, task and subset, a column for each dimension, scores times 100."""
    dims = sorted(table["dim"].unique(), reverse=True)
    lines = [
        "| model | task | subset | pairs | " + " | ".join(str(dim) for dim in dims) + " |",
        "|---|---|---|---:|" + "---:|" * len(dims),
    ]
    for (model, revision, task, subset), group in table.groupby(["model", "revision", "task", "subset"], sort=False):
        scores = {row.dim: getattr(row, metric) for row in group.itertuples()}
        cells = [f"{100 * scores[dim]:.2f}" if dim in scores and pd.notna(scores[dim]) else "" for dim in dims]
        same_name = table.loc[table["model"] == model, "revision"].nunique() > 1
        name = f"{model} ({revision[:8]})" if same_name else model
        lines.append(f"| {name} | {task} | {subset} | {group['n'].iloc[0]:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(table: pd.DataFrame, path: Path, metric: str = "cosine_spearman") -> None:
    """Score against dimension, one panel for each task and subset, one line for each model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(table.groupby(["task", "subset"], sort=False))
    models = list(dict.fromkeys(zip(table["model"], table["revision"], strict=True)))
    names = [m for m, _ in models]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.2 * columns + 0.8, 3.4 * lines + 0.7), squeeze=False, sharex=True
    )
    dims = sorted(table["dim"].unique())
    for axis, ((task, subset), panel) in zip(axes.flat, panels, strict=False):
        for color, (model, revision) in enumerate(models):
            line = panel[(panel["model"] == model) & (panel["revision"] == revision)].sort_values("dim")
            if not line.empty:
                label = f"{model} ({revision[:8]})" if names.count(model) > 1 else model
                axis.plot(line["dim"], 100 * line[metric], marker="o", color=f"C{color}", label=label)
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
        row[0].set_ylabel("Spearman × 100 (cosine)")
    figure.supxlabel("embedding dimension", fontsize=11)
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


def write_outputs(output_dir: Path, rows: list[dict[str, Any]], note: str = "") -> str:
    """Update ``summary.csv`` and write ``table.md`` and ``plot.png`` of these rows. Returns the Markdown table."""
    models = [row["model"] for row in rows]
    summary = update_summary(output_dir / "summary.csv", rows)
    wanted = pd.DataFrame(rows)[KEY].drop_duplicates()
    table = wanted.merge(summary, on=KEY, how="left")  # in the order of this run, with what earlier runs knew
    assert set(table["model"]) == set(models)
    text = markdown_table(table)
    heading = "# Spearman correlation × 100 (cosine similarity), by embedding dimension\n\n"
    write_atomically(output_dir / "table.md", heading + (f"{note}\n\n" if note else "") + text)
    plot(table, output_dir / "plot.png")
    return text


def write_result(path: Path, result: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")

"""Shows the scores of all models on each test set, by dimension, next to published ones."""

from __future__ import annotations

import numpy as np
import pandas as pd

from evaluation.utils.analysis.published import neighbours
from evaluation.utils.analysis.recommendation import MIN_SCORE
from evaluation.utils.report import plots
from evaluation.utils.report.content import Plot, Section, Table
from evaluation.utils.report.formatting import items_of, metric_name, minus, number, score_cell
from evaluation.utils.report.material import Material
from evaluation.utils.scoring.rows import set_name


def build(material: Material) -> Section:
    section = Section("Scores by dimension")
    any_published = False
    for (task, subset), panel in material.table.groupby(["task", "subset"], sort=False):
        name = set_name(task, subset)
        best_score = panel.loc[panel["dim"] == panel["dim"].max(), "score"].max()
        near = neighbours(task, subset, best_score, each_side=1, exclude=set(material.table["model"]))
        any_published = any_published or not near.empty
        section.plots.append(_plot(material, name, panel, near))
        section.tables.append(_table(material, name, panel, near))
    section.tables[-1].note = (
        "In brackets: the 95% interval, for tasks that have one (sentence "
        "similarity, pair classification and retrieval). * significantly below the same model's full-width score (p < 0.05). "
        f"Kept: the score as a percentage of the full-width score; undefined where that score is below {100 * MIN_SCORE:.0f}."
    )
    if any_published:
        section.tables[-1].note += (
            " Published: the best score, the score of GATE-AraBert-v1, and the scores just above and just below the best score measured here, "
            "never counting the models evaluated here. They are in the first column of scores, whatever the width of the model. Each plot shows "
            "those within its range as dotted lines."
        )
    return section


def _rows_by_model(material: Material, panel: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of a test set, by model label."""
    rows = {
        material.label(model): panel[
            (panel["model"] == model.identity.name) & (panel["revision"] == model.identity.revision)
        ]
        for model in material.models
    }
    return {label: table for label, table in rows.items() if not table.empty}


def _plot(material: Material, name: str, panel: pd.DataFrame, near: pd.DataFrame) -> Plot:
    lines = {
        label: [
            (row.dim, 100 * row.score, *(100 * (row.score if pd.isna(x) else x) for x in (row.ci_low, row.ci_high)))
            for row in rows.itertuples()
        ]
        for label, rows in _rows_by_model(material, panel).items()
    }
    is_spearman = metric_name(material.table).startswith("Spearman")
    references = {row.model.split("/")[-1]: 100 * row.cosine_spearman for row in near.itertuples()}
    svg = plots.score_plot(name, lines, "Spearman × 100" if is_spearman else "score × 100", references)
    return Plot(f"{name}: score by dimension", svg)


def _table(material: Material, name: str, panel: pd.DataFrame, near: pd.DataFrame) -> Table:
    dims = sorted(material.table["dim"].unique(), reverse=True)
    cells: list[list[str]] = []
    for label, rows in _rows_by_model(material, panel).items():
        row_of_dim = {row.dim: row for row in rows.itertuples()}
        rows_at_dims = [row_of_dim.get(dim) for dim in dims]
        cells.append([label, "score", *("" if row is None else _score(row) for row in rows_at_dims)])
        cells.append(["", "kept, %", *("" if row is None else number(row.retention, 1) for row in rows_at_dims)])
    for other in near.itertuples():
        cells.append([other.model, "published", number(other.cosine_spearman), *[""] * (len(dims) - 1)])
    caption = f"{name}: {panel['n'].iloc[0]:,.0f} {items_of(panel['task_type'].iloc[0])}, {metric_name(panel)}"
    return Table(["model", "", *map(str, dims)], cells, caption, text_columns=2)


def _score(row) -> str:
    p_below = row.p_full if row.diff_full < 0 else np.nan
    return minus(score_cell(row.score, row.ci_low, row.ci_high, p_below))

"""Compares the prefix with other ways to reduce an embedding."""

from __future__ import annotations

import pandas as pd

from evaluation.utils.analysis.baselines import DRAWS
from evaluation.utils.analysis.recommendation import retention
from evaluation.utils.report import plots
from evaluation.utils.report.content import Plot, Section, Table
from evaluation.utils.report.formatting import join, number
from evaluation.utils.report.material import Material
from evaluation.utils.scoring.rows import set_name


def build(material: Material) -> Section | None:
    section = Section("Compared with other ways to reduce an embedding")
    remarks = []
    for model in material.models:
        sets = [key for key in material.decision.sets if key in model.estimates]
        table = pd.DataFrame([row for row in model.baselines if (row["task"], row["subset"]) in sets])
        if table.empty or len(model.dims) < 2:
            continue
        label = material.label(model)
        means = table.groupby(["method", "dim"], sort=False)["score"].mean()
        methods = list(dict.fromkeys(table["method"]))
        full = means["prefix", model.width]
        higher = {
            method: [dim for dim in model.dims if dim < model.width and means[method, dim] > means["prefix", dim]]
            for method in methods
        }
        if any(higher.values()):
            listed = "; ".join(f"{method} at {join(map(str, dims))}" for method, dims in higher.items() if dims)
            remarks.append(
                f"{label}: other methods score higher than the prefix ({listed}). Significance was not tested."
            )
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
        lines = {
            method: [(dim, *[100 * means[method, dim]] * 3) for dim in model.dims]  # low = high = mean: no intervals
            for method in methods
        }
        section.plots.append(Plot(f"{label}: baselines", plots.score_plot(label, lines, "mean score × 100")))
        section.tables.append(
            Table(
                ["method", *map(str, model.dims)],
                rows,
                f"{label}: mean of {join(set_name(*key) for key in sets)}",
                picked={methods.index("prefix")},
            )
        )
    if not section.tables:
        return None
    section.paragraphs.append(
        "Matryoshka training orders the dimensions, so that the first ones (the prefix) can be used alone. The other methods "
        f"need no such training: principal components (PCA, centred, fitted on {material.calibration}, not on the test sets); "
        f"a random projection; and randomly chosen dimensions. The scores of the last two are means over {DRAWS} draws. In brackets: the "
        "score as a percentage of the full-width embedding's score (kept, %)."
    )
    section.paragraphs += remarks
    return section

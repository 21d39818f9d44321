"""Shows how far pairs are from their gold order at each dimension, by score band and length."""

from __future__ import annotations

import pandas as pd

from evaluation.utils.report.content import Section, Table
from evaluation.utils.report.formatting import signed
from evaluation.utils.report.material import Material
from evaluation.utils.scoring.rows import set_name


def build(material: Material) -> Section | None:
    section = Section("Where truncation hurts")
    for model in material.models:
        table = pd.DataFrame(model.errors)
        if table.empty or model.baseline or len(model.dims) < 2:
            continue
        smallest = model.dims[-1]
        columns = ["pairs", "n", *map(str, model.dims), f"change from {model.width} to {smallest}"]
        for (task, subset), of_set in table.groupby(["task", "subset"], sort=False):
            rows: list[list[str]] = []
            for (group, value), of_group in of_set.groupby(["group", "value"], sort=False):
                error = dict(zip(of_group["dim"], of_group["error"], strict=True))
                change = signed((error[smallest] - error[model.width]) / 100, 1)
                errors = [f"{error[dim]:.1f}" for dim in model.dims]
                name = f"gold {value}" if group == "score" else value
                rows.append([name, f"{of_group['pairs'].iloc[0]:,}", *errors, change])
            section.tables.append(Table(columns, rows, f"{material.label(model)}, {set_name(task, subset)}"))
    if not section.tables:
        return None
    section.paragraphs.append(
        "The tables give the average distance between a pair's rank by similarity and its rank by gold score, as a percentage of the "
        "number of pairs: 0 is the gold order, 33 a random order. The quarters are by length: the number of words in both sentences "
        "together. errors.html, next to this report, quotes the pairs whose rank changes most."
    )
    return section

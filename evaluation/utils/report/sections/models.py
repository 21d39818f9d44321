"""Shows the difference between each other model and the first, at each dimension."""

from __future__ import annotations

from evaluation.utils.report.content import Section, Table
from evaluation.utils.report.formatting import interval, number, p_text, signed
from evaluation.utils.report.material import Material
from evaluation.utils.scoring.rows import set_name


def build(material: Material) -> Section | None:
    if len(material.models) < 2:
        return None
    first, *others = material.models
    section = Section("Models compared")
    section.paragraphs.append(
        f"Difference: the score minus the score of {material.label(first)} at the same dimension, on the same pairs or queries. Full "
        "width is compared with full width, even if the models' widths differ."
    )
    columns = ["set", "dimension", "score", "difference", "95% interval", "p"]
    for model in others:
        compared = [row for row in model.scored_rows if row.diff_model is not None]
        sets = list(dict.fromkeys(row.set_key for row in compared))
        rows = [
            [
                set_name(*row.set_key),
                str(row.dim),
                number(row.score),
                signed(row.diff_model),
                interval(row.diff_model_low, row.diff_model_high),
                p_text(row.p_model),
            ]
            for row in sorted(compared, key=lambda row: (sets.index(row.set_key), -row.dim))
        ]
        if rows:
            section.tables.append(Table(columns, rows, material.label(model)))
    return section if section.tables else None

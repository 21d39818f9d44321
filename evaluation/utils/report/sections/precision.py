"""Every dimension in every precision: what a byte buys."""

from __future__ import annotations

from evaluation.utils.analysis.quantization import PRECISIONS, gigabytes_per_million, pareto_front
from evaluation.utils.analysis.recommendation import recommend, retention
from evaluation.utils.report import plots
from evaluation.utils.report.content import Plot, Section, Table
from evaluation.utils.report.formatting import interval, number, p_text, signed
from evaluation.utils.report.material import Material

COLUMNS = [
    "dimension",
    "precision",
    "Pareto",
    "bytes a vector",
    "GB per million",
    "mean score",
    "retention, %",
    "difference",
    "95% interval",
    "p",
]


def build(material: Material) -> Section | None:
    section = Section("Dimension and precision: what a byte buys")
    for model in material.models:
        if not model.grid:
            continue
        label = material.label(model)
        points = [
            {"dim": c.dim, "precision": c.precision, "bytes": c.bytes, "score": 100 * c.score} for c in model.grid
        ]
        front = pareto_front(points)
        on_front = {(p["dim"], p["precision"]) for p in front}
        recommended = recommend(model.grid, PRECISIONS)
        rows = [
            [
                str(c.dim),
                c.precision,
                "yes" if (c.dim, c.precision) in on_front else "",
                str(c.bytes),
                f"{gigabytes_per_million(c.dim, c.precision):.3g}",
                number(c.score),
                number(retention(c.score, c.full), 1),
                signed(c.difference),
                interval(c.low, c.high),
                p_text(c.p),
            ]
            for c in model.grid
        ]
        picked = {i for i, c in enumerate(model.grid) if c == recommended}
        section.plots.append(Plot(f"{label}: score against bytes", plots.pareto_plot(label, points, front)))
        section.tables.append(Table(COLUMNS, rows, label, text_columns=3, picked=picked))
    if not section.tables:
        return None
    section.paragraphs.append(
        "Both sides of a pair are quantised with sentence-transformers: int8 with ranges taken from "
        f"{material.calibration}, turned back to numbers before the cosine; binary (the signs) compared by Hamming distance. The "
        "difference is to the full width in float32. Pareto: no cheaper choice scores higher. The marked row is the smallest that "
        "is not significantly below."
    )
    return section

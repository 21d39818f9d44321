"""Ranks the full-width scores among published scores on STS17, STS22 and STS22.v2."""

from __future__ import annotations

import pandas as pd

from evaluation.utils.analysis.published import neighbours, rank_among_published
from evaluation.utils.report.content import Section, Table
from evaluation.utils.report.formatting import number
from evaluation.utils.report.material import Material
from evaluation.utils.scoring.rows import ScoreRow, set_name

SOURCES = (
    "Sources: mteb-results is the CC0 results repository of MTEB (github.com/embeddings-benchmark/results, commit f4cc6c8); "
    "model-card is the model's own page on the Hugging Face Hub."
)


def build(material: Material) -> Section | None:
    section = Section("Rank among published scores")
    ranks: list[list[str]] = []
    tables: list[Table] = []
    first = next((m for m in material.models if not m.baseline), material.models[0])
    for model in material.models:
        label = material.label(model)
        for row in model.scored_rows:
            if row.dim != model.width or pd.isna(row.ci_low):
                continue
            rank = rank_among_published(row.task, row.subset, row.score, row.ci_low, row.ci_high, row.model)
            if rank is None:
                continue
            ranks.append(
                [
                    label,
                    set_name(*row.set_key),
                    number(row.score),
                    "" if pd.isna(rank["own"]) else number(rank["own"]),
                    f"{rank['rank']} of {rank['of']}",
                    f"{rank['best']} to {rank['worst']}",
                ]
            )
            if model is first:
                tables.append(_nearest(row, label))
    if not ranks:
        return None
    section.paragraphs.append(
        "Ranks at full width; 1 is the best. The last column gives the ranks at the two ends of the score's interval. Published "
        "scores are just as uncertain."
    )
    columns = ["model", "set", "score here", "published score", "rank", "rank, 95% interval"]
    section.tables = [Table(columns, ranks, text_columns=2), *tables]
    section.tables[-1].note = SOURCES
    return section


def _nearest(row: ScoreRow, label: str) -> Table:
    """Return the published scores of :func:`neighbours` for a row's test set and score, with the row's own score among them.

    The published score of the row's own model is not among them: :func:`build` shows it next to the rank.
    """
    near = neighbours(row.task, row.subset, row.score, exclude=[row.model])
    scores = [(r.cosine_spearman, r.model, r.source) for r in near.itertuples()]
    scores = sorted([*scores, (row.score, f"→ {label}, measured here", "this run")], reverse=True)
    return Table(
        ["model", "source", "score"],
        [[name, source, number(score)] for score, name, source in scores],
        f"{set_name(*row.set_key)}: the best published score, those nearest to the score of {label}, and that of GATE-AraBert-v1",
        text_columns=2,
        picked={i for i, (_, _, source) in enumerate(scores) if source == "this run"},
    )

"""Published scores on STS17, STS22 and STS22.v2, and the rank of a score among them.

``evaluation/published_results.csv`` holds cosine Spearman correlations of 56 models in all, on STS17 (ar-ar, en-ar, en-en) and on
the Arabic subset of STS22 and STS22.v2. Not every model has a score on every subset. The source ``mteb-results`` is
https://github.com/embeddings-benchmark/results (CC0) at commit f4cc6c8, file
``results/<model with / as __>/<revision>/<task>.json``; ``model-card`` is the model's page on the Hugging Face Hub.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path

import pandas as pd

FILE = Path(__file__).resolve().parents[2] / "published_results.csv"


@cache
def published_results() -> pd.DataFrame:
    """Return the columns ``model, task, subset, cosine_spearman, revision, mteb_version, source``; the first three identify a row."""
    return pd.read_csv(FILE, dtype={"revision": str, "mteb_version": str}, keep_default_na=False)


def rank_among_published(
    task: str, subset: str, score: float, low: float, high: float, model: str = ""
) -> dict[str, int | float] | None:
    """Return the rank of a score among the published scores of other models.

    Args:
        score, low, high: The score, from -1 to 1, and its interval.
        model: The model's name; its own published score is excluded.

    Returns:
        ``rank`` (1 is best), ``best`` and ``worst`` (the ranks at the ends of the interval), ``of`` (the number of models,
        this one included) and ``own`` (its own published score, or NaN); None if nothing is published.
    """
    table = published_results()
    table = table[(table["task"] == task) & (table["subset"] == subset)]
    own = table.loc[table["model"] == model, "cosine_spearman"]
    others = table.loc[table["model"] != model, "cosine_spearman"]
    if others.empty:
        return None
    ranks = {name: 1 + int((others > value).sum()) for name, value in (("rank", score), ("best", high), ("worst", low))}
    return ranks | {"of": len(others) + 1, "own": float(own.iloc[0]) if len(own) else float("nan")}


def neighbours(task: str, subset: str, score: float, each_side: int = 3, exclude: Collection[str] = ()) -> pd.DataFrame:
    """Return the nearest published scores above and below, the best one, and the score of GATE-AraBert-v1; best first.

    Args:
        each_side: The number of scores above, and below.
        exclude: Names of models whose scores are not considered.
    """
    table = published_results()
    table = table[(table["task"] == task) & (table["subset"] == subset) & ~table["model"].isin(list(exclude))]
    table = table.sort_values("cosine_spearman", ascending=False)
    place = int((table["cosine_spearman"] > score).sum())
    near = table.iloc[max(0, place - each_side) : place + each_side]
    known = table[table["model"].str.endswith("/GATE-AraBert-v1")]
    return pd.concat([table.head(1), known, near]).drop_duplicates().sort_values("cosine_spearman", ascending=False)

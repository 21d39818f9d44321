"""Shows where truncation hurts: how far pairs are from their gold order, by score band, length and dimension."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata

from evaluation.utils.scoring.pairs import PairSet

WORST = 15  # pairs shown for each set
QUARTERS = ("shortest quarter", "second quarter", "third quarter", "longest quarter")


def rank_shares(values: np.ndarray) -> np.ndarray:
    """Return ranks as percentages of the number of pairs, shape ``[n]``."""
    return 100 * rankdata(values) / len(values)


def _bands(gold: np.ndarray) -> dict[str, np.ndarray]:
    """Group the pairs by gold score: by value if there are at most three, otherwise into four bands of equal width."""
    labels = np.unique(gold)
    if len(labels) <= 3:
        return {f"score {label:g}": gold == label for label in labels}
    edges = np.linspace(gold.min(), gold.max(), 5)
    band = np.clip(np.searchsorted(edges, gold, side="right") - 1, 0, 3)
    return {f"score {edges[i]:.3g} to {edges[i + 1]:.3g}": band == i for i in range(4)}


def _lengths(pairs: PairSet) -> dict[str, np.ndarray]:
    words = np.array([len(a.split()) + len(b.split()) for a, b in zip(pairs.sentence1, pairs.sentence2, strict=True)])
    quarter = np.minimum(4 * (rankdata(words, method="ordinal") - 1) // len(words), 3)
    return {
        f"{name} ({words[quarter == i].min()}–{words[quarter == i].max()} words)": quarter == i
        for i, name in enumerate(QUARTERS)
        if (quarter == i).any()
    }


def rank_errors(pairs: PairSet, dims: list[int]) -> list[dict[str, Any]]:
    """Return rows ``task, subset, group, value, pairs, dim, error``.

    ``error`` is the mean distance of a pair's rank by similarity from its rank by gold score, as a percentage of the
    number of pairs (33 for a random order).
    """
    gold = rank_shares(pairs.gold)
    groups = {
        "all": {"all pairs": np.ones(len(gold), dtype=bool)},
        "score": _bands(pairs.gold),
        "length": _lengths(pairs),
    }
    rows = []
    for dim in dims:
        error = np.abs(rank_shares(pairs.similarity(pairs.first[:, :dim], pairs.second[:, :dim])) - gold)
        for group, values in groups.items():
            rows += [
                {"task": pairs.task, "subset": pairs.subset, "group": group, "value": value, "pairs": int(inside.sum()),
                 "dim": dim, "error": float(error[inside].mean())}
                for value, inside in values.items()
                if inside.any()
            ]  # fmt: skip
    return rows


def pairs_that_move(pairs: PairSet, dim: int) -> list[dict[str, Any]]:
    """Return the pairs whose similarity rank changes most from the full width to ``dim`` dimensions, largest change first.

    Ranks are percentages of the number of pairs; 100 is the most similar pair.
    """
    full = rank_shares(pairs.similarity(pairs.first, pairs.second))
    cut = rank_shares(pairs.similarity(pairs.first[:, :dim], pairs.second[:, :dim]))
    gold = rank_shares(pairs.gold)
    order = np.argsort(-np.abs(cut - full), kind="stable")[:WORST]
    return [
        {"sentence1": pairs.sentence1[i], "sentence2": pairs.sentence2[i], "gold": float(pairs.gold[i]),
         "gold_rank": float(gold[i]), "full_rank": float(full[i]), "cut_rank": float(cut[i]),
         "hurt": bool(abs(cut[i] - gold[i]) > abs(full[i] - gold[i]))}
        for i in order
    ]  # fmt: skip

"""Four similarity measures for sentence pairs, and their correlations with gold scores.

A Matryoshka embedding's prefix is the smaller embedding (Kusupati et al., 2022, https://arxiv.org/abs/2205.13147), so
encoding once, at full width, serves every dimension. Similarities are computed on the prefix, not normalised, as with
``truncate_dim``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.errors import RunError

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
METRICS = tuple(f"{name}_{correlation}" for name in SIMILARITIES for correlation in ("spearman", "pearson"))


def pairwise_similarities(first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the similarity of each row of ``first`` with the corresponding row of ``second``. Distances are negated.

    Args:
        first, second: Arrays of shape ``[n, dim]``, not normalised.

    Returns:
        For ``cosine``, ``dot``, ``euclidean`` and ``manhattan`` an array of shape ``[n]``.
    """
    from sentence_transformers.util import pairwise_dot_score
    from sklearn.metrics import pairwise

    # The same float32 arithmetic as in mteb and sentence-transformers, so that pairs tie in the same way after rounding.
    return {
        "cosine": 1 - pairwise.paired_cosine_distances(first, second),
        "dot": pairwise_dot_score(first, second).numpy(),
        "euclidean": -pairwise.paired_euclidean_distances(first, second),
        "manhattan": -pairwise.paired_manhattan_distances(first, second),
    }


def sts_scores(first: np.ndarray, second: np.ndarray, gold: Sequence[float]) -> dict[str, float]:
    """Compute the Spearman and Pearson correlations of each similarity with the gold scores.

    Args:
        first, second: Raw prefixes of the embeddings of the pairs' sentences, shape ``[n, dim]``.
        gold: The ``n`` gold scores.

    Returns:
        ``{"cosine_spearman": ..., "cosine_pearson": ..., "dot_spearman": ...}``, each from -1 to 1.

    Raises:
        RunError: A correlation is undefined, because all similarities (or all scores) are equal.
    """
    from scipy.stats import pearsonr, spearmanr

    scores: dict[str, float] = {}
    for name, similarity in pairwise_similarities(first, second).items():
        for noun, values in (("similarity", similarity), ("score", np.asarray(gold))):
            if np.ptp(values) == 0:
                raise RunError(f"the {name} correlation is undefined: every pair has the same {noun}")
            if not np.isfinite(values).all():
                raise RunError(f"the {name} correlation is undefined: a {noun} is NaN or infinite")
        scores[f"{name}_spearman"] = float(spearmanr(gold, similarity).statistic)
        scores[f"{name}_pearson"] = float(pearsonr(gold, similarity).statistic)
    return scores

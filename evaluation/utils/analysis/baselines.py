"""Baselines that reduce any embedding, to show what Matryoshka training adds.

Principal components (centred, fitted on texts from outside the test sets), a Gaussian random projection, and randomly chosen
dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evaluation.utils.scoring.pairs import PairSet

DRAWS = 5  # the random baselines are means over this many draws

Transform = Callable[[np.ndarray], np.ndarray]


class PCA:
    """Principal components (Pearson, 1901) of embeddings of shape ``[n, width]``: the eigenvectors of their covariance."""

    def __init__(self, embeddings: np.ndarray):
        self.mean = embeddings.mean(axis=0)
        centred = (embeddings - self.mean).astype(np.float64)
        # in ascending order of variance; complete even if there are fewer texts than dimensions
        _, components = np.linalg.eigh(centred.T @ centred)
        self.components = components[:, ::-1].astype(np.float32)  # [width, width]

    def __call__(self, embeddings: np.ndarray, dim: int) -> np.ndarray:
        """Project embeddings to shape ``[n, dim]``."""
        return (embeddings - self.mean) @ self.components[:, :dim]


Method = Callable[[int], list[Transform]]  # transforms to a dimension: one, or several random draws


def transforms(calibration: np.ndarray, seed: int) -> dict[str, Method]:
    """Return the methods that reduce embeddings, by name.

    Args:
        calibration: Full-width embeddings of the texts that PCA is fitted on, shape ``[m, width]``.
    """
    pca, width = PCA(calibration), calibration.shape[1]

    def projection(dim: int, draw: int) -> Transform:
        matrix = np.random.default_rng([seed, 1, dim, draw]).standard_normal((width, dim)).astype(np.float32)
        return lambda x: x @ matrix

    def dimensions(dim: int, draw: int) -> Transform:
        chosen = np.random.default_rng([seed, 2, dim, draw]).permutation(width)[:dim]
        return lambda x: x[:, chosen]

    return {
        "prefix": lambda dim: [lambda x: x[:, :dim]],
        "PCA": lambda dim: [lambda x: pca(x, dim)],
        "random projection": lambda dim: [projection(dim, draw) for draw in range(DRAWS)],
        "random dimensions": lambda dim: [dimensions(dim, draw) for draw in range(DRAWS if dim < width else 1)],
    }


def baseline_scores(pairs: PairSet, dims: list[int], methods: dict[str, Method]) -> list[dict]:
    """Return rows ``task, subset, method, dim, score``: the main score, averaged over the draws."""
    rows = []
    for dim in dims:
        for name, transforms_to in methods.items():
            scores = [pairs.score(t(pairs.first), t(pairs.second)) for t in transforms_to(dim)]
            rows.append(
                {
                    "task": pairs.task,
                    "subset": pairs.subset,
                    "method": name,
                    "dim": dim,
                    "score": float(np.mean(scores)),
                }
            )
    return rows

"""Quantises vectors to int8 and binary at each dimension, with sentence-transformers."""

from __future__ import annotations

import numpy as np

PRECISIONS = ("float32", "int8", "binary")


def bytes_per_vector(dim: int, precision: str) -> int:
    return {"float32": 4 * dim, "int8": dim, "binary": -(-dim // 8)}[precision]


class Quantizer:
    """Quantises prefixes. The int8 ranges come from texts outside the test sets.

    Args:
        calibration: Full-width embeddings of these texts, shape ``[m, width]``.
    """

    def __init__(self, calibration: np.ndarray):
        self.ranges = np.stack([calibration.min(axis=0), calibration.max(axis=0)])

    def __call__(self, embeddings: np.ndarray, dim: int, precision: str) -> np.ndarray:
        """Return the vectors to store: shape ``[n, dim]``, or ``[n, dim / 8]`` bytes for ``binary``."""
        from sentence_transformers import quantize_embeddings

        stored = "ubinary" if precision == "binary" else precision
        return quantize_embeddings(np.asarray(embeddings[:, :dim]), stored, ranges=self.ranges[:, :dim])

    def restore(self, quantized: np.ndarray) -> np.ndarray:
        """Convert int8 to float32, to the middle of each quantisation step."""
        start, end = self.ranges[:, : quantized.shape[1]]
        return (start + (quantized.astype(np.float32) + 128.5) * (end - start) / 255).astype(np.float32)


def hamming_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return minus the number of differing bits between packed vectors, over the last axis."""
    return -np.bitwise_count(np.bitwise_xor(first, second)).sum(axis=-1, dtype=np.int64)


def pareto_front(points: list[dict], cost: str = "bytes", gain: str = "score") -> list[dict]:
    """Return the points that no point of equal or lower cost beats, cheapest first."""
    front: list[dict] = []
    for point in sorted(points, key=lambda p: (p[cost], -p[gain])):
        if not front or point[gain] > front[-1][gain]:
            front.append(point)
    return front

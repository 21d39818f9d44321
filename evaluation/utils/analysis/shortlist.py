"""Shortlist and rescore, the main use of Matryoshka embeddings (Kusupati et al., 2022, section 4.3): search with short vectors,
then rescore the best ``k`` at full width.
"""

from __future__ import annotations

import numpy as np
from tqdm.auto import tqdm

from evaluation.utils.analysis.quantization import Quantizer, bytes_per_vector, hamming_similarity

TOP = 10  # neighbours that the full search finds and the shortlist should find
SIZES = (10, 20, 50, 100, 200)
MAX_QUERIES = 1000
BLOCK = 4096  # vectors of the corpus compared at a time


def evenly_spaced(count: int, limit: int) -> np.ndarray:
    """Return at most ``limit`` of ``count`` row numbers, in order and evenly spaced from the first to the last."""
    return np.linspace(0, count - 1, min(count, limit)).round().astype(int)


def _unit(embeddings: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.maximum(norms, np.finfo(np.float32).tiny)


def search(queries: np.ndarray, corpus: np.ndarray, k: int, dim: int, quantizer: Quantizer | None = None,
           own: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
    """Find the ``k`` rows of ``corpus`` most similar to each query, best first, by the first ``dim`` dimensions.

    Args:
        queries, corpus: Shapes ``[q, width]`` and ``[n, width]``; the corpus may be a memory map: it is read in blocks.
        quantizer: If given, search binary vectors by Hamming distance instead of float32 ones by cosine.
        own: The row that is the query itself and must not be returned, shape ``[q]``; -1 for none.

    Returns:
        Row numbers, shape ``[q, k]``.
    """
    binary = quantizer is not None
    left = quantizer(queries, dim, "binary") if binary else _unit(queries[:, :dim])
    best_rows = np.zeros((len(queries), 0), dtype=np.int64)
    best = np.zeros((len(queries), 0), dtype=np.float32)
    for start in range(0, len(corpus), BLOCK):
        block = np.asarray(corpus[start : start + BLOCK])
        if binary:
            right = quantizer(block, dim, "binary")
            similarity = np.concatenate(
                [hamming_similarity(row[None], right)[None] for row in left]
            ).astype(np.float32)  # fmt: skip
        else:
            similarity = left @ _unit(block[:, :dim]).T
        if own is not None:
            inside = np.flatnonzero((own >= start) & (own < start + len(block)))
            similarity[inside, own[inside] - start] = -np.inf
        rows = np.broadcast_to(np.arange(start, start + len(block)), similarity.shape)
        best, best_rows = np.concatenate([best, similarity], axis=1), np.concatenate([best_rows, rows], axis=1)
        chosen = np.argsort(-best, axis=1, kind="stable")[:, :k]  # ties: the first row
        best, best_rows = np.take_along_axis(best, chosen, 1), np.take_along_axis(best_rows, chosen, 1)
    return best_rows


def shortlist_rows(queries: np.ndarray, corpus: np.ndarray, own: np.ndarray, dims: list[int], calibration: np.ndarray,
                   name: str = "") -> list[dict]:  # fmt: skip
    """Measure how much of the full search's result each shortlist recalls, and how many bytes it reads.

    Rescoring at full width orders the shortlist as the full search does, so recall after rescoring is the share of the
    full search's ten nearest that are in the shortlist.

    Returns:
        Rows ``dim, precision, k, recall, bytes, saving``: ``bytes`` is what one query reads from an index of a million
        vectors (all short vectors, then ``k`` full ones); ``saving`` is the full search's bytes divided by ``bytes``.
    """
    width = corpus.shape[1]
    top = min(TOP, len(corpus) - 1)
    sizes = [k for k in SIZES if top <= k < len(corpus)]
    quantizer = Quantizer(calibration)
    truth = search(queries, corpus, top, width, own=own)
    full = 1_000_000 * bytes_per_vector(width, "float32")
    rows = []
    stages = [(dim, precision) for dim in dims for precision in ("float32", "binary") if (dim, precision) != (width, "float32")]  # fmt: skip
    for dim, precision in tqdm(stages, desc=f"shortlists {name}".strip(), unit="search", leave=False):
        nearest = search(
            queries, corpus, max(sizes, default=top), dim, quantizer if precision == "binary" else None, own
        )
        for k in sizes:
            inside = (truth[:, :, None] == nearest[:, None, :k]).any(axis=2)
            read = 1_000_000 * bytes_per_vector(dim, precision) + k * bytes_per_vector(width, "float32")
            rows.append({"dim": dim, "precision": precision, "k": k, "recall": float(inside.mean()), "bytes": read,
                         "saving": full / read})  # fmt: skip
    return rows

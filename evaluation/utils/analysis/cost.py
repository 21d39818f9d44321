"""Measures the costs of an embedding: the time to encode a text, and the time to search vectors of each size."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from evaluation.utils.analysis.shortlist import evenly_spaced

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TEXTS = 64  # texts encoded to time a model
FEW_TEXTS = 4  # texts encoded first; if these are slow, only they are timed
REPEATS = 5  # the largest number of repetitions; the median is reported
SECONDS = 0.3  # limit after which a measurement is not repeated
VECTORS = 20_000  # vectors searched; fewer for a wide model
NUMBERS = 2**24  # limit on the number of values in all vectors (64 MiB)
NEIGHBOURS = 10


@dataclass(frozen=True)
class SearchTimes:
    """Milliseconds to find a query's ten nearest neighbours in a corpus of ``vectors`` vectors, one query at a time, by dimension
    and precision."""

    vectors: int = 0
    ms: dict[tuple[int, str], float] = field(default_factory=dict)


def encode_ms(model: SentenceTransformer, texts: Collection[str], batch_size: int) -> float | None:
    """Measure the milliseconds to encode a text, in batches of at most ``batch_size``; None if there are no texts.

    Takes less than a second or twice the time to encode four texts, whichever is longer.
    """
    chosen = sorted(texts)
    chosen = [chosen[row] for row in evenly_spaced(len(chosen), TEXTS)]
    if not chosen:
        return None

    def encode(some: list[str]) -> None:
        model.encode(some, batch_size=batch_size, show_progress_bar=False)

    few = chosen[:FEW_TEXTS]
    encode(few)  # the first pass allocates memory and compiles
    seconds = _median_seconds(lambda: encode(few), repeats=1) / len(few)
    if seconds * len(chosen) < SECONDS:
        seconds = _median_seconds(lambda: encode(chosen)) / len(chosen)
    return 1000 * seconds


def search_times(dims: Collection[int]) -> SearchTimes:
    """Time an exhaustive search of random vectors: by dot product for float32, by number of differing bits for binary.

    int8 is not timed, because NumPy does not use the processor's instructions for multiplying bytes.
    """
    vectors = min(VECTORS, NUMBERS // max(dims))
    rng = np.random.default_rng(0)
    corpus = rng.random((vectors, max(dims)), dtype=np.float32)
    times: dict[tuple[int, str], float] = {}
    for dim in sorted(dims, reverse=True):
        floats = np.ascontiguousarray(corpus[:, :dim])
        words = rng.integers(0, 2**63, (vectors, -(-dim // 64)), dtype=np.uint64)

        def by_product(floats: np.ndarray = floats) -> None:
            np.argpartition(-(floats @ floats[0]), NEIGHBOURS)

        def by_bits(words: np.ndarray = words) -> None:
            np.argpartition(np.bitwise_count(words ^ words[0]).sum(axis=1, dtype=np.int32), NEIGHBOURS)

        for precision, search in (("float32", by_product), ("binary", by_bits)):
            search()
            times[dim, precision] = 1000 * _median_seconds(search)
    return SearchTimes(vectors, times)


def _median_seconds(action: Callable[[], None], repeats: int = REPEATS) -> float:
    times: list[float] = []
    while len(times) < repeats and sum(times) < SECONDS:
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return median(times)

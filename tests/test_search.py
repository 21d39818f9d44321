"""The search benchmark's measures, against the computations of another module and against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.retrieval import Search, reciprocal_ranks
from benchmarks.search_tasks import TOP, Task, exact, mrr, without_query


@pytest.fixture
def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Normalised embeddings of 40 queries, the first 20 of which are texts of the corpus, and of 500 texts."""
    generator = np.random.default_rng(0)
    corpus = generator.standard_normal((500, 16)).astype(np.float32)
    queries = np.concatenate([corpus[:20], generator.standard_normal((20, 16)).astype(np.float32)])
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, corpus))


def test_exact_search_gives_the_nearest_first(vectors):
    queries, corpus = vectors
    expected = np.argsort(-(queries @ corpus.T), axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(exact(queries, corpus, 7), expected)


def test_mrr_is_the_mean_of_reciprocal_ranks_without_the_query_itself(vectors):
    queries, corpus = vectors
    generator = np.random.default_rng(1)
    # right answers near the top for some queries, far away for others
    order = np.argsort(-(queries @ corpus.T), axis=1)
    relevant = [{int(order[i, generator.integers(1, 25)]), int(order[i, 30])} for i in range(40)]
    excluded = [*range(20), *[-1] * 20]
    texts = [str(i) for i in range(40)]
    search = Search(texts, [str(i) for i in range(500)], relevant, excluded, TOP)
    task = Task(texts, relevant, excluded)
    found = mrr(without_query(exact(queries, corpus, TOP + 1).tolist(), task), task)
    assert 0 < found < 1
    assert found == pytest.approx(float(reciprocal_ranks(queries, corpus, search).mean()))
    assert all(own not in row for row, own in zip(without_query(order.tolist(), task), excluded, strict=True))


def test_a_rescored_shortlist_of_everything_is_exact_search(vectors):
    pytest.importorskip("usearch", reason="usearch is not installed")
    from benchmarks.search import build, rescore, stored

    queries, corpus = vectors
    index = build(corpus, 8, "float32")
    candidates = index.search(stored(queries, 8, "float32"), len(corpus), exact=True).keys.astype("int64")
    np.testing.assert_array_equal(rescore(candidates, queries, corpus)[:, :7], exact(queries, corpus, 7))
    # the index holds the prefixes alone: its own order is that of the first 8 dimensions
    prefixes = [x[:, :8] / np.linalg.norm(x[:, :8], axis=1, keepdims=True) for x in (queries, corpus)]
    np.testing.assert_array_equal(candidates[:, :5], exact(*prefixes, 5))


def test_binary_vectors_are_the_signs(vectors):
    pytest.importorskip("usearch", reason="usearch is not installed")
    from benchmarks.search import build, stored

    queries, corpus = vectors
    index = build(corpus, 16, "binary")
    distances = index.search(stored(queries, 16, "binary"), 3, exact=True).distances
    expected = np.sort(((queries[:, None] > 0) != (corpus[None] > 0)).sum(axis=2), axis=1)[:, :3]
    np.testing.assert_array_equal(distances, expected)

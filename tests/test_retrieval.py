"""The retrieval benchmark: its corpora, and ranks computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.retrieval import make_search, reciprocal_ranks


def test_a_search_has_each_text_once_and_no_query_for_its_own_answer():
    search = make_search([("q1", "a"), ("q2", "b"), ("q1", "b"), ("b", "b")], ["c", "a", "q2"], 10)
    assert search.corpus == ["a", "b", "c", "q2"]
    assert search.queries == ["q1", "q2"]
    assert search.relevant == [{0, 1}, {1}]
    assert search.excluded == [-1, 3]


@pytest.mark.parametrize(
    ("cutoff", "expected"),
    [(1, [0.0, 1.0]), (10, [1 / 2, 1.0])],
)
def test_the_rank_of_the_best_answer_without_the_query_itself(cutoff, expected):
    angles = np.radians([0, 40, 10, 90])  # the corpus
    corpus = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 3
    search = make_search([("first", "b"), ("second", "a")], ["c", "second"], cutoff)
    assert search.corpus == ["b", "a", "c", "second"]
    queries = np.array(
        [[np.cos(np.radians(9)), np.sin(np.radians(9))], [np.cos(np.radians(85)), np.sin(np.radians(85))]]
    )
    # of the first query, "c" (10 degrees) is nearest and "b" (0) second; the second query is itself in the corpus
    assert reciprocal_ranks(queries, corpus, search).tolist() == expected


def test_a_tie_counts_against_the_query():
    search = make_search([("q", "a")], ["b"], 10)
    assert reciprocal_ranks(np.ones((1, 2)), np.ones((2, 2)), search).tolist() == [0.5]

"""The interface of a scorer: it loads test data and scores models on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from evaluation.utils.scoring.pairs import PairSet
from evaluation.utils.scoring.rows import ScoredModel, ScoreRow
from evaluation.utils.scoring.statistics import Estimates

if TYPE_CHECKING:
    from evaluation.utils.scoring.embeddings import EmbeddingStore


@dataclass
class ModelScores:
    """The scores of one model, and the data for their analysis.

    Attributes:
        rows: One for each task, subset and dimension, with or without a score.
        pairs: The sets of graded or classified pairs that have a score at every dimension, with full-width embeddings.
        query_estimates: The estimates of retrieval tasks.
        corpora: Name, queries and corpus of retrieval tasks, for measuring shortlists.
        test_texts: Texts of the pairs in the test sets, on which nothing may be fitted.
    """

    rows: list[ScoreRow]
    pairs: list[PairSet] = field(default_factory=list)
    query_estimates: Estimates = field(default_factory=dict)
    corpora: list[tuple[str, np.ndarray, np.ndarray]] = field(default_factory=list)
    test_texts: set[str] = field(default_factory=set)


class Scorer(Protocol):
    """Scores models on test data; :func:`evaluation.utils.evaluation_utils.run_evaluation` does the rest.

    Attributes:
        data_files: Hashes of the user's files that the scores depend on.
        result_files: A description of the files that the scorer writes to the output directory.
        warning: A sentence to show next to the scores, or nothing.
    """

    data_files: list[str]
    result_files: str
    warning: str

    def load_data(self) -> dict[str, dict[str, Any]]:
        """Load the test data, once. Returns the description of each task's data for the run's record.

        Raises:
            UsageError, RunError: A task, subset or file does not exist, or cannot be read.
        """
        ...

    def score(self, store: EmbeddingStore, scored_model: ScoredModel, dims: list[int]) -> ModelScores:
        """Score a model at each of ``dims``, the full width first. Raises :class:`RunError` on failure."""
        ...

    def encoded_as(self) -> list[tuple[str, str, str | None]]:
        """Return the task, its type and the role (``query``, ``document`` or None) of everything that is encoded."""
        ...

    def encoded_counts(self, for_scores: int, for_calibration: int) -> Any:
        """Return the counts of encoded texts for the run's record."""
        ...

    def hub_datasets(self) -> dict[str, str]:
        """Return the Hub data set of each task, for model cards. For a task that is not in it, a card states the task's name."""
        ...

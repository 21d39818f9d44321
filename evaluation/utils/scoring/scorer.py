"""What an evaluation needs of a scorer: something to score on, and the scores of one model."""

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
    """The scores of one model, and what their analysis is made of.

    Attributes:
        rows: One for each task, subset and dimension, with or without a score.
        pairs: The sets of scored pairs that have a score at every dimension, with full-width embeddings.
        query_estimates: The estimates of retrieval tasks.
        corpora: Name, queries and texts of retrieval tasks, to measure shortlists on.
        test_texts: Texts of the test sets, which nothing may be fitted on.
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
        result_files: What the scorer itself writes into the output folder, in words.
        warning: A sentence that belongs next to the scores, or nothing.
    """

    data_files: list[str]
    result_files: str
    warning: str

    def load_data(self) -> dict[str, dict[str, Any]]:
        """Get the test data, once. Returns what the run's record says of each task's data.

        Raises:
            UsageError, RunError: A task, subset or file does not exist, or cannot be read.
        """
        ...

    def score(self, store: EmbeddingStore, scored_model: ScoredModel, dims: list[int]) -> ModelScores:
        """The scores of a model at each of ``dims``, the full width first. Raises :class:`RunError` where it fails."""
        ...

    def encoded_as(self) -> list[tuple[str, str, str | None]]:
        """The task, its type and the role (``query``, ``document`` or None) of everything that is encoded."""
        ...

    def encoded_counts(self, for_scores: int, for_calibration: int) -> Any:
        """How the run's record gives the texts that were encoded."""
        ...

    def hub_datasets(self) -> dict[str, str]:
        """The Hub data set of each task, for model cards; a task without one is named itself."""
        ...

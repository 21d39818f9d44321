"""The rows of ``summary.csv``, and the names of models and test sets in results."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.models import ModelIdentity

DEFAULT_SUBSET = "default"  # the Hub's name for the data of a task without subsets


@dataclass(frozen=True)
class ScoredModel:
    """Identifies the scored model: everything, except the dimension, that determines where embeddings and scores are stored.

    Settings that change embeddings (currently only the precision) belong here, so that results of different settings never mix.

    Attributes:
        dtype: The precision of the weights and the forward pass.
    """

    identity: ModelIdentity
    dtype: str = "float32"

    def columns(self) -> dict[str, str]:
        """Return the columns of a :class:`ScoreRow` that identify the model."""
        return {"model": self.identity.name, "revision": self.identity.revision, "dtype": self.dtype}

    def folder(self, parent: Path) -> Path:
        """Return the model's folder below ``parent``, for embeddings and scores of queries."""
        return parent / self.identity.name.replace("/", "__") / f"{self.identity.revision}-{self.dtype}"

    def experiment(self, dim: int) -> dict[str, Any]:
        """Return mteb's experiment, which identifies results in addition to name and revision; defaults are omitted."""
        return {"embed_dim": dim} | ({} if self.dtype == "float32" else {"dtype": self.dtype})

    def experiment_name(self, dim: int) -> str:
        """Return mteb's folder name for :meth:`experiment`: ``dtype_bfloat16__embed_dim_64``."""
        return "__".join(f"{key}_{value}" for key, value in sorted(self.experiment(dim).items()))


@dataclass
class ScoreRow:
    """The score of a model on a test set at a dimension: a row of ``summary.csv``. None becomes an empty cell.

    Attributes:
        subset: The task's subset, with the split if the task has several.
        n: Number of pairs, queries or texts.
        score: The task's main score, from -1 or 0 to 1, or None.
        note: Why there is no score.
        similarity_scores: ``cosine_spearman`` and the like, for sets of pairs.
        retention: Share of the full-width score.
        ci_low, ci_high: The score's 95% interval.
        diff_full, diff_full_low, diff_full_high, p_full: The score minus the full width's, with its interval and p-value.
        compared_with: ``<name>@<revision>`` of the model to which ``diff_model``, its interval and p-value refer.
    """

    model: str
    revision: str
    dtype: str
    task: str
    subset: str
    dim: int
    n: int
    task_type: str
    metric: str
    score: float | None = None
    note: str | None = None
    dataset_revision: str | None = None
    mteb_version: str | None = None
    similarity_scores: dict[str, float] = field(default_factory=dict)
    retention: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    diff_full: float | None = None
    diff_full_low: float | None = None
    diff_full_high: float | None = None
    p_full: float | None = None
    compared_with: str | None = None
    diff_model: float | None = None
    diff_model_low: float | None = None
    diff_model_high: float | None = None
    p_model: float | None = None

    @property
    def set_key(self) -> tuple[str, str]:
        """The test set: task and subset."""
        return self.task, self.subset

    def as_columns(self) -> dict[str, Any]:
        """Return the row's values by column of the summary, without None."""
        values = dataclasses.asdict(self)
        values |= values.pop("similarity_scores")
        return {name: value for name, value in values.items() if value is not None}


def set_name(task: str, subset: str) -> str:
    """Return a test set's name: the task and its subset, or only the task if it has no subsets."""
    return task if subset == DEFAULT_SUBSET else f"{task} {subset}"

"""Graded or classified pairs from a task, or graded ones from a user's file, with their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data_files import file_hash, read_pairs
from common.errors import UsageError
from common.formats import table_name
from evaluation.utils.options import STS_TASKS
from evaluation.utils.scoring.similarity import pairwise_similarities
from evaluation.utils.scoring.statistics import Statistic, average_precision, spearman
from evaluation.utils.scoring.tasks import check_subsets, get_task, load_task_data


@dataclass(frozen=True)
class PairSet:
    """The pairs of one task and subset.

    Attributes:
        languages: ISO 639-3 codes of the texts; several in a cross-lingual set.
        kind: ``spearman`` (gold scores) or ``average_precision`` (labels 0 and 1).
        gold: Shape ``[n]``.
        first, second: Full-width embeddings of ``sentence1`` and ``sentence2``, shape ``[n, width]``.
    """

    task: str
    subset: str
    languages: tuple[str, ...]
    kind: str
    sentence1: list[str]
    sentence2: list[str]
    gold: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @property
    def key(self) -> tuple[str, str]:
        return self.task, self.subset

    @property
    def sample(self) -> str:
        """The name that, with the seed, determines the resamples: all models and dimensions are compared on the same ones."""
        return f"{self.task} {self.subset}"

    def statistic(self, similarities: Sequence[np.ndarray]) -> Statistic:
        """Return the statistic for the bootstrap, for ``k`` columns of similarities, each of shape ``[n]``."""
        return (spearman if self.kind == "spearman" else average_precision)(self.gold, similarities)

    def similarity(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the similarities of the pairs' embeddings, shape ``[n]``: cosine for graded pairs; for classified pairs,
        whichever of the four similarity measures scores highest, as in mteb's ``max_ap``."""
        similarities = pairwise_similarities(first, second)
        if self.kind == "spearman":
            return similarities["cosine"]
        scores = self.statistic(list(similarities.values()))(np.ones((len(self.gold), 1)))[:, 0]
        return list(similarities.values())[int(np.argmax(scores))]

    def score(self, first: np.ndarray, second: np.ndarray) -> float:
        """Return the main score of the pairs' embeddings, from -1 (or 0) to 1; NaN if it is undefined."""
        return float(self.statistic([self.similarity(first, second)])(np.ones((len(self.gold), 1)))[0, 0])


def main_language(languages: Sequence[str]) -> str:
    """Return ``ara``, ``eng`` or another code for a set in one language, ``cross-lingual`` for several."""
    return languages[0] if len(languages) == 1 else "cross-lingual"


def languages_of_name(subset: str) -> tuple[str, ...]:
    """Return the languages in a subset's name: ``("ara",)`` for ``ar-ar``, ``("ara", "eng")`` for ``en-ar``, otherwise none."""
    codes = {"ar": "ara", "en": "eng"}
    parts = subset.lower().split("-")
    return tuple(sorted({codes[part] for part in parts})) if all(part in codes for part in parts) else ()


def load_pairs(
    task_name: str | None, data: str | None, wanted: list[str], defaults: list[str], explicit: bool
) -> tuple[str, dict[str, dict[str, list[Any]]], str]:
    """Load the graded pairs of an mteb STS task or a user's file. Whether their correlation is defined is not checked here.

    Args:
        explicit: Whether the user named the subsets ``wanted``; a missing subset is then an error.

    Returns:
        The task's name (for a file, the file's), the ``sentence1``, ``sentence2`` and ``score`` lists of each subset, and the
        revision of the data (for a file, a hash of it).
    """
    if data is not None:
        subsets = read_pairs(Path(data), check=False)
        if explicit:
            if missing := [name for name in wanted if name not in subsets]:
                raise UsageError(f"{data}: no subset {missing[0]!r}; found {', '.join(subsets)}")
            subsets = {name: subsets[name] for name in wanted}
        name = table_name(Path(data))
        return Path(data).name if name in STS_TASKS else name, subsets, file_hash(data)
    assert task_name is not None
    task = get_task(task_name, wanted, defaults)
    if explicit:
        check_subsets(wanted, [task])
    load_task_data(task)
    subsets = {}
    for subset in task.hf_subsets:
        splits = task.dataset[subset] if task.metadata.is_multilingual else task.dataset
        split = splits[task.eval_splits[0]]
        first, second = task.column_names
        subsets[subset] = {
            "sentence1": list(split[first]),
            "sentence2": list(split[second]),
            "score": list(split["score"]),
        }
    return task_name, subsets, task.metadata.dataset["revision"]

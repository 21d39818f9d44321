"""Scored pairs with their embeddings: what sentence similarity and pair classification tasks are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.utils.evaluation_utils import pairwise_similarities
from evaluation.utils.scoring.statistics import Statistic, average_precision, spearman


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
        """Names the resamples, so that all models and dimensions are measured on the same ones."""
        return f"{self.task} {self.subset}"

    def statistic(self, similarities: Sequence[np.ndarray]) -> Statistic:
        """What the bootstrap measures on ``k`` columns of similarities, each of shape ``[n]``."""
        return (spearman if self.kind == "spearman" else average_precision)(self.gold, similarities)

    def similarity(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Similarities of the pairs' embeddings, shape ``[n]``: cosine; for labels, that of the four which scores best,
        as mteb's ``max_ap`` does."""
        found = pairwise_similarities(first, second)
        if self.kind == "spearman":
            return found["cosine"]
        scores = self.statistic(list(found.values()))(np.ones((len(self.gold), 1)))[:, 0]
        return list(found.values())[int(np.argmax(scores))]

    def score(self, first: np.ndarray, second: np.ndarray) -> float:
        """The main score of embeddings of the pairs, from -1 (or 0) to 1; NaN where it is undefined."""
        return float(self.statistic([self.similarity(first, second)])(np.ones((len(self.gold), 1)))[0, 0])


def main_language(languages: Sequence[str]) -> str:
    """``ara``, ``eng`` or another code for a set of one language, ``cross-lingual`` for one of several."""
    return languages[0] if len(languages) == 1 else "cross-lingual"


def languages_of_name(subset: str) -> tuple[str, ...]:
    """The languages that a subset's name tells: ``("ara",)`` for ``ar-ar``, ``("ara", "eng")`` for ``en-ar``, else none."""
    codes = {"ar": "ara", "en": "eng"}
    parts = subset.lower().split("-")
    return tuple(sorted({codes[part] for part in parts})) if all(part in codes for part in parts) else ()

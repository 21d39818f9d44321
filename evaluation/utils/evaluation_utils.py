"""Scoring sentence pairs at every prefix of their embeddings.

A Matryoshka embedding's prefix is the smaller embedding (Kusupati et al., 2022, https://arxiv.org/abs/2205.13147), so one
encode at full width serves every dimension. Scores are taken on the raw prefix, as ``truncate_dim`` gives it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.config import suggest
from common.data_files import file_hash, read_pairs
from common.errors import RunError, UsageError
from common.hub import load_from_hub
from evaluation.utils.options import STS_TASKS

logger = logging.getLogger(__name__)


def pairwise_similarities(first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    """Similarity of each row of ``first`` with the same row of ``second``; distances are negated.

    Args:
        first, second: Arrays of shape ``[n, dim]``, not normalised.

    Returns:
        For ``cosine``, ``dot``, ``euclidean`` and ``manhattan`` an array of shape ``[n]``.
    """
    from sentence_transformers.util import pairwise_dot_score
    from sklearn.metrics import pairwise

    # The same float32 arithmetic as mteb and sentence-transformers: pairs that tie but for rounding tie as they do there.
    return {
        "cosine": 1 - pairwise.paired_cosine_distances(first, second),
        "dot": pairwise_dot_score(first, second).numpy(),
        "euclidean": -pairwise.paired_euclidean_distances(first, second),
        "manhattan": -pairwise.paired_manhattan_distances(first, second),
    }


def sts_scores(first: np.ndarray, second: np.ndarray, gold: Sequence[float]) -> dict[str, float]:
    """Spearman and Pearson correlation of each similarity with the gold scores.

    Args:
        first, second: Embeddings of the pairs' sentences, shape ``[n, dim]``, the raw prefix.
        gold: The ``n`` gold scores.

    Returns:
        ``{"cosine_spearman": ..., "cosine_pearson": ..., "dot_spearman": ...}``, each from -1 to 1.

    Raises:
        RunError: A correlation is undefined, since all similarities (or all scores) are alike.
    """
    from scipy.stats import pearsonr, spearmanr

    found: dict[str, float] = {}
    for name, similarity in pairwise_similarities(first, second).items():
        for what, values in (("similarity", similarity), ("score", np.asarray(gold))):
            if np.ptp(values) == 0:
                raise RunError(f"the {name} correlation is undefined: every pair has the same {what}")
            if not np.isfinite(values).all():
                raise RunError(f"the {name} correlation is undefined: a {what} is NaN or infinite")
        found[f"{name}_spearman"] = float(spearmanr(gold, similarity).statistic)
        found[f"{name}_pearson"] = float(pearsonr(gold, similarity).statistic)
    return found


def choose_subsets(wanted: list[str], defaults: list[str], offered: list[str]) -> list[str]:
    """The subsets of a task to score: those wanted that it has, else the default ones that it has, else all."""
    for names in (wanted, defaults):
        if chosen := [name for name in names if name in offered]:
            return chosen
    return offered


def check_subsets(wanted: list[str], tasks: list[Any]) -> None:
    """Raise :class:`UsageError` where a subset that the user named belongs to none of the tasks."""
    offered = {subset for task in tasks for subset in task.metadata.hf_subsets}
    for name in wanted:
        if name not in offered:
            known = ", ".join(sorted(offered))
            raise UsageError(f"--subsets: none of the tasks has {name!r}{suggest(name, offered)}; they have {known}")


def get_task(name: str, wanted: list[str], defaults: list[str]) -> Any:
    """The mteb task ``name``, restricted to the subsets of :func:`choose_subsets`.

    Raises:
        UsageError: mteb has no such task.
    """
    import mteb

    try:
        task = mteb.get_task(name)
    except KeyError:
        from difflib import get_close_matches

        close = get_close_matches(name, [t.metadata.name for t in mteb.get_tasks()], n=1)
        raise UsageError(f"unknown task {name!r}" + (f"; did you mean {close[0]}?" if close else "")) from None
    return mteb.get_task(name, hf_subsets=choose_subsets(wanted, defaults, list(task.hf_subsets)))


def load_task_data(task: Any) -> None:
    """Download a task's data, once. Raises :class:`RunError` where that fails."""
    try:
        load_from_hub("dataset", task.metadata.dataset["path"], task.load_data)
    except RunError as error:
        raise RunError(f"task {task.metadata.name}: {error}") from None


def load_pairs(
    task_name: str | None, data: str | None, wanted: list[str], defaults: list[str], explicit: bool
) -> tuple[str, dict[str, dict[str, list[Any]]], str]:
    """The scored pairs of an mteb STS task, or of a user's file; their scores may be such that no correlation is defined.

    Returns:
        The task's name (for a file, its own, never a task's), for each subset its ``sentence1``, ``sentence2`` and
        ``score`` lists, and the revision of the data (for a file, a hash of it).
    """
    if data is not None:
        subsets = read_pairs(Path(data), check=False)
        if explicit:
            if missing := [name for name in wanted if name not in subsets]:
                raise UsageError(f"{data}: no subset {missing[0]!r}; found {', '.join(subsets)}")
            subsets = {name: subsets[name] for name in wanted}
        name = Path(data).stem
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

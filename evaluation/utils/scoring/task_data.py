"""The data of a loaded mteb task: its subsets, their sizes and names, and its pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data_files import why_undefined
from evaluation.utils.scoring.pairs import PairSet
from evaluation.utils.scoring.rows import DEFAULT_SUBSET
from evaluation.utils.scoring.similarity import pairwise_similarities

if TYPE_CHECKING:
    from evaluation.utils.scoring.mteb_encoder import TruncatedEncoder


def split_data(task: Any, subset: str, split: str) -> Any:
    """Return the data of one subset and split of a loaded task."""
    if subset not in task.dataset and subset == DEFAULT_SUBSET:
        return task.dataset[split]
    return task.dataset[subset][split]


def languages_of(task: Any, subset: str) -> tuple[str, ...]:
    """Return the ISO 639-3 codes of a subset's languages, in alphabetical order."""
    return tuple(sorted({code.split("-")[0] for code in task.metadata.hf_subsets_to_langscripts.get(subset, [])}))


def label_of(task: Any, subset: str, split: str) -> str:
    """Return a subset's name in the summary, with the split if the task has several."""
    return subset if len(task.eval_splits) == 1 else f"{subset}/{split}"


def size_of(task: Any, subset: str, split: str) -> int:
    """Return the number of pairs, queries or texts in a subset and split."""
    data = split_data(task, subset, split)
    if isinstance(data, dict) and "queries" in data:
        return len(data["queries"])
    first = data[0] if len(data) == 1 else None  # old pair tasks have all pairs in one row
    if first and isinstance(next(iter(first.values())), list):
        return len(next(iter(first.values())))
    return len(data)


def describe_data(task: Any) -> dict[str, Any]:
    """Describe a task's data for the run's record: its source, and the size of each subset."""
    rows = {label_of(task, s, split): size_of(task, s, split) for s in task.hf_subsets for split in task.eval_splits}
    return task.metadata.dataset | {"rows": rows}


@dataclass(frozen=True)
class TaskPairs:
    """The pairs of one subset and split, as lists. ``roles`` says how mteb encodes each side."""

    subset: str
    split: str
    sentence1: list[str]
    sentence2: list[str]
    gold: list[float]
    roles: tuple[Any, Any]

    @property
    def sides(self) -> tuple[tuple[list[str], Any], tuple[list[str], Any]]:
        """The texts of each side, with the side's role."""
        return (self.sentence1, self.roles[0]), (self.sentence2, self.roles[1])


def task_pairs(task: Any) -> Iterator[TaskPairs]:
    """Yield the pairs of an STS or pair classification task, by subset and split; nothing for other tasks."""
    from mteb.abstasks import AbsTaskPairClassification, AbsTaskSTS

    if isinstance(task, AbsTaskSTS):
        columns, gold = task.column_names, "score"
    elif isinstance(task, AbsTaskPairClassification):
        columns, gold = (task.input1_column_name, task.input2_column_name), task.label_column_name
    else:
        return
    roles = (task.input1_prompt_type, task.input2_prompt_type)
    for subset in task.hf_subsets:
        for split in task.eval_splits:
            data = split_data(task, subset, split)
            data = data[0] if len(data) == 1 else data
            yield TaskPairs(subset, split, *(list(data[column]) for column in columns), list(data[gold]), roles)


def encode_pairs(tasks: list[Any], encoder: TruncatedEncoder) -> None:
    """Encode the texts of all pair tasks together, so that texts of similar length can share a batch."""
    texts_by_way: dict[tuple[str | None, str | None], dict[str, None]] = {}
    for task in tasks:
        for pairs in task_pairs(task):
            for texts, role in pairs.sides:
                way = encoder.prompt_and_role(task.metadata, role)
                texts_by_way.setdefault(way, {}).update(dict.fromkeys(texts))
    for (prompt, role), texts in texts_by_way.items():
        encoder.store.encode(texts, prompt=prompt, role=role)


def why_unscored(task: Any, encoder: TruncatedEncoder) -> dict[str, str]:
    """Return the subsets on which a pair task's main score is undefined at the encoder's dimension, with the reason."""
    reasons: dict[str, str] = {}
    for pairs in task_pairs(task):
        reason = why_undefined(pairs.gold)
        if reason is None and task.metadata.type == "STS":
            first, second = (encoder.embed(texts, task.metadata, role) for texts, role in pairs.sides)
            if np.ptp(pairwise_similarities(first, second)["cosine"]) == 0:
                reason = "every pair has the same similarity"
        if reason:
            reasons.setdefault(pairs.subset, reason)
    return reasons


def pair_sets(task: Any, encoder: TruncatedEncoder) -> Iterator[PairSet]:
    """Yield the pairs of an STS or pair classification task with their full-width embeddings; nothing for other tasks."""
    for pairs in task_pairs(task):
        first, second = (encoder.embed(texts, task.metadata, role) for texts, role in pairs.sides)
        yield PairSet(
            task=task.metadata.name,
            subset=label_of(task, pairs.subset, pairs.split),
            languages=languages_of(task, pairs.subset),
            kind="spearman" if task.metadata.type == "STS" else "average_precision",
            sentence1=pairs.sentence1,
            sentence2=pairs.sentence2,
            gold=np.asarray(pairs.gold, dtype=np.float64),
            first=first,
            second=second,
        )

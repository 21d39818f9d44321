"""Which mteb tasks to score, and the pairs of those that score pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data_files import why_undefined
from common.errors import UsageError
from evaluation.utils.evaluation_utils import get_task, pairwise_similarities
from evaluation.utils.scoring.pairs import PairSet

if TYPE_CHECKING:
    from evaluation.utils.scoring.mteb_encoder import TruncatedEncoder


def choose_tasks(
    names: list[str], benchmark: str | None, languages: list[str], subsets: list[str], default_subsets: list[str]
) -> list[Any]:
    """The text tasks to score.

    Args:
        names: Tasks by name; empty with a benchmark, or with languages alone (then every task that has them).
        benchmark: All tasks of this benchmark.
        languages: ISO 639-3 codes (``ara``, ``eng``): only subsets with one of these. Without any, ``subsets`` decides.
        subsets, default_subsets: See :func:`evaluation.utils.evaluation_utils.choose_subsets`.

    Raises:
        UsageError: mteb has no such task, benchmark or language, or no text task is left.
    """
    import mteb
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    if benchmark is not None:
        try:
            found = list(mteb.get_benchmark(benchmark).tasks)
        except KeyError:
            from difflib import get_close_matches

            close = get_close_matches(benchmark, [b.name for b in mteb.get_benchmarks()], n=1)
            raise UsageError(
                f"unknown benchmark {benchmark!r}" + (f"; did you mean {close[0]!r}?" if close else "")
            ) from None
    elif names:
        found = [get_task(name, subsets, default_subsets) for name in names]
    else:
        try:
            found = list(mteb.get_tasks(languages=languages, modalities=["text"], exclusive_modality_filter=True))
        except (KeyError, ValueError) as error:
            why = str(error).split(",")[0]  # the rest points into the library
            raise UsageError(f"--languages {' '.join(languages)}: {why}") from None
    tasks: dict[str, Any] = {}
    while found:
        task = found.pop(0)
        if isinstance(task, AbsTaskAggregate):  # a mean of other tasks: score these
            found = list(task.metadata.tasks) + found
        elif set(task.metadata.modalities) == {"text"}:
            tasks.setdefault(task.metadata.name, task)
    if languages:
        tasks = {name: task for name, task in tasks.items() if _restrict(task, languages)}
    if not tasks:
        raise UsageError(
            "no text task is left: check --tasks, --benchmark and --languages (ISO 639-3 codes, say ara eng)"
        )
    return list(tasks.values())


def _restrict(task: Any, languages: list[str]) -> bool:
    wanted = {language.split("-")[0] for language in languages}
    task.hf_subsets = [
        subset
        for subset in task.hf_subsets
        if wanted & {found.split("-")[0] for found in task.metadata.hf_subsets_to_langscripts[subset]}
    ]
    return bool(task.hf_subsets)


def split_data(task: Any, subset: str, split: str) -> Any:
    """The data of one subset and split of a loaded task."""
    return task.dataset[split] if subset not in task.dataset and subset == "default" else task.dataset[subset][split]


def languages_of(task: Any, subset: str) -> tuple[str, ...]:
    """ISO 639-3 codes, in alphabetical order."""
    return tuple(sorted({code.split("-")[0] for code in task.metadata.hf_subsets_to_langscripts.get(subset, [])}))


def label_of(task: Any, subset: str, split: str) -> str:
    """How the summary names a subset: with the split where the task has several."""
    return subset if len(task.eval_splits) == 1 else f"{subset}/{split}"


def size_of(task: Any, subset: str, split: str) -> int:
    """Number of pairs, queries or texts."""
    data = split_data(task, subset, split)
    if isinstance(data, dict) and "queries" in data:
        return len(data["queries"])
    first = data[0] if len(data) == 1 else None  # old pair tasks keep all pairs in one row
    if first and isinstance(next(iter(first.values())), list):
        return len(next(iter(first.values())))
    return len(data)


def _pairs(task: Any) -> Iterator[tuple[str, str, list[list[str]], list[float], list[Any]]]:
    """Subset, split, both sides' texts, gold scores and both sides' roles of an STS or pair classification task; nothing of
    other tasks."""
    from mteb.abstasks import AbsTaskPairClassification, AbsTaskSTS

    if isinstance(task, AbsTaskSTS):
        columns, gold = task.column_names, "score"
    elif isinstance(task, AbsTaskPairClassification):
        columns, gold = (task.input1_column_name, task.input2_column_name), task.label_column_name
    else:
        return
    roles = [task.input1_prompt_type, task.input2_prompt_type]
    for subset in task.hf_subsets:
        for split in task.eval_splits:
            data = split_data(task, subset, split)
            data = data[0] if len(data) == 1 else data
            yield subset, split, [list(data[column]) for column in columns], data[gold], roles


def encode_pairs(tasks: list[Any], encoder: TruncatedEncoder) -> None:
    """Encode the texts of all pair tasks in one go: of many texts, those of one length can share a batch."""
    ways: dict[tuple[str | None, str | None], dict[str, None]] = {}
    for task in tasks:
        for _, _, texts, _, roles in _pairs(task):
            for side, role in zip(texts, roles, strict=True):
                ways.setdefault(encoder.way(task.metadata, role), {}).update(dict.fromkeys(side))
    for (prompt, role), texts in ways.items():
        encoder.store.encode(texts, prompt=prompt, role=role)


def why_unscored(task: Any, encoder: TruncatedEncoder) -> dict[str, str]:
    """The subsets of an STS or pair classification task whose main score is undefined at the encoder's dimension, and why."""
    found: dict[str, str] = {}
    for subset, _, texts, scores, roles in _pairs(task):
        reason = why_undefined(list(scores))
        if reason is None and task.metadata.type == "STS":
            first, second = (encoder.embed(side, task.metadata, role) for side, role in zip(texts, roles, strict=True))
            if np.ptp(pairwise_similarities(first, second)["cosine"]) == 0:
                reason = "every pair has the same similarity"
        if reason:
            found.setdefault(subset, reason)
    return found


def pair_sets(task: Any, encoder: TruncatedEncoder) -> Iterator[PairSet]:
    """The scored pairs of an STS or pair classification task with their full-width embeddings; none of other tasks."""
    for subset, split, texts, scores, roles in _pairs(task):
        gold = np.asarray(scores, dtype=np.float64)
        first, second = (encoder.embed(side, task.metadata, role) for side, role in zip(texts, roles, strict=True))
        yield PairSet(
            task=task.metadata.name,
            subset=label_of(task, subset, split),
            languages=languages_of(task, subset),
            kind="spearman" if task.metadata.type == "STS" else "average_precision",
            sentence1=texts[0],
            sentence2=texts[1],
            gold=gold,
            first=first,
            second=second,
        )

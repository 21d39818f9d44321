"""Chooses the mteb tasks and subsets to score, and loads their data."""

from __future__ import annotations

import logging
from difflib import get_close_matches
from typing import Any

from common.errors import RunError, UsageError
from common.hub import load_from_hub
from common.keys import suggest

logger = logging.getLogger(__name__)


def choose_subsets(wanted: list[str], defaults: list[str], offered: list[str]) -> list[str]:
    """Return the subsets of a task to score: the ``wanted`` ones that it has, otherwise the ``defaults`` that it has, otherwise all."""
    for names in (wanted, defaults):
        if chosen := [name for name in names if name in offered]:
            return chosen
    return offered


def check_subsets(wanted: list[str], tasks: list[Any]) -> None:
    """Raise :class:`UsageError` if a subset that the user named belongs to none of the tasks."""
    offered = {subset for task in tasks for subset in task.metadata.hf_subsets}
    for name in wanted:
        if name not in offered:
            known = ", ".join(sorted(offered))
            raise UsageError(f"--subsets: none of the tasks has {name!r}{suggest(name, offered)}; they have {known}")


def get_task(name: str, wanted: list[str], defaults: list[str]) -> Any:
    """Return the mteb task ``name``, restricted to the subsets of :func:`choose_subsets`.

    Raises:
        UsageError: mteb has no such task.
    """
    import mteb

    try:
        task = mteb.get_task(name)
    except KeyError:
        close = get_close_matches(name, [t.metadata.name for t in mteb.get_tasks()], n=1)
        raise UsageError(f"unknown task {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")) from None
    return mteb.get_task(name, hf_subsets=choose_subsets(wanted, defaults, list(task.hf_subsets)))


def load_task_data(task: Any) -> None:
    """Download a task's data, once. Raises :class:`RunError` on failure."""
    try:
        load_from_hub("dataset", task.metadata.dataset["path"], task.load_data)
    except RunError as error:
        raise RunError(f"task {task.metadata.name}: {error}") from None


def choose_tasks(
    names: list[str], benchmark: str | None, languages: list[str], subsets: list[str], default_subsets: list[str]
) -> list[Any]:
    """Return the text tasks to score.

    Args:
        names: Task names; ignored with a benchmark. If empty, every task that has the languages.
        benchmark: Score all text tasks of this benchmark.
        languages: ISO 639-3 codes (``ara``, ``eng``). Only subsets in one of these languages are scored; all if empty.
        subsets, default_subsets: For tasks chosen by name; see :func:`choose_subsets`.

    Raises:
        UsageError: mteb has no such task, benchmark or language, or no text task remains.
    """
    if benchmark is not None:
        candidates = _tasks_of_benchmark(benchmark)
    elif names:
        candidates = [get_task(name, subsets, default_subsets) for name in names]
    else:
        candidates = _tasks_of_languages(languages)
    tasks = _text_tasks(candidates)
    if names and benchmark is None:
        for task in candidates:
            if set(task.metadata.modalities) != {"text"}:
                kinds = ", ".join(sorted(task.metadata.modalities))
                raise UsageError(f"--tasks: {task.metadata.name} is not a text task (its data: {kinds})")
    if languages:
        without = [task.metadata.name for task in tasks if not _restrict(task, languages)]
        tasks = [task for task in tasks if task.metadata.name not in without]
        if without and names and benchmark is None:
            logger.warning("no subset in %s, so not scored: %s", " or ".join(languages), ", ".join(without))
    if not tasks:
        raise UsageError(
            "no text task matches: check --tasks, --benchmark and --languages (ISO 639-3 codes, such as ara eng)"
        )
    return tasks


def _tasks_of_benchmark(name: str) -> list[Any]:
    import mteb

    try:
        return list(mteb.get_benchmark(name).tasks)
    except KeyError:
        close = get_close_matches(name, [b.name for b in mteb.get_benchmarks()], n=1)
        raise UsageError(f"unknown benchmark {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")) from None


def _tasks_of_languages(languages: list[str]) -> list[Any]:
    import mteb

    try:
        return list(mteb.get_tasks(languages=languages, modalities=["text"], exclusive_modality_filter=True))
    except (KeyError, ValueError) as error:
        why = str(error).split(",")[0]  # the rest of the message refers to the library's code
        raise UsageError(f"--languages {' '.join(languages)}: {why}") from None


def _text_tasks(candidates: list[Any]) -> list[Any]:
    """Return each text task once. An aggregate task is replaced by the tasks that it averages."""
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    tasks: dict[str, Any] = {}
    while candidates:
        task, *candidates = candidates
        if isinstance(task, AbsTaskAggregate):
            candidates = [*task.metadata.tasks, *candidates]
        elif set(task.metadata.modalities) == {"text"}:
            tasks.setdefault(task.metadata.name, task)
    return list(tasks.values())


def _restrict(task: Any, languages: list[str]) -> bool:
    """Keep only a task's subsets in one of the languages. Returns whether any remain."""
    wanted = {language.split("-")[0] for language in languages}
    languages_of_subset = task.metadata.hf_subsets_to_langscripts
    task.hf_subsets = [
        subset
        for subset in task.hf_subsets
        if wanted & {language_script.split("-")[0] for language_script in languages_of_subset[subset]}
    ]
    return bool(task.hf_subsets)

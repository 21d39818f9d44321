"""Training data in the columns that each loss wants, and the sets that the best checkpoint is chosen on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data_files import check_scores, check_texts, is_file_name, load_hub_dataset, number, read_pairs, read_rows
from common.errors import RunError, UsageError
from training.utils.options import LOSSES, SCORED, DatasetEntry

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

NLI_TRIPLETS = {
    "en": DatasetEntry("sentence-transformers/all-nli", "mnrl", name="triplet"),
    "ar": DatasetEntry("Omartificial-Intelligence-Space/Arabic-NLi-Triplet", "mnrl"),
}


@dataclass(frozen=True)
class STSData:
    """The scored pairs of a language, for choosing a checkpoint (dev) and for the last word on it (test)."""

    path: str
    dev: str
    test: str | None


STS = {
    "en": STSData("sentence-transformers/stsb", dev="validation", test="test"),
    "ar": STSData("Omartificial-Intelligence-Space/Arabic-stsb", dev="validation", test=None),
}

# Translations to be found: the development splits of parallel sentences.
PARALLEL = {"en-ar": "sentence-transformers/parallel-sentences-tatoeba"}
TRANSLATIONS = {"source": ("english",), "target": ("non_english",)}


def map_columns(
    where: str,
    found: list[str],
    roles: dict[str, tuple[str, ...]],
    given: dict[str, str] | None,
    optional: Iterable[str] = (),
) -> dict[str, str]:
    """Which column of a data set plays which role, ``{role: column}``, in the order of the roles.

    Raises:
        UsageError: ``given`` names a role that the loss does not have.
        RunError: A column is missing; the message lists those found.
    """
    listed = ", ".join(found)
    if given is not None:
        if unknown := [role for role in given if role not in roles]:
            raise UsageError(f"{where}: 'columns' names {unknown[0]!r}, but the loss wants {', '.join(roles)}")
        if absent := [column for column in given.values() if column not in found]:
            raise RunError(f"{where}: no column {absent[0]!r}; found {listed}")
        mapped = {role: given[role] for role in roles if role in given}
        if twice := [column for column in mapped.values() if list(mapped.values()).count(column) > 1]:
            raise UsageError(f"{where}: the column {twice[0]!r} stands for more than one of {', '.join(mapped)}")
    else:
        mapped = {}
        for role, aliases in roles.items():
            for name in (role, *aliases):
                if name in found and name not in mapped.values():
                    mapped[role] = name
                    break
    for role in roles:
        if role not in mapped and role not in optional:
            raise RunError(
                f"{where}: no column for {role!r}; found {listed}; say which is which with 'columns' in a --config file"
            )
    return mapped


def load_training_data(entry: DatasetEntry, max_train_samples: int | None = None) -> Dataset:
    """A data set in the columns that its loss wants: ``anchor, positive[, negative]`` for ``mnrl`` and ``gist``, ``sentence1,
    sentence2, score`` with scores from 0 to 1 for ``cosent``, ``angle`` and ``cosine``, ``sentence1, sentence2, label`` for
    ``softmax``, ``sentence[, translation]`` for ``distill``, whose targets :func:`training.utils.teacher.add_targets` adds.

    Raises:
        UsageError, RunError: It cannot be had, has no rows, or lacks a column or a value; the message says which.
    """
    from datasets import Dataset

    if is_file_name(entry.path):
        where = entry.path
        dataset = read_rows(Path(entry.path))
    else:
        where = f"data set {entry.path}" + (f" ({entry.name})" if entry.name else "")
        dataset = load_hub_dataset(entry.path, entry.name, entry.split)
    loss = LOSSES[entry.loss]
    mapped = map_columns(where, dataset.column_names, loss.columns, entry.columns, loss.optional)
    limit = min((n for n in (entry.max_train_samples, max_train_samples) if n is not None), default=None)
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    dataset = dataset.select_columns(list(mapped.values())).rename_columns(
        {column: role for role, column in mapped.items() if column != role}
    )
    dataset = dataset.select_columns(list(mapped))  # the order of the roles, which is what the losses go by
    if len(dataset) == 0:
        raise RunError(f"{where}: no rows")
    if len(dataset) < 2:
        raise RunError(f"{where}: one row; training needs at least 2")
    check_texts(where, dataset, [role for role in mapped if role not in ("score", "label")])
    if "score" in mapped:
        dataset = _with_column(dataset, "score", _scores(where, dataset["score"], entry))
    if "label" in mapped:
        dataset = _with_column(dataset, "label", _labels(where, dataset["label"]))
    assert isinstance(dataset, Dataset)
    logger.info("%s: %d rows of %s", where, len(dataset), ", ".join(dataset.column_names))
    return dataset


def _with_column(dataset: Dataset, name: str, values: list[Any]) -> Dataset:
    return dataset.remove_columns(name).add_column(name, values)


def _scores(where: str, values: list[Any], entry: DatasetEntry) -> list[float]:
    low, high = entry.score_range or (0.0, 1.0)
    scores = [(number(where, row, "score", value) - low) / (high - low) for row, value in enumerate(values, 1)]
    for row, score in enumerate(scores, 1):
        if not -1e-9 <= score <= 1 + 1e-9:
            raise RunError(
                f"{where}, row {row}: the score {values[row - 1]} is outside {low:g}..{high:g}; give the data set's 'score_range'"
            )
    return scores


def _labels(where: str, values: list[Any]) -> list[int]:
    for row, value in enumerate(values, 1):
        label = number(where, row, "label", value)
        if isinstance(value, bool) or label != int(label) or label < 0:
            raise RunError(f"{where}, row {row}: column 'label' must be a class number from 0, not {value!r}")
    labels = [int(float(value)) for value in values]
    if len(set(labels)) < 2:
        raise RunError(f"{where}: every label is {labels[0]}; classification needs at least two")
    return labels


def load_dev_sets(
    names: list[str], language: str
) -> tuple[dict[str, dict[str, list[Any]]], dict[str, dict[str, list[Any]]]]:
    """The sets that a checkpoint is chosen on, and the test splits of those that have one.

    Args:
        names: ``auto`` (the STS set of ``language``), a language, a pair of languages, a file, or ``none``. A file holds scored
            pairs (``sentence1``, ``sentence2``, ``score``) or translations (``english``, ``non_english``).

    Returns:
        ``{"sts-dev": rows, ...}`` and ``{"sts-test": rows, ...}``, each with lists ``sentence1``, ``sentence2``, ``score``, or
        for translations ``source``, ``target``.

    Raises:
        UsageError, RunError: A name is none of these, two sets have the same, or a set cannot be had.
    """
    dev: dict[str, dict[str, list[Any]]] = {}
    test: dict[str, dict[str, list[Any]]] = {}
    if not names:
        raise UsageError("--dev_data is empty: give auto, a language, a file, or none")
    if "none" in names and len(names) > 1:
        raise UsageError("--dev_data: 'none' stands alone")

    def add(name: str, rows: dict[str, list[Any]]) -> None:
        if name in dev:
            raise UsageError(f"--dev_data: two sets have the name {name!r}: name each once, or rename a file")
        dev[name] = rows

    chosen = [] if names == ["none"] else [language if name == "auto" else name for name in names]
    for name in chosen:
        if name in STS:
            label = f"sts-{name}" if len(chosen) > 1 else "sts"
            add(f"{label}-dev", _load_sts(STS[name].path, STS[name].dev))
            if STS[name].test is not None:
                test[f"{label}-test"] = _load_sts(STS[name].path, STS[name].test)
        elif name in PARALLEL:
            rows = load_hub_dataset(PARALLEL[name], name, "dev")
            add(f"translations-{name}-dev", _translations(f"data set {PARALLEL[name]} ({name})", rows))
        elif is_file_name(name) and "non_english" in (rows := read_rows(Path(name))).column_names:
            add(Path(name).stem, _translations(name, rows))
        elif is_file_name(name):
            for subset, pairs in read_pairs(Path(name)).items():
                add(Path(name).stem + ("" if subset == "default" else f"-{subset}"), pairs)
        else:
            raise UsageError(f"--dev_data: {name!r} is neither auto, none, {', '.join([*STS, *PARALLEL])} nor a file")
    return dev, test


def _translations(where: str, dataset: Dataset) -> dict[str, list[str]]:
    mapped = map_columns(where, dataset.column_names, TRANSLATIONS, None)
    check_texts(where, dataset, list(mapped.values()))
    return {role: list(dataset[column]) for role, column in mapped.items()}


def _load_sts(path: str, split: str) -> dict[str, list[Any]]:
    dataset = load_hub_dataset(path, None, split)
    where = f"data set {path}"
    mapped = map_columns(where, dataset.column_names, SCORED, None)
    check_texts(where, dataset, [mapped["sentence1"], mapped["sentence2"]])
    scores = [number(where, row, mapped["score"], value) for row, value in enumerate(dataset[mapped["score"]], 1)]
    check_scores(where, scores)
    return {
        "sentence1": list(dataset[mapped["sentence1"]]),
        "sentence2": list(dataset[mapped["sentence2"]]),
        "score": scores,
    }

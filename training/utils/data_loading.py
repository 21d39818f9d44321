"""Loads training data in the columns that each loss reads, and the dev sets that choose the best checkpoint."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data_files import (
    check_scores,
    check_texts,
    finite_number,
    is_local_path,
    load_hub_dataset,
    read_pairs,
    read_rows,
)
from common.errors import RunError, UsageError, listed
from common.formats import table_name
from training.utils.batches import negative_columns
from training.utils.columns import (
    LABELS,
    SCORES,
    check_varied,
    class_numbers,
    drop_unusable,
    expand,
    map_columns,
    named,
    scale_scores,
    select_columns,
    warn_of_own_negatives,
)
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
    """The graded pairs of a language: the split that chooses a checkpoint (dev), and the split that scores it (test)."""

    path: str
    dev: str
    test: str | None


STS = {
    "en": STSData("sentence-transformers/stsb", dev="validation", test="test"),
    "ar": STSData("Omartificial-Intelligence-Space/Arabic-stsb", dev="validation", test=None),
}

# Translation retrieval: the dev splits of parallel sentences
PARALLEL = {"en-ar": "sentence-transformers/parallel-sentences-tatoeba"}
TRANSLATIONS = {"source": ("english",), "target": ("non_english",)}


def load_training_data(
    entry: DatasetEntry, max_train_samples: int | None = None, drop_unusable_rows: bool = False
) -> Dataset:
    """Load a data set in the columns that its loss reads: ``anchor, positive`` and negatives (``negative``, or ``negative_1``, ...,
    empty where a row has fewer) for ``mnrl`` and ``gist``; ``sentence1, sentence2, score`` with scores from 0 to 1 for
    ``cosent``, ``angle`` and ``cosine``; ``sentence1, sentence2, label`` for ``softmax``; and ``sentence[, translation]`` for
    ``distill``, whose targets :func:`training.utils.teacher.add_targets` adds.

    Args:
        drop_unusable_rows: Remove rows of the user's own file that lack a value. Such rows of a Hub data set, which the user cannot
            correct, are always removed. The log reports their number.

    Raises:
        UsageError, RunError: The data set cannot be loaded, has no rows, or lacks a column or a value; the message says which.
    """
    from datasets import Dataset

    own = is_local_path(entry.path)
    if own:
        where = entry.path
        dataset = read_rows(Path(entry.path))
    else:
        where = f"data set {entry.path}" + (f" ({entry.name})" if entry.name else "")
        dataset = load_hub_dataset(entry.path, entry.name, entry.split)
    limit = min((n for n in (entry.max_train_samples, max_train_samples) if n is not None), default=None)
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    dataset, unused = select_columns(where, dataset, entry)
    if len(dataset) == 0:
        raise RunError(f"{where}: no rows")
    refuse = own and not drop_unusable_rows
    dataset = drop_unusable(where, dataset, refuse)
    if LOSSES[entry.loss].contrastive:
        dataset = expand(where, dataset, unused, refuse)
        warn_of_own_negatives(where, dataset)
        if not negative_columns(dataset.column_names) and (ignored := named(unused, (*LABELS, *SCORES))):
            logger.warning("%s: every row is used as a positive pair, whatever its %s", where, listed(ignored))
    if len(dataset) < 2:
        raise RunError(f"{where}: {'one usable row' if len(dataset) else 'no usable row'}; training needs at least 2")
    if "score" in dataset.column_names:
        dataset = _with_column(dataset, "score", scale_scores(where, dataset["score"], entry))
    if "label" in dataset.column_names:
        dataset = _with_column(dataset, "label", class_numbers(where, dataset["label"]))
    check_varied(where, dataset, entry.loss)
    assert isinstance(dataset, Dataset)
    logger.info(
        "%s: %d rows of %s; %s",
        where,
        len(dataset),
        ", ".join(dataset.column_names),
        f"columns not used: {listed(unused)}" if unused else "every column is used",
    )
    return dataset


def _with_column(dataset: Dataset, name: str, values: list[Any]) -> Dataset:
    return dataset.remove_columns(name).add_column(name, values)


def load_dev_sets(
    names: list[str], language: str
) -> tuple[dict[str, dict[str, list[Any]]], dict[str, dict[str, list[Any]]]]:
    """Load the dev sets that choose a checkpoint, and the test splits of those that have one.

    Args:
        names: ``auto`` (the STS set of ``language``), a language, a pair of languages, a file, or ``none``. A file holds graded
            pairs (``sentence1``, ``sentence2``, ``score``) or translations (``english``, ``non_english``).

    Returns:
        ``{"sts-dev": rows, ...}`` and ``{"sts-test": rows, ...}``, each with lists ``sentence1``, ``sentence2``, ``score``, or
        for translations ``source``, ``target``.

    Raises:
        UsageError, RunError: A name is unknown or used twice, or a set cannot be loaded.
    """
    dev: dict[str, dict[str, list[Any]]] = {}
    test: dict[str, dict[str, list[Any]]] = {}
    if not names:
        raise UsageError("--dev_data is empty: use auto, a language, a file, or none")
    if "none" in names and len(names) > 1:
        raise UsageError("--dev_data: 'none' cannot be combined with other sets")

    def add(name: str, rows: dict[str, list[Any]]) -> None:
        if name in dev:
            raise UsageError(f"--dev_data: two sets have the name {name!r}: list each set once, or rename a file")
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
            where = f"data set {PARALLEL[name]} ({name})"
            add(f"translations-{name}-dev", as_translations(where, rows, own=False))
        elif is_local_path(name) and "non_english" in (rows := read_rows(Path(name))).column_names:
            add(table_name(Path(name)), as_translations(name, rows, own=True))
        elif is_local_path(name):
            for subset, pairs in read_pairs(Path(name)).items():
                add(table_name(Path(name)) + ("" if subset == "default" else f"-{subset}"), pairs)
        else:
            raise UsageError(
                f"--dev_data: {name!r} is not a file and not one of auto, none, {', '.join([*STS, *PARALLEL])}"
            )
    return dev, test


def as_translations(
    where: str, dataset: Dataset, own: bool, columns: dict[str, str] | None = None
) -> dict[str, list[str]]:
    """Return a dev set of translations, ``{"source": [...], "target": [...]}``.

    Args:
        own: Whether the data is the user's own, so that an unusable row is an error; otherwise it is removed.
        columns: The column for each role; by default the columns with the usual names.

    Raises:
        RunError: A column or a text is missing, or no usable row remains.
    """
    mapped = map_columns(where, dataset.column_names, TRANSLATIONS, columns)
    dataset = _usable(where, dataset, mapped, own)
    check_texts(where, dataset, list(mapped))
    if len(dataset) == 0:
        raise RunError(f"{where}: no usable row")
    return {role: list(dataset[role]) for role in mapped}


def as_graded_pairs(
    where: str, dataset: Dataset, own: bool, columns: dict[str, str] | None = None
) -> dict[str, list[Any]]:
    """Return a dev set of graded pairs, ``{"sentence1": [...], "sentence2": [...], "score": [...]}``.

    Args:
        own, columns: See :func:`as_translations`.

    Raises:
        RunError: A column or a text is missing, a score is not a number, or no correlation with the scores is defined.
    """
    mapped = map_columns(where, dataset.column_names, SCORED, columns)
    dataset = _usable(where, dataset, mapped, own)
    check_texts(where, dataset, ["sentence1", "sentence2"])
    scores = [finite_number(where, row, mapped["score"], value) for row, value in enumerate(dataset["score"], 1)]
    check_scores(where, scores)
    return {"sentence1": list(dataset["sentence1"]), "sentence2": list(dataset["sentence2"]), "score": scores}


def _load_sts(path: str, split: str) -> dict[str, list[Any]]:
    where = f"data set {path}"
    dataset = load_hub_dataset(path, None, split)
    return as_graded_pairs(where, dataset, own=False)


def _usable(where: str, dataset: Dataset, mapped: dict[str, str], own: bool) -> Dataset:
    """Rename the ``mapped`` columns to their roles, and remove incomplete rows of a Hub data set."""
    dataset = dataset.select_columns(list(mapped.values())).rename_columns(
        {column: role for role, column in mapped.items() if column != role}
    )
    return dataset if own else drop_unusable(where, dataset, refuse=False)

"""Rows across languages: a data set in one language, and parallel sentences that its texts are among.

The premises and hypotheses of an English NLI triplet have translations in the parallel sentences of XNLI. An English anchor with
an Arabic positive and negative, and the reverse, teach a model to compare meanings across languages, where translations alone
teach it to find them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from common.errors import RunError

if TYPE_CHECKING:
    from datasets import Dataset

    from training.utils.options import DatasetEntry

logger = logging.getLogger(__name__)

NUMBERS = ("score", "label")


def translate_rows(dataset: Dataset, translations: dict[str, str], which: list[str]) -> Dataset:
    """The rows of a data set with some of their texts replaced by translations; rows that lack one are left out.

    Args:
        dataset: Texts in two columns or more, the first of which is compared with the others; scores and labels stay.
        translations: The translation of a text, by the text without surrounding space.
        which: ``first`` (translate the first text), ``others`` (all but the first) or ``all``; the rows of each come one
            after the other.

    Raises:
        RunError: No row has the translations.
    """
    from datasets import Dataset

    columns = dataset.column_names
    texts = [column for column in columns if column not in NUMBERS]
    replaced = {"first": texts[:1], "others": texts[1:], "all": texts}
    rows: dict[str, list[Any]] = {column: [] for column in columns}
    for choice in which:
        for row in dataset:
            changed = {column: translations.get(row[column].strip()) for column in replaced[choice]}
            if None not in changed.values():
                for column, value in (row | changed).items():
                    rows[column].append(value)
    if not rows[columns[0]]:
        raise RunError("no row has a translation in the parallel sentences")
    return Dataset.from_dict(rows)


def load_translations(spec: str) -> dict[str, str]:
    """English texts and their translations from parallel sentences on the Hub (``path:config:split``) or in a file.

    Raises:
        UsageError, RunError: They cannot be had, or lack the columns ``english`` and ``non_english``.
    """
    from training.utils.dev_data import is_hub_spec, load_dev_dataset, parse_spec
    from training.utils.options import DevEntry

    entry = parse_spec(spec, split="train") if is_hub_spec(spec) else DevEntry(spec)
    rows = load_dev_dataset(entry)
    if "source" not in rows:
        raise RunError(f"{spec}: scored pairs where parallel sentences are needed")
    return {source.strip(): target for source, target in zip(rows["source"], rows["target"], strict=True)}


def with_translations(dataset: Dataset, entry: DatasetEntry) -> Dataset:
    """The data set as its entry wants it: as it is, or translated in part."""
    if entry.translations is None:
        return dataset
    try:
        translated = translate_rows(dataset, load_translations(entry.translations), entry.translate)
    except RunError as error:
        raise RunError(f"{entry.path}: {error}") from None
    logger.info(
        "%s: %d rows across languages, with %s translated", entry.path, len(translated), ", ".join(entry.translate)
    )
    return translated

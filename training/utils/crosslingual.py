"""Cross-lingual rows: replaces texts of a data set with their translations from parallel sentences.

For example, the parallel sentences of XNLI translate the premises and hypotheses of English NLI triplets. An English anchor with an
Arabic positive and negative, or the reverse, teaches a model to compare meanings across languages. Translations alone only teach
it to match equal meanings.
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
    """Replace texts of a data set with their translations. Rows without the required translations are removed.

    Args:
        dataset: Texts in two or more columns; the first is compared with the others. Scores and labels do not change.
        translations: The translation of each text; the keys have no surrounding whitespace.
        which: One or more of ``first`` (translate the first text), ``others`` (all but the first) and ``all``. The rows of all
            choices are concatenated.

    Raises:
        RunError: No row has the required translations.
    """
    from datasets import Dataset

    columns = dataset.column_names
    texts = [column for column in columns if column not in NUMBERS]
    replaced = {"first": texts[:1], "others": texts[1:], "all": texts}
    rows: dict[str, list[Any]] = {column: [] for column in columns}
    translations = translations | {"": ""}  # the padding of rows with fewer negatives
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
    """Load English texts and their translations from parallel sentences.

    Args:
        spec: A file, or a data set on the Hub as ``path``, ``path:config`` or ``path:config:split``.

    Raises:
        UsageError, RunError: They cannot be loaded, or have no columns ``english`` and ``non_english``.
    """
    from common.data_files import hub_or_file
    from training.utils.dev_data import load_dev_dataset
    from training.utils.options import DevEntry

    rows = load_dev_dataset(DevEntry(*hub_or_file(spec, "train")))
    if "source" not in rows:
        raise RunError(f"{spec} holds graded pairs: 'translations' needs parallel sentences")
    return {source.strip(): target for source, target in zip(rows["source"], rows["target"], strict=True)}


def with_translations(dataset: Dataset, entry: DatasetEntry) -> Dataset:
    """Translate a data set if its entry has ``translations``; otherwise return it unchanged."""
    if entry.translations is None:
        return dataset
    try:
        translated = translate_rows(dataset, load_translations(entry.translations), entry.translate)
    except RunError as error:
        raise RunError(f"{entry.path}: {error}") from None
    logger.info("%s: %d cross-lingual rows ('translate': %s)", entry.path, len(translated), ", ".join(entry.translate))
    return translated

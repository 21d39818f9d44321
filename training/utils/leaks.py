"""Finds training rows that share sentences with the dev and test sets, and counts, reports and removes them.

The English sentences of STS17 come from SNLI, and the splits of the STS Benchmark share many sentences. A test score
says little about a model that has seen the test's sentences in training.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from common.data_files import is_local_path
from common.errors import RunError, one_line
from evaluation.utils.scoring.pairs import load_pairs
from evaluation.utils.scoring.rows import set_name
from training.utils.columns import check_varied

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from training.utils.options import DatasetEntry

logger = logging.getLogger(__name__)

# The test sets usually reported for Arabic and English models: their names in mteb, and their subsets
BENCHMARK = {"STS17": ["ar-ar", "en-ar", "en-en"], "STS22.v2": ["ar"], "STSBenchmark": []}
REMOVED = (
    ", after removing the rows that share sentences with the dev and test sets; to keep such rows, add --keep_leaks"
)
ROWS = 65_536  # rows looked up at a time
# the vowel signs of Devanagari, Thai and other scripts from India to Cambodia, without which different words look the same
VOWEL_SIGNS = "".join(chr(code) for code in range(0x0900, 0x1800) if unicodedata.category(chr(code)).startswith("M"))
# punctuation, whitespace, the tatweel, and accents and Arabic vowel signs after decomposition
NON_LETTERS = re.compile(f"[^\\w{VOWEL_SIGNS}]+|[_\u0640]+")


def normalise(text: str) -> str:
    """Normalise a text so that spelling variants compare equal: keep only letters and digits, in lower case, without accents,
    Arabic vowel signs or tatweel, and unify all forms of alef. Vowel signs of Devanagari, Thai and similar scripts are kept. From a text
    without letters or digits, only surrounding whitespace is removed.
    """
    # NFKD separates accents from letters and the hamza from the alef, and decomposes ligatures and full-width characters;
    # the alef with wasla has no decomposition
    letters = unicodedata.normalize("NFKD", text).lower().replace("\u0671", "\u0627")
    return NON_LETTERS.sub("", letters) or text.strip()


def benchmark_sets(compared: str) -> tuple[dict[str, dict[str, list[Any]]], list[str]]:
    """Load the test sets of ``BENCHMARK``.

    Args:
        compared: What is compared with them, for the warning about a task that cannot be loaded.

    Returns:
        The sets by name, and the tasks that could not be loaded.
    """
    sets: dict[str, dict[str, list[Any]]] = {}
    missing: list[str] = []
    for task, subsets in BENCHMARK.items():
        try:
            _, rows_of_subsets, _ = load_pairs(task, None, subsets, [], explicit=False)
        except Exception as error:  # the run does not need this task, so a failure must not end it
            logger.warning("%s are not compared with %s: %s", compared, task, one_line(error))
            missing.append(task)
            continue
        sets |= {set_name(task, subset): rows for subset, rows in rows_of_subsets.items()}
    return sets, missing


def drop_leaks(
    train: dict[str, tuple[DatasetEntry, Dataset]], held_out: dict[str, dict[str, list[Any]]], keep: bool
) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """Remove the training rows that contain a sentence of the dev or test sets in any column.

    These sets are the run's own and, if any training data comes from the Hub, also STS17, STS22.v2 and the STS Benchmark. A
    warning names a set that cannot be loaded.

    Args:
        train: The training data sets, by name.
        held_out: The run's dev and test sets: lists of texts (and of scores) by column.
        keep: Only count and report the rows.

    Returns:
        The data sets, and for the run's record: whether the rows were kept, their number by data set and by dev or test set, and
        the sets that could not be checked.

    Raises:
        RunError: Fewer than two rows of a data set remain, or all remaining scores or labels are equal.
    """
    held = {name: [texts for texts in rows.values() if isinstance(texts[0], str)] for name, rows in held_out.items()}
    unchecked: list[str] = []
    if any(not is_local_path(entry.path) for entry, _ in train.values()):
        sets, unchecked = benchmark_sets("training rows")
        held |= {name: [rows["sentence1"], rows["sentence2"]] for name, rows in sets.items()}
    sets_of: dict[str, set[str]] = {}
    for name, columns in held.items():
        for text in (text for column in columns for text in column):
            sets_of.setdefault(normalise(text), set()).add(name)

    kept, counts = {}, {}
    for name, (entry, dataset) in train.items():
        leaks, counts[name] = find_leaks(dataset, sets_of, held)
        kept[name] = dataset
        if not leaks.any():
            check_varied(name, dataset, entry.loss)
            continue
        logger.info(
            "%s: %d of %d rows share sentences with %s and are %s",
            name,
            leaks.sum(),
            len(dataset),
            ", ".join(f"{held_name} ({count})" for held_name, count in counts[name].items()),
            "kept (--keep_leaks)" if keep else "removed",
        )
        if not keep:
            kept[name] = dataset.select((~leaks).nonzero()[0])
            if len(kept[name]) < 2:
                raise RunError(
                    f"{name}: fewer than 2 rows remain after removing those that share sentences with the dev and test sets; to keep such rows, add --keep_leaks"
                )
        check_varied(name, kept[name], entry.loss, "" if keep else REMOVED)
    return kept, {"kept": keep, "rows": counts, "not_checked": unchecked}


def find_leaks(
    dataset: Dataset, sets_of: dict[str, set[str]], names: Iterable[str]
) -> tuple[np.ndarray, dict[str, int]]:
    """Find the rows of a data set with a text that is in ``sets_of`` after normalisation.

    Args:
        dataset: The data set; only its text columns are checked.
        sets_of: Normalised texts, and the names of the sets that contain them.
        names: All set names, in the order of the counts.

    Returns:
        A mask of shape ``[rows]``, and for each set that shares a text with any row, the number of such rows.
    """
    import numpy as np

    columns = [name for name, feature in dataset.features.items() if getattr(feature, "dtype", "").endswith("string")]
    where: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for start, table in enumerate(dataset.with_format("arrow").iter(ROWS)):
        rows: dict[str, set[int]] = {}
        for column in columns:
            encoded = table[column].combine_chunks().dictionary_encode()
            matches = {index: sets_of.get(normalise(text)) for index, text in enumerate(encoded.dictionary.to_pylist())}
            matches = {index: sets for index, sets in matches.items() if sets}
            if matches:
                for row, index in enumerate(encoded.indices.to_pylist()):
                    for name in matches.get(index, ()):
                        rows.setdefault(name, set()).add(start * ROWS + row)
        for name, those in rows.items():
            where[name].append(np.fromiter(those, dtype=np.int64))
    leaks = np.zeros(len(dataset), dtype=bool)
    counts = {}
    for name, parts in where.items():
        if parts:
            leaks[np.concatenate(parts)] = True
            counts[name] = sum(map(len, parts))
    return leaks, counts

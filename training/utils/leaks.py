"""Sentences that training data shares with the sets that a model is judged by: counted, told, and left out.

STS17 has its English sentences from SNLI, and the parts of the STS Benchmark share many among themselves: a model that has
trained on the sentences of a test is not tested by it.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from common.data_files import is_file_name
from common.errors import RunError, one_line
from evaluation.utils.scoring.pairs import load_pairs

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from training.utils.options import DatasetEntry

logger = logging.getLogger(__name__)

# The test sets of the Arabic field, by mteb's names, and their subsets
BENCHMARK = {"STS17": ["ar-ar", "en-ar", "en-en"], "STS22.v2": ["ar"], "STSBenchmark": []}
ROWS = 65_536  # looked up at a time
# punctuation, space, the tatweel, and accents and vowel signs once they stand alone
NO_LETTER = re.compile("[\\W_\u0640]+")


def normalise(text: str) -> str:
    """What is left of a text that is written in another way: its letters and digits, in lower case, without accents, Arabic
    vowel signs and tatweel, all forms of alef alike. A text without a letter or digit stays as it is.
    """
    # NFKD takes the accent off a letter, the hamza off an alef, and apart what stands in one sign (ligatures, full width);
    # the alef with wasla has no parts
    letters = unicodedata.normalize("NFKD", text).lower().replace("\u0671", "\u0627")
    return NO_LETTER.sub("", letters) or text.strip()


def drop_leaks(
    train: dict[str, tuple[DatasetEntry, Dataset]], held_out: dict[str, dict[str, list[Any]]], keep: bool
) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """Training data without the rows that have a sentence of the development and test sets in any column.

    These sets are the run's own, and where a data set of the training comes from the Hub also the benchmark's: STS17, STS22.v2
    and the STS Benchmark. One that cannot be had is named in a warning, and not looked at.

    Args:
        train: The training data sets, by name.
        held_out: The run's development and test sets, lists of texts (and of scores) by column.
        keep: Count and tell only.

    Returns:
        The data sets, and what to record: the rows that share a sentence, for each data set and development or test set.

    Raises:
        RunError: Fewer than two rows of a data set are left.
    """
    held = {name: [texts for texts in rows.values() if isinstance(texts[0], str)] for name, rows in held_out.items()}
    unchecked: list[str] = []
    if any(not is_file_name(entry.path) for entry, _ in train.values()):
        for task, subsets in BENCHMARK.items():
            try:
                _, found, _ = load_pairs(task, None, subsets, [], explicit=False)
            except Exception as error:  # whatever is wrong with a set that this run does not need
                logger.warning("no check for leaks into %s: %s", task, one_line(error))
                unchecked.append(task)
                continue
            for subset, pairs in found.items():
                held[task if subset == "default" else f"{task} {subset}"] = [pairs["sentence1"], pairs["sentence2"]]
    sets_of: dict[str, set[str]] = {}
    for name, columns in held.items():
        for text in (text for column in columns for text in column):
            sets_of.setdefault(normalise(text), set()).add(name)

    kept, counts = {}, {}
    for name, (_, dataset) in train.items():
        leaks, counts[name] = find_leaks(dataset, sets_of, held)
        kept[name] = dataset
        if not leaks.any():
            continue
        logger.info(
            "%s: %d of %d rows %s, since they share sentences with %s",
            name,
            leaks.sum(),
            len(dataset),
            "would be left out but for --keep_leaks" if keep else "are left out",
            ", ".join(f"{held_name} ({count})" for held_name, count in counts[name].items()),
        )
        if not keep:
            kept[name] = dataset.select((~leaks).nonzero()[0])
            if len(kept[name]) < 2:
                raise RunError(
                    f"{name}: {len(kept[name])} rows are left without those that share sentences with the development and test sets; --keep_leaks keeps them"
                )
    return kept, {"kept": keep, "rows": counts, "not_checked": unchecked}


def find_leaks(
    dataset: Dataset, sets_of: dict[str, set[str]], names: Iterable[str]
) -> tuple[np.ndarray, dict[str, int]]:
    """Which rows of a data set have a text that stands in ``sets_of``, as normalised.

    Args:
        dataset: Any columns; those of text are looked at.
        sets_of: Normalised texts, and the names of the sets that they are of.
        names: All names, in the order in which to count them.

    Returns:
        A mask of shape ``[rows]``, and for each name that has any the rows that share a text with it.
    """
    import numpy as np

    columns = [name for name, feature in dataset.features.items() if getattr(feature, "dtype", "").endswith("string")]
    where: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for start, table in enumerate(dataset.with_format("arrow").iter(ROWS)):
        rows: dict[str, set[int]] = {}
        for column in columns:
            encoded = table[column].combine_chunks().dictionary_encode()
            found = {index: sets_of.get(normalise(text)) for index, text in enumerate(encoded.dictionary.to_pylist())}
            found = {index: names for index, names in found.items() if names}
            if found:
                for row, index in enumerate(encoded.indices.to_pylist()):
                    for name in found.get(index, ()):
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

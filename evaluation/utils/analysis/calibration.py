"""Calibration texts, from outside the test sets, on which principal components and quantisation ranges are fitted."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from common.config import ROOT
from common.data_files import is_local_path, load_hub_dataset, parse_hub_spec, read_rows, text_columns
from common.errors import RunError, UsageError
from common.formats import hash_table

logger = logging.getLogger(__name__)

LIMIT = 10_000  # largest number of texts
# columns of strings that are not texts to embed
NOT_TEXT = re.compile(
    r"topic|subset|split|label|score|genre|source|lang|language|url|(.*_)?(id|ids|idx|guid|uid|uuid)", re.I
)


def calibration_file(name: str) -> Path | None:
    """Return the file, folder or glob ``name``, relative to the working directory or to the repository; None for a Hub data set."""
    if not Path(name).exists() and (ROOT / name).is_file():
        return ROOT / name
    return Path(name) if is_local_path(name) else None


def calibration_id(name: str) -> str:
    """Return ``name``, with a hash of the content if it names files.

    Raises:
        UsageError: There are no such files, or the name of a Hub data set has too many parts.
    """
    path = calibration_file(name)
    if path is None:
        parse_hub_spec(name, "train")
        return name
    digest = hash_table(path)
    if digest is None:
        raise UsageError(f"--calibration_data {name}: no such file, or no file in a supported format")
    return f"{name} sha1:{digest}"


def calibration_texts(name: str, test_texts: Iterable[str] = ()) -> list[str]:
    """Load at most 10,000 distinct texts from a file, or from a Hub data set given as ``path``, ``path:config`` or
    ``path:config:split``. Texts of the test sets are removed.

    Raises:
        RunError: The data cannot be read, or has fewer than 2 texts.
    """
    path = calibration_file(name)
    rows = load_hub_dataset(*parse_hub_spec(name, "train")) if path is None else read_rows(path)
    columns = text_columns(rows)
    columns = [column for column in columns if not NOT_TEXT.fullmatch(column)] or columns
    first = rows[:LIMIT]
    columns = [column for column in columns if not _are_numbers(first[column])]
    texts: dict[str, None] = {}
    for start in range(0, len(rows), LIMIT):
        batch = rows[start : start + LIMIT]
        texts |= dict.fromkeys(text for row in zip(*(batch[c] for c in columns), strict=True) for text in row if text)
        if len(texts) >= LIMIT:
            break
    distinct = list(texts)[:LIMIT]
    tested = set(test_texts)
    kept = [text for text in distinct if text not in tested]
    if len(kept) < len(distinct):
        logger.warning("%s: removed %d texts that are also in the test sets", name, len(distinct) - len(kept))
    if len(kept) < 2:
        raise RunError(f"calibration_data {name}: fewer than 2 texts to fit on")
    return kept


def _are_numbers(values: list[str | None]) -> bool:
    """Return whether most of the values have no letter: every column of a CSV file holds strings."""
    return 2 * sum(not any(map(str.isalpha, value or "")) for value in values) > len(values)

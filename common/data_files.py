"""Loads data sets from the Hub and from users' files, and checks their columns."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import RunError, UsageError, cut, listed, shortened
from common.formats import hash_table, is_glob, is_visible, plain_types, read_table, suffix_of
from common.hub import HUB_NAME, load_from_hub

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

# matches what is_visible accepts: neither white space nor a zero-width or direction mark
VISIBLE = r"[^\s\p{Z}\p{Cc}\p{Cf}]"
LONGEST_NAME = 100  # characters in a subset's name, which is part of the titles of its plots


def is_local_path(path: str) -> bool:
    """Return whether ``path`` names the user's own files (a file, a folder or a glob) rather than a data set on the Hub."""
    return suffix_of(Path(path)) is not None or Path(path).exists() or is_glob(path)


def is_hub_spec(name: str) -> bool:
    """Return whether ``name`` is a data set on the Hub: ``organisation/name``, optionally followed by ``:config:split``."""
    path = name.split(":")[0]
    return path.count("/") == 1 and not is_local_path(name) and not is_local_path(path)


def parse_hub_spec(text: str, split: str) -> tuple[str, str | None, str]:
    """Parse ``path``, ``path:config`` or ``path:config:split``.

    Args:
        split: The split by default.

    Returns:
        The path, the config or None for the data set's default (an empty config means the same), and the split.

    Raises:
        UsageError: There are more than three parts, or the split is empty.
    """
    parts = text.split(":")
    if len(parts) > 3 or (len(parts) == 3 and not parts[2]):
        raise UsageError(f"{text!r} has too many parts, or an empty split: use path, path:config or path:config:split")
    path, config, chosen = [*parts, "", ""][:3]
    return path, config or None, chosen or split


def hub_or_file(text: str, split: str) -> tuple[str, str | None, str]:
    """Return the path, config and split of a Hub data set as :func:`parse_hub_spec` does, or the path of a user's files."""
    return parse_hub_spec(text, split) if is_hub_spec(text) else (text, None, split)


def read_rows(path: Path) -> Dataset:
    """Load a user's table in any format that :mod:`common.formats` supports.

    Text files must be UTF-8; CSV and TSV files need a header line.

    Raises:
        UsageError: The file does not exist, or no file has a supported format.
        RunError: The file's content does not match its extension, or it has no rows.
    """
    return read_table(path)


def load_hub_dataset(path: str, name: str | None, split: str) -> Dataset:
    """Load one split of a data set on the Hub, memory-mapped from disk.

    Raises:
        RunError: The data set, configuration or split does not exist, or the Hub cannot be reached.
    """
    from datasets import load_dataset

    label = f"{path}{f' ({name})' if name else ''}, split {split!r}"
    if not HUB_NAME.fullmatch(path):
        raise RunError(f"data set {label}: neither an existing file nor the name of a Hub data set (organisation/name)")
    try:
        return plain_types(load_from_hub("dataset", path, lambda: load_dataset(path, name, split=split)))
    except RunError as error:
        raise RunError(f"data set {label}: {error}") from None


def dataset_revision(path: str, dataset: Dataset) -> str | None:
    """Return the Hub commit of a data set, or the SHA-1 of a user's files; None if it is unknown."""
    if is_local_path(path):
        return hash_table(Path(path))
    for file in dataset.cache_files:  # data sets from the Hub are cached in a folder named after their commit
        if match := re.search(r"[/\\]([0-9a-f]{40})[/\\]", file["filename"]):
            return match[1]
    return None


def check_texts(where: str, dataset: Dataset, columns: list[str], advice: str = "") -> None:
    """Raise :class:`RunError` if a column does not hold text, or a text is missing or blank. ``advice`` ends the message."""
    for column in columns:
        blank = find_blank(where, dataset, column)
        if blank.any():
            row = int(blank.argmax())
            problem = "has no value" if dataset[row][column] is None else "is empty"
            raise RunError(f"{where}, row {row + 1}: column {column!r} {problem}{advice}")


def find_blank(where: str, dataset: Dataset, column: str) -> np.ndarray:
    """Return a mask of shape ``[rows]``: the rows without visible text in a column.

    Raises:
        RunError: The column's type is not text.
    """
    return ~match_texts(where, dataset, column, VISIBLE)


def match_texts(where: str, dataset: Dataset, column: str, pattern: str) -> np.ndarray:
    """Return a mask of shape ``[rows]``: the rows whose text in a column contains a match of a regular expression.

    Raises:
        RunError: The column's type is not text.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    values = dataset.with_format("arrow")[column]
    values = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.chunked_array([values[:]])
    if pa.types.is_null(values.type):
        return np.zeros(len(dataset), dtype=bool)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise RunError(f"{where}: column {column!r} holds {cut(str(values.type), 60)} instead of text")
    return np.array(pc.fill_null(pc.match_substring_regex(values, pattern), False).to_numpy(zero_copy_only=False))


def is_text(value: Any) -> bool:
    """Return whether ``value`` is a string with visible text, as :func:`find_blank` does for a column."""
    return isinstance(value, str) and any(map(is_visible, value))


def text_columns(dataset: Dataset) -> list[str]:
    """Return the columns that hold strings, not lists of strings."""
    return [
        name
        for name, feature in dataset.features.items()
        if getattr(feature, "dtype", None) in ("string", "large_string")
    ]


def check_columns(where: str, dataset: Dataset, columns: list[str]) -> None:
    """Raise :class:`RunError` if a column is missing; the message lists the existing columns."""
    existing = dataset.column_names
    for column in columns:
        if column not in existing:
            # a file with fewer columns probably has another separator
            advice = f": rename them to {', '.join(columns)}" if len(existing) >= len(columns) else ""
            raise RunError(f"{where}: no column {column!r}; the columns are {listed(existing)}{advice}")


def finite_number(where: str, row: int, column: str, value: Any) -> float:
    """Return ``value`` as a finite number. Raises :class:`RunError`, which names the row."""
    try:
        result = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not math.isfinite(result):
        raise RunError(f"{where}, row {row}: column {column!r} must be a finite number, not {shortened(value, 60)}")
    return result


def read_pairs(path: Path, check: bool = True) -> dict[str, dict[str, list[Any]]]:
    """Load graded pairs from a user's file, by subset.

    The columns are ``sentence1``, ``sentence2`` and ``score``; an optional ``subset`` column divides the rows into
    sets, such as ``ar-ar`` and ``en-ar``. Without it all rows form the subset ``default``.

    Args:
        check: Require that a correlation is defined for the scores of each subset.

    Returns:
        For each subset, in order of appearance, ``{"sentence1": [...], "sentence2": [...], "score": [...]}``.

    Raises:
        UsageError, RunError: The file, a column or a value is invalid; the message says where.
    """
    dataset = read_rows(path)
    check_columns(str(path), dataset, ["sentence1", "sentence2", "score"])
    check_texts(str(path), dataset, ["sentence1", "sentence2"])
    subsets = dataset["subset"] if "subset" in dataset.column_names else ["default"] * len(dataset)
    pairs_of: dict[str, dict[str, list[Any]]] = {}
    for row, (subset, first, second, score) in enumerate(
        zip(subsets, dataset["sentence1"], dataset["sentence2"], dataset["score"], strict=True), 1
    ):
        if subset is not None and not isinstance(subset, str):
            raise RunError(f"{path}, row {row}: column 'subset' must be text, not {shortened(subset, 60)}")
        if not subset or not subset.strip():
            raise RunError(f"{path}, row {row}: column 'subset' is empty")
        if len(subset) > LONGEST_NAME:
            raise RunError(f"{path}, row {row}: the name in column 'subset' has more than {LONGEST_NAME} characters")
        pairs = pairs_of.setdefault(subset, {"sentence1": [], "sentence2": [], "score": []})
        pairs["sentence1"].append(first)
        pairs["sentence2"].append(second)
        pairs["score"].append(finite_number(str(path), row, "score", score))
    for subset, pairs in pairs_of.items() if check else ():
        check_scores(f"{path}, subset {subset!r}" if len(pairs_of) > 1 else str(path), pairs["score"])
    return pairs_of


def check_scores(where: str, scores: list[float]) -> None:
    """Raise :class:`RunError` if no correlation is defined: fewer than three scores, or all scores equal."""
    if reason := why_undefined(scores):
        raise RunError(f"{where}: {reason}")


def why_undefined(scores: list[float]) -> str | None:
    """Return why no correlation with these scores is defined, or None if it is."""
    if len(scores) < 3:
        return f"{len(scores)} graded pair{'s' * (len(scores) != 1)}; a correlation needs at least 3"
    if min(scores) == max(scores):
        return f"every score is {scores[0]:g}; a correlation needs scores that differ"
    return None


def file_hash(path: str | None) -> str | None:
    """Return the SHA-1 of a file's content, or of the names and contents of a folder's or glob's files; None if there is no file."""
    return None if path is None else hash_table(Path(path))

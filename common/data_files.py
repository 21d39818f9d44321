"""Data sets from the Hub and from a user's own files, each checked once, here."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import RunError, UsageError, one_line
from common.hub import HUB_NAME, load_from_hub

if TYPE_CHECKING:
    from datasets import Dataset

VISIBLE = r"[^\s\p{Z}\p{Cc}\p{Cf}]"  # not white space, and not a zero-width or direction mark
LONGEST_NAME = 100  # characters of a subset's name, which stands above every plot
FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")


def is_file_name(path: str) -> bool:
    """Whether ``path`` means a file of the user's rather than a data set on the Hub."""
    return Path(path).suffix.lower() in FORMATS or Path(path).exists()


def read_rows(path: Path) -> Dataset:
    """A user's table: CSV, TSV (with a header line), JSONL (an object a line) or Parquet, in UTF-8.

    Raises:
        UsageError: There is no such file, or its ending is not one of the four.
        RunError: The file cannot be read as what its ending says, or it has no rows.
    """
    from datasets import Dataset

    suffix = path.suffix.lower()
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give a {', '.join(FORMATS)} file")
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    if suffix not in FORMATS:
        raise UsageError(f"{path}: the ending must be one of {', '.join(FORMATS)}")
    if path.stat().st_size == 0:
        raise RunError(f"{path}: the file is empty")
    import pyarrow as pa

    if suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            empty = pq.read_metadata(path).num_rows == 0  # which from_parquet cannot read
            dataset = None if empty else Dataset.from_parquet(str(path), keep_in_memory=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise RunError(f"{path}: not a readable Parquet file ({one_line(error, 120)})") from None
        except Exception as error:  # datasets wraps what the readers raise in a class of its own
            if type(error).__module__.startswith("datasets."):
                raise RunError(
                    f"{path}: not a readable Parquet file ({one_line(error.__cause__ or error, 120)})"
                ) from None
            raise
    else:
        try:
            rows = _read_jsonl(path) if suffix == ".jsonl" else _read_delimited(path, "," if suffix == ".csv" else "\t")
        except UnicodeDecodeError as error:
            raise RunError(
                f"{path}: not UTF-8 text (byte {error.start} of the file's {error.object[error.start : error.start + 1]!r})"
            ) from None
        try:
            dataset = Dataset.from_list(rows) if rows else None
        except (pa.ArrowException, OverflowError) as error:
            raise RunError(f"{path}: a column holds values of several types ({one_line(error, 120)})") from None
    if dataset is None or len(dataset) == 0:
        raise RunError(f"{path}: the file has no rows")
    return dataset


def _read_delimited(path: Path, delimiter: str) -> list[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        rows: list[dict[str, str]] = []
        try:
            header = [name.strip() for name in next(reader, [])]
            if len(set(header)) != len(header):
                raise RunError(f"{path}, line 1: a column name stands twice")
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise RunError(
                        f"{path}, line {reader.line_num}: {len(row)} fields where the header has {len(header)}"
                    )
                rows.append(dict(zip(header, row, strict=True)))
        except csv.Error as error:
            raise RunError(f"{path}, line {reader.line_num}: {error}") from None
    return rows


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise RunError(f"{path}, line {number}: not valid JSON ({error.msg})") from None
            except ValueError as error:  # an integer of thousands of digits
                raise RunError(f"{path}, line {number}: {one_line(error)}") from None
            except RecursionError:
                raise RunError(f"{path}, line {number}: nested too deeply") from None
            if not isinstance(row, dict):
                raise RunError(f"{path}, line {number}: must be a JSON object")
            for name, value in row.items():
                if isinstance(value, str) and not _is_unicode(value):
                    raise RunError(f"{path}, line {number}: {name!r} is not valid Unicode (a lone surrogate)")
            if rows and row.keys() != rows[0].keys():
                odd = sorted(row.keys() ^ rows[0].keys())[0]
                raise RunError(f"{path}, line {number}: the key {odd!r} is not in every row")
            rows.append(row)
    return rows


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def load_hub_dataset(path: str, name: str | None, split: str) -> Dataset:
    """A split of a data set on the Hub, memory-mapped on disk.

    Raises:
        RunError: There is no such data set, configuration or split, or the Hub cannot be reached.
    """
    from datasets import load_dataset

    label = f"{path}{f' ({name})' if name else ''}, split {split!r}"
    if not HUB_NAME.fullmatch(path):
        raise RunError(f"data set {label}: no such file, and not a name that the Hub has (organisation/data set)")
    try:
        return load_from_hub("dataset", path, lambda: load_dataset(path, name, split=split))
    except RunError as error:
        raise RunError(f"data set {label}: {error}") from None


def dataset_revision(path: str, dataset: Dataset) -> str | None:
    """The Hub commit that a data set came from, or the SHA-1 of a user's file."""
    if is_file_name(path):
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha1").hexdigest()
    for file in dataset.cache_files:  # the Hub's data sets are cached under their commit
        if found := re.search(r"[/\\]([0-9a-f]{40})[/\\]", file["filename"]):
            return found[1]
    return None


def check_texts(where: str, dataset: Dataset, columns: list[str]) -> None:
    """Raise :class:`RunError` unless each column holds text, with none missing or blank."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for column in columns:
        values = dataset.with_format("arrow")[column]
        values = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.chunked_array([values[:]])
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            raise RunError(f"{where}: column {column!r} holds {values.type} where text is wanted")
        bad = pc.fill_null(pc.invert(pc.match_substring_regex(values, VISIBLE)), True)
        if pc.any(bad).as_py():
            row = pc.index(bad, True).as_py()
            raise RunError(
                f"{where}, row {row + 1}: column {column!r} is {'missing' if values[row].as_py() is None else 'empty'}"
            )


def check_columns(where: str, dataset: Dataset, columns: list[str]) -> None:
    """Raise :class:`RunError` naming the first column that is missing and those that were found."""
    for column in columns:
        if column not in dataset.column_names:
            raise RunError(f"{where}: no column {column!r}; found {', '.join(dataset.column_names)}")


def number(where: str, row: int, column: str, value: Any) -> float:
    """``value`` as a finite number, or :class:`RunError` naming the row."""
    try:
        result = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not math.isfinite(result):
        raise RunError(f"{where}, row {row}: column {column!r} must be a finite number, not {repr(value)[:60]}")
    return result


def read_pairs(path: Path, check: bool = True) -> dict[str, dict[str, list[Any]]]:
    """Scored sentence pairs from a user's file, by subset.

    The columns are ``sentence1``, ``sentence2`` and ``score``; an optional ``subset`` splits the rows into several sets
    (say ``ar-ar`` and ``en-ar``), and without it all are the subset ``default``.

    Args:
        check: Whether each subset must have scores that a correlation is defined for.

    Returns:
        For each subset, in order of appearance, ``{"sentence1": [...], "sentence2": [...], "score": [...]}``.

    Raises:
        UsageError, RunError: The file, a column or a value is not as it should be; the message says where.
    """
    dataset = read_rows(path)
    check_columns(str(path), dataset, ["sentence1", "sentence2", "score"])
    check_texts(str(path), dataset, ["sentence1", "sentence2"])
    subsets = dataset["subset"] if "subset" in dataset.column_names else ["default"] * len(dataset)
    found: dict[str, dict[str, list[Any]]] = {}
    for row, (subset, first, second, score) in enumerate(
        zip(subsets, dataset["sentence1"], dataset["sentence2"], dataset["score"], strict=True), 1
    ):
        if not isinstance(subset, str) or not subset.strip():
            raise RunError(f"{path}, row {row}: column 'subset' is empty")
        if len(subset) > LONGEST_NAME:
            raise RunError(f"{path}, row {row}: column 'subset' is a name of more than {LONGEST_NAME} characters")
        pairs = found.setdefault(subset, {"sentence1": [], "sentence2": [], "score": []})
        pairs["sentence1"].append(first)
        pairs["sentence2"].append(second)
        pairs["score"].append(number(str(path), row, "score", score))
    for subset, pairs in found.items() if check else ():
        check_scores(f"{path}, subset {subset!r}" if len(found) > 1 else str(path), pairs["score"])
    return found


def check_scores(where: str, scores: list[float]) -> None:
    """Raise :class:`RunError` where no correlation is defined: fewer than three scores, or all alike."""
    if reason := why_undefined(scores):
        raise RunError(f"{where}: {reason}")


def why_undefined(scores: list[float]) -> str | None:
    """Why no correlation with these scores is defined, or None where one is."""
    if len(scores) < 3:
        return f"{len(scores)} scored pairs; a correlation needs at least 3"
    if min(scores) == max(scores):
        return f"every score is {scores[0]:g}; a correlation needs scores that differ"
    return None


def file_hash(path: str | None) -> str | None:
    """SHA-1 of a file's content; None without a file."""
    if path is None or not Path(path).is_file():
        return None
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()

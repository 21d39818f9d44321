"""Reads tables in the formats that users have: CSV, TSV, JSON and Parquet, compressed, in shards, or saved with save_to_disk."""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import json
import logging
import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from common.errors import RunError, UsageError, listed, one_line, shortened
from common.hub import explain_cache_error

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

logger = logging.getLogger(__name__)

TEXT_FORMATS = (".csv", ".tsv", ".json", ".jsonl")
FORMATS = (*TEXT_FORMATS, ".parquet")
SUPPORTED = (
    f"{', '.join(TEXT_FORMATS)} (also gzipped, such as .csv.gz), .parquet, a folder of such files, a glob in quotation marks "
    "('data/train-*.parquet'), or a folder written by save_to_disk of the datasets library"
)
# a word in the name of a file or folder that says to which split its rows belong, such as in nli_train.csv, valSet.csv, test/0.csv
SPLIT = re.compile(
    r"(?<![a-z])(?:(?P<train>train(?:ing)?)|(?P<validation>val(?:id(?:ation)?)?)|(?P<dev>dev(?:elopment)?)"
    r"|(?P<eval>eval(?:uation)?)|(?P<test>test(?:ing)?))(?:sets?|data)?(?![a-z])"
)
AS_ROWS = ": it must hold a list of objects, or one object per line, one for each row (pandas: to_json(path, orient='records', lines=True))"
CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def suffix_of(path: Path) -> str | None:
    """Return the extension that states the format, such as ``.csv`` or ``.csv.gz``; None if it is not supported."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    if endings and endings[-1] in FORMATS:
        return endings[-1]
    if len(endings) == 2 and endings[1] == ".gz" and endings[0] in TEXT_FORMATS:
        return "".join(endings)
    return None


def is_glob(path: str | Path) -> bool:
    return not Path(path).exists() and _has_wildcard(str(path))


def _has_wildcard(text: str) -> bool:
    return any(character in text for character in "*?[")


def split_glob(path: Path) -> tuple[Path, Path]:
    """Split a glob into the folder that exists, whose name may itself contain ``*``, ``?`` or ``[``, and the pattern."""
    folder = Path(path.anchor)
    parts = path.relative_to(path.anchor).parts
    for place, part in enumerate(parts):
        if not (folder / part).exists():
            return folder, Path(*parts[place:])
        folder /= part
    return folder, Path()


def table_name(path: Path) -> str:
    """Return a name for the rows of ``path``: the file name without its extension, or for a glob the folder's name."""
    if is_glob(path):
        folder, pattern = split_glob(path)
        parts = [
            part
            for part in (*folder.parts, *(part for part in pattern.parts if not _has_wildcard(part)))
            if part != path.anchor
        ]
        return parts[-1] if parts else "data"
    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix and not path.is_dir() else path.name


def is_saved(path: Path) -> bool:
    """Return whether ``path`` is a folder written by ``save_to_disk``."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def files_of(path: Path) -> list[Path]:
    """Return the files that ``path`` refers to: the file itself, or the files of a folder or glob, sorted by name.

    Raises:
        UsageError: There are no files, or their formats or their splits differ.
    """
    if is_glob(path):
        folder, pattern = split_glob(path)
        names = sorted(glob.glob(str(pattern), root_dir=folder, recursive=True))
        files = [folder / name for name in names if (folder / name).is_file()]
        if not files:
            raise UsageError(f"{path}: no file matches")
        if unsupported := [file for file in files if suffix_of(file) is None]:
            raise UsageError(f"{unsupported[0]}: not a supported format: use {SUPPORTED}")
        _refuse_several_splits(f"{path}: the glob matches", folder, files)
    elif path.is_dir():
        files = sorted(
            file for file in path.iterdir() if file.is_file() and suffix_of(file) and file.name[0] not in "._"
        )
        if not files:
            raise UsageError(f"{path}: the folder has no file in a supported format: use {SUPPORTED}")
        _refuse_several_splits(f"{path}: the folder has", path, files)
    elif not path.exists():
        raise UsageError(f"{path}: no such file")
    elif suffix_of(path) is None:
        raise UsageError(f"{path}: not a supported format: use {SUPPORTED}")
    else:
        files = [path]
    endings = sorted({str(suffix_of(file)).removesuffix(".gz") for file in files})
    if len(endings) > 1:
        raise UsageError(
            f"{path}: files of several formats, {', '.join(endings)}: select the files of one format with a glob"
        )
    return files


def split_of(file: Path) -> frozenset[str]:
    """Return the splits that the name of a file states (rarely more than one), or else those of the innermost folder that states any.

    Args:
        file: The path relative to the folder that the user named.
    """
    for part in reversed(file.parts):
        words = CAMEL_CASE.sub("_", part).lower()
        if splits := frozenset(str(match.lastgroup) for match in SPLIT.finditer(words)):
            return splits
    return frozenset()


def _refuse_several_splits(problem: str, folder: Path, files: list[Path]) -> None:
    """Raise :class:`UsageError` if the files are those of several splits: nobody trains on test rows on purpose."""
    first: dict[frozenset[str], Path] = {}
    for file in files:
        if splits := split_of(file.relative_to(folder)):
            first.setdefault(splits, file.relative_to(folder))
    if len(first) < 2:
        return
    names = sorted({name for splits in first for name in splits})
    example = next((file for splits, file in first.items() if "train" in splits), next(iter(first.values())))
    raise UsageError(
        f"{problem} files of several splits, {', '.join(names)} ({', '.join(map(str, list(first.values())[:3]))}): "
        f"select the files of one split with a glob, such as '{folder}/{_glob_of_split(example)}'"
    )


def _glob_of_split(file: Path) -> str:
    """Return a glob for the files of the same split as ``file``, such as ``nli_train*`` for nli_train-1.csv."""
    for place, part in reversed(list(enumerate(file.parts))):
        if matches := list(SPLIT.finditer(CAMEL_CASE.sub("_", part).lower())):
            word = matches[-1][0]
            end = part.lower().rindex(word) + len(word)
            return "/".join([*file.parts[:place], f"{part[:end]}*", *["*"] * (place < len(file.parts) - 1)])
    return file.as_posix()


def read_table(path: Path) -> Dataset:
    """Read the rows of a file, of a folder or glob of files, or of a folder written by ``save_to_disk``.

    Raises:
        UsageError: The file does not exist, or no file has a supported format.
        RunError: A file's content does not match its extension, or there are no rows.
    """
    from datasets import concatenate_datasets

    if path.is_dir() and is_saved(path):
        return _read_saved(path)
    files = files_of(path)
    if len(files) == 1:
        return _read_file(files[0])
    parts = [_read_file(file) for file in files]
    every = dict.fromkeys(name for part in parts for name in part.column_names)
    for file, part in zip(files, parts, strict=True):
        if not set(part.column_names) & set(parts[0].column_names):
            raise RunError(
                f"{file}: the file has none of the columns of {files[0].name}, which are {listed(parts[0].column_names)}: "
                "give all files the same columns"
            )
    for name in every:  # like a key that some rows of a JSONL file lack
        if lacking := [file.name for file, part in zip(files, parts, strict=True) if name not in part.column_names]:
            logger.info(
                "%s: the column %r is not in all of the files, so it has no value in the rows of %s",
                path,
                name,
                listed(lacking),
            )
    try:
        return concatenate_datasets(_with_equal_numbers(parts))
    except (ValueError, TypeError) as error:  # columns with different types
        raise RunError(
            f"{path}: the files cannot be joined ({one_line(error, 160)}): use one type for a column in all files"
        ) from None


def _with_equal_numbers(parts: list[Dataset]) -> list[Dataset]:
    """Convert the integers of a column that holds floating-point numbers in another file: 4 and 4.5 are both scores."""
    from datasets import Features, Value

    types: dict[str, set[str]] = {}
    for part in parts:
        for name, feature in part.features.items():
            types.setdefault(name, set()).add(getattr(feature, "dtype", ""))
    mixed = {
        name
        for name, kinds in types.items()
        if len(kinds) > 1 and kinds <= {"int32", "int64", "float32", "float64"} and kinds & {"float32", "float64"}
    }
    for place, part in enumerate(parts):
        if numbers := {name: Value("float64") for name in mixed & set(part.column_names)}:
            parts[place] = part.cast(Features(part.features | numbers))
    return parts


def hash_table(path: Path) -> str | None:
    """Return the SHA-1 of a file's content, or of the names and contents of several files; None if there are none."""
    if path.is_dir() and is_saved(path):
        files = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        try:
            files = files_of(path)
        except UsageError:
            files = [path] if path.is_file() else []
    if not files:
        return None
    hashes = []
    for file in files:
        with file.open("rb") as content:
            hashes.append(hashlib.file_digest(content, "sha1").hexdigest())
    if files == [path]:
        return hashes[0]
    root = path if path.is_dir() else Path(path.anchor)
    names = [file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix() for file in files]
    return hashlib.sha1(
        "".join(f"{name}\0{digest}\n" for name, digest in zip(names, hashes, strict=True)).encode()
    ).hexdigest()


def _read_file(path: Path) -> Dataset:
    import pyarrow as pa
    from datasets import Dataset

    if path.stat().st_size == 0:
        raise RunError(f"{path}: the file is empty")
    if suffix_of(path) == ".parquet":
        dataset = _read_parquet(path)
    else:
        readers: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
            ".csv": read_csv,
            ".tsv": read_tsv,
            ".jsonl": read_json_lines,
            ".json": read_json,
        }
        try:
            rows = readers[str(suffix_of(path)).removesuffix(".gz")](path)
        except UnicodeDecodeError:
            raise RunError(not_utf8(path)) from None
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise RunError(f"{path}: not a readable gzip file ({one_line(error, 120)})") from None
        try:
            dataset = Dataset.from_list(rows) if rows else None
        except (pa.ArrowException, OverflowError):
            try:
                rows = _without_nan(rows)
                dataset = Dataset.from_list(rows)
            except (pa.ArrowException, OverflowError) as error:
                raise RunError(f"{path}: {_mixed_column(rows) or one_line(error, 160)}") from None
    if dataset is None or len(dataset) == 0:
        raise RunError(f"{path}: the file has no rows")
    return dataset


def _without_nan(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace NaN by None in the columns that hold texts or lists: pandas writes NaN where a text is missing."""
    of_texts = {column for row in rows for column, value in row.items() if isinstance(value, str | list)}

    def value_of(value: Any) -> Any:
        if isinstance(value, list):
            return [value_of(item) for item in value] if any(isinstance(item, str) for item in value) else value
        return None if isinstance(value, float) and math.isnan(value) else value

    return [{column: value_of(value) if column in of_texts else value for column, value in row.items()} for row in rows]


def _mixed_column(rows: list[dict[str, Any]]) -> str | None:
    """Name the first column that mixes types, and the first row whose value differs in type; None if no column does."""
    first: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        for column, value in row.items():
            for place, kind in _kinds(f"column {column!r}", value):
                if first.setdefault(place, kind) != kind:
                    return f"{place} holds {first[place]} and, in row {number}, {kind}: use one type in all rows"
                if type(value) is int and not -(2**63) <= value < 2**63:
                    return f"{place} holds, in row {number}, an integer of more than 64 bits: correct it, or write it as text"
    return None


def _kinds(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the kind of a value, and those of the values in a list or object, each with its place; nulls have none."""
    kinds = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    if type(value) in kinds:
        yield place, kinds[type(value)]
    for item in value if isinstance(value, list) else ():
        yield from _kinds(place if place.endswith(", in its lists,") else f"{place}, in its lists,", item)
    for key, item in value.items() if isinstance(value, dict) else ():
        yield from _kinds(f"{place}, key {shortened(key)},", item)


@contextmanager
def _not_readable(path: Path, kind: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except Exception as error:
        if message := explain_cache_error(error):  # the file is not to blame
            raise RunError(f"{path}: {message}") from None
        if isinstance(error, (pa.ArrowException, OSError, ValueError)):
            raise RunError(f"{path}: not a readable {kind} ({one_line(error, 120)})") from None
        if type(error).__module__.startswith("datasets."):  # datasets wraps the errors of its readers
            raise RunError(f"{path}: not a readable {kind} ({one_line(error.__cause__ or error, 120)})") from None
        raise


def _read_parquet(path: Path) -> Dataset | None:
    import pyarrow.parquet as pq
    from datasets import Dataset

    with _not_readable(path, "Parquet file"):
        if pq.read_metadata(path).num_rows == 0:  # from_parquet cannot read an empty table
            return None
        # from_parquet would read an unescaped path as a pattern
        return plain_types(Dataset.from_parquet(glob.escape(str(path)), keep_in_memory=False))


def is_list_type(kind: pa.DataType) -> bool:
    """Return whether a column's Arrow type is a list of any form."""
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def plain_types(dataset: Dataset) -> Dataset:
    """Convert string views, which other programs such as Polars write, to strings."""
    import pyarrow as pa
    from datasets import Features

    def plain(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_string_view(kind):
            return pa.large_string()
        if is_list_type(kind):
            return pa.large_list(plain(kind.value_type))
        return kind

    schema = dataset.features.arrow_schema
    if not any("string_view" in str(field.type) for field in schema):
        return dataset
    return dataset.cast(Features.from_arrow_schema(pa.schema([pa.field(f.name, plain(f.type)) for f in schema])))


def _read_saved(path: Path) -> Dataset:
    from datasets import Dataset

    if (path / "dataset_dict.json").is_file():
        splits = sorted(folder.name for folder in path.iterdir() if is_saved(folder))
        if not splits:
            raise RunError(
                f"{path}: the folder has dataset_dict.json but no splits: save the data set again with save_to_disk"
            )
        if len(splits) > 1:
            example = "train" if "train" in splits else splits[0]
            raise UsageError(
                f"{path}: the folder has the splits {', '.join(splits)}: use one of them, such as {path}/{example}"
            )
        path = path / splits[0]
    try:
        with _not_readable(path, "save_to_disk folder"):
            dataset = Dataset.load_from_disk(str(path)).with_format(None)
    except (KeyError, TypeError, AttributeError) as error:  # its JSON files lack keys or have other types
        raise RunError(f"{path}: not a readable save_to_disk folder ({one_line(error, 120)})") from None
    if len(dataset) == 0:
        raise RunError(f"{path}: the folder has no rows")
    return dataset


def _open(path: Path, **options: Any) -> IO[str]:
    options = {"encoding": "utf-8-sig"} | options
    return gzip.open(path, "rt", **options) if path.suffix.lower() == ".gz" else path.open(**options)


def not_utf8(path: Path) -> str:
    """Return the message about the first line of a file that is not UTF-8."""
    with _open(path, newline="\n", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if escaped := re.search("[\udc80-\udcff]", line):  # a byte that cannot be decoded, plus 0xdc00
                byte = ord(escaped[0]) - 0xDC00
                return f"{path}, line {number}: not UTF-8 text (byte 0x{byte:02x}); convert the file to UTF-8"
    return f"{path}: not UTF-8 text; convert the file to UTF-8"


def read_csv(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    """Read the rows of a file with a header line, whose fields may be quoted. Spaces after a comma are not part of the field."""
    csv.field_size_limit(2**31 - 1)
    with _open(path, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=delimiter == ",")
        rows: list[dict[str, str]] = []
        try:
            header = _header(path, next(reader, []))
            if len(header) == 1 and (other := next((mark for mark in ";\t|" if mark in header[0]), None)):
                raise RunError(
                    f"{path}, line 1: the header is one field, {shortened(header[0])}: separate the fields with "
                    f"{'tabs' if delimiter != ',' else 'commas'}, not {'tabs' if other == chr(9) else repr(other)}"
                )
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise RunError(
                        f"{path}, line {reader.line_num}: {len(row)} field{'s' * (len(row) != 1)}, but the header has {len(header)}"
                    )
                rows.append(dict(zip(header, row, strict=True)))
        except csv.Error as error:
            raise RunError(f"{path}, line {reader.line_num}: {error}") from None
    return rows


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Read the rows of a file with a header line, in which quotation marks are ordinary characters.

    The usual TSV files (STS-B, AllNLI, XNLI, GLUE) are not quoted. A file with a quoted header, or with a column whose fields
    are all quoted, is read as quoted, and the log says so.
    """
    rows: list[dict[str, str]] = []
    with _open(path, newline="\n") as file:
        lines = (line.rstrip("\n").removesuffix("\r") for line in file)
        fields = next(lines, "").split("\t")
        if all(map(_is_quoted, fields)):
            return _read_quoted(path, "the header is quoted")
        header = _header(path, fields)
        for number, line in enumerate(lines, 2):
            if not line:
                continue
            fields = line.split("\t")
            if len(fields) != len(header):
                raise RunError(
                    f"{path}, line {number}: {len(fields)} field{'s' * (len(fields) != 1)}, but the header has {len(header)} (quotation marks are ordinary characters in a TSV file without a quoted header)"
                )
            rows.append(dict(zip(header, fields, strict=True)))
    quoted = [name for name in header if rows and all(_is_quoted(row[name]) for row in rows)]
    if quoted:
        return _read_quoted(path, f"every field of {', '.join(quoted)} is quoted")
    return rows


def _is_quoted(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', "")


def _read_quoted(path: Path, reason: str) -> list[dict[str, str]]:
    logger.info("%s is read as a quoted TSV file, because %s", path, reason)
    return read_csv(path, "\t")


def _header(path: Path, fields: list[str]) -> list[str]:
    header = [plain_name(name) for name in fields]
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise RunError(f"{path}, line 1: the column name {shortened(twice)} is duplicated: rename one of the columns")
    if header.count("") > 1:
        raise RunError(
            f"{path}, line 1: {header.count('')} of the {len(header)} columns have no name: name or remove them"
        )
    return header


def plain_name(name: str) -> str:
    """Return a column's name without surrounding white space and invisible marks, such as those of the writing direction."""
    start, end = 0, len(name)
    while start < end and not is_visible(name[start]):
        start += 1
    while end > start and not is_visible(name[end - 1]):
        end -= 1
    return name[start:end]


def is_visible(character: str) -> bool:
    """Return whether a character is neither white space nor a zero-width or direction mark."""
    return unicodedata.category(character) not in ("Zs", "Zl", "Zp", "Cc", "Cf")


def read_json(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON array of objects, or of a file with one object per line."""
    with _open(path) as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
    if start != "[":
        return read_json_lines(path)
    with _open(path) as file:
        values = _parse(str(path), file.read())
    return [_row(f"{path}, row {number}", value) for number, value in enumerate(_aligned(path, values, "row"), 1)]


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a file with one JSON object per line."""
    places, rows = [], []
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path}, line {number}"
                    rows.append(_row(where, _parse(where, line)))
                    places.append(number)
    except RunError:
        if len(rows) == 0 and _is_one_object(path):
            raise RunError(f"{path}: the file holds a single object{AS_ROWS}") from None
        raise
    if len(rows) == 1 and _is_table(rows[0]):
        raise RunError(f"{path}: the file holds a single object{AS_ROWS}")
    return _aligned(path, rows, "line", places)


def _is_one_object(path: Path) -> bool:
    """Return whether a file is a single JSON object on several lines."""
    try:
        with _open(path) as file:
            text = file.read().strip()
        return "\n" in text and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _is_table(row: dict[str, Any]) -> bool:
    """Return whether an object is a table: an object for each column, as pandas writes, or one list of rows."""
    values = list(row.values())
    rows = values[0] if len(values) == 1 and isinstance(values[0], list) else []
    return any(values) and (all(isinstance(value, dict) for value in values) or isinstance((*rows, None)[0], dict))


def _aligned(path: Path, rows: list[Any], unit: str, places: list[int] | None = None) -> list[Any]:
    """Give all rows the same keys: a key that a row lacks becomes null. Whoever reads a column checks that it has values."""
    keys = [row.keys() if isinstance(row, dict) else () for row in rows]
    if all(names == keys[0] for names in keys):
        return rows
    every = list(dict.fromkeys(name for names in keys for name in names))
    for index, names in enumerate(keys):
        if isinstance(rows[index], dict) and keys[0] and not set(names) & set(keys[0]):
            number = places[index] if places else index + 1
            raise RunError(
                f"{path}, {unit} {number}: the row has none of the keys of the first row, which are {listed(keys[0])}"
            )
    counts = Counter(name for names in keys for name in names)
    logger.info(
        "%s: not every row has a value for %s",
        path,
        listed(
            f"{shortened(name)} ({count} of {len(rows)} rows)" for name, count in counts.items() if count < len(rows)
        ),
    )
    return [{name: row.get(name) for name in every} if isinstance(row, dict) else row for row in rows]


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(f"{where}: not valid JSON ({error.msg})") from None
    except ValueError as error:  # an integer of thousands of digits
        raise RunError(f"{where}: {one_line(error)}") from None
    except RecursionError:
        raise RunError(f"{where}: nested too deeply") from None


def _row(where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise RunError(f"{where}: must be a JSON object")
    for name, value in row.items():
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and not _is_unicode(text) for text in texts):
            raise RunError(f"{where}: {name!r} is not valid Unicode (a lone surrogate)")
    return row


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

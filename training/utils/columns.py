"""Maps the columns of a data set to those that its loss reads, expands lists, and removes unusable rows."""

from __future__ import annotations

import ast
import functools
import json
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data_files import find_blank, finite_number, is_text, match_texts
from common.errors import RunError, UsageError, listed, shortened
from common.formats import is_list_type, plain_name
from training.utils.batches import negative_columns
from training.utils.options import LOSSES, DatasetEntry

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

NUMBERED = re.compile(r"negative_?(\d+)")  # roles
# names of columns that hold one of several negatives, and of all that seem to hold negatives
NUMBERED_COLUMN = re.compile(r"(?:hard[ _-]?)?neg(?:ative)?s?[ _-]?(\d+)")
LIKE_NEGATIVES = re.compile(r"(?:hard[ _-]?)?neg(?:ative)?s?(?:[ _-].*)?")
LABELS = ("label", "labels")
# other names of columns that hold lists of positives or negatives
POSITIVES, NEGATIVES = ("positives", "pos"), ("negatives", "neg", "hard_negatives", "hard_negative")
SCORES = ("score", "scores", "similarity")
ADVICE = "; correct the row, or add --drop_unusable_rows to remove such rows"


def map_columns(
    where: str,
    columns: list[str],
    roles: dict[str, tuple[str, ...]],
    chosen: dict[str, str] | None,
    optional: Iterable[str] = (),
) -> dict[str, str]:
    """Return the column for each role, ``{role: column}``, in the order of the roles.

    A warning names the columns that would also fit a role, and the one that is used.

    Raises:
        UsageError: ``chosen`` names a role that the loss does not have, or uses a column for two roles.
        RunError: A column is missing; the message lists the columns of the data set.
    """
    existing = listed(columns)
    if chosen is not None:
        if unknown := [role for role in chosen if role not in roles]:
            raise UsageError(f"{where}: 'columns' names {unknown[0]!r}, but the loss reads {', '.join(roles)}")
        if absent := [column for column in chosen.values() if column not in columns]:
            raise RunError(f"{where}: no column {absent[0]!r}; the columns are {existing}")
        mapped = {role: chosen[role] for role in roles if role in chosen}
        if twice := [column for column in mapped.values() if list(mapped.values()).count(column) > 1]:
            raise UsageError(f"{where}: the column {twice[0]!r} is used for more than one of {', '.join(mapped)}")
    else:
        mapped = {}
        fitting: dict[str, list[str]] = {}
        for role, aliases in roles.items():
            fits = (column for name in (role, *aliases) for column in named(columns, (name,)))
            fitting[role] = [column for column in dict.fromkeys(fits) if column not in mapped.values()]
            if fitting[role]:
                mapped[role] = fitting[role][0]
        for role, fits in fitting.items():
            if others := [column for column in fits[1:] if column not in mapped.values()]:
                logger.warning(
                    "%s: %d columns fit %r; %r is used, and %s is not: to use another, map the columns with 'columns' in a --config file",
                    where,
                    1 + len(others),
                    role,
                    mapped[role],
                    listed(map(repr, others)),
                )
    for role in roles:
        if role not in mapped and role not in optional:
            example = ", ".join(f'"{role}": "COLUMN"' for role in roles if role not in optional)
            raise RunError(
                f"{where}: no column for {role!r}; the columns are {existing}; map them in a --config file with "
                f'"columns": {{{example}}}'
            )
    return mapped


def named(columns: Iterable[str], names: tuple[str, ...]) -> list[str]:
    """Return the columns with one of the names, which are in lower case; case and invisible marks around them do not matter.
    A column that is spelled exactly like a name comes first.
    """
    return sorted(
        (column for column in columns if plain_name(column).lower() in names), key=lambda column: column not in names
    )


def select_columns(where: str, dataset: Dataset, entry: DatasetEntry) -> tuple[Dataset, list[str]]:
    """Select and rename the columns that the loss of an entry reads.

    For a contrastive loss these are ``anchor``, ``positive``, any number of negatives (``negative``, ``negative_1``, ...), and
    ``label`` if the data set has it. Positives and negatives may be lists.

    Returns:
        The data set, and the columns that are not used.
    """
    loss = LOSSES[entry.loss]
    roles, optional = dict(loss.columns), set(loss.optional)
    if loss.contrastive:
        # before the other names, such as "answer": a column "pos" or "neg" is meant for a contrastive loss
        roles["positive"] = (*POSITIVES, *roles["positive"])
        roles["negative"] = (*NEGATIVES, *roles["negative"])
        numbered = _numbered_roles(dataset.column_names if entry.columns is None else [], entry.columns or ())
        roles |= numbered | {"label": LABELS[1:]}
        optional |= {*numbered, "label"}
    mapped = map_columns(where, dataset.column_names, roles, entry.columns, optional)
    # use the label even if 'columns' does not name it, because it says which rows are positive pairs
    if loss.contrastive and entry.columns is not None and "label" not in mapped:
        for name in (column for label in LABELS for column in named(dataset.column_names, (label,))):
            if name not in mapped.values() and _shows_positives(dataset, name, mapped["positive"]):
                mapped["label"] = name
                break
    unused = [name for name in dataset.column_names if name not in mapped.values()]
    if loss.contrastive and entry.columns is None:
        _warn_of_unused_negatives(where, dataset, unused)
    dataset = dataset.select_columns(list(mapped.values())).rename_columns(
        {column: role for role, column in mapped.items() if column != role}
    )
    return dataset.select_columns(list(mapped)), unused


def _numbered_roles(columns: Iterable[str], chosen: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the roles ``negative_1``, ... in the order of their numbers, with the names of the columns that fit them."""
    roles: dict[str, tuple[str, ...]] = {role: () for role in chosen if NUMBERED.fullmatch(role)}
    for name in (plain_name(column).lower() for column in columns):
        if match := NUMBERED_COLUMN.fullmatch(name):
            role = f"negative_{match[1]}"
            roles[role] = (*roles.get(role, ()), name)
    return dict(sorted(roles.items(), key=lambda item: int(NUMBERED.fullmatch(item[0])[1])))


def _warn_of_unused_negatives(where: str, dataset: Dataset, unused: list[str]) -> None:
    """Warn of columns of texts that are named like negatives, but are not read."""
    features = dataset.features.arrow_schema
    texts = [name for name in unused if "string" in str(features.field(name).type)]
    if similar := [name for name in texts if LIKE_NEGATIVES.fullmatch(plain_name(name).lower())]:
        logger.warning(
            "%s: not used, although the name suggests negatives: %s; rename the columns to negative_1, negative_2, ..., or map them with 'columns' in a --config file",
            where,
            listed(similar),
        )


def _shows_positives(dataset: Dataset, name: str, positive: str) -> bool:
    """Return whether a column of labels says which pairs, or which texts of the lists in ``positive``, are positive."""
    if _is_list(dataset, name):
        return _is_list(dataset, positive)
    labels = [label for label in dataset[name][:] if not _lacks_score(label)]
    return bool(labels) and all(_lacks_label(label) or _as_binary(label) is not None for label in labels)


def _as_binary(label: Any) -> bool | None:
    """Return whether a label is 1; None if it is neither 1 nor 0. Truth values count, also in the words that pandas writes."""
    if isinstance(label, str) and label.strip().lower() in ("true", "false"):
        return label.strip().lower() == "true"
    try:
        return {0.0: False, 1.0: True}.get(float(label))
    except (TypeError, ValueError, OverflowError):
        return None


# Contrastive losses: lists, labels, negatives


def expand(where: str, dataset: Dataset, unused: list[str], refuse: bool) -> Dataset:
    """Turn labelled pairs, and lists of positives or negatives, into rows of ``anchor``, ``positive`` and negatives.

    A list of positives becomes one row per positive; a list of negatives becomes one column per negative, empty where a row has
    fewer. With a list of labels, the texts in the list ``positive`` that are labelled 1 are positives, and those labelled 0 are
    negatives. With one label per row, rows labelled 0 are removed.

    Args:
        unused: The columns that are not read.
        refuse: Whether an empty text in a list is an error; otherwise it is removed.

    Raises:
        RunError: A label is neither 0 nor 1, no label is 1, nothing shows which texts of a list are positive, or a text is empty.
    """
    negatives = [name for name in dataset.column_names if name.startswith("negative")]
    lists = [name for name in dataset.column_names if _is_list(dataset, name)]
    labelled = "label" in lists
    if "label" in dataset.column_names and not labelled:
        dataset = _keep_positive_pairs(where, dataset)
    if "positive" in lists and not labelled and (unread := named(unused, (*LABELS, *SCORES))):
        raise RunError(
            f"{where}: column 'positive' holds lists, but {unread[0]!r} does not show which of their texts are positive: add a column 'labels' with a 1 or 0 for each text, or a column of negatives"
        )
    if not lists:
        return _join_negatives(where, dataset, negatives)
    rows: list[tuple[str, str, list[str]]] = []
    blank = 0
    for row_number, values in enumerate(dataset, 1):
        texts, labels = _as_list(values["positive"]), _as_list(values["label"]) if labelled else None
        if labels is None:
            labels = [1] * len(texts)
        elif len(labels) != len(texts) or any(_as_binary(label) is None for label in labels):
            raise RunError(
                f"{where}, row {row_number}: column 'label' must hold a 0 or 1 for each text of 'positive', not {shortened(labels)}"
            )
        negative_texts = [text for text, label in zip(texts, labels, strict=True) if not _as_binary(label)]
        texts = [text for text, label in zip(texts, labels, strict=True) if _as_binary(label)]
        for name in negatives:
            negative_texts += (
                _as_list(values[name]) if name in lists else [text for text in [values[name]] if is_text(text)]
            )
        for column, entries in (("positive", texts), ("negative", negative_texts)):
            if others := [entry for entry in entries if not isinstance(entry, str | None)]:
                raise RunError(
                    f"{where}, row {row_number}: column {column!r} must hold text, not {shortened(others[0])}"
                )
            if refuse and not all(map(is_text, entries)):
                raise RunError(f"{where}, row {row_number}: column {column!r} holds an empty text{ADVICE}")
        if refuse and not texts:
            nothing = "no text of column 'positive' has the label 1" if labelled else "column 'positive' holds no text"
            raise RunError(f"{where}, row {row_number}: {nothing}{ADVICE}")
        blank += sum(not is_text(text) for text in (*texts, *negative_texts)) + (not texts)
        negative_texts = [text for text in negative_texts if is_text(text)]
        rows += [(values["anchor"], text, negative_texts) for text in texts if is_text(text)]
    if blank:
        logger.warning("%s: removed %d empty texts or lists", where, blank)
    if len(rows) != len(dataset):
        logger.info("%s: expanded from %d to %d rows, one for each positive", where, len(dataset), len(rows))
    table = {"anchor": [anchor for anchor, _, _ in rows], "positive": [positive for _, positive, _ in rows]}
    against = [texts for _, _, texts in rows]
    if negatives or labelled:
        _log_pairs(where, against)
    return _new(table, against)


def warn_of_own_negatives(where: str, dataset: Dataset) -> None:
    """Warn if a row's negative is also its anchor or its positive: the loss would push the text away from itself."""
    import pyarrow.compute as pc

    negatives = negative_columns(dataset.column_names)
    if not negatives:
        return
    table = dataset.with_format("arrow")[:]
    equal = [pc.equal(table[own], table[name]) for own in ("anchor", "positive") for name in negatives]
    count = pc.sum(functools.reduce(pc.or_, equal)).as_py()
    if count:
        logger.warning(
            "%s: in %d of %d rows, a negative is also the anchor or the positive of its row; remove such negatives",
            where,
            count,
            len(dataset),
        )


def _log_pairs(where: str, negatives: list[list[str]]) -> None:
    """Log how many rows have no negative."""
    if pairs := sum(not texts for texts in negatives):
        logger.info("%s: %d of %d rows have no negative and are used as pairs", where, pairs, len(negatives))


def _new(table: dict[str, list[str]], negatives: list[list[str]]) -> Dataset:
    """Return a data set with as many columns of negatives as any row needs. Missing negatives are empty strings, because the
    model card of sentence-transformers needs a string in every column; :class:`training.utils.sampling.Collator` removes them.
    """
    from datasets import Dataset, Features, Value

    width = max(map(len, negatives), default=0)
    names = ["negative"] if width == 1 else [f"negative_{place + 1}" for place in range(width)]
    table = table | {
        name: [texts[place] if place < len(texts) else "" for texts in negatives] for place, name in enumerate(names)
    }
    return Dataset.from_dict(table, features=Features(dict.fromkeys(table, Value("string"))))


def _is_list(dataset: Dataset, name: str) -> bool:
    return is_list_type(dataset.features.arrow_schema.field(name).type)


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _keep_positive_pairs(where: str, dataset: Dataset) -> Dataset:
    """Return the rows whose ``label`` is 1, without the label."""
    labels = dataset["label"][:]
    for row, label in enumerate(labels, 1):
        if _as_binary(label) is None:
            raise RunError(
                f"{where}, row {row}: column 'label' must be 1 (positive pair) or 0 for a contrastive loss, not {shortened(label)}; select the columns with 'columns' in a --config file, or choose another loss"
            )
    positive = np.array([_as_binary(label) for label in labels], dtype=bool)
    if not positive.any():
        raise RunError(f"{where}: no row has the label 1 (positive pair)")
    logger.info(
        "%s: %d of %d rows have the label 1 and are kept as positive pairs; %d with label 0 are removed",
        where,
        positive.sum(),
        len(labels),
        (~positive).sum(),
    )
    return dataset.select(positive.nonzero()[0]).remove_columns("label")


def _join_negatives(where: str, dataset: Dataset, negatives: list[str]) -> Dataset:
    """Rename the columns of negatives to ``negative`` or ``negative_1``, ... A row's missing negatives come last and are empty."""
    if not negatives:
        return dataset
    blank = np.stack([find_blank(where, dataset, name) for name in negatives], axis=1)
    if not blank.any():
        final = ["negative"] if len(negatives) == 1 else [f"negative_{place + 1}" for place in range(len(negatives))]
        for prefix in ("-", ""):  # in two steps, because some of the new names may exist already
            names = [f"{prefix}{name}" for name in final]
            dataset = dataset.rename_columns(dict(zip(negatives, names, strict=True)))
            negatives = names
        return dataset
    table = {name: list(dataset[name]) for name in dataset.column_names if name not in negatives}
    columns = [list(dataset[name]) for name in negatives]
    rows = zip(zip(*columns, strict=True), blank, strict=True)
    against = [[text for text, gone in zip(*row, strict=True) if not gone] for row in rows]
    _log_pairs(where, against)
    return _new(table, against)


# Unusable rows


def drop_unusable(where: str, dataset: Dataset, refuse: bool) -> Dataset:
    """Remove the rows that lack a text, a label or a score, or whose text is a list in the notation of JSON or Python.

    A row may lack its negatives. :func:`expand` checks the texts in lists.

    Args:
        refuse: Whether such a row is an error, because the user can correct it.

    Raises:
        RunError: A row lacks a value, or a text is a list; the message names the row and the column. Also if most texts of a column
            are lists.
    """
    checks: dict[str, Callable[[Any], bool]] = {"label": _lacks_label, "score": _lacks_score}
    reasons: dict[tuple[str, bool], np.ndarray] = {}  # by column, and by whether the reason is a list written as text
    negatives = [name for name in dataset.column_names if name.startswith("negative")]
    for name in dataset.column_names:
        of_texts = name == "positive" or name in negatives or (name == "label" and "positive" in dataset.column_names)
        if of_texts and _is_list(dataset, name):
            continue
        if name in checks:
            reasons[name, False] = np.fromiter(map(checks[name], dataset[name]), dtype=bool, count=len(dataset))
            continue
        if name not in negatives:  # a row may have fewer negatives, or none
            reasons[name, False] = find_blank(where, dataset, name)
        reasons[name, True] = _find_written_lists(where, dataset, name)
    unusable = np.any(list(reasons.values()), axis=0)
    if not unusable.any():
        return dataset
    if refuse:
        row = int(unusable.argmax())
        name, written = next(reason for reason, rows in reasons.items() if rows[row])
        value = dataset[row][name]
        if written:
            problem = f"holds a list written as text, {shortened(value)}"
        elif value is None or (isinstance(value, str) and name not in checks):
            problem = "has no value" if value is None else "is empty"
        elif name == "score":
            problem = f"must be a finite number, not {shortened(value)}"
        elif "positive" in dataset.column_names:
            problem = f"must be 1 (positive pair) or 0, not {shortened(value)}"
        else:
            problem = f"must be a non-negative integer, not {shortened(value)}"
        raise RunError(f"{where}, row {row + 1}: column {name!r} {problem}{ADVICE}")
    described = ", ".join(
        f"{int(rows.sum())} {'with a list written as text in' if written else 'without'} {'a label (missing or -1)' if name == 'label' else repr(name)}"
        for (name, written), rows in reasons.items()
        if rows.any()
    )
    logger.warning("%s: %d of %d rows are unusable and removed: %s", where, unusable.sum(), len(dataset), described)
    return dataset.select((~unusable).nonzero()[0])


def _find_written_lists(where: str, dataset: Dataset, name: str) -> np.ndarray:
    """Return a mask of shape ``[rows]``: the rows whose text is a list in the notation of JSON or Python, as in a CSV file.

    Raises:
        RunError: Most texts of the column are such lists.
    """
    bracketed = match_texts(where, dataset, name, r"(?s)^\s*\[.*\]\s*$").nonzero()[0]
    texts = dataset.select(bracketed)[name][:] if len(bracketed) else []
    rows = [row for row, text in zip(bracketed, texts, strict=True) if _is_written_list(text)]
    if rows and 2 * len(rows) > len(dataset) - int(find_blank(where, dataset, name).sum()):
        own_columns = ", or each text in its own column (negative_1, negative_2, ...)" * name.startswith("negative")
        raise RunError(
            f"{where}, row {rows[0] + 1}: column {name!r} holds lists written as text, such as {shortened(dataset[int(rows[0])][name])}; "
            f"store the lists in a JSONL or Parquet file{own_columns}"
        )
    written = np.zeros(len(dataset), dtype=bool)
    written[rows] = True
    return written


def _is_written_list(text: str) -> bool:
    """Return whether a text is a list that is empty or holds anything but numbers: "[1]" may be a footnote."""

    def is_more_than_numbers(value: Any) -> bool:
        if isinstance(value, list | tuple):
            return any(map(is_more_than_numbers, value))
        return not isinstance(value, int | float | complex)

    for read in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python warns of escapes such as "\d"
                values = read(text.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return isinstance(values, list) and (not values or is_more_than_numbers(values))
    return False


def _lacks_score(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip() or value.strip().lower() == "nan"
    return value is None or (isinstance(value, float) and math.isnan(value))


def _as_number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _lacks_label(value: Any) -> bool:
    """Return whether a label is missing: data sets use -1 if annotators disagreed (SNLI) or labels are withheld (GLUE tests)."""
    if _lacks_score(value):
        return True
    try:
        return not isinstance(value, bool) and float(value) == -1
    except (TypeError, ValueError):
        return False


def scale_scores(where: str, values: list[Any], entry: DatasetEntry) -> list[float]:
    """Rescale scores to 0..1."""
    low, high = entry.score_range or (0.0, 1.0)
    scores = [(finite_number(where, row, "score", value) - low) / (high - low) for row, value in enumerate(values, 1)]
    for row, score in enumerate(scores, 1):
        if not -1e-9 <= score <= 1 + 1e-9:
            raise RunError(
                f"{where}, row {row}: the score {values[row - 1]} is outside {low:g}..{high:g}; set 'score_range' for this data set"
            )
    return scores


def check_varied(where: str, dataset: Dataset, loss: str, reason: str = "") -> None:
    """Raise :class:`RunError` if the loss learns from differences between scores or labels, and all are equal.

    Args:
        reason: Ends the message.
    """
    column = LOSSES[loss].varied
    if column in dataset.column_names and len(dataset.unique(column)) < 2:
        raise RunError(f"{where}: every {column} is the same{reason or f'; {loss} learns from {column}s that differ'}")


def class_numbers(where: str, values: list[Any]) -> list[int]:
    """Convert labels, which are non-negative integers, to consecutive class numbers from 0, in the same order."""
    for row, value in enumerate(values, 1):
        label = math.nan if isinstance(value, bool) else _as_number(value)
        if not math.isfinite(label) or label != int(label) or label < 0:
            raise RunError(
                f"{where}, row {row}: column 'label' must be a non-negative integer, not {shortened(value)}; number the classes from 0"
            )
    labels = [int(float(value)) for value in values]
    classes = {label: place for place, label in enumerate(sorted(set(labels)))}
    if len(classes) < 2:
        raise RunError(f"{where}: every label is {labels[0]}; classification needs at least two classes")
    if 2 * len(classes) > len(labels) > 20:
        raise RunError(
            f"{where}: {len(labels)} rows have {len(classes)} different labels; column 'label' must hold classes, not identifiers or years"
        )
    return [classes[label] for label in labels]

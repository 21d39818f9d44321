"""Maps the columns of a data set to those that its loss reads, expands lists, and removes unusable rows."""

from __future__ import annotations

import ast
import functools
import logging
import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data_files import find_blank, finite_number
from common.errors import RunError, UsageError
from common.formats import is_list_type
from training.utils.batches import negative_columns
from training.utils.options import LOSSES, DatasetEntry

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

NUMBERED = re.compile(r"negative_?(\d+)", re.IGNORECASE)
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

    Raises:
        UsageError: ``chosen`` names a role that the loss does not have, or uses a column for two roles.
        RunError: A column is missing; the message lists the columns of the data set.
    """
    listed = ", ".join(columns)
    if chosen is not None:
        if unknown := [role for role in chosen if role not in roles]:
            raise UsageError(f"{where}: 'columns' names {unknown[0]!r}, but the loss reads {', '.join(roles)}")
        if absent := [column for column in chosen.values() if column not in columns]:
            raise RunError(f"{where}: no column {absent[0]!r}; the columns are {listed}")
        mapped = {role: chosen[role] for role in roles if role in chosen}
        if twice := [column for column in mapped.values() if list(mapped.values()).count(column) > 1]:
            raise UsageError(f"{where}: the column {twice[0]!r} is used for more than one of {', '.join(mapped)}")
    else:
        mapped = {}
        in_lower_case = {column.lower(): column for column in reversed(columns)}  # "Anchor" is read as "anchor"
        for role, aliases in roles.items():
            for name in (role, *aliases):
                column = name if name in columns else in_lower_case.get(name)
                if column is not None and column not in mapped.values():
                    mapped[role] = column
                    break
    for role in roles:
        if role not in mapped and role not in optional:
            example = ", ".join(f'"{role}": "COLUMN"' for role in roles if role not in optional)
            raise RunError(
                f"{where}: no column for {role!r}; the columns are {listed}; map them in a --config file with "
                f'"columns": {{{example}}}'
            )
    return mapped


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
        roles["positive"] = (*roles["positive"], *POSITIVES)
        roles["negative"] = (*roles["negative"], *NEGATIVES)
        numbered = {name.lower(): int(match[1]) for name in dataset.column_names if (match := NUMBERED.fullmatch(name))}
        numbered |= {role: int(match[1]) for role in entry.columns or () if (match := NUMBERED.fullmatch(role))}
        roles |= {name: () for name in sorted(numbered, key=numbered.__getitem__)} | {"label": LABELS[1:]}
        optional |= {*numbered, "label"}
    mapped = map_columns(where, dataset.column_names, roles, entry.columns, optional)
    # use the label even if 'columns' does not name it, because it says which rows are positive pairs
    if loss.contrastive and entry.columns is not None and "label" not in mapped:
        for name in LABELS:
            if name in dataset.column_names and name not in mapped.values() and _are_binary(dataset[name][:]):
                mapped["label"] = name
                break
    unused = [name for name in dataset.column_names if name not in mapped.values()]
    dataset = dataset.select_columns(list(mapped.values())).rename_columns(
        {column: role for role, column in mapped.items() if column != role}
    )
    return dataset.select_columns(list(mapped)), unused


def _are_binary(labels: list[Any]) -> bool:
    try:
        return {float(label) for label in labels} <= {0.0, 1.0}
    except (TypeError, ValueError):
        return False


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
        RunError: A label is neither 0 nor 1, no label is 1, nothing shows which texts of a list are positive, a text is empty, or
            lists are written as text.
    """
    negatives = [name for name in dataset.column_names if name.startswith("negative")]
    for name in ("positive", *negatives):
        _refuse_written_lists(where, dataset, name)
    lists = [name for name in dataset.column_names if _is_list(dataset, name)]
    labelled = "label" in lists
    if "label" in dataset.column_names and not labelled:
        dataset = _keep_positive_pairs(where, dataset)
    if "positive" in lists and not labelled and (unread := {*LABELS, *SCORES} & set(unused)):
        raise RunError(
            f"{where}: column 'positive' holds lists, but {sorted(unread)[0]!r} does not show which of their texts are positive: add a column 'labels' with a 1 or 0 for each text, or a column of negatives"
        )
    if not lists:
        return _join_negatives(where, dataset, negatives)
    rows: list[tuple[str, str, list[str]]] = []
    blank = 0
    for row_number, values in enumerate(dataset, 1):
        texts, labels = _as_list(values["positive"]), _as_list(values["label"]) if labelled else None
        if labels is None:
            labels = [1] * len(texts)
        elif len(labels) != len(texts) or not _are_binary(labels):
            raise RunError(
                f"{where}, row {row_number}: column 'label' must hold a 0 or 1 for each text of 'positive', not {str(labels)[:60]}"
            )
        negative_texts = [text for text, label in zip(texts, labels, strict=True) if not float(label)]
        texts = [text for text, label in zip(texts, labels, strict=True) if float(label)]
        for name in negatives:
            negative_texts += (
                _as_list(values[name]) if name in lists else [text for text in [values[name]] if _is_text(text)]
            )
        for column, entries in (("positive", texts), ("negative", negative_texts)):
            if others := [entry for entry in entries if not isinstance(entry, str | None)]:
                raise RunError(
                    f"{where}, row {row_number}: column {column!r} must hold text, not {str(others[0])[:60]}"
                )
            if refuse and not all(map(_is_text, entries)):
                raise RunError(f"{where}, row {row_number}: column {column!r} holds an empty text{ADVICE}")
        if refuse and not texts:
            nothing = "no text of column 'positive' has the label 1" if labelled else "column 'positive' holds no text"
            raise RunError(f"{where}, row {row_number}: {nothing}{ADVICE}")
        blank += sum(not _is_text(text) for text in (*texts, *negative_texts)) + (not texts)
        negative_texts = [text for text in negative_texts if _is_text(text)]
        rows += [(values["anchor"], text, negative_texts) for text in texts if _is_text(text)]
    if blank:
        logger.warning("%s: removed %d empty texts or lists", where, blank)
    if len(rows) != len(dataset):
        logger.info("%s: expanded from %d to %d rows, one for each positive", where, len(dataset), len(rows))
    table = {"anchor": [anchor for anchor, _, _ in rows], "positive": [positive for _, positive, _ in rows]}
    return _new(table, [against for _, _, against in rows])


def _refuse_written_lists(where: str, dataset: Dataset, name: str) -> None:
    """Raise :class:`RunError` if the cells of a text column are lists in the notation of JSON or Python, as in a CSV file."""
    texts = [text.strip() for text in dataset[:20][name] if _is_text(text)]
    if not texts or not all(text[0] == "[" and text[-1] == "]" for text in texts):
        return
    for text in texts:
        try:
            values = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            return
    raise RunError(
        f"{where}: column {name!r} holds lists written as text, such as {texts[0][:40]!r}; store the lists in a JSONL or Parquet "
        "file, or each text in its own column (negative_1, negative_2, ...)"
    )


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


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


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
        if not _are_binary([label]):
            raise RunError(
                f"{where}, row {row}: column 'label' must be 1 (positive pair) or 0 for a contrastive loss, not {label!r}; select the columns with 'columns' in a --config file, or choose another loss"
            )
    positive = np.array([float(label) == 1 for label in labels], dtype=bool)
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
    if len(negatives) < 2:
        return dataset.rename_columns({name: "negative" for name in negatives if name != "negative"})
    blank = np.stack([find_blank(where, dataset, name) for name in negatives], axis=1)
    if not blank.any():
        for prefix in ("-", ""):  # in two steps, because some of the new names may exist already
            names = [f"{prefix}negative_{place + 1}" for place in range(len(negatives))]
            dataset = dataset.rename_columns(dict(zip(negatives, names, strict=True)))
            negatives = names
        return dataset
    table = {name: list(dataset[name]) for name in dataset.column_names if name not in negatives}
    columns = [list(dataset[name]) for name in negatives]
    rows = zip(zip(*columns, strict=True), blank, strict=True)
    return _new(table, [[text for text, gone in zip(*row, strict=True) if not gone] for row in rows])


# Unusable rows


def drop_unusable(where: str, dataset: Dataset, refuse: bool) -> Dataset:
    """Remove the rows that lack a text, a label or a score. :func:`expand` checks lists.

    Args:
        refuse: Whether such a row is an error, because the user can correct it.

    Raises:
        RunError: A row lacks a value; the message names the row and the column.
    """
    checks: dict[str, Callable[[Any], bool]] = {"label": _lacks_label, "score": _lacks_score}
    reasons: dict[str, np.ndarray] = {}
    negatives = [name for name in dataset.column_names if name.startswith("negative")]
    for name in dataset.column_names:
        of_texts = name == "positive" or name in negatives or (name == "label" and "positive" in dataset.column_names)
        if of_texts and _is_list(dataset, name):
            continue
        if name in negatives and len(negatives) > 1:  # a row may have fewer negatives
            continue
        if name in checks:
            reasons[name] = np.fromiter(map(checks[name], dataset[name]), dtype=bool, count=len(dataset))
        else:
            reasons[name] = find_blank(where, dataset, name)
    unusable = np.any(list(reasons.values()), axis=0)
    if not unusable.any():
        return dataset
    if refuse:
        row = int(unusable.argmax())
        name = next(name for name, rows in reasons.items() if rows[row])
        value = dataset[row][name]
        if value is None or (isinstance(value, str) and name not in checks):
            problem = "has no value" if value is None else "is empty"
        elif name == "score":
            problem = f"must be a finite number, not {value!r}"
        elif "positive" in dataset.column_names:
            problem = f"must be 1 (positive pair) or 0, not {value!r}"
        else:
            problem = f"must be a non-negative integer, not {value!r}"
        raise RunError(f"{where}, row {row + 1}: column {name!r} {problem}{ADVICE}")
    described = ", ".join(
        f"{int(rows.sum())} without {'a label (missing or -1)' if name == 'label' else repr(name)}"
        for name, rows in reasons.items()
        if rows.any()
    )
    logger.warning("%s: %d of %d rows are unusable and removed: %s", where, unusable.sum(), len(dataset), described)
    return dataset.select((~unusable).nonzero()[0])


def _lacks_score(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip() or value.strip().lower() == "nan"
    return value is None or (isinstance(value, float) and math.isnan(value))


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


def class_numbers(where: str, values: list[Any]) -> list[int]:
    """Convert labels, which are non-negative integers, to consecutive class numbers from 0, in the same order."""
    for row, value in enumerate(values, 1):
        label = finite_number(where, row, "label", value)
        if isinstance(value, bool) or label != int(label) or label < 0:
            raise RunError(f"{where}, row {row}: column 'label' must be a non-negative integer, not {value!r}")
    labels = [int(float(value)) for value in values]
    classes = {label: place for place, label in enumerate(sorted(set(labels)))}
    if len(classes) < 2:
        raise RunError(f"{where}: every label is {labels[0]}; classification needs at least two classes")
    if 2 * len(classes) > len(labels) > 20:
        raise RunError(
            f"{where}: {len(labels)} rows have {len(classes)} different labels; column 'label' must hold classes, not identifiers or years"
        )
    return [classes[label] for label in labels]

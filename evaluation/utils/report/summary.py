"""``summary.csv``: the scores of all runs in one output directory, with a row for each model, test set and dimension."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from filelock import FileLock

from common.errors import RunError, one_line
from common.records import quarantine, write_atomically
from evaluation.utils.scoring.rows import ScoreRow
from evaluation.utils.scoring.similarity import METRICS

KEY = ["model", "revision", "dtype", "task", "subset", "dim"]
INTERVALS = ["retention", "ci_low", "ci_high", "diff_full", "diff_full_low", "diff_full_high", "p_full",
             "compared_with", "diff_model", "diff_model_low", "diff_model_high", "p_model"]  # fmt: skip
NOTE = "note"  # the reason for a missing score
TEXT = ["model", "revision", "dtype", "task", "subset", "dataset_revision", "mteb_version", "task_type", "metric",
        "compared_with", NOTE]  # fmt: skip
COLUMNS = ["model", "revision", "task", "subset", "dim", "n", *METRICS, "dtype", "dataset_revision", "mteb_version",
           "task_type", "metric", "score", *INTERVALS, NOTE]  # fmt: skip


def update_summary(path: Path, rows: Iterable[ScoreRow]) -> pd.DataFrame:
    """Add rows to ``summary.csv``: one for each model, revision, precision, task, subset and dimension.

    An existing row gets the new values. It keeps its other values, unless the data or the score has changed or the new row has a
    note in place of a score. All other rows stay. Several processes may do this at once.

    A file that is not a summary, or is corrupt, is set aside.

    Returns:
        The complete summary.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pd.DataFrame([row.as_columns() for row in rows]).reindex(columns=COLUMNS).set_index(KEY)
    with FileLock(path.with_name(f".{path.name}.lock")):
        table = new
        if path.exists():
            try:
                old = read_summary(path).set_index(KEY)
            except RunError as error:
                quarantine(path, str(error), "the rows of other models are only in that file")
            else:
                known = old.reindex(new.index)
                before, now = (part["dataset_revision"].astype(object).fillna("") for part in (known, new))
                other_score = (known["score"] - new["score"]).abs() > 1e-6
                replaced = new.index[new[NOTE].notna() | (before != now) | other_score]  # old values no longer apply
                table = new.combine_first(old.drop(index=replaced, errors="ignore"))
                table.loc[new.index[new[NOTE].isna()], NOTE] = None
        table = table.reset_index().reindex(columns=COLUMNS)
        table = table.sort_values(
            ["model", "revision", "dtype", "task", "subset", "dim"], ascending=[True] * 5 + [False]
        )
        text = io.StringIO()
        table.to_csv(text, index=False)
        write_atomically(path, text.getvalue())
    return table


def read_summary(path: Path) -> pd.DataFrame:
    """Read the rows of a ``summary.csv``. Raises :class:`RunError` if the file is not a summary, or is corrupt."""
    numbers = {name: float for name in COLUMNS if name not in (*TEXT, "dim", "n")} | {"dim": int, "n": "Int64"}
    try:
        text = path.read_text(encoding="utf-8")
        lengths = {len(row) for row in csv.reader(io.StringIO(text), strict=True)}  # pandas pads short lines
        table = pd.read_csv(
            io.StringIO(text), dtype={name: str for name in TEXT} | numbers, keep_default_na=False, na_values=[""]
        )
    except (ValueError, csv.Error) as error:  # pandas raises ValueErrors
        raise RunError(one_line(error, 100)) from None
    if missing := [column for column in KEY if column not in table.columns]:
        raise RunError(f"no column {missing[0]!r}")
    if len(lengths) > 1 or not text.endswith("\n") or table[KEY].isna().any(axis=None):
        raise RunError("a line is truncated")
    if table.duplicated(KEY).any():
        raise RunError("a score is duplicated")
    return table.reindex(columns=COLUMNS)

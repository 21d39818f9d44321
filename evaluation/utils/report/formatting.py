"""Formats numbers, names and text for tables and reports."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

from common.models import short_revision

NO_VALUE = "–"
METRIC_NAMES = {"cosine_spearman": "Spearman correlation (cosine)", "max_ap": "Average precision (best similarity)"}
PAIR_TASKS = ("STS", "PairClassification", "BitextMining")  # task types
# characters that would end a table cell, start a tag or start a link
STRUCTURE = {"&": "&amp;", "<": "&lt;", "|": "\\|", "[": "\\["}
EMPHASIS = {character: "\\" + character for character in "\\*_`]"}


def escape_markdown(text: str, keep_emphasis: bool = False) -> str:
    """Escape text for Markdown, including table cells.

    Args:
        keep_emphasis: Do not escape ``_``, ``*`` and similar characters, for a table that is also read in a terminal.
    """
    escapes = STRUCTURE if keep_emphasis else STRUCTURE | EMPHASIS
    return " ".join(str(text).translate(str.maketrans(escapes)).split())


def minus(text: str) -> str:
    """Replace the hyphen before a number with a minus sign."""
    return re.sub(r"-(?=\d)", "−", text)


def number(value: float | None, digits: int = 2) -> str:
    """Format a score × 100; a dash for NaN."""
    return NO_VALUE if pd.isna(value) else f"{100 * value:z.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 2) -> str:
    """Format a difference × 100, with its sign. A difference that rounds to zero has none."""
    if pd.isna(value):
        return NO_VALUE
    text = f"{100 * value:+z.{digits}f}".replace("-", "−")
    return text if text.strip("+0.") else text.removeprefix("+")


def p_text(p: float | None) -> str:
    return NO_VALUE if pd.isna(p) else "< 0.001" if p < 0.001 + 1e-9 else f"{p:.3f}"


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    return NO_VALUE if pd.isna(low) else f"{signed(low, digits)} to {signed(high, digits)}"


def score_cell(score: float, low: float = float("nan"), high: float = float("nan"), p: float = float("nan")) -> str:
    """Format as ``87.59 (84.0–90.1)``, with a ``*`` if the score is significantly below the one at full width."""
    if pd.isna(score):
        return ""
    text = f"{100 * score:z.2f}"
    if pd.notna(low) and pd.notna(high):
        text += f" ({100 * low:z.1f}{'–' if low >= 0 else ' to '}{100 * high:z.1f})"
    return text + ("*" if pd.notna(p) and p < 0.05 else "")


def join(words: Iterable[str]) -> str:
    """Join as ``a``, ``a and b``, ``a, b and c``."""
    words = list(words)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def display_names(models: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the display name of each model: its name, with the revision if two models share the name."""
    models = list(dict.fromkeys(models))
    names = [name for name, _ in models]
    return {(m, r): f"{m} ({short_revision(r)})" if names.count(m) > 1 else m for m, r in models}


def names_in(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return :func:`display_names` for the models of a summary, in its order."""
    return display_names(zip(table["model"], table["revision"], strict=True))


def metric_name(table: pd.DataFrame) -> str:
    """Return the name of a summary's scores: their metric if all share one, otherwise ``Main score``."""
    metrics = set(table["metric"].dropna())
    if len(metrics) != 1:
        return "Main score"
    metric = metrics.pop()
    return METRIC_NAMES.get(metric, metric)


def items_of(task_type: str) -> str:
    """Return what the test sets of an mteb task type consist of: ``pairs``, ``queries`` or ``texts``."""
    if task_type.endswith(("Retrieval", "Reranking")):
        return "queries"
    return "pairs" if task_type in PAIR_TASKS else "texts"

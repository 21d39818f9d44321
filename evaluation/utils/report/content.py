"""The content of a report: sections of paragraphs, plots and tables."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Table:
    """A table of strings. The first ``text_columns`` columns hold text, the others numbers; rows in ``picked`` are highlighted.

    Each line of ``note`` becomes a paragraph below the table.
    """

    columns: list[str]
    rows: list[list[str]]
    caption: str = ""
    note: str = ""
    text_columns: int = 1
    picked: set[int] = field(default_factory=set)


@dataclass
class Plot:
    """A plot. ``name`` describes it in words; ``file`` is set when the plot is written to a file."""

    name: str
    svg: str
    file: str = ""


@dataclass
class Section:
    """A section: paragraphs, then plots, then tables. The paragraphs whose indices are in ``leads`` are highlighted.

    ``id`` names the section in links and in the file names of its plots; it is set when the sections are built.
    """

    title: str
    paragraphs: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    leads: set[int] = field(default_factory=set)
    id: str = ""

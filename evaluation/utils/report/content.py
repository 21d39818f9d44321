"""What a report is made of: sections of paragraphs, plots and tables."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Table:
    """Cells are text. The first ``text_columns`` columns are words, the others numbers; rows in ``picked`` stand out."""

    columns: list[str]
    rows: list[list[str]]
    caption: str = ""
    note: str = ""
    text_columns: int = 1
    picked: set[int] = field(default_factory=set)


@dataclass
class Plot:
    """``name`` says in words what the plot shows; ``file`` is set where it is written to."""

    name: str
    svg: str
    file: str = ""


@dataclass
class Section:
    """Paragraphs, then plots, then tables. The paragraphs numbered in ``leads`` stand out.

    ``id`` names the section in links and the files of its plots; the list of sections sets it.
    """

    title: str
    paragraphs: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    leads: set[int] = field(default_factory=set)
    id: str = ""

"""``report.html``, a single file with the plots inside, and ``report.md`` with the same content.

What they say is put together in ``report_sections.py``; here it is only written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from common.records import write_atomically

PLOTTED = ("scores", "baselines", "precision", "shortlist")  # the sections with plots, which name their files
TEMPLATES = Path(__file__).resolve().parents[2] / "templates"


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
    name: str
    svg: str
    file: str = ""


@dataclass
class Section:
    """Paragraphs, then plots, then tables. The paragraphs numbered in ``leads`` stand out."""

    id: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    leads: set[int] = field(default_factory=set)


def _cell(text: str) -> str:
    """Text that means itself in Markdown, in a table too."""
    text = str(text).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    for character in "*_`[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def render(template: str, **content: object) -> str:
    """A template of ``evaluation/templates``, everything escaped for what it becomes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    html = template.endswith(".html.j2")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _cell
    return environment.get_template(template).render(**content)


def write_report(output_dir: Path, title: str, subtitle: str, sections: list[Section]) -> None:
    """Write ``report.html`` and ``report.md``, and the plots that the latter shows under ``plots/``."""
    for old in (output_dir / "plots").glob("*.svg"):
        if re.fullmatch(rf"({'|'.join(PLOTTED)})-\d+\.svg", old.name):
            old.unlink()
    for section in sections:
        for number, plot in enumerate(section.plots, 1):
            plot.file = f"plots/{section.id}-{number}.svg"
            alone = plot.svg.replace("currentColor", "#1c2330").replace("<svg ", '<svg style="background:#fff" ', 1)
            write_atomically(output_dir / plot.file, alone)
    content = {"title": title, "subtitle": subtitle, "sections": sections}
    write_atomically(output_dir / "report.html", render("report.html.j2", **content))
    # the template puts ↵ where a line ends, so that it can be laid out as it reads
    text = "".join(line.strip() for line in render("report.md.j2", **content).splitlines()).replace("↵", "\n")
    write_atomically(output_dir / "report.md", text.strip() + "\n")


def write_moved_pairs(output_dir: Path, sections: list[Section]) -> None:
    """Write ``errors.html``: the pairs whose rank truncation changes most. It quotes the test sets, so it is a file of its own."""
    if not sections:  # there is no smaller dimension, or no task of pairs
        (output_dir / "errors.html").unlink(missing_ok=True)
        return
    content = {
        "title": "Pairs that truncation moves most",
        "subtitle": "Ranks are percent of the pairs of a set: 100 for the most similar, 0 for the least.",
        "sections": sections,
    }
    write_atomically(output_dir / "errors.html", render("report.html.j2", **content))

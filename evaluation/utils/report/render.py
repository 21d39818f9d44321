"""Writes ``report.html``, a single file that contains the plots, and ``report.md`` with the same content.

The content comes from ``sections/``; this module only writes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from common.records import write_atomically
from evaluation.utils.report.content import Section
from evaluation.utils.report.formatting import escape_markdown

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"


def render(template: str, **content: object) -> str:
    """Render a template from ``evaluation/templates``, with escaping for its output format."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    html = template.endswith(".html.j2")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = escape_markdown
    return environment.get_template(template).render(**content)


def write_html(path: Path, title: str, subtitle: str, sections: list[Section]) -> None:
    """Write one self-contained HTML file."""
    write_atomically(path, render("report.html.j2", title=title, subtitle=subtitle, sections=sections))


def write_report(
    output_dir: Path, title: str, subtitle: str, sections: list[Section], section_ids: Iterable[str] = ()
) -> None:
    """Write ``report.html`` and ``report.md``, and under ``plots/`` the plots that ``report.md`` shows.

    Args:
        section_ids: The ids of all sections. An earlier report's plots of these sections are removed.
    """
    for old in (output_dir / "plots").glob("*.svg"):
        if re.fullmatch(rf"({'|'.join(section_ids)})-\d+\.svg", old.name):
            old.unlink()
    for section in sections:
        for number, plot in enumerate(section.plots, 1):
            plot.file = f"plots/{section.id}-{number}.svg"
            standalone = plot.svg.replace("currentColor", "#1c2330").replace(
                "<svg ", '<svg style="background:#fff" ', 1
            )
            write_atomically(output_dir / plot.file, standalone)
    write_html(output_dir / "report.html", title, subtitle, sections)
    markdown = render("report.md.j2", title=title, subtitle=subtitle, sections=sections)
    # the template marks line ends with ↵, so that line breaks in the template itself have no effect
    text = "".join(line.strip() for line in markdown.splitlines()).replace("↵", "\n")
    write_atomically(output_dir / "report.md", text.strip() + "\n")

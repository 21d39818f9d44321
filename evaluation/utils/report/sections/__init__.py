"""The report's sections. Each is a module whose ``build`` takes the report's material and returns a section, or None if there is
nothing to show. To add a section, add a module and a line in ``SECTIONS``.
"""

from __future__ import annotations

from collections.abc import Callable

from evaluation.utils.report.content import Section
from evaluation.utils.report.material import Material
from evaluation.utils.report.sections import (
    answer,
    baselines,
    errors,
    languages,
    method,
    models,
    published,
    scores,
    shortlist,
    unscored,
)

# In the order of the report, by the id used in links and in the file names of plots
SECTIONS: dict[str, Callable[[Material], Section | None]] = {
    "answer": answer.build,
    "unscored": unscored.build,
    "scores": scores.build,
    "models": models.build,
    "languages": languages.build,
    "published": published.build,
    "baselines": baselines.build,
    "shortlist": shortlist.build,
    "errors": errors.build,
    "made": method.build,
}


def build_sections(material: Material) -> list[Section]:
    """Return all sections with content, in order."""
    sections: list[Section] = []
    for name, build in SECTIONS.items():
        section = build(material)
        if section is not None:
            section.id = name
            sections.append(section)
    return sections

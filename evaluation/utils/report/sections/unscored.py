"""Lists the test sets without a score, with the reason."""

from __future__ import annotations

from evaluation.utils.report.content import Section
from evaluation.utils.report.material import Material


def build(material: Material) -> Section | None:
    return Section("Test sets without a score", material.unscored) if material.unscored else None

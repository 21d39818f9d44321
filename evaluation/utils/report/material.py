"""What the sections of a report are built from."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from evaluation.utils.analysis.cost import SearchTimes
from evaluation.utils.analysis.decision import Decision
from evaluation.utils.analysis.model_analysis import ModelAnalysis
from evaluation.utils.report.formatting import names_in


@dataclass
class Material:
    """What the sections of a report are built from.

    Attributes:
        models: The models with a score. The first is the one that others are compared with.
        table: The summary's rows of this run that have a score.
        decision: What to deploy.
        search: How long a search takes at each dimension and precision, on this ``hardware``.
        unscored: A line of words for each model and test set that has no score.
        calibration: What PCA and the quantisation ranges were fitted on.
        provenance: What the run was made with: command, versions, revisions.
        warning: A sentence that belongs above everything, such as that the scores are not of MTEB.
    """

    models: list[ModelAnalysis]
    table: pd.DataFrame
    decision: Decision
    search: SearchTimes = field(default_factory=SearchTimes)
    hardware: str = ""
    unscored: list[str] = field(default_factory=list)
    calibration: str | None = None
    provenance: dict[str, str] = field(default_factory=dict)
    warning: str = ""

    @cached_property
    def _names(self) -> dict[tuple[str, str], str]:
        return names_in(self.table)

    def name(self, model: ModelAnalysis) -> str:
        """What to call a model, with its revision where two share a name."""
        return self._names[model.identity.name, model.identity.revision]

    def label(self, model: ModelAnalysis) -> str:
        """The model's name, marked where it is a baseline."""
        return self.name(model) + (" (baseline)" if model.baseline else "")

"""The material from which the sections of a report are built."""

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
    """The material from which the sections of a report are built.

    Attributes:
        models: The models with a score. The others are compared with the first.
        table: The rows of the summary that belong to this run and have a score.
        decision: What to deploy.
        search: Search times at each dimension and precision, measured on ``hardware``.
        unscored: A sentence for each model and test set without a score.
        calibration: The data on which PCA and the quantisation ranges were fitted.
        provenance: How the run was made: command, versions, revisions.
        warning: A sentence for the top of the report, for example that the scores are not MTEB's.
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
        """Return a model's display name, with its revision if two share a name."""
        return self._names[model.identity.name, model.identity.revision]

    def label(self, model: ModelAnalysis) -> str:
        """Return the model's display name, marked if it is a baseline."""
        return self.name(model) + (" (baseline)" if model.baseline else "")

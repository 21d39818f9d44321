"""Decides which model, dimension and precision to deploy for an acceptable loss, and computes the loss of each choice.

Here and in ``recommendation.py``, a loss is a drop in score compared with the full-width float32 embedding of the best model: in the
mean over the test sets or, in ``of_sets``, on each set. It is not a training loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from evaluation.utils.analysis.model_analysis import ModelAnalysis
from evaluation.utils.analysis.quantization import PRECISIONS, bytes_per_vector
from evaluation.utils.analysis.recommendation import (
    ERROR,
    MIN_SCORE,
    error_of_step,
    least_lost,
    most_lost,
    smallest_accepted,
)
from evaluation.utils.analysis.shared_pairs import SetKey
from evaluation.utils.scoring.statistics import Estimate


@dataclass(frozen=True)
class Loss:
    """A drop in score and its one-sided bounds, as fractions (0.01 is one point). ``n`` is the number of pairs or queries."""

    value: float
    least: float
    most: float
    n: int


@dataclass(frozen=True)
class Option:
    """A model at a dimension and precision.

    Attributes:
        score: The mean score over the counted sets.
        loss: The loss of the mean score, with the bounds that the decision is based on.
        of_sets: The loss on each set, with bounds at 95% confidence.
        tried: Whether the fixed sequence reached this option.
        accepted: Whether the fixed sequence reached this option and accepted its loss.
    """

    dim: int
    precision: str
    score: float
    loss: Loss
    of_sets: dict[SetKey, Loss]
    accepted: bool
    tried: bool = True

    @property
    def bytes(self) -> int:
        return bytes_per_vector(self.dim, self.precision)


@dataclass(frozen=True)
class Decision:
    """The choice of what to deploy.

    Attributes:
        tolerance: The acceptable loss, as a fraction.
        sets: The tasks and subsets that count: those with an interval for every compared model, on which at least one of them
            scores 0.3 or more at full width.
        too_low: The tasks and subsets that do not count, because every compared model scores below 0.3 there.
        best: The model whose full width scores highest; None if no set counts.
        model, option: The choice to deploy; None if no set counts.
    """

    tolerance: float
    sets: list[SetKey] = field(default_factory=list)
    too_low: list[SetKey] = field(default_factory=list)
    best: ModelAnalysis | None = None
    model: ModelAnalysis | None = None
    option: Option | None = None

    @property
    def full_score(self) -> float:
        """Return the mean score of the best model at full width."""
        assert self.best is not None
        return next(option.score for option in self.best.options if option.dim == self.best.width)


def decide(analyses: Sequence[ModelAnalysis], max_loss: float) -> Decision:
    """Set each model's options and its recommended option, and choose the smallest of the recommended ones.

    A baseline model gets options for comparison, but is never recommended.

    Args:
        max_loss: The acceptable loss in points (hundredths of the score).
    """
    tolerance = max_loss / 100
    for analysis in analyses:
        analysis.options, analysis.recommended = [], None
    compared = [analysis for analysis in analyses if not analysis.baseline and analysis.estimates]
    common = [key for key in _sets_of(compared[0]) if all(key in _sets_of(a) for a in compared)] if compared else []
    sets = [key for key in common if max(_full(analysis, key).value for analysis in compared) >= MIN_SCORE]
    too_low = [key for key in common if key not in sets]
    if not sets:
        return Decision(tolerance, too_low=too_low)
    # resample sets jointly only if all models group them in the same way; otherwise the scores would not be paired
    joint = all(analysis.shared == compared[0].shared for analysis in compared)
    best = max(compared, key=lambda analysis: analysis.mean(sets, analysis.width, joint=joint).value)
    for analysis in analyses:
        if all(key in analysis.estimates for key in sets):
            paired = joint and analysis.shared == best.shared
            _set_options(analysis, best, sets, tolerance, len(compared), paired)
    candidates = [analysis for analysis in compared if analysis.recommended is not None]
    model = min(candidates, key=lambda a: (a.recommended.bytes, a.recommended.loss.value))
    return Decision(tolerance, sets, too_low, best, model, model.recommended)


def _sets_of(analysis: ModelAnalysis) -> list[SetKey]:
    return [key for key, estimates in analysis.estimates.items() if (analysis.width, "float32") in estimates]


def _full(analysis: ModelAnalysis, key: SetKey) -> Estimate:
    return analysis.estimates[key][analysis.width, "float32"]


def _set_options(
    analysis: ModelAnalysis, best: ModelAnalysis, sets: list[SetKey], tolerance: float, models: int, joint: bool
) -> None:
    """Set a model's options, ordered by precision and then from the full width down, and its recommended option."""
    pairs_of = {row.set_key: row.n for row in analysis.scored_rows}
    total = sum(pairs_of.get(key, 0) for key in sets)
    full, error = best.mean(sets, best.width, joint=joint), error_of_step(models)
    scores = {
        (dim, precision): analysis.mean(sets, dim, precision, joint)
        for precision in PRECISIONS
        for dim in analysis.dims
        if all((dim, precision) in analysis.estimates[key] for key in sets)
    }
    losses = {choice: _loss(full - score, total, error) for choice, score in scores.items()}
    precisions = [p for p in PRECISIONS if (analysis.width, p) in losses]
    tried: set[tuple[int, str]] = set()

    def bound(dim: int, precision: str) -> float:
        tried.add((dim, precision))
        return losses[dim, precision].most

    chosen = smallest_accepted(analysis.dims, precisions, bound, tolerance)

    for (dim, precision), score in scores.items():
        if not math.isfinite(score.value):
            continue  # no score, for example because quantisation makes all similarities equal; the sequence ended there
        of_sets = {
            key: _loss(_full(best, key) - analysis.estimates[key][dim, precision], pairs_of.get(key, 0)) for key in sets
        }
        is_tried = (dim, precision) in tried
        accepted = is_tried and losses[dim, precision].most <= tolerance
        option = Option(dim, precision, score.value, losses[dim, precision], of_sets, accepted, is_tried)
        analysis.options.append(option)
        if (dim, precision) == chosen and not analysis.baseline:
            analysis.recommended = option


def _loss(loss: Estimate, pairs: int, error: float = ERROR) -> Loss:
    return Loss(loss.value, least_lost(loss, error), most_lost(loss, error), pairs)

"""Which dimension, and which dimension and precision, to deploy: the smallest that is not significantly below the full width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.utils.analysis.quantization import bytes_per_vector
from evaluation.utils.scoring.rows import set_name
from evaluation.utils.scoring.statistics import LEVEL, Estimates, mean_estimate

MIN_SCORE = 0.3  # below this at full width the model does not do the task, and a share of its score means nothing


@dataclass(frozen=True)
class Choice:
    """A dimension and precision compared with the full float32 embedding.

    Attributes:
        score, full: Mean main scores over the sets that count.
        difference, low, high, p: ``score - full`` with its interval and two-sided p-value.
        worst: The set that loses most, its difference, and that difference's interval and p-value.
        acceptable: Not significantly below: on the mean (p >= 0.05) and on every set (p times the number of sets >= 0.05).
    """

    dim: int
    precision: str
    score: float
    full: float
    difference: float
    low: float
    high: float
    p: float
    worst: tuple[str, float, float, float, float]
    acceptable: bool

    @property
    def bytes(self) -> int:
        return bytes_per_vector(self.dim, self.precision)


def retention(score: float, full: float) -> float:
    """Share of the full-width score; NaN where that is below 0.3."""
    return score / full if full >= MIN_SCORE else float("nan")


def sets_that_count(estimates: Estimates, width: int) -> list[tuple[str, str]]:
    """The tasks and subsets with a full-width score of 0.3 or more."""
    return [key for key, by_choice in estimates.items() if by_choice[width, "float32"].value >= MIN_SCORE]


def choices(estimates: Estimates, width: int) -> list[Choice]:
    """Every dimension and precision, fewest bytes first; none where no set counts."""
    keys = sets_that_count(estimates, width)
    if not keys:
        return []
    measured = []
    for dim, precision in estimates[keys[0]]:
        if not all((dim, precision) in estimates[key] for key in keys):
            continue
        differences = {key: estimates[key][dim, precision] - estimates[key][width, "float32"] for key in keys}
        mean = mean_estimate(list(differences.values()))
        each = {key: (d.value, *d.interval(), d.p_value()) for key, d in differences.items()}
        worst = min(each, key=lambda key: each[key][0])
        p = mean.p_value()
        # Bonferroni: with many sets one would fall below by chance alone
        significant = [value < 0 and p_value * len(keys) < 1 - LEVEL for value, _, _, p_value in each.values()]
        measured.append(
            Choice(
                dim=dim,
                precision=precision,
                score=float(np.mean([estimates[key][dim, precision].value for key in keys])),
                full=float(np.mean([estimates[key][width, "float32"].value for key in keys])),
                difference=mean.value,
                low=mean.interval()[0],
                high=mean.interval()[1],
                p=p,
                worst=(set_name(*worst), *each[worst]),
                acceptable=not (any(significant) or (mean.value < 0 and p < 1 - LEVEL)),
            )
        )
    return sorted(measured, key=lambda choice: (choice.bytes, choice.dim))


def recommend(measured: list[Choice], precisions: tuple[str, ...] = ("float32",)) -> Choice | None:
    """The choice of fewest bytes that is not significantly below the full embedding, and whose dimension is not in float32
    either: what quantising loses does not make up for what truncating loses."""
    dims = {choice.dim for choice in measured if choice.precision == "float32" and choice.acceptable}
    return next((c for c in measured if c.precision in precisions and c.acceptable and c.dim in dims), None)

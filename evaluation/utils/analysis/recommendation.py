"""How far an embedding may be truncated for an acceptable loss (drop in score): non-inferiority tests in a fixed sequence.

The order of the steps does not depend on scores: first the dimensions from the full width down, then the precisions at the last
accepted dimension. The first step whose loss is not shown to be within the tolerance ends its sequence, so that the error rate of a
sequence is that of a single test (Wiens, 2003, https://doi.org/10.1002/pst.64). The two sequences and the compared models share the
5% error: a vector that loses more than the tolerance is recommended in at most about 5% of cases, whatever the number of steps
(``benchmarks/decision_coverage.py`` measures how often).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from scipy.special import ndtri

from evaluation.utils.scoring.statistics import LEVEL, Estimate

MIN_SCORE = 0.3  # below this at full width the model fails at the task, and a share of its score is meaningless
ERROR = 1 - LEVEL  # the probability that the complete procedure accepts a loss above the tolerance
TAIL_REPLICATES = 10  # a quantile with fewer resamples beyond it is extrapolated

Step = TypeVar("Step")
Bound = Callable[[int, str], float]  # the upper bound of the loss at a dimension and precision


def retention(score: float, full: float) -> float:
    """Return a score as a share of the full-width score; NaN if the full-width score is below 0.3."""
    return score / full if full >= MIN_SCORE else float("nan")


def most_lost(loss: Estimate, error: float = ERROR) -> float:
    """Return the one-sided upper bound of a loss: the true loss is above it with probability ``error``.

    This is the end of the bias-corrected and accelerated interval. If fewer than ten resamples are beyond it, the quantile with
    ten beyond it is extrapolated as in a normal distribution.
    """
    tail = max(error, TAIL_REPLICATES / len(loss.replicates))
    bound = loss.interval(1 - 2 * tail)[1]
    if tail > error:
        bound = loss.value + (bound - loss.value) * float(ndtri(1 - error) / ndtri(1 - tail))
    return bound


def least_lost(loss: Estimate, error: float = ERROR) -> float:
    """Return the one-sided lower bound of a loss."""
    return -most_lost(Estimate(-loss.value, -loss.replicates, -loss.jackknife), error)


def error_of_step(models: int) -> float:
    """Return the error rate of each step: half of the total for the dimensions and half for the precisions, each divided
    equally between the compared models."""
    return ERROR / 2 / models


def fixed_sequence(steps: Iterable[Step], is_shown: Callable[[Step], bool]) -> list[Step]:
    """Return the steps before the first for which ``is_shown`` is false; later steps are not tried."""
    accepted: list[Step] = []
    for step in steps:
        if not is_shown(step):
            break
        accepted.append(step)
    return accepted


def smallest_accepted(
    dims: Sequence[int], precisions: Sequence[str], bound: Bound, tolerance: float
) -> tuple[int, str] | None:
    """Return the last dimension, and the last precision at it, that the fixed sequences accept.

    Args:
        dims: Largest first.
        precisions: In the order to try, ``float32`` first.
        bound: Takes a dimension and a precision, and returns the loss that is exceeded with at most the probability
            :func:`error_of_step`. NaN is never accepted.
        tolerance: The acceptable loss, in the unit of ``bound``.

    Returns:
        None if not even the first dimension is accepted.
    """
    accepted_dims = fixed_sequence(dims, lambda dim: bound(dim, precisions[0]) <= tolerance)
    if not accepted_dims:
        return None
    dim = accepted_dims[-1]
    quantised = fixed_sequence(precisions[1:], lambda precision: bound(dim, precision) <= tolerance)
    return dim, quantised[-1] if quantised else precisions[0]


def pairs_that_tell(pairs: float, loss: float, bound: float, tolerance: float) -> float:
    """Estimate how many pairs would show whether a loss is above or below the tolerance, if the measured loss is the true one.

    The distance between a loss and its bound shrinks with the square root of the number of pairs. Infinity if the loss equals the tolerance.
    """
    if loss == tolerance:
        return math.inf
    return pairs * ((bound - loss) / (tolerance - loss)) ** 2

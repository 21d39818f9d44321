"""How far an embedding may be cut for a loss that the user accepts: non-inferiority, tested in a fixed sequence.

Steps are tried in an order that no score decides: the dimensions from the full width downwards, then the precisions at the
last dimension accepted. The first step whose loss is not shown to be within the tolerance ends its sequence, so a sequence
errs no more often than one test does (Wiens, 2003, https://doi.org/10.1002/pst.64). The two sequences, and the models
compared, share the 5% of error: what is recommended loses more than the tolerance in at most 5% of cases, however many steps
were tried (``benchmarks/decision_coverage.py`` measures how often).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from scipy.special import ndtri

from evaluation.utils.scoring.statistics import LEVEL, Estimate

MIN_SCORE = 0.3  # below this at full width the model does not do the task, and a share of its score means nothing
ERROR = 1 - LEVEL  # how often the whole procedure may accept a loss above the tolerance
TAIL_REPLICATES = 10  # a quantile beyond so many of the resamples is extrapolated

Step = TypeVar("Step")
Bound = Callable[[int, str], float]  # the most that a dimension and precision loses


def retention(score: float, full: float) -> float:
    """Share of the full-width score; NaN where that is below 0.3."""
    return score / full if full >= MIN_SCORE else float("nan")


def most_lost(loss: Estimate, error: float = ERROR) -> float:
    """The one-sided upper bound of a loss: the true loss is above it with probability ``error``.

    The end of the bias-corrected and accelerated interval; where fewer than ten resamples lie beyond it, that of ten, moved
    outwards as in a normal distribution.
    """
    tail = max(error, TAIL_REPLICATES / len(loss.replicates))
    bound = loss.interval(1 - 2 * tail)[1]
    if tail > error:
        bound = loss.value + (bound - loss.value) * float(ndtri(1 - error) / ndtri(1 - tail))
    return bound


def least_lost(loss: Estimate, error: float = ERROR) -> float:
    """The one-sided lower bound of a loss."""
    return -most_lost(Estimate(-loss.value, -loss.replicates, -loss.jackknife), error)


def error_of_step(models: int) -> float:
    """The error that each step is tested with where so many models are compared: half of all for the dimensions, half for
    the precisions."""
    return ERROR / 2 / models


def fixed_sequence(steps: Iterable[Step], is_shown: Callable[[Step], bool]) -> list[Step]:
    """The steps before the first that is not shown; those after it are not tried."""
    accepted: list[Step] = []
    for step in steps:
        if not is_shown(step):
            break
        accepted.append(step)
    return accepted


def smallest_accepted(
    dims: Sequence[int], precisions: Sequence[str], bound: Bound, tolerance: float
) -> tuple[int, str] | None:
    """The last dimension, and at it the last precision, that the fixed sequences accept.

    Args:
        dims: Largest first.
        precisions: In the order to try, ``float32`` first.
        bound: Called with a dimension and a precision: the loss that is exceeded with no more probability than
            :func:`error_of_step`. NaN is never accepted.
        tolerance: The loss that is acceptable, in the unit of ``bound``.

    Returns:
        None where not even the first dimension is accepted.
    """
    accepted_dims = fixed_sequence(dims, lambda dim: bound(dim, precisions[0]) <= tolerance)
    if not accepted_dims:
        return None
    dim = accepted_dims[-1]
    quantised = fixed_sequence(precisions[1:], lambda precision: bound(dim, precision) <= tolerance)
    return dim, quantised[-1] if quantised else precisions[0]


def pairs_that_tell(pairs: float, loss: float, bound: float, tolerance: float) -> float:
    """About how many pairs would show on which side of the tolerance a loss lies, were it as measured.

    The distance between a loss and its bound shrinks with the square root of the pairs. Infinity at the tolerance itself.
    """
    if loss == tolerance:
        return math.inf
    return pairs * ((bound - loss) / (tolerance - loss)) ** 2

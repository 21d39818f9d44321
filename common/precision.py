"""Measures how fast this processor multiplies matrices in a precision, compared with float32."""

from __future__ import annotations

import logging
import time
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

SHAPE = (64, 384, 384)  # rows, columns and inner size of the product; it takes 10 microseconds to 0.2 seconds
ROUNDS = 5


@cache
def slowdown(dtype: torch.dtype) -> float:
    """Return the time of a matrix product in ``dtype`` divided by that in float32. Below 1, ``dtype`` is faster.

    Times each precision a few times after a warm-up and uses the fastest. This takes a tenth of a second if both are fast,
    and about a second if ``dtype`` is emulated.
    """
    import torch

    rows, columns, inner = SHAPE
    times = {}
    for kind in (torch.float32, dtype):
        first, second = torch.ones(rows, inner, dtype=kind), torch.ones(inner, columns, dtype=kind)
        measured = []
        for _ in range(1 + ROUNDS):
            start = time.perf_counter()
            first @ second
            measured.append(time.perf_counter() - start)
        times[kind] = min(measured[1:])
    return times[dtype] / times[torch.float32]


def warn_if_slow(flag: str, dtype: torch.dtype) -> None:
    """Log one warning if this processor is slower in ``dtype`` than in float32.

    Args:
        flag: The flag and its value, as the user typed them.
    """
    factor = slowdown(dtype)
    if factor > 1:
        logger.warning(
            "%s: matrix products take %s times as long as in float32 on this processor",
            flag,
            f"{factor:.2g}" if factor < 10 else f"{factor:.0f}",
        )

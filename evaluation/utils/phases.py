"""Measures the seconds that each phase of an evaluation takes, for the run's record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """Adds up the seconds of each phase. Time spent in a nested phase counts only towards the nested phase.

    Attributes:
        seconds: Seconds by phase, in the order in which the phases first ended.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = 0.0  # seconds that the phases inside the current one took

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add the time until the end of the ``with`` block to ``phase``, even if the block raises."""
        start, outer, self._inner = time.perf_counter(), self._inner, 0.0
        try:
            yield
        finally:
            total = time.perf_counter() - start
            self.seconds[phase] = round(self.seconds.get(phase, 0.0) + total - self._inner, 2)
            self._inner = outer + total

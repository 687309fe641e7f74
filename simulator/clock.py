"""The simulated clock: runs at a stated multiple of real time and never goes back."""

from __future__ import annotations

import time
from collections.abc import Callable


class SimulatedClock:
    """`now_us` is simulated unix time in microseconds. `real` is injected by tests; it returns seconds and never goes back."""

    def __init__(self, start_us: int, speed: float, real: Callable[[], float] = time.monotonic) -> None:
        self._start_us = start_us
        self._speed = speed
        self._real = real
        self._origin = real()

    def now_us(self) -> int:
        """Current simulated time."""
        return self._start_us + int((self._real() - self._origin) * self._speed * 1e6)

    def set(self, now_us: int) -> None:
        """Move the clock to a later time; an earlier one is ignored."""
        if now_us > self.now_us():
            self._start_us = now_us
            self._origin = self._real()

"""One deadline for all steps of a shutdown or revocation.

Created once when the signal or the callback arrives and handed down, so that decode, write, commit and close together
stay inside the time after which the process would be killed or the partitions given away.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from consumers.errors import DeadlineExceeded


class Deadline:
    """The moment, on a monotonic clock, at which a drain has to be over."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`seconds` from now; `clock` returns seconds and never goes back."""
        self._clock = clock
        self._end = clock() + seconds

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - self._clock())

    def check(self, step: str) -> None:
        """Raise DeadlineExceeded naming `step` when no time is left to begin it."""
        if self._clock() >= self._end:
            raise DeadlineExceeded(step)

    def within(self, seconds: float) -> float:
        """How long a step that may take `seconds` is allowed to take."""
        return min(seconds, self.remaining())

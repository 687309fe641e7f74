"""How fast queries read, learnt from the ones that ran: what expected times are computed from."""

from __future__ import annotations

import threading
from typing import Final

_FIRST_BYTES_PER_SECOND: Final = 120 * 2**20
"""Compressed bytes a second of a text search on two cores, before anything was measured here."""
_WEIGHT: Final = 0.1
_SMALLEST: Final = 4 * 2**20


class Throughput:
    """A moving mean of bytes read a second; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rate = float(_FIRST_BYTES_PER_SECOND)

    def observe(self, size: int, seconds: float) -> None:
        """Learn from a query; small ones say more about the cost of a query than of a byte and are left out."""
        if size < _SMALLEST or seconds <= 0:
            return
        with self._lock:
            self._rate += _WEIGHT * (size / seconds - self._rate)

    def seconds(self, size: int) -> float:
        """Expected time to read that many bytes."""
        with self._lock:
            return size / self._rate

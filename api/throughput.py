"""How fast queries read, learnt from the ones that ran: what expected times are computed from."""

from __future__ import annotations

import threading
from enum import StrEnum
from typing import Final


class Reading(StrEnum):
    """What a query reads of every row: the text, which is most of a file, or only some of the small columns."""

    TEXT = "text"
    COLUMNS = "columns"


_FIRST_ROWS_PER_SECOND: Final = {Reading.TEXT: 5_000_000.0, Reading.COLUMNS: 15_000_000.0}
"""On two cores, before anything was measured here."""
_FILE_SECONDS: Final = 0.0003
"""Opening a file whose footer is known already."""
_WEIGHT: Final = 0.1
_SMALLEST_ROWS: Final = 100_000


class Throughput:
    """Moving means of rows read a second; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rates = dict(_FIRST_ROWS_PER_SECOND)

    def observe(self, reading: Reading, rows: int, files: int, seconds: float) -> None:
        """Learn from a query; small ones say more about the cost of a query than of a row and are left out."""
        spent = seconds - files * _FILE_SECONDS
        if rows < _SMALLEST_ROWS or spent <= 0:
            return
        with self._lock:
            self._rates[reading] += _WEIGHT * (rows / spent - self._rates[reading])

    def seconds(self, reading: Reading, rows: int, files: int) -> float:
        """Expected time to read that many rows of that many files."""
        with self._lock:
            return rows / self._rates[reading] + files * _FILE_SECONDS

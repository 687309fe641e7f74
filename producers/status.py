"""The producer's report: what it says about itself about once a second, in flat numbers."""

from __future__ import annotations

from collections.abc import Mapping

from producers.cursor import Position
from producers.intake import Counts


class Status:
    """Collects what happens between two reports. All times are monotonic seconds unless named `_us`."""

    def __init__(self, now: float) -> None:
        self.counts = Counts()
        self.gaps = 0
        self.reconnects = 0
        self.connected = False
        self.source = ""
        self.problem: str | None = None
        """What keeps it from receiving, for people; None while connected."""
        self._reported_at = now
        self._enqueued_then = 0

    def snapshot(
        self, now: float, now_us: int, unacknowledged: int, safe: Position | None, newest: Position | None
    ) -> Mapping[str, object]:
        """The report. `safe` is what the stored cursor says, `newest` the last event handed over."""
        counts = self.counts
        elapsed = max(now - self._reported_at, 1e-3)
        rate = (counts.enqueued - self._enqueued_then) / elapsed
        self._reported_at, self._enqueued_then = now, counts.enqueued
        return {
            "received": counts.received,
            "enqueued": counts.enqueued,
            "acknowledged": max(counts.enqueued + counts.dead_letters - unacknowledged, 0),
            "dead_letters": counts.dead_letters,
            "unknown": counts.unknown,
            "repeated": counts.repeated,
            "out_of_order": counts.out_of_order,
            "events_per_second": round(rate, 1),
            "source": self.source,
            "connected": self.connected,
            "problem": self.problem,
            "cursor_seq": safe.seq if safe is not None else None,
            "cursor_time_us": safe.time_us if safe is not None else None,
            "lag_seconds": round((now_us - newest.common_us) / 1_000_000, 3) if newest is not None else None,
            "reconnects": self.reconnects,
            "gaps": self.gaps,
        }

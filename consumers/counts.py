"""What the writer has done: running totals for status reports, and the same as metrics."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from opentelemetry import metrics

from consumers.prepare import Prepared
from lake.commit import Committed

_meter = metrics.get_meter("explorer.consumers")
_rows = _meter.create_counter("explorer.writer.rows", "{row}")
_duplicates = _meter.create_counter("explorer.writer.duplicates", "{row}")
_dead_letters = _meter.create_counter("explorer.dead_letters", "{event}")
_commit_duration = _meter.create_histogram("explorer.writer.commit.duration", "s")
_freshness = _meter.create_gauge("explorer.writer.freshness", "s")


@dataclass(slots=True)
class WriterCounts:
    """Totals of a process over all its memberships; `newest_us` is the newest event time in the lake, 0 for an empty one."""

    rows: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    commits: int = 0
    refused: int = 0
    files: int = 0
    bytes_written: int = 0
    newest_us: int = 0

    def committed(self, prepared: Prepared, outcome: Committed, seconds: float) -> None:
        """Count a batch that became visible `seconds` after its commit began."""
        self.commits += 1
        self.files += len(outcome.files)
        self.bytes_written += sum(file.bytes for file in outcome.files)
        self.dead_letters += len(prepared.bad)
        _commit_duration.record(seconds)
        for reason, number in Counter(str(message.reason) for message in prepared.bad).items():
            _dead_letters.add(number, {"stage": "writer", "reason": reason})
        for part in prepared.batch.parts:
            self.rows += part.rows.num_rows
            _rows.add(part.rows.num_rows, {"table": part.table})
        for table, number in prepared.duplicates.items():
            self.duplicates += number
            _duplicates.add(number, {"table": table})
        if prepared.newest_us:
            self.newest_us = max(self.newest_us, prepared.newest_us)

    def freshness(self) -> float | None:
        """Age of the newest queryable event in seconds, also told to the metric; None for an empty lake.

        Call it at every report: it has to rise while nothing is committed.
        """
        if not self.newest_us:
            return None
        seconds = max(0.0, time.time() - self.newest_us / 1e6)
        _freshness.set(seconds)
        return round(seconds, 3)

"""Validation of a lake over a stretch of time: a day, a week, a month, each a gate before the next.

The gates are the lab's: complete, exact, fast enough, small enough. "No loss" is not claimed but computed: every
topic-hour's books close, every gap is named, every file is what the manifest says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from lake.manifest import HOUR_US, Manifest
from lake.store import LakeStore
from lake.verify import verify
from pipeline.gates import Gate

PHASES: Final = {1: ("one day", 24), 2: ("one week", 7 * 24), 3: ("one month", 30 * 24)}
"""Phase → name and hours of event time that the lake has to cover."""

DENSE_EVENTS_PER_DAY: Final = 2_000_000
"""Below this an hour's files are too small to say what they would need at the planned 8.1 million a day."""
THIN: Final = f"too thin: fewer than {DENSE_EVENTS_PER_DAY:,} events a day"
MOST_BYTES_PER_EVENT: Final = 120.0
"""The planned 1 GB a day at 8.1 million events; the design's own goal is 85."""


@dataclass(frozen=True)
class Span:
    """The stretch of event time that is judged: the newest whole hours, [start, end) in microseconds."""

    start_us: int
    end_us: int

    @property
    def hours(self) -> int:
        """Its length."""
        return (self.end_us - self.start_us) // HOUR_US


def span_of(manifest: Manifest, phase: int) -> Span:
    """The last hours of the lake that the phase asks for, ending with the hour of its newest event; empty lake = now."""
    snapshot = manifest.snapshot()
    newest = [totals.max_time_us for table in snapshot.tables() if (totals := snapshot.totals(table)).max_time_us]
    last = max((time_us for time_us in newest if time_us is not None), default=time.time_ns() // 1000)
    end = last - last % HOUR_US + HOUR_US
    return Span(end - PHASES[phase][1] * HOUR_US, end)


def lake_gates(
    manifest: Manifest,
    store: LakeStore,
    phase: int,
    *,
    least_events_per_day: float,
    deep: bool,
    progress: Callable[[int, int], None],
) -> Iterator[Gate]:
    """What the lake itself can tell about a phase. `deep` digests every file. May take minutes."""
    span = span_of(manifest, phase)
    books = manifest.reconciliation(span.start_us, span.end_us)
    covered = {entry.hour_us for entry in books if entry.rows}
    yield Gate("hours with events", f"{len(covered)}", f"{span.hours}", len(covered) == span.hours)
    rows = sum(entry.rows for entry in books)
    per_day = rows / span.hours * 24
    least = f"≥ {least_events_per_day:,.0f}"
    yield Gate("events a day", f"{per_day:,.0f}", least, per_day >= least_events_per_day)
    unbalanced = [entry for entry in books if not entry.closes]
    yield Gate("topic-hours that do not close", f"{len(unbalanced)} of {len(books)}", "0", not unbalanced)
    bad = sum(entry.dead_letters for entry in books)
    consumed = sum(entry.consumed for entry in books)
    share = bad / consumed if consumed else 0.0
    yield Gate("messages that nobody can read", f"{bad:,} ({share:.3%})", "≤ 1 %", share <= 0.01)
    found = manifest.gaps(span.start_us, span.end_us)
    yield Gate("gaps", f"{len(found)}", "0", not found)
    checked = verify(store, manifest, deep=deep, strays_older_than_us=span.start_us, progress=progress)
    kind = "digested" if deep else "checked"
    text = f"{len(checked.findings)} of {checked.files:,} {kind}"
    yield Gate("files that are wrong", text, "0", not checked.findings)
    per_event = checked.bytes / checked.rows if checked.rows else 0.0
    most = f"≤ {MOST_BYTES_PER_EVENT:g}"
    dense = per_day >= DENSE_EVENTS_PER_DAY
    yield Gate(
        "bytes per event",
        f"{per_event:.1f}",
        most,
        0 < per_event <= MOST_BYTES_PER_EVENT if dense else None,
        "" if dense else THIN,
    )

"""Validation of a lake over a stretch of time: a day, a week, a month, each a gate before the next.

The gates are the lab's: complete, exact, fast enough, small enough. "No loss" is not claimed but computed: every
topic-hour's books close, every gap is named, every file is what the manifest says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import httpx

from lake.manifest import HOUR_US, Manifest
from lake.store import LakeStore
from lake.verify import verify

PHASES: Final = {1: ("one day", 24), 2: ("one week", 7 * 24), 3: ("one month", 30 * 24)}
"""Phase → name and hours of event time that the lake has to cover."""

QUERY_SECONDS: Final = 30.0
"""The lab's limit for a one-day text query."""
MOST_BYTES_PER_EVENT: Final = 120.0
"""The planned 1 GB a day at 8.1 million events; the design's own goal is 85."""


@dataclass(frozen=True)
class Gate:
    """One condition: what was measured, what is asked, whether it holds."""

    name: str
    measured: str
    asked: str
    passed: bool


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


def gates(
    manifest: Manifest,
    store: LakeStore,
    phase: int,
    *,
    least_events_per_day: float,
    api_url: str | None,
    deep: bool,
    progress: Callable[[int, int], None],
) -> Iterator[Gate]:
    """Every gate of a phase. `api_url` None leaves the query out; `deep` digests every file. May take minutes."""
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
    yield Gate("dead letters", f"{bad:,} ({share:.3%})", "≤ 1 %", share <= 0.01)
    found = manifest.gaps(span.start_us, span.end_us)
    yield Gate("gaps", f"{len(found)}", "0", not found)
    checked = verify(store, manifest, deep=deep, strays_older_than_us=span.start_us, progress=progress)
    kind = "digested" if deep else "checked"
    text = f"{len(checked.findings)} of {checked.files:,} {kind}"
    yield Gate("files that are wrong", text, "0", not checked.findings)
    per_event = checked.bytes / checked.rows if checked.rows else 0.0
    most = f"≤ {MOST_BYTES_PER_EVENT:g}"
    yield Gate("bytes per event", f"{per_event:.1f}", most, 0 < per_event <= MOST_BYTES_PER_EVENT)
    if api_url is not None:
        yield _query(api_url, span)


def _query(api_url: str, span: Span) -> Gate:
    """A text search over the last day, as a researcher would ask it."""
    asked = f"≤ {QUERY_SECONDS:g} s"
    day = {"start": _iso(max(span.start_us, span.end_us - 24 * HOUR_US)), "end": _iso(span.end_us)}
    begun = time.monotonic()
    try:
        answer = httpx.get(f"{api_url}/v1/search", params={"text": "the", "limit": "50", **day}, timeout=QUERY_SECONDS)
    except httpx.HTTPError as error:
        return Gate("one-day text search", f"no answer: {error}", asked, False)
    seconds = time.monotonic() - begun
    text = f"{seconds:.2f} s, status {answer.status_code}"
    return Gate("one-day text search", text, asked, answer.status_code == 200 and seconds <= QUERY_SECONDS)


def _iso(time_us: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_us // 1_000_000))

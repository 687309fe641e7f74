"""The gates that only a rehearsal can judge, because it knows what was sent and watched the processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lake.manifest import HourReconciliation
from pipeline.cost import SERVERS, Load, bill
from pipeline.gates import Gate, percentile
from pipeline.prober import Prober
from pipeline.rehearsal import PYTHON_PROCESSES, Rehearsed
from pipeline.validate import DENSE_EVENTS_PER_DAY, THIN

BATCH_SECONDS: Final = 30.0
"""The lab's limit for one batch."""
PEAK_RATE: Final = 1_500.0
"""Events/s of today's network at its peaks."""
FRESH_SECONDS: Final = 15.0
SMALLER: Final = 0.80
"""The lab's compression: stored bytes against those of the JSON."""
AVAILABLE: Final = 0.999
PYTHON_BYTES: Final = 1e9
HOST_BYTES: Final = 8e9
SERVER: Final = "cx43"
LOADS: Final = ((8.1e6, 50.0), (30e6, 100.0))
"""Events a day (the lab's plan, today's network) and the dollars a month that may cost (ideally, at most)."""
_LAKE_DAYS, _HOT_DAYS, _TOPIC_DAYS = 365.0, 30.0, 7.0


def rehearsal_gates(result: Rehearsed, books: list[HourReconciliation], prober: Prober) -> Iterator[Gate]:
    """Completeness against the ledger, speed, memory, availability, size and cost."""
    assert result.proof is not None
    assert result.summary is not None
    proof, summary = result.proof, result.summary
    yield Gate(
        "ledger = lake, event by event",
        f"{proof.total('sent'):,} sent, {proof.total('lost')} lost, {proof.total('repeated')} repeated, "
        f"{proof.total('unknown')} unknown",
        "0 lost, 0 repeated, 0 unknown",
        proof.holds,
    )
    letters = summary.total.dead_letters
    yield Gate(
        "ledger = rows + deletions + dead letters",
        f"{letters:,} dead letters, {summary.unexpected_dead_letters} unexpected",
        "closes in every table",
        summary.closes,
    )
    consumed = sum(entry.consumed for entry in books)
    duplicates = sum(entry.duplicates for entry in books)
    yield Gate(
        "topics = lake",
        f"{result.topic_messages:,} messages, {consumed:,} consumed, {duplicates:,} of them duplicates",
        "all consumed, topics − duplicates = rows",
        consumed == result.topic_messages and consumed - duplicates == proof.total("rows"),
    )
    yield _batches(result.batch_seconds)
    rate = result.events_per_second
    yield Gate(
        "sustained ingest, all on this machine", f"{rate:,.0f} events/s", f"≥ {PEAK_RATE:,.0f}", rate >= PEAK_RATE
    )
    if result.freshness:
        fresh = percentile(result.freshness, 0.99)
        yield Gate(
            "event → queryable at live rate",
            f"p50 {percentile(result.freshness, 0.5):.1f} s, p99 {fresh:.1f} s",
            f"p99 ≤ {FRESH_SECONDS:g} s",
            fresh <= FRESH_SECONDS,
        )
        used = result.live_memory.python
        each = result.live_memory.by_process
        yield Gate(
            "memory of our processes at live rate",
            f"{used / 1e6:,.0f} MB",
            "≤ 1,000 MB",
            used <= PYTHON_BYTES,
            ", ".join(f"{name} {each.get(name, 0) / 1e6:,.0f}" for name in PYTHON_PROCESSES),
        )
    used = result.catch_up_memory.all_processes
    yield Gate(
        "memory of everything, most of all",
        f"{used / 1e6:,.0f} MB",
        "≤ 8,000 MB",
        used <= HOST_BYTES,
        "with simulator and broker, while catching up",
    )
    yield Gate(
        "API answers meanwhile",
        f"{prober.share:.2%} of {len(prober.probes):,}, p99 {prober.seconds(0.99):.2f} s",
        f"≥ {AVAILABLE:.1%}",
        prober.share >= AVAILABLE,
        prober.problems[0] if prober.problems else "",
    )
    yield Gate("processes that had to be started again", str(result.restarts), "0", not result.restarts)
    yield from _size_gates(result)


def _batches(times: list[float]) -> Gate:
    asked = f"≤ {BATCH_SECONDS:g} s"
    if not times:
        return Gate("time of a batch", "–", asked, None, "a single batch took all of it")
    measured = f"p50 {percentile(times, 0.5):.1f} s, slowest {max(times):.1f} s of {len(times)}"
    return Gate("time of a batch", measured, asked, max(times) <= BATCH_SECONDS)


def _size_gates(result: Rehearsed) -> Iterator[Gate]:
    """Stored bytes against the JSON, and what disk and bill they lead to."""
    assert result.proof is not None
    assert result.summary is not None
    stored, raw, events = result.summary.bytes, result.proof.source_bytes, result.proof.source_events
    smaller = 1 - stored / raw if raw else 0.0
    dense = result.scale.events_per_day >= DENSE_EVENTS_PER_DAY
    note = "" if dense else THIN
    yield Gate(
        "smaller than the JSON",
        f"{smaller:.1%} ({raw / max(events, 1):.0f} → {stored / max(events, 1):.0f} bytes an event)",
        f"≥ {SMALLER:.0%}",
        smaller >= SMALLER if dense else None,
        note,
    )
    in_topics = result.topic_bytes / max(result.topic_messages, 1)
    for events_per_day, dollars in LOADS:
        load = Load(events_per_day, stored / max(events, 1), _LAKE_DAYS, _HOT_DAYS, _TOPIC_DAYS, in_topics)
        priced = bill(load, SERVERS[SERVER], bucket=True, backups=True)
        yield Gate(
            f"projected cost a month at {events_per_day / 1e6:g} M events/day",
            f"${priced.dollars:.0f}; {priced.lake_gb_per_day:.1f} GB a day, "
            f"{priced.hot_gb + priced.topics_gb:.0f} GB on the server",
            f"≤ ${dollars:g}",
            priced.dollars <= dollars if dense else None,
            note,
        )


def facts_of(result: Rehearsed) -> dict[str, object]:
    """Inputs and figures for the report file."""
    assert result.proof is not None
    assert result.summary is not None
    return {
        "data": "simulated history through simulator, producer, broker, writer, maintenance and API of this machine",
        "hours of history": result.scale.hours,
        "events a day": result.scale.events_per_day,
        "events in the history": result.history_events,
        "seconds to make the history": round(result.history_seconds, 1),
        "seconds to take it in": round(result.catch_up_seconds, 1),
        "events/s taken in": round(result.events_per_second),
        "seconds at live rate": result.scale.live_seconds,
        "bytes of the JSON": result.proof.source_bytes,
        "bytes of the lake": result.summary.bytes,
        "files of the lake": result.summary.files,
        "bytes of the topics": result.topic_bytes,
        "memory while catching up, bytes": result.catch_up_memory.by_process,
    }

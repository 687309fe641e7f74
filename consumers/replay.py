"""Replay: hours of a table are made anew from the messages that gave them, and replace the old files in one version.

Live ingest goes on meanwhile: only offsets that the lake has already are read again. What was read is staged on disk, so an
interrupted replay goes on where it was, and a dry run followed by the real one reads once. See `lake.replay` for the swap.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

import pyarrow as pa

from consumers.config import ReplayConfig
from consumers.decode import SchemaLookup, decode, released_schemas
from consumers.errors import ReplayRefused
from consumers.hours import hours_of_bad
from consumers.kafka import ConsumerFactory, RangeReader
from consumers.maintenance import LOCK
from consumers.records import TopicRecords
from consumers.tally import DeadLetterTally
from lake.convert import ERASED, from_lake_columns, lake_schema, to_lake
from lake.errors import CommitRefused, LockHeld
from lake.manifest import HOUR_US, Manifest, TopicPartition, hour_of
from lake.replay import Range, Replaced, ReplayPlan, Staging, plan_replay
from lake.replay import replace as swap_in
from lake.roll import change_id
from lake.steps import Hook, no_hook
from lake.store import LakeStore
from schemas.bodies import DeadLetter
from schemas.errors import BadRecord
from schemas.framing import split
from schemas.topics import DEAD_LETTER, TABLE_TOPICS, TOPICS

log = logging.getLogger("explorer.consumers")

Source = Literal["broker", "lake"]
Progress = Callable[[str, int, int], None]
"""`progress(step, done, total)`; step is "read" (messages, or hours with source "lake") or "build" (hours)."""

_SWAP_ATTEMPTS = 5
_DEAD_LETTERS_AT_ONCE = 5_000
_DEAD_LETTERS_IDLE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Request:
    """What to replay: a table and a range of event time, whole hours; `offsets` narrows what is read.

    offsets: [first, end) by partition, or None for everything that gave the rows of these hours. Messages outside keep the rows
    they have.
    """

    table: str
    start_us: int
    end_us: int
    offsets: Mapping[int, tuple[int, int]] | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a replay has to read. `messages` is an upper bound: offsets have holes. `lost`: hours that the broker no longer
    has in full; they can be made anew from the lake only."""

    plan: ReplayPlan
    messages: int
    lost: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a replay ended. `replaced` is None when it was stopped before the swap; starting it again goes on."""

    outlook: Outlook
    read: int
    dead_letters: int
    replaced: Replaced | None


def look(manifest: Manifest, consumer_factory: ConsumerFactory, request: Request) -> Outlook:
    """Find the offsets behind the hours of `request`, and which of them the broker still has. Reads no message.

    Raises ReplayRefused for a table or range that the lake does not have, BrokerUnusable.
    """
    topic = _topic_of(request.table)
    plan = plan_replay(manifest, request.table, request.start_us, request.end_us)
    with closing(RangeReader(consumer_factory, topic)) as reader:
        partitions = range(TOPICS[topic].partitions)
        available = reader.available(partitions)
        if request.offsets is None:
            failed = _with_dead_letters(manifest, topic, request)
            ranges = _widened(manifest, consumer_factory, plan, failed) if failed else plan.ranges
            hours = {*plan.hours, *failed}
        else:
            ranges = tuple(Range(partition, *bounds) for partition, bounds in sorted(request.offsets.items()))
            hours = set(plan.hours)
    if not ranges or not hours:
        raise ReplayRefused(
            f"the lake has nothing of {request.table} in that time", "Look at `post-explorer lake report`."
        )
    positions = manifest.snapshot(plan.version).positions([topic])
    for part in ranges:
        reached = positions.get(TopicPartition(topic, part.partition), 0)
        if part.end > reached:
            raise ReplayRefused(
                f"{topic}/{part.partition}: offsets up to {part.end - 1} were asked for, the lake has it up to {reached - 1}",
                "What the lake does not have yet is the writer's business; ask for offsets below that.",
            )
    identity = change_id("replay", [request.table, *map(str, sorted(hours)), *map(str, ranges)])
    plan = replace(plan, id=identity, hours=tuple(sorted(hours)), ranges=ranges)
    lost = tuple(hour for hour in plan.hours if _is_lost(manifest, plan, hour, available))
    beyond = any(part.first < available.get(part.partition, (0, 0))[0] for part in ranges)
    if beyond and not lost:
        lost = plan.hours
    return Outlook(plan, sum(part.end - part.first for part in ranges), lost)


def replay(
    store: LakeStore,
    manifest: Manifest,
    consumer_factory: ConsumerFactory,
    request: Request,
    *,
    config: ReplayConfig,
    source: Source = "broker",
    dry_run: bool = False,
    keep_edits: bool = False,
    lookup: SchemaLookup = released_schemas,
    progress: Progress = lambda step, done, total: None,
    stop: threading.Event | None = None,
    hook: Hook = no_hook,
) -> Outcome:
    """Replay `request`; with `dry_run` say what would change and keep what was read for the real run.

    source "lake" makes the rows anew from the lake's own columns, for hours that the broker lost. Blocks for all of it;
    `stop` ends it early. Raises ReplayRefused, LockHeld (another replay), TryAgain (the broker fell silent), DiskFull.
    """
    stop = stop or threading.Event()
    outlook = look(manifest, consumer_factory, request)
    if source == "broker" and outlook.lost:
        raise _refuse(request.table, outlook)
    owner = f"{socket.gethostname()}:{os.getpid()}"
    with manifest.hold("replay", owner):
        staging = Staging(store, outlook.plan)
        tally = DeadLetterTally(store.root, outlook.plan.id)
        if source == "broker":
            _stage_from_broker(consumer_factory, staging, tally, config, lookup, progress, stop)
        else:
            _stage_from_lake(store, manifest, staging, progress, stop)
        positions = staging.positions()
        read = sum(positions[part.partition] - part.first for part in outlook.plan.ranges)
        if any(positions[part.partition] < part.end for part in outlook.plan.ranges):
            return Outcome(outlook, read, tally.total, None)
        more = _more_dead_letters(manifest, outlook.plan, tally) if source == "broker" else {}

        def swap() -> Replaced:
            return swap_in(
                store,
                manifest,
                staging,
                dead_letters=more,
                dry_run=dry_run,
                keep_edits=keep_edits,
                progress=lambda done, total: progress("build", done, total),
                hook=hook,
            )

        replaced = _locked(manifest, owner, config.lock_seconds, swap)
        if not dry_run:
            staging.discard()
            tally.discard()
        return Outcome(outlook, read, tally.total, replaced)


def _topic_of(table: str) -> str:
    if table not in TABLE_TOPICS:
        raise ReplayRefused(f"there is no table {table!r}", f"Tables are: {', '.join(sorted(TABLE_TOPICS))}.")
    return TABLE_TOPICS[table]


def _hours(start_us: int, end_us: int) -> range:
    return range(start_us - start_us % HOUR_US, end_us, HOUR_US)


def _with_dead_letters(manifest: Manifest, topic: str, request: Request) -> list[int]:
    hours = _hours(request.start_us, request.end_us)
    totals = manifest.reconciliation(hours.start, hours[-1] + HOUR_US)
    return [total.hour_us for total in totals if total.topic == topic and total.dead_letters]


def _widened(
    manifest: Manifest, consumer_factory: ConsumerFactory, plan: ReplayPlan, failed: list[int]
) -> tuple[Range, ...]:
    """The plan's ranges and the messages of the hours in `failed` that became dead letters, which tell their offsets."""
    reached = manifest.snapshot(plan.version).positions([plan.topic])
    bounds = {part.partition: (part.first, part.end) for part in plan.ranges}
    for letter in _dead_letters(consumer_factory):
        if letter.topic != plan.topic or letter.partition is None or letter.offset is None or letter.time_us is None:
            continue
        known = reached.get(TopicPartition(plan.topic, letter.partition), 0)
        if hour_of(letter.time_us) in failed and letter.offset < known:
            first, end = bounds.get(letter.partition, (letter.offset, letter.offset))
            bounds[letter.partition] = (min(first, letter.offset), max(end, letter.offset + 1))
    return tuple(Range(partition, *bounds[partition]) for partition in sorted(bounds))


def _dead_letters(consumer_factory: ConsumerFactory) -> Iterator[DeadLetter]:
    """The dead letters that the broker has; unreadable ones are passed over."""
    with closing(RangeReader(consumer_factory, DEAD_LETTER)) as reader:
        ranges = reader.available(range(TOPICS[DEAD_LETTER].partitions))
        for records in reader.read(ranges, _DEAD_LETTERS_AT_ONCE, _DEAD_LETTERS_IDLE_SECONDS):
            for value in records.values:
                with suppress(BadRecord):
                    yield DeadLetter.decode(split(value or b"")[1])


def _is_lost(manifest: Manifest, plan: ReplayPlan, hour_us: int, available: Mapping[int, tuple[int, int]]) -> bool:
    """Whether some message behind the rows of an hour has left the broker."""
    wanted = {part.partition: part for part in plan.ranges}
    for file in manifest.snapshot(plan.version).files(plan.table, hour_us, hour_us + HOUR_US):
        for span in manifest.spans(file.path):
            part = wanted.get(span.partition)
            low = available.get(span.partition, (0, 0))[0]
            if part is not None and max(span.first_offset, part.first) < low and span.last_offset >= part.first:
                return True
    return False


def _refuse(table: str, outlook: Outlook) -> ReplayRefused:
    def text(hour_us: int) -> str:
        return f"{datetime.fromtimestamp(hour_us / 1e6, UTC):%Y-%m-%dT%H:00Z}"

    kept = [hour for hour in outlook.plan.hours if hour not in outlook.lost]
    names = ", ".join(map(text, outlook.lost[:6])) + (", …" if len(outlook.lost) > 6 else "")
    return ReplayRefused(
        f"{table}: the broker no longer has all messages of {len(outlook.lost)} of {len(outlook.plan.hours)} hours: {names}",
        "Make those hours anew from the lake itself with --source lake"
        + (f"; the broker has everything from {text(min(kept))} on." if kept else "."),
    )


def _stage_from_broker(
    consumer_factory: ConsumerFactory,
    staging: Staging,
    tally: DeadLetterTally,
    config: ReplayConfig,
    lookup: SchemaLookup,
    progress: Progress,
    stop: threading.Event,
) -> None:
    plan = staging.plan
    positions = staging.positions()
    tally.resume(positions)
    total = sum(part.end - part.first for part in plan.ranges)
    with closing(RangeReader(consumer_factory, plan.topic)) as reader:
        ends = {part.partition: (positions[part.partition], part.end) for part in plan.ranges}
        for records in reader.read(ends, config.chunk_rows, config.idle_seconds):
            last = dict(zip(records.partitions.tolist(), records.offsets.tolist(), strict=True))
            positions |= {partition: offset + 1 for partition, offset in last.items()}
            rows, bad = _rows_of(records, plan.table, lookup)
            tally.add(bad, positions)
            staging.add(rows, positions)
            progress("read", sum(positions[part.partition] - part.first for part in plan.ranges), total)
            if stop.is_set():
                return
    # The last offsets of a range may be holes, from which nothing is delivered.
    ended = {part.partition: part.end for part in plan.ranges}
    tally.add({}, ended)
    staging.add(lake_schema(plan.table).empty_table(), ended)
    progress("read", total, total)


def _rows_of(records: TopicRecords, table: str, lookup: SchemaLookup) -> tuple[pa.Table, dict[int, int]]:
    """Lake rows of the readable messages, and how many of the others belong to each hour."""
    decoded = decode(records, TOPICS[records.topic].schema, lookup)
    frames = [to_lake(table, frame) for frame in decoded.frames if len(frame)]
    bad = hours_of_bad(decoded.bad, time.time_ns() // 1000)
    return (
        pa.concat_tables([lake_schema(table).empty_table(), *frames]),
        {hour_us: number for (_, hour_us), number in bad.items()},
    )


def _stage_from_lake(
    store: LakeStore, manifest: Manifest, staging: Staging, progress: Progress, stop: threading.Event
) -> None:
    """Make rows anew from the Avro fields that the lake's columns hold exactly; erased rows stay erased."""
    plan = staging.plan
    snapshot = manifest.snapshot(plan.version)
    for number, hour_us in enumerate(plan.hours):
        files = snapshot.files(plan.table, hour_us, hour_us + HOUR_US)
        if files:
            old = pa.concat_tables([store.read(file.path) for file in files])
            fields = from_lake_columns(plan.table, old)
            for name in ("kafka_partition", "kafka_offset"):
                if name not in fields.column_names:
                    fields = fields.append_column(name, old.column(name))
            rows = to_lake(plan.table, fields)
            rows = rows.set_column(rows.column_names.index(ERASED), ERASED, old.column(ERASED))
            staging.add(rows, staging.positions())
        progress("read", number + 1, len(plan.hours))
        if stop.is_set():
            return
    staging.add(lake_schema(plan.table).empty_table(), {part.partition: part.end for part in plan.ranges})


def _more_dead_letters(manifest: Manifest, plan: ReplayPlan, tally: DeadLetterTally) -> dict[int, int]:
    """By hour of the plan, how many more messages could not be read than when they were read first."""
    totals = manifest.reconciliation(plan.hours[0], plan.hours[-1] + HOUR_US)
    first = {total.hour_us: total.dead_letters for total in totals if total.topic == plan.topic}
    return {hour_us: tally.counts.get(hour_us, 0) - first.get(hour_us, 0) for hour_us in plan.hours}


def _locked(manifest: Manifest, owner: str, wait_seconds: float, swap: Callable[[], Replaced]) -> Replaced:
    """Run `swap` under the maintenance lock; again when files changed while it was built."""
    end = time.monotonic() + wait_seconds
    attempts = 0
    while True:
        try:
            with manifest.hold(LOCK, owner):
                return swap()
        except LockHeld:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        except CommitRefused:
            attempts += 1
            if attempts == _SWAP_ATTEMPTS:
                raise

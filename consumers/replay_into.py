"""Replay into a new version of the lake: topics are read again, with today's code, into another folder and manifest.

The live lake and its writers are not touched. The new lake is filled by the same exactly-once commits, so an interrupted run
goes on where its manifest is; when it has caught up, point EXPLORER_LAKE and EXPLORER_MANIFEST at it and a writer goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass

from consumers.batch import Batch
from consumers.config import ReplayConfig
from consumers.decode import SchemaLookup, released_schemas
from consumers.errors import ReplayRefused
from consumers.kafka import ConsumerFactory, RangeReader
from consumers.prepare import prepare, read_batch
from lake.commit import commit_batch
from lake.dedupe import DedupeWindow
from lake.manifest import Manifest, Position, TopicPartition
from lake.steps import Hook, no_hook
from lake.store import LakeStore
from schemas.topics import TOPICS

_WRITER = "replay"


@dataclass(frozen=True, slots=True)
class Refilled:
    """What one run read. `complete` is False after a stop: start it again to go on."""

    messages: int
    rows: int
    duplicates: int
    dead_letters: int
    complete: bool


def replay_into(
    source: Manifest,
    store: LakeStore,
    target: Manifest,
    consumer_factory: ConsumerFactory,
    topics: Collection[str],
    *,
    config: ReplayConfig,
    start_us: int | None = None,
    lookup: SchemaLookup = released_schemas,
    progress: Callable[[str, int, int], None] = lambda topic, done, total: None,
    stop: threading.Event | None = None,
    hook: Hook = no_hook,
) -> Refilled:
    """Read `topics` up to where the lake of `source` has them, into the lake of `store` and `target`.

    start_us: begin at this event time; None begins at offset 0. Messages that cannot be read are counted, not published again:
    they are in the dead-letter topic already. Blocks for all of it. Raises ReplayRefused when the broker no longer has the
    beginning, LockHeld (another replay fills this lake), TryAgain (the broker fell silent), DiskFull.
    """
    stop = stop or threading.Event()
    totals = [0, 0, 0, 0]
    store.root.mkdir(parents=True, exist_ok=True)
    with target.hold(_WRITER, f"replay of {source.url}"):
        store.sweep(_WRITER)
        window = DedupeWindow(store, target)
        for topic in sorted(topics):
            with closing(RangeReader(consumer_factory, topic)) as reader:
                positions, ranges = _open(source, target, reader, topic, start_us)
                expected = sum(end - start for start, end in ranges.values())
                read = 0
                for records in reader.read(ranges, config.chunk_rows, config.idle_seconds):
                    batch = Batch()
                    batch.add(records, positions, 0.0)
                    prepared = prepare(_WRITER, batch, read_batch(batch, lookup), positions, window)
                    commit_batch(store, target, prepared.batch, hook)
                    for place, hashes in prepared.hashes.items():
                        window.add(*place, hashes)
                    for advance in prepared.batch.advances:
                        positions[TopicPartition(topic, advance.partition)] = Position(advance.next, advance.epoch)
                    rows = sum(part.rows.num_rows for part in prepared.batch.parts)
                    found = (len(batch), rows, prepared.duplicates.total(), len(prepared.bad))
                    totals = [total + number for total, number in zip(totals, found, strict=True)]
                    read += len(batch)
                    progress(topic, min(read, expected), expected)
                    if stop.is_set():
                        return _refilled(totals, complete=False)
    return _refilled(totals, complete=True)


def _refilled(totals: list[int], *, complete: bool) -> Refilled:
    messages, rows, duplicates, dead_letters = totals
    return Refilled(messages, rows, duplicates, dead_letters, complete)


def _open(
    source: Manifest, target: Manifest, reader: RangeReader, topic: str, start_us: int | None
) -> tuple[dict[TopicPartition, Position], dict[int, tuple[int, int]]]:
    """Claim the topic in the new lake; returns the positions and what to read of each partition."""
    numbers = range(TOPICS[topic].partitions)
    reached = source.snapshot().positions([topic])
    available = reader.available(numbers)
    begin = reader.at_time(start_us, numbers) if start_us is not None else dict.fromkeys(numbers, 0)
    positions = target.claim([TopicPartition(topic, number) for number in numbers], _WRITER)
    ranges: dict[int, tuple[int, int]] = {}
    for number in numbers:
        partition = TopicPartition(topic, number)
        end, position = reached.get(partition, 0), positions[partition]
        first = begin[number]
        if first is None:
            # Kafka also answers so after records were deleted while later ones are there: too much is read, never too little.
            first = available[number][0]
        if position.next_offset == 0 and first > 0:
            start = min(first, end)
            target.seek(topic, number, start, position.epoch)
            position = positions[partition] = Position(start, position.epoch)
        if position.next_offset < min(end, available[number][0]):
            raise ReplayRefused(
                f"{topic}/{number}: the broker has nothing before offset {available[number][0]}, the replay begins at "
                f"{position.next_offset}",
                "Begin later with --start; older hours are in the old lake and can be copied from there.",
            )
        ranges[number] = (position.next_offset, end)
    return positions, ranges

"""From polled messages to a commit: decode, file under table and hour, drop what the lake has, account for the rest."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from opentelemetry import trace

from consumers.batch import Batch
from consumers.decode import BadMessage, SchemaLookup, decode
from consumers.errors import Unaccounted
from consumers.gaps import read_gaps
from consumers.hours import hours_of_bad
from consumers.records import TopicRecords
from lake import commit as lake
from lake.convert import to_lake
from lake.dedupe import DedupeWindow, Hashes
from lake.manifest import Gap, HourCount, Position, TopicPartition
from schemas.topics import GAP, TOPICS

tracer = trace.get_tracer("explorer.consumers")


@dataclass(slots=True)
class TopicRows:
    """Rows of one topic in lake columns, duplicates included."""

    topic: str
    table: str
    rows: pa.Table


@dataclass(slots=True)
class Read:
    """A decoded batch: rows by topic, gaps, bad messages, and the newest event time (0 without rows)."""

    topics: list[TopicRows] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    bad: list[BadMessage] = field(default_factory=list)
    newest_us: int = 0


@dataclass(slots=True)
class Prepared:
    """A batch as it will be committed; kept until the commit succeeds or the membership ends.

    `hashes` are the identities of the rows by (table, hour), to be remembered after the commit; `duplicates` counts what was
    dropped, by table; `published` says whether the dead letters are safe in their topic.
    """

    batch: lake.Batch
    bad: list[BadMessage]
    messages: int
    newest_us: int
    hashes: dict[tuple[str, int], Hashes]
    duplicates: Counter[str]
    published: bool = False


def read_batch(batch: Batch, lookup: SchemaLookup) -> Read:
    """Decode `batch` into lake columns. Never raises for bad messages; raises Unaccounted, and what `lookup` raises."""
    read = Read()
    with tracer.start_as_current_span("writer.decode", attributes={"messages": len(batch)}):
        for records in batch.topics():
            _read_topic(records, lookup, read)
    return read


def _read_topic(records: TopicRecords, lookup: SchemaLookup, read: Read) -> None:
    if records.topic == GAP:
        gaps, bad = read_gaps(records, lookup)
        read.gaps += gaps
        read.bad += bad
        return
    topic = TOPICS[records.topic]
    assert topic.table is not None, "only topics with a table are subscribed to"
    decoded = decode(records, topic.schema, lookup)
    if decoded.rows + len(decoded.bad) != len(records):
        # The books are kept from here on: what went missing before would be missing in silence.
        raise Unaccounted(
            f"{len(records)} messages of {records.topic} gave {decoded.rows} rows and {len(decoded.bad)} dead letters",
            "Nothing of this batch was committed; the messages stay in Kafka. Go back to the release that ran before, and report"
            f" this with the offsets from {int(records.offsets.min())} to {int(records.offsets.max())}.",
        )
    read.bad += decoded.bad
    frames = [frame for frame in decoded.frames if len(frame)]
    if frames:
        read.newest_us = max(read.newest_us, *(int(np.asarray(frame["time_us"]).max()) for frame in frames))
        rows = pa.concat_tables([to_lake(topic.table, frame) for frame in frames])
        read.topics.append(TopicRows(records.topic, topic.table, rows))


def prepare(
    writer: str, batch: Batch, read: Read, positions: Mapping[TopicPartition, Position], window: DedupeWindow
) -> Prepared:
    """File rows under their hours, drop the events the lake has, and put everything together for one commit.

    Blocks while `window` reads the identities of hours it does not hold. `writer` prefixes the names of the files.
    """
    parts: list[lake.Part] = []
    counts: dict[tuple[str, int], HourCount] = {}
    hashes: dict[tuple[str, int], Hashes] = {}
    duplicates: Counter[str] = Counter()
    with tracer.start_as_current_span("writer.dedupe"):
        for topic in read.topics:
            for hour in window.split(topic.table, topic.rows):
                hashes[topic.table, hour.hour_us] = hour.hashes
                duplicates[topic.table] += hour.duplicates
                kept = hour.rows.num_rows
                counts[topic.topic, hour.hour_us] = HourCount(
                    topic.topic, hour.hour_us, hour.consumed, hour.duplicates, kept, 0
                )
                if kept:
                    parts.append(lake.Part(topic.table, topic.topic, hour.hour_us, hour.rows))
    for place, bad in hours_of_bad(read.bad, time.time_ns() // 1000).items():
        count = counts.get(place, HourCount(*place, 0, 0, 0, 0))
        counts[place] = HourCount(*place, count.consumed + bad, count.duplicates, count.rows, count.dead_letters + bad)
    commit = lake.Batch(
        writer, tuple(parts), batch.advances(positions), tuple(counts[key] for key in sorted(counts)), tuple(read.gaps)
    )
    return Prepared(commit, read.bad, len(batch), read.newest_us, hashes, duplicates)

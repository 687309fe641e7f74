"""Source frames rebuilt from what was stored: from the topics and from the lake, for `events` and for comparisons."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake.convert import from_lake
from lake.manifest import Snapshot
from lake.store import LakeStore
from pipeline.kafka import KafkaSettings
from pipeline.messages import read_messages
from schemas.avro_schemas import AvroSchema
from schemas.bodies import decode_body
from schemas.errors import BadRecord, DeadLetterReason
from schemas.framing import SchemaRef, split
from schemas.lexicons import LEXICONS
from schemas.rebuild import frame_v1, frame_v2
from schemas.topics import TOPICS

_CHUNK_ROWS: Final = 5_000
Row = Mapping[str, Any]
FRAMES: dict[str, Callable[[Row], str | None]] = {"v1": frame_v1, "v2": frame_v2}
"""Wire to what makes the JSON text of a frame; None for an event that the wire does not carry."""


@dataclass(frozen=True)
class Wanted:
    """Which events: empty or None means all. Times are event time in microseconds, `until_us` is exclusive."""

    collections: tuple[str, ...] = ()
    dids: frozenset[str] = frozenset()
    since_us: int | None = None
    until_us: int | None = None

    def tables(self) -> list[str]:
        """The tables that can hold them. A collection of nobody's known lexicons lives in `other`."""
        tables = [topic.table for topic in TOPICS.values() if topic.table is not None]
        if not self.collections:
            return tables
        asked = {name if name in LEXICONS or name in tables else "other" for name in self.collections}
        return [table for table in tables if table in asked]

    def __contains__(self, row: Row) -> bool:
        """Whether a decoded event is one of them."""
        if self.dids and row["did"] not in self.dids:
            return False
        if self.since_us is not None and row["time_us"] < self.since_us:
            return False
        if self.until_us is not None and row["time_us"] >= self.until_us:
            return False
        if not self.collections:
            return True
        table = row["collection"] if row["kind"] == "commit" else row["kind"]
        return table in self.collections or (
            "other" in self.collections and table not in LEXICONS and row["kind"] == "commit"
        )


def rows_of_topics(
    settings: KafkaSettings,
    wanted: Wanted,
    lookup: Callable[[SchemaRef], AvroSchema | None],
    on_bad: Callable[[str], None],
    *,
    follow: bool = False,
) -> Iterator[Row]:
    """Decoded events of the topics, partition by partition in order; per account that is the order of the source.

    A message that cannot be decoded is told to `on_bad` and passed over. With `follow` it does not end by itself.
    """
    tables = set(wanted.tables())
    topics = [topic.name for topic in TOPICS.values() if topic.table in tables]
    for message in read_messages(settings, topics, since_us=wanted.since_us, follow=follow):
        if message.value is None:
            continue
        try:
            reference, body = split(message.value)
            schema = lookup(reference)
            if schema is None:
                raise BadRecord(DeadLetterReason.UNKNOWN_SCHEMA, str(reference))
            row = decode_body(schema, body)
        except BadRecord as error:
            on_bad(f"{message.topic}, partition {message.partition}, offset {message.offset}: {error}")
            continue
        if row in wanted:
            yield row


def rows_of_lake(store: LakeStore, snapshot: Snapshot, wanted: Wanted) -> Iterator[Row]:
    """Decoded events of one snapshot of the lake, hour by hour, within an hour by time and sequence.

    Rows whose content was erased come with `erased` set; nothing can be rebuilt from them. Holds one hour in memory,
    as columns.
    """
    files = [file for table in wanted.tables() for file in snapshot.files(table, wanted.since_us, wanted.until_us)]
    for hour in sorted({file.hour_us for file in files}):
        parts = [
            (file.table, _of_accounts(store.read(file.path), wanted.dids)) for file in files if file.hour_us == hour
        ]
        yield from (row for row in _in_order(parts) if row in wanted)


def _of_accounts(rows: pa.Table, dids: Collection[str]) -> pa.Table:
    return rows.filter(pc.is_in(rows["did"], value_set=pa.array(sorted(dids)))) if dids else rows


def _in_order(parts: list[tuple[str, pa.Table]]) -> Iterator[Row]:
    """The rows of several tables as one sequence, converted a few thousand at a time."""
    owner = np.repeat(np.arange(len(parts)), [rows.num_rows for _, rows in parts])
    place = np.concatenate([np.arange(rows.num_rows) for _, rows in parts])
    times = np.concatenate([rows["time"].cast(pa.int64()).to_numpy() for _, rows in parts])
    sequences = np.concatenate([pc.fill_null(rows["seq"], 0).to_numpy() for _, rows in parts])
    order = np.lexsort((sequences, times))
    for start in range(0, len(order), _CHUNK_ROWS):
        picked = order[start : start + _CHUNK_ROWS]
        chunk: dict[int, Row] = {}
        for number, (table, rows) in enumerate(parts):
            slots = np.flatnonzero(owner[picked] == number)
            if slots.size:
                converted = from_lake(table, rows.take(pa.array(place[picked[slots]])))
                chunk.update(zip(slots.tolist(), converted, strict=True))
        yield from (chunk[slot] for slot in range(len(picked)))

"""Rows, batches and lakes for the tests of this room."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from lake import base32
from lake.commit import Batch, Committed, Part, commit_batch
from lake.convert import to_lake
from lake.dedupe import DedupeWindow
from lake.manifest import Advance, HourCount, Manifest, TopicPartition
from lake.steps import Hook, no_hook
from lake.store import LakeStore
from schemas.lexicons import Kind
from schemas.records import EVENT_FIELDS
from schemas.topics import TABLE_TOPICS

HOUR = 3_600_000_000
START = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z."""

LIKE = "app.bsky.feed.like"
POST = "app.bsky.feed.post"
_POLARS = {Kind.INTEGER: pl.Int64, Kind.MICROS: pl.Int64, Kind.BOOLEAN: pl.Boolean, Kind.STRINGS: pl.List(pl.String)}


def tid(time_us: int, clock: int = 0) -> str:
    """The TID of a moment."""
    return bytes(base32.encode_tids(np.array([time_us << 10 | clock], np.int64))[0]).decode()


def cid(text: str) -> str:
    """A CID nobody else has."""
    raw = bytes.fromhex("01711220") + hashlib.sha256(text.encode()).digest()
    return "b" + base64.b32encode(raw).decode().lower().rstrip("=")


def did(number: int) -> str:
    """The did:plc of a numbered account."""
    return "did:plc:" + base64.b32encode(hashlib.sha256(str(number).encode()).digest())[:24].decode().lower()


def commit_row(
    table: str, who: int, time_us: int, operation: str = "create", key_us: int | None = None, **fields: Any
) -> dict[str, Any]:
    """An Avro event of a record; `key_us` is the moment its key was made (default: the event's)."""
    row: dict[str, Any] = {
        "time_us": time_us,
        "did": did(who),
        "kind": "commit",
        "operation": operation,
        "collection": table,
        "rkey": tid(time_us if key_us is None else key_us, who % 1024),
        "rev": tid(time_us, who % 1024),
        "source_host": "test",
        "protocol": "v2",
        "seq": time_us % 1_000_000_007,
        "received_us": time_us + 1000,
        "replayed": False,
        "resync": False,
    }
    if operation != "delete":
        row["cid"] = cid(f"{who} {time_us}")
        row["record_type"] = table
        if table == POST:
            row |= {"text": f"words of {who} at {time_us}", "created_at": "2026-01-01T00:00:00.000Z", "langs": ["en"]}
        if table == LIKE:
            row |= {
                "subject_uri": f"at://{did(who % 7)}/{POST}/{tid(START + who % 5)}",
                "subject_cid": cid(str(who % 7)),
                "created_at": "2026-01-01T00:00:00.000Z",
            }
    return row | fields


def account_row(who: int, time_us: int, status: str | None, active: bool = False) -> dict[str, Any]:
    """An Avro event of an account's state."""
    return {
        "time_us": time_us,
        "did": did(who),
        "kind": "account",
        "source_host": "test",
        "protocol": "v2",
        "seq": time_us % 1_000_000_007,
        "received_us": time_us,
        "replayed": False,
        "resync": False,
        "active": active,
        "status": status,
        "relay_seq": time_us,
    }


def sync_row(who: int, time_us: int) -> dict[str, Any]:
    """An Avro event that discards a repository's older rows."""
    row = account_row(who, time_us, None)
    del row["active"], row["status"]
    return row | {"kind": "sync", "rev": tid(time_us, who % 1024), "blocks": "AA=="}


def avro_frame(table: str, rows: Sequence[dict[str, Any]], partition: int = 0, first_offset: int = 0) -> pl.DataFrame:
    """Decoded Avro events as the writer hands them over."""
    schema = {field.name: _POLARS.get(field.kind, pl.String) for field in EVENT_FIELDS[table]}
    complete = [{name: row.get(name) for name in schema} for row in rows]
    return pl.DataFrame(complete, schema=schema, orient="row").with_columns(
        kafka_partition=pl.lit(partition, pl.Int64),
        kafka_offset=pl.int_range(first_offset, first_offset + pl.len(), dtype=pl.Int64),
    )


def lake_rows(table: str, rows: Sequence[dict[str, Any]], partition: int = 0, first_offset: int = 0) -> pa.Table:
    """Lake rows of Avro events."""
    return to_lake(table, avro_frame(table, rows, partition, first_offset))


class Writer:
    """A writer of one partition of some topics, without Kafka: every row takes the next offset."""

    def __init__(self, store: LakeStore, manifest: Manifest, partition: int = 0, name: str = "w1") -> None:
        self.store = store
        self.manifest = manifest
        self.partition = partition
        self.name = name
        self.window = DedupeWindow(store, manifest)
        partitions = [TopicPartition(topic, partition) for topic in TABLE_TOPICS.values()]
        self.positions = manifest.claim(partitions, name)

    def batch(self, rows: dict[str, Sequence[dict[str, Any]]]) -> Batch:
        """The batch of the next messages of each table's topic."""
        parts, advances, counts = [], [], []
        for table, events in rows.items():
            topic = TABLE_TOPICS[table]
            position = self.positions[TopicPartition(topic, self.partition)]
            converted = lake_rows(table, events, self.partition, position.next_offset)
            for hour in self.window.split(table, converted):
                if hour.rows.num_rows:
                    parts.append(Part(table, topic, hour.hour_us, hour.rows))
                counts.append(HourCount(topic, hour.hour_us, hour.consumed, hour.duplicates, hour.rows.num_rows, 0))
            advances.append(
                Advance(topic, self.partition, position.next_offset, position.next_offset + len(events), position.epoch)
            )
        return Batch(self.name, parts, advances, counts)

    def write(self, hook: Hook = no_hook, **rows: Sequence[dict[str, Any]]) -> Committed:
        """Commits rows; keyword names are the last word of the table's name (like, post, account, sync)."""
        tables = {"like": LIKE, "post": POST}
        batch = self.batch({tables.get(name, name): events for name, events in rows.items()})
        committed = commit_batch(self.store, self.manifest, batch, hook)
        for advance in batch.advances:
            key = TopicPartition(advance.topic, advance.partition)
            self.positions[key] = self.positions[key]._replace(next_offset=advance.next)
        for part in batch.parts:
            from lake.dedupe import identity_hashes

            self.window.add(part.table, part.hour_us, identity_hashes(part.table, part.rows))
        return committed

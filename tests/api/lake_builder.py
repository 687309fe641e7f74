"""A small real lake for the API's tests: events written through the lake's public functions, and the same events as plain
dictionaries, so that a test can compute the truth with Python alone."""

from __future__ import annotations

import hashlib
import itertools
from base64 import b32encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from api.identifiers import tid_text
from lake.commit import Batch, Part, commit_batch
from lake.convert import to_lake
from lake.erase import erase
from lake.manifest import Advance, Gap, TopicPartition, hour_of, open_manifest
from lake.roll import hours_to_roll, roll_hour
from lake.store import LakeStore
from schemas.derive import NOTHING, derive_post
from schemas.lexicons import POST_DERIVED, Kind
from schemas.records import EVENT_FIELDS
from schemas.topics import TABLE_TOPICS

POST = "app.bsky.feed.post"
START_US = int(datetime(2026, 3, 1, 10, tzinfo=UTC).timestamp()) * 1_000_000
_DTYPES = {Kind.INTEGER: pl.Int64, Kind.MICROS: pl.Int64, Kind.BOOLEAN: pl.Boolean, Kind.STRINGS: pl.List(pl.String)}


def did(number: int) -> str:
    """A made-up account."""
    return f"did:plc:{number:024d}".replace("0", "a").replace("1", "b").replace("8", "c").replace("9", "d")


def cid(seed: object) -> str:
    """A well-formed CID."""
    digest = bytes([1, 0x71, 0x12, 0x20]) + hashlib.sha256(repr(seed).encode()).digest()
    return "b" + b32encode(digest).decode().lower().rstrip("=")


class LakeBuilder:
    """Collects events and commits them, one partition per topic; `events` keeps all of them in order."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root / "lake"
        self.manifest_path = str(root / "manifest.sqlite")
        self.store = LakeStore(self.root)
        self.manifest = open_manifest(self.manifest_path, create=True)
        self.events: list[dict[str, Any]] = []
        self.pending: dict[str, list[dict[str, Any]]] = {}
        self._offsets: dict[str, int] = {}
        self._epochs: dict[str, int] = {}
        self._tids = itertools.count(1)
        self.now_us = START_US

    def tick(self, seconds: float = 1.0) -> int:
        """Move the clock and return it."""
        self.now_us += round(seconds * 1e6)
        return self.now_us

    def _rev(self) -> str:
        return tid_text(self.now_us << 10 | next(self._tids) & 1023)

    def event(self, table: str, **values: Any) -> dict[str, Any]:
        """Add one event of a table with these Avro fields; the rest is filled in."""
        row: dict[str, Any] = dict.fromkeys(field.name for field in EVENT_FIELDS[table])
        row |= {
            "time_us": self.now_us,
            "kind": "commit",
            "source_host": "ws://simulator",
            "protocol": "v2",
            "received_us": self.now_us + 50_000,
            "replayed": False,
            "resync": False,
        }
        row |= values
        offset = self._offsets.get(table, 0)
        self._offsets[table] = offset + 1
        row |= {"kafka_partition": 0, "kafka_offset": offset}
        self.events.append(row)
        self.pending.setdefault(table, []).append(row)
        return row

    def record(self, table: str, author: str, operation: str = "create", **values: Any) -> dict[str, Any]:
        """Add one record operation; returns the event with `uri` in it."""
        rev = values.pop("rev", None) or self._rev()
        rkey = values.pop("rkey", None) or rev
        collection = values.pop("collection", table)
        if operation != "delete":
            values.setdefault("cid", cid((author, rkey, rev)))
            values.setdefault("record_type", collection)
        row = self.event(table, did=author, operation=operation, collection=collection, rkey=rkey, rev=rev, **values)
        row["uri"] = f"at://{author}/{collection}/{rkey}"
        return row

    def post(self, author: str, text: str | None, **values: Any) -> dict[str, Any]:
        """Add a post; `embed`, `facets`, `labels`, `tags` are JSON values from which the derived columns are made."""
        created = datetime.fromtimestamp(self.now_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        parts = [values.pop(name, None) for name in ("embed", "facets", "labels", "tags")]
        derived = derive_post(*parts) if any(parts) else NOTHING
        for field, value in zip(POST_DERIVED, derived, strict=True):
            values.setdefault(field.name, value)
        return self.record(POST, author, **({"text": text, "created_at": created, "tags": parts[3]} | values))

    def delete(self, uri: str) -> dict[str, Any]:
        """Add the deletion of a record."""
        _, _, author, collection, rkey = uri.split("/")
        table = collection if collection in EVENT_FIELDS else "other"
        return self.record(table, author, "delete", rkey=rkey, collection=collection)

    def account(self, author: str, *, active: bool, status: str | None) -> None:
        """Add an account event."""
        self.event("account", kind="account", did=author, active=active, status=status, relay_seq=self.now_us)

    def identity(self, author: str, handle: str) -> None:
        """Add an identity event."""
        self.event("identity", kind="identity", did=author, handle=handle, relay_seq=self.now_us)

    def sync(self, author: str) -> None:
        """Add a sync event."""
        rev = self._rev()
        self.event("sync", kind="sync", did=author, rev=rev, relay_rev=rev, relay_seq=self.now_us)

    def commit(self, gaps: tuple[Gap, ...] = ()) -> int:
        """Write everything that is pending as one commit; returns the version."""
        parts, advances = [], []
        for table, rows in self.pending.items():
            topic = TABLE_TOPICS[table]
            if table not in self._epochs:
                partition = TopicPartition(topic, 0)
                self._epochs[table] = self.manifest.claim([partition], "test")[partition].epoch
            advances.append(
                Advance(topic, 0, rows[0]["kafka_offset"], rows[-1]["kafka_offset"] + 1, self._epochs[table])
            )
            hours: dict[int, list[dict[str, Any]]] = {}
            for row in rows:
                hours.setdefault(hour_of(row["time_us"]), []).append(row)
            parts += [
                Part(table, topic, hour, to_lake(table, self._frame(table, hours[hour]))) for hour in sorted(hours)
            ]
        self.pending = {}
        return commit_batch(self.store, self.manifest, Batch("test", parts, advances, gaps=gaps)).version

    def maintain(self, *, erasing: bool = True) -> None:
        """Do what maintenance does: merge every hour, and remove the content of what has ended."""
        for table, hour in hours_to_roll(self.manifest, self.now_us + 3_600_000_000):
            roll_hour(self.store, self.manifest, table, hour)
        if erasing:
            erase(self.store, self.manifest)

    @staticmethod
    def _frame(table: str, rows: list[dict[str, Any]]) -> pl.DataFrame:
        schema = {field.name: _DTYPES.get(field.kind, pl.String) for field in EVENT_FIELDS[table]}
        schema |= {"kafka_partition": pl.Int32, "kafka_offset": pl.Int64}
        return pl.DataFrame([{name: row[name] for name in schema} for row in rows], schema=schema)

    def close(self) -> None:
        """Close the manifest."""
        self.manifest.close()

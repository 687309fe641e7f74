"""Events, topics and lakes for the tests of this room: seeded, so that a failing run can be repeated."""

from __future__ import annotations

import base64
import hashlib
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from consumers.service import WRITER_TOPICS
from lake.manifest import Manifest
from lake.manifest import TopicPartition as Partition
from pipeline.kafka import KafkaSettings, make_admin, make_consumer, make_producer
from pipeline.topics import apply_topics
from schemas.codec import EventEncoder
from schemas.framing import SingleObjectFraming
from schemas.json_text import dumps
from schemas.topics import TOPICS

HOUR_US = 3_600_000_000
START_US = int(time.time() // 3600 - 5) * HOUR_US
"""Some hours ago: the broker refuses times in the future and drops messages that are older than its retention."""
_TID = "234567abcdefghijklmnopqrstuvwxyz"

Identity = tuple[str, ...]


def tid(number: int) -> str:
    """The 13 characters of a 64-bit TID."""
    return "".join(_TID[(number >> shift) & 31] for shift in range(60, -1, -5))


def tid_number(text: str) -> int:
    number = 0
    for character in text:
        number = number << 5 | _TID.index(character)
    return number


def cid(text: str) -> str:
    """A CIDv1 (dag-cbor, sha-256) of any text."""
    raw = b"\x01\x71\x12\x20" + hashlib.sha256(text.encode()).digest()
    return "b" + base64.b32encode(raw).decode().lower().rstrip("=")


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it is published, and the identity by which it is found in the lake."""

    topic: str
    key: bytes
    value: bytes
    time_us: int
    identity: Identity

    @property
    def table(self) -> str:
        table = TOPICS[self.topic].table
        assert table is not None
        return table


def events(
    count: int,
    *,
    seed: int = 1,
    start_us: int = START_US,
    span_us: int = HOUR_US // 2,
    host: str = "wss://jetstream.example",
    later_us: int = 0,
) -> list[Event]:
    """`count` distinct events in time order over `span_us` from `start_us`: a small, mixed network.

    The same arguments with another `host` and `later_us` give the same events as that host witnessed them.
    """
    rng = random.Random(seed)
    encoder = EventEncoder(host, "v2")
    framing = SingleObjectFraming()
    made = []
    for number in range(count):
        time_us = start_us + span_us * number // count
        did = f"did:plc:{rng.randrange(200):024d}"
        common = {
            "seq": seed * 10_000_000 + number,
            "received_us": time_us + 50_000,
            "replayed": False,
            "resync": False,
        }
        rkey, rev = tid((time_us << 10) + seed % 512), tid((time_us << 10) + 512 + number % 512)
        choice = rng.random()
        if choice < 0.04:
            payload = dumps({"did": did, "seq": seed * 10_000_000 + number + 1, "time": "t", "active": True}).encode()
            topic, body = encoder.upstream(
                "account", time_us + later_us, did, **common, envelope_json=None, payload=payload
            )
            identity: Identity = ("account", did, str(seed * 10_000_000 + number + 1))
        else:
            collection, record = _record(rng, choice, time_us, did)
            operation = "delete" if choice > 0.95 else "update" if choice > 0.93 else "create"
            topic, body = encoder.commit(
                time_us + later_us, did, operation, collection, rkey, rev,
                None if operation == "delete" else cid(f"{seed}/{number}"), **common, envelope_json=None,
                record=None if operation == "delete" else dumps(record).encode(),
            )  # fmt: skip
            identity = (did, collection, rkey, rev, operation)
        value = framing.frame(TOPICS[topic].schema, body)
        made.append(Event(topic, did.encode(), value, time_us + later_us, identity))
    return made


def _record(rng: random.Random, choice: float, time_us: int, did: str) -> tuple[str, dict[str, Any]]:
    created = "2026-11-23T16:00:00.000Z"
    subject = {"uri": f"at://{did}/app.bsky.feed.post/{tid(rng.randrange(2**60))}", "cid": cid(str(rng.random()))}
    if choice < 0.30:
        text = " ".join(rng.choice(["alpha", "beta", "γάμμα", "デルタ", "epsilon"]) for _ in range(12))
        return "app.bsky.feed.post", {
            "$type": "app.bsky.feed.post",
            "text": text,
            "createdAt": created,
            "langs": ["en"],
        }
    if choice < 0.75:
        return "app.bsky.feed.like", {"$type": "app.bsky.feed.like", "subject": subject, "createdAt": created}
    if choice < 0.88:
        subject_did = f"did:plc:{rng.randrange(200):024d}"
        return "app.bsky.graph.follow", {"$type": "app.bsky.graph.follow", "subject": subject_did, "createdAt": created}
    return "xyz.statusphere.status", {"status": "🙂", "createdAt": created, "n": time_us}


def produce(settings: KafkaSettings, made: Iterable[Event], producer: Producer | None = None) -> None:
    """Publish and wait until the broker has acknowledged everything."""
    client = producer or make_producer(settings, linger_ms=5)
    refused: list[str] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            refused.append(error.str())

    for number, event in enumerate(made):
        client.produce(event.topic, event.value, event.key, timestamp=event.time_us // 1000, on_delivery=delivered)
        if number % 10_000 == 9_999:
            client.flush(30)
    assert client.flush(60) == 0
    assert not refused, refused[0]


def prepare_topics(settings: KafkaSettings) -> None:
    """Create all topics."""
    admin = make_admin(settings)
    apply_topics(admin)


def start_at_end(settings: KafkaSettings, manifest: Manifest) -> None:
    """Let a fresh lake begin behind what earlier tests left in the shared topics."""
    consumer = make_consumer(settings, "probe")

    def end(partition: Partition) -> int:
        for _ in range(100):
            try:
                return consumer.get_watermark_offsets(TopicPartition(*partition), timeout=10)[1]
            except KafkaException as error:
                # A partition made a moment ago has no leader yet.
                last = error
                time.sleep(0.1)
        raise last

    try:
        partitions = [Partition(name, p) for name in WRITER_TOPICS for p in range(TOPICS[name].partitions)]
        claimed = manifest.claim(partitions, "test")
        for partition in partitions:
            manifest.seek(partition.topic, partition.partition, end(partition), claimed[partition].epoch)
    finally:
        consumer.close()


def rows_on_disk(lake: Path) -> Iterator[tuple[str, Identity]]:
    """(table, identity) of every row of every Parquet file in the folders, read with pyarrow alone."""
    for path in sorted(lake.glob("*/date=*/hour=*/*.parquet")):
        table = path.relative_to(lake).parts[0]
        for row in pq.ParquetFile(path).read().to_pylist():
            yield table, identity_of(table, row)


def rows_in(lake: Path, paths: Iterable[str]) -> Iterator[tuple[str, Identity]]:
    """The same for files that the manifest names."""
    for path in paths:
        table = path.split("/")[0]
        rows: pa.Table = pq.ParquetFile(lake / path).read()
        for row in rows.to_pylist():
            yield table, identity_of(table, row)


def identity_of(table: str, row: Mapping[str, Any]) -> Identity:
    """The event identity of a lake row, from its compact columns."""
    if table == "account":
        return ("account", row["did"], str(row["relay_seq"]))
    rkey = row["rkey_text"] if row["rkey_tid"] is None else tid(row["rkey_tid"])
    rev = row["rev_text"] if row["rev_tid"] is None else tid(row["rev_tid"])
    return (row["did"], row["collection"], rkey, rev, row["operation"])


def live_paths(manifest: Manifest) -> list[str]:
    """Paths of all files a reader of the newest version sees."""
    snapshot = manifest.snapshot()
    return [file.path for table in snapshot.tables() for file in snapshot.files(table)]

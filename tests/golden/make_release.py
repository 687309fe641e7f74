"""Makes `tests/golden/releases/<version>/`: a tiny lake as the present code writes it, to be read by all later code.

Run it once for a release whose layout differs from the newest folder (test_releases says so), and commit what it makes:

    python -m tests.golden.make_release 0.2.0

A released folder is never made anew. It holds `lake.tar.xz` (the lake's folders with side files, and the manifest),
`messages.json` (what it was made from, both framings), and `expected.json`: what every reader has to find in it.
"""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from consumers import rollups
from consumers.batch import Batch
from consumers.prepare import prepare, read_batch
from lake import text_index
from lake.commit import commit_batch
from lake.dedupe import DedupeWindow
from lake.erase import erase
from lake.manifest import HOUR_US, Gap, Manifest, Position, TopicPartition, open_manifest
from lake.roll import roll_hour
from lake.store import LakeStore
from schemas.codec import EventEncoder, UpstreamKind
from schemas.framing import RegistryFraming, SingleObjectFraming
from schemas.json_text import dumps
from schemas.topics import TOPICS
from tests.golden.reading import facts, lookup_in, records_of, registered

START_US = 1_793_527_200_000_000
"""2026-11-01T10:00:00Z."""
EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"
RELEASES = Path(__file__).with_name("releases")
_ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"
HOST = "wss://jetstream.example"


def tid(number: int) -> str:
    """The 13 characters of a 64-bit TID."""
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(60, -1, -5))


def did(number: int) -> str:
    """A made-up account."""
    return "did:web:example.org" if number == 0 else "did:plc:" + _ALPHABET[number] * 24


class Source:
    """Source events in order, as (topic, key, Avro body, time)."""

    def __init__(self) -> None:
        self._encoder = EventEncoder(HOST, "v2")
        self._seq = 24_589_902_470
        self.events: list[tuple[str, str, bytes, int]] = []

    def _common(self, time_us: int, resync: bool = False) -> dict[str, Any]:
        self._seq += 1
        return {
            "seq": self._seq,
            "received_us": time_us + 50_000,
            "replayed": False,
            "resync": resync,
            "envelope_json": None,
        }

    def commit(
        self,
        time_us: int,
        who: int,
        collection: str,
        rkey: str,
        record: Any = None,
        *,
        operation: str = "create",
        cid: str | None = None,
        rev_us: int | None = None,
        resync: bool = False,
    ) -> None:
        """A record operation; the rev is made at `rev_us`, by default the event's time."""
        digest = bytes([1, 0x71, 0x12, 0x20]) + (time_us + who).to_bytes(32, "little")
        found = cid or "b" + base64.b32encode(digest).decode().lower().rstrip("=")
        deleted = operation == "delete"
        topic, body = self._encoder.commit(
            time_us, did(who), operation, collection, rkey, tid((time_us if rev_us is None else rev_us) << 10 | who),
            None if deleted else found, record=None if deleted else dumps(record).encode(), **self._common(time_us, resync),
        )  # fmt: skip
        self.events.append((topic, did(who), body, time_us))

    def upstream(self, kind: UpstreamKind, time_us: int, who: int, **members: Any) -> None:
        """An identity, account or sync event."""
        common = self._common(time_us)
        payload = dumps(
            {"did": did(who), "seq": common["seq"] + 7, "time": "2026-11-01T10:00:00.001Z"} | members
        ).encode()
        topic, body = self._encoder.upstream(kind, time_us, did(who), payload=payload, **common)
        self.events.append((topic, did(who), body, time_us))


def batches() -> Iterator[list[tuple[str, str, bytes, int]]]:
    """Everything that is odd, in four commits over three hours."""
    source = Source()
    at = START_US
    for path in sorted(EXAMPLES.glob("*.json")):
        for number, record in enumerate(json.loads(path.read_text())):
            at += 61_000_000
            source.commit(at, number % 7, path.stem, tid(at << 10), record)
    odd = at + 1_000_000
    source.commit(odd, 1, "app.bsky.actor.profile", "self", {"$type": "app.bsky.actor.profile", "displayName": "ゼロ"})
    source.commit(
        odd + 1,
        2,
        "app.bsky.feed.post",
        "no-tid.at~all",
        {"$type": "app.bsky.feed.post", "text": "odd key", "createdAt": "yesterday"},
    )
    source.commit(
        odd + 2,
        2,
        "app.bsky.feed.post",
        tid(odd << 10),
        {"$type": "app.bsky.feed.post", "text": 17, "createdAt": None, "extra": {"a": [1.5, 2e300]}},
    )
    source.commit(
        odd + 3,
        3,
        "app.bsky.feed.post",
        tid(odd + 3 << 10),
        {"$type": "app.bsky.feed.post", "text": "\u0000 \U0001f642 \\u2028", "createdAt": "2026-11-01T10:00:00+23:59"},
        cid="bafkreib",
    )
    source.commit(
        odd + 4,
        0,
        "app.bsky.feed.like",
        tid(odd + 4 << 10),
        {
            "$type": "app.bsky.feed.like",
            "subject": {"uri": "at://nobody/not-a-collection", "cid": "x"},
            "createdAt": "0001-01-01T00:00:00Z",
        },
    )
    source.commit(odd + 5, 4, "com.example.nothing.known", "3jzfcijpj2z2a", ["not", "an", "object"])
    source.upstream("identity", odd + 6, 5, handle="someone.example")
    source.upstream("account", odd + 7, 5, active=True)
    yield source.events
    first, source.events = source.events, []
    # Again what the lake has, another copy in the next hour, and new versions.
    source.events = [*first[:3], (*first[4][:3], first[4][3])]
    later = START_US + HOUR_US + 5_000_000
    posts = [event for event in first if event[0] == "bluesky.app.bsky.feed.post"]
    keys = [tid((event[3]) << 10) for event in posts]
    source.commit(
        later,
        0,
        "app.bsky.feed.post",
        keys[0],
        {"$type": "app.bsky.feed.post", "text": "edited words", "createdAt": "2026-11-01T11:00:00Z"},
        operation="update",
    )
    source.commit(later + 1, 1, "app.bsky.feed.post", keys[1], operation="delete")
    source.commit(
        later + 2,
        1,
        "app.bsky.actor.profile",
        "self",
        {"$type": "app.bsky.actor.profile", "displayName": "new name"},
        operation="update",
    )
    source.upstream("account", later + 3, 6, active=False, status="suspended")
    source.upstream("account", later + 4, 3, active=False, status="deleted")
    source.upstream("sync", later + 5, 4, blocks={"$bytes": "AAEC"}, rev=tid(later + 5 << 10))
    source.commit(
        later + 6,
        4,
        "app.bsky.feed.post",
        tid(START_US << 10),
        {"$type": "app.bsky.feed.post", "text": "still there after the sync", "createdAt": "2026-11-01T10:00:00Z"},
        resync=True,
    )
    yield source.events
    # A late event of the first hour, and the third hour, which stays open.
    source.events = []
    source.commit(
        START_US + 30_000_000,
        2,
        "app.bsky.feed.post",
        tid(START_US + 30_000_000 << 10),
        {"$type": "app.bsky.feed.post", "text": "late words", "langs": ["en"], "createdAt": "2026-11-01T10:00:30Z"},
    )
    open_us = START_US + 2 * HOUR_US
    for number in range(4):
        source.commit(
            open_us + number,
            number,
            "app.bsky.feed.post",
            tid(open_us + number << 10),
            {
                "$type": "app.bsky.feed.post",
                "text": f"open hour {number}",
                "langs": ["en", "ja"],
                "createdAt": "2026-11-01T12:00:00Z",
            },
        )
        source.commit(
            open_us + number,
            number,
            "app.bsky.feed.like",
            tid(open_us + number << 10),
            {
                "$type": "app.bsky.feed.like",
                "subject": {
                    "uri": f"at://{did(1)}/app.bsky.feed.post/{keys[0]}",
                    "cid": "bafyreigdmqpykrgxyaxtlafqpqhzrb7qy2rh75nldvfd4tucqmqqme5yje",
                },
                "createdAt": "2026-11-01T12:00:00Z",
            },
        )
    yield source.events
    # A deletion that no maintenance has applied.
    source.events = []
    source.commit(open_us + 9, 2, "app.bsky.feed.post", tid(open_us + 2 << 10), operation="delete")
    yield source.events


def messages(
    events: Sequence[tuple[str, str, bytes, int]], offsets: dict[tuple[str, int], int]
) -> list[dict[str, Any]]:
    """Kafka messages: each account in one of two partitions, every other message in the framing of the registry."""
    single, registry = (
        SingleObjectFraming(),
        RegistryFraming({name: number for number, (name, _) in registered().items()}),
    )
    made = []
    for number, (topic, key, body, time_us) in enumerate(events):
        partition = len(key) + ord(key[-1]) & 1
        offset = offsets.get((topic, partition), 0)
        # Offsets have holes, as behind aborted transactions.
        offsets[topic, partition] = offset + 1 + (offset % 5 == 4)
        value = (registry if number % 2 else single).frame(TOPICS[topic].schema, body)
        made.append(message(topic, partition, offset, time_us // 1000, key, value))
    return made


def message(topic: str, partition: int, offset: int, timestamp_ms: int, key: str, value: bytes) -> dict[str, Any]:
    """One message as JSON."""
    return {
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "timestamp_ms": timestamp_ms,
        "key": key,
        "value": base64.b64encode(value).decode(),
    }


def commit(
    store: LakeStore,
    manifest: Manifest,
    found: Sequence[dict[str, Any]],
    name: str,
    registry: Mapping[int, tuple[str, int]],
) -> None:
    """What the writer does with polled messages."""
    window = DedupeWindow(store, manifest)
    positions = {key: Position(p.next_offset, p.epoch) for key, p in manifest.offsets().items()}
    new = {TopicPartition(one["topic"], one["partition"]) for one in found} - positions.keys()
    positions |= manifest.claim(new, name)
    batch = Batch()
    for topic in sorted({one["topic"] for one in found}):
        batch.add(records_of(topic, found), positions, 0.0)
    read = read_batch(batch, lookup_in(registry))
    commit_batch(store, manifest, prepare(name, batch, read, positions, window).batch)


def make(folder: Path, target: Path) -> None:
    """Builds a lake in `folder`, packs it into `target` (which must not exist) and writes down what is in it."""
    store, manifest = LakeStore(folder / "lake"), open_manifest(str(folder / "building.sqlite"), create=True)
    offsets: dict[tuple[str, int], int] = {}
    every: list[dict[str, Any]] = []
    for number, events in enumerate(batches()):
        found = messages(events, offsets)
        if number == 1:
            bad = TopicPartition("bluesky.app.bsky.feed.post", 0)
            found.append(message(*bad, offsets[bad], START_US // 1000 + 3_600_000, did(1), b"\xc3\x01 not Avro"))
            offsets[bad] += 1
        every += found
        commit(store, manifest, found, f"writer-{number}", registered())
        if number in (1, 2):
            tables = manifest.snapshot().tables()
            for table in tables:
                for hour_us in (START_US, START_US + HOUR_US):
                    # The late event stays a small file beside its hour's rolled one.
                    if number == 1:
                        roll_hour(store, manifest, table, hour_us)
            assert erase(store, manifest).complete
    manifest.add_gap(
        Gap("gap-1", HOST, START_US + 1, START_US + 2, "cursor_too_old", "history was gone", START_US + 3, 1, 9)
    )
    rollups.update(store, manifest, START_US + 2 * HOUR_US, lambda: True)
    for file in text_index.missing(store.root, manifest.snapshot()):
        text_index.build(store, file)
    live = {file.path for table in manifest.snapshot().tables() for file in manifest.snapshot().files(table)}
    # What was replaced is gone, as after the grace time.
    store.unlink([path for path, _ in store.walk() if path not in live])
    manifest.forget(manifest.known_paths() - live)
    manifest.close()
    with sqlite3.connect(folder / "building.sqlite") as connection:
        connection.execute("VACUUM INTO ?", (str(folder / "manifest.sqlite"),))
    connection.close()
    for leftover in folder.glob("building.sqlite*"):
        leftover.unlink()
    shutil.rmtree(folder / "lake" / ".tmp", ignore_errors=True)
    target.mkdir(parents=True)
    with tarfile.open(target / "lake.tar.xz", "w:xz", preset=9) as archive:
        for name in ("lake", "manifest.sqlite"):
            archive.add(folder / name, name)
    (target / "messages.json").write_text(json.dumps({"registry": registered(), "messages": every}, indent=0) + "\n")
    (target / "expected.json").write_text(
        json.dumps(facts(folder, every), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    )


if __name__ == "__main__":
    release = RELEASES / sys.argv[1]
    if release.exists():
        sys.exit(f"{release} is released and never made anew")
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch), release)
    print(f"{sum(file.stat().st_size for file in release.iterdir()):,} bytes in {release}")

"""What the present code reads out of a released lake, as JSON values."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from consumers.decode import decode
from consumers.records import TopicRecords
from lake.convert import lake_schema
from lake.fold import current, read_endings
from lake.manifest import Manifest, open_manifest
from lake.store import LakeStore
from pipeline.frames import Wanted, rows_of_lake
from schemas.avro_schemas import AvroSchema, released, schema_by_fingerprint
from schemas.framing import SchemaRef
from schemas.rebuild import frame_v2
from schemas.topics import TABLE_TOPICS, TOPICS

POST = "app.bsky.feed.post"
FOR_EVER = 1 << 62


def registered() -> dict[int, tuple[str, int]]:
    """The registry of the messages that the present code makes: id → name and version of the newest release of each schema."""
    names = sorted({name for name, _ in released()})
    return {number: (name, max(v for n, v in released() if n == name)) for number, name in enumerate(names, 1)}


def lookup_in(registry: Mapping[int, tuple[str, int]]) -> Callable[[SchemaRef], AvroSchema | None]:
    """What finds the schemas of messages: those of `registry`, and the released fingerprints."""

    def find(reference: SchemaRef) -> AvroSchema | None:
        if reference.kind == "fingerprint":
            return schema_by_fingerprint(reference.value)
        return released().get(registry.get(reference.value, ("", 0)))

    return find


@contextmanager
def opened(folder: Path) -> Iterator[tuple[LakeStore, Manifest]]:
    """The lake in `folder`; a manifest of an older layout is migrated."""
    manifest = open_manifest(str(folder / "manifest.sqlite"), create=True)
    try:
        yield LakeStore(folder / "lake"), manifest
    finally:
        manifest.close()


def frames(store: LakeStore, manifest: Manifest) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """The source's frames of all rows that have their content, and identity and reason of the others."""
    alive, erased = [], []
    for row in rows_of_lake(store, manifest.snapshot(), Wanted()):
        if row.get("erased") is None:
            alive.append(json.loads(frame_v2(row)))
        else:
            erased.append(
                [row[name] for name in ("did", "collection", "rkey", "rev", "operation", "time_us", "erased")]
            )
    return sorted(alive, key=_order), sorted(erased, key=repr)


def _order(frame: dict[str, Any]) -> str:
    return json.dumps(frame, sort_keys=True)


def current_posts(store: LakeStore, manifest: Manifest) -> list[list[Any]]:
    """Author and text of the posts as they stand."""
    snapshot = manifest.snapshot()
    files = snapshot.files(POST)
    rows = pa.concat_tables([store.read(file.path) for file in files])
    since = min(file.since_us for file in files)
    found = current(rows, read_endings(store, snapshot, POST, since))
    return sorted(([row["did"], row["text"]] for row in found.select(["did", "text"]).to_pylist()), key=repr)


def books(manifest: Manifest) -> list[dict[str, Any]]:
    """The reconciliation of all topic-hours."""
    return [asdict(hour) for hour in manifest.reconciliation(0, FOR_EVER)]


def positions(manifest: Manifest) -> dict[str, int]:
    """The next offset of every partition."""
    return {
        f"{key.topic}/{key.partition}": position.next_offset for key, position in sorted(manifest.offsets().items())
    }


def layout() -> dict[str, dict[str, str]]:
    """Table → column → type, as the present code writes files."""
    return {table: {field.name: str(field.type) for field in lake_schema(table)} for table in sorted(TABLE_TOPICS)}


def message_frames(
    messages: Sequence[Mapping[str, Any]], registry: Mapping[int, tuple[str, int]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The source's frames of Kafka messages, decoded as the writer does it, and the reasons of those that cannot be read."""
    found, bad = [], []
    for topic in sorted({one["topic"] for one in messages}):
        decoded = decode(records_of(topic, messages), TOPICS[topic].schema, lookup_in(registry))
        bad += [str(one.reason) for one in decoded.bad]
        found += [json.loads(frame_v2(row)) for frame in decoded.frames for row in frame.to_dicts()]
    return sorted(found, key=_order), bad


def records_of(topic: str, messages: Sequence[Mapping[str, Any]]) -> TopicRecords:
    """The messages of one topic as the writer polls them."""
    wanted = [one for one in messages if one["topic"] == topic]
    return TopicRecords.of(
        topic,
        np.array([one["partition"] for one in wanted], np.int32),
        np.array([one["offset"] for one in wanted], np.int64),
        np.array([one["timestamp_ms"] for one in wanted], np.int64),
        [one["key"].encode() for one in wanted],
        [base64.b64decode(one["value"]) for one in wanted],
    )


def digest(found: Sequence[dict[str, Any]]) -> str:
    """One number for many frames."""
    return hashlib.sha256("\n".join(map(_order, found)).encode()).hexdigest()


def facts(folder: Path, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that later code has to find."""
    of_messages, bad = message_frames(messages, registered())
    with opened(folder) as (store, manifest):
        alive, erased = frames(store, manifest)
        return {
            "layout": layout(),
            "message_frames": {"count": len(of_messages), "digest": digest(of_messages), "bad": bad},
            "frames": alive,
            "erased": erased,
            "current_posts": current_posts(store, manifest),
            "books": books(manifest),
            "positions": positions(manifest),
            "gaps": [asdict(gap) for gap in manifest.gaps(0, FOR_EVER)],
        }

"""Kafka values of one topic to typed columns, natively: no Python object per event unless an event is damaged.

The bodies of a batch that share a writer's schema are joined into one Avro container file in memory (Avro 1.11, "Object
Container Files": one block of concatenated bodies) and decoded in one call. Bodies have no length of their own there,
so three checks find a damaged one: the number of rows, the `did` of every row against its Kafka key, and a sentinel
record behind the last one. When a check fails the batch is halved until the damaged messages are alone; those are
decoded one by one with a second implementation, which also gives the reason.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import fastavro
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.avro_schemas import AvroSchema, schema_by_fingerprint
from schemas.errors import DeadLetterReason
from schemas.framing import (
    REGISTRY_HEADER_BYTES,
    REGISTRY_MAGIC,
    SINGLE_OBJECT_HEADER_BYTES,
    SINGLE_OBJECT_MAGIC,
    SchemaRef,
)

SchemaLookup = Callable[[SchemaRef], AvroSchema | None]
"""Which schema a framing header names, or None when it is unknown for good; raises TryAgain while it cannot be told."""

SENTINEL_DID: Final = "did:sentinel:end-of-block"
LEAF_MESSAGES: Final = 32
"""Halving stops here: below this, decoding one by one costs less than further containers."""
MAX_TIME_US: Final = 253_402_300_800_000_000
"""Start of the year 10000: later times have no hour folder and no timestamp in SQL."""

_SYNC: Final = b"\x00" * 16


@dataclass(slots=True)
class TopicRecords:
    """The messages of one topic as columns, in order of arrival; all of one length.

    `timestamps_ms` is the Kafka timestamp, -1 when the broker has none. A key or value may be None.
    """

    topic: str
    partitions: NDArray[np.int32]
    offsets: NDArray[np.int64]
    timestamps_ms: NDArray[np.int64]
    keys: list[bytes | None]
    values: list[bytes | None]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class BadMessage:
    """A message that cannot become a row; `timestamp_ms` places it in an hour, `value` is its original bytes."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    reason: DeadLetterReason
    detail: str


@dataclass(slots=True)
class Decoded:
    """The readable messages of a topic, one frame per writer's schema, and the others.

    Each frame has the schema's Avro fields plus `kafka_partition` (Int32) and `kafka_offset` (Int64).
    """

    frames: list[pl.DataFrame] = field(default_factory=list)
    bad: list[BadMessage] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Readable messages."""
        return sum(frame.height for frame in self.frames)


def released_schemas(reference: SchemaRef) -> AvroSchema | None:
    """The lookup without a registry: fingerprints of released schemas only."""
    return schema_by_fingerprint(reference.value) if reference.kind == "fingerprint" else None


def decode(records: TopicRecords, schema_name: str, lookup: SchemaLookup = released_schemas) -> Decoded:
    """Decode the messages of one topic whose released schema is called `schema_name`.

    Never raises for a bad message: it is in `Decoded.bad`. Rows keep the order of arrival within one schema.
    """
    decoded = Decoded()
    for reference, indices in _by_framing(records, decoded):
        schema = lookup(reference)
        if schema is None or schema.name != schema_name:
            known = "unknown" if schema is None else f"of {schema.name!r}"
            detail = f"schema {reference.kind} {reference.value:#x} is {known}; this topic carries {schema_name!r}"
            decoded.bad += [bad_message(records, int(i), DeadLetterReason.UNKNOWN_SCHEMA, detail) for i in indices]
        else:
            header = SINGLE_OBJECT_HEADER_BYTES if reference.kind == "fingerprint" else REGISTRY_HEADER_BYTES
            _decode_group(records, indices, header, body_codec(schema), decoded)
    return decoded


def _by_framing(records: TopicRecords, decoded: Decoded) -> Iterator[tuple[SchemaRef, NDArray[np.int64]]]:
    """Group message indices by the schema their header names; what carries no framing goes to `decoded.bad`."""
    values = pa.array(records.values, pa.large_binary())
    count = len(values)
    buffers = values.buffers()
    bounds = np.frombuffer(buffers[1], np.int64)[: count + 1]
    data = np.frombuffer(buffers[2], np.uint8) if buffers[2] is not None and buffers[2].size else np.zeros(1, np.uint8)
    lengths = np.diff(bounds)
    # Reading past the end of a short value is harmless: `framed` looks at the length as well.
    head = data[np.minimum(bounds[:-1, None] + np.arange(SINGLE_OBJECT_HEADER_BYTES), len(data) - 1)]
    single = (
        (lengths >= SINGLE_OBJECT_HEADER_BYTES)
        & (head[:, 0] == SINGLE_OBJECT_MAGIC[0])
        & (head[:, 1] == SINGLE_OBJECT_MAGIC[1])
    )
    registry = (lengths >= REGISTRY_HEADER_BYTES) & (head[:, 0] == REGISTRY_MAGIC[0])
    for index in np.flatnonzero(~(single | registry)):
        value = records.values[index]
        detail = "message has no value" if value is None else f"value starts with {value[:10].hex() or 'nothing'}"
        decoded.bad.append(bad_message(records, int(index), DeadLetterReason.UNKNOWN_FRAMING, detail))
    fingerprints = np.ascontiguousarray(head[:, 2:10]).view("<u8").ravel()
    ids = np.ascontiguousarray(head[:, 1:5]).view(">u4").ravel()
    for fingerprint in np.unique(fingerprints[single]):
        yield SchemaRef("fingerprint", int(fingerprint)), np.flatnonzero(single & (fingerprints == fingerprint))
    for registered in np.unique(ids[registry]):
        yield SchemaRef("registry", int(registered)), np.flatnonzero(registry & (ids == registered))


def bad_message(records: TopicRecords, index: int, reason: DeadLetterReason, detail: str) -> BadMessage:
    """The message at `index`, set aside for `reason`."""
    return BadMessage(
        records.topic,
        int(records.partitions[index]),
        int(records.offsets[index]),
        int(records.timestamps_ms[index]),
        records.keys[index],
        records.values[index],
        reason,
        detail,
    )


class BodyCodec:
    """Decodes bare bodies of one schema, many at once or one by one."""

    def __init__(self, schema: AvroSchema) -> None:
        self._parsed = schema.parsed
        text = schema.text.encode("utf-8")
        self._head = (
            b"Obj\x01"
            + _long(2)
            + _string(b"avro.schema")
            + _string(text)
            + _string(b"avro.codec")
            + _string(b"null")
            + _long(0)
            + _SYNC
        )
        sentinel = io.BytesIO()
        fastavro.schemaless_writer(sentinel, self._parsed, _blank(self._parsed))
        self._sentinel = sentinel.getvalue()
        self.frame_schema: pl.Schema = self._read(0, b"").schema

    def many(self, bodies: pa.LargeBinaryArray, keys: pa.LargeBinaryArray) -> pl.DataFrame | None:
        """All `bodies` (no nulls) in one native call, or None when any of them is not a record of its key's account."""
        count = len(bodies)
        bounds = np.frombuffer(bodies.buffers()[1], np.int64)[bodies.offset : bodies.offset + count + 1]
        joined = memoryview(bodies.buffers()[2])[int(bounds[0]) : int(bounds[-1])]
        try:
            frame = self._read(count, joined)
        except Exception:
            return None
        except BaseException as error:
            # A Rust panic of the decoder on damaged bytes; it derives from BaseException and leaves no state behind.
            if type(error).__name__ != "PanicException":
                raise
            return None
        if frame.height != count + 1 or frame["did"][-1] != SENTINEL_DID:
            return None
        frame = frame.head(count)
        dids = frame["did"].to_arrow().cast(pa.large_binary())
        # Slots of missing keys compare as null, which `all` must not skip.
        same = pc.all(pc.equal(dids, keys), skip_nulls=False).as_py()
        return frame if same else None

    def one(self, body: bytes, key: bytes | None) -> dict[str, Any] | tuple[DeadLetterReason, str]:
        """One record as a dict of Avro fields, or why it is none."""
        stream = io.BytesIO(body)
        try:
            row = fastavro.schemaless_reader(stream, self._parsed, None)
        except Exception as error:  # the decoder raises whatever the damaged bytes lead it to
            return DeadLetterReason.UNDECODABLE, f"{type(error).__name__}: {error}"[:500]
        if not isinstance(row, dict) or stream.tell() != len(body):
            return DeadLetterReason.UNDECODABLE, f"{len(body) - stream.tell()} bytes behind the record"
        if key is None or row["did"].encode("utf-8", "surrogatepass") != key:
            return DeadLetterReason.KEY_MISMATCH, f"record is of {row['did'][:200]!r}, key is {key!r:.200}"
        return row

    def _read(self, count: int, bodies: bytes | memoryview) -> pl.DataFrame:
        """`count` joined bodies and the sentinel behind them."""
        block = _long(count + 1) + _long(len(bodies) + len(self._sentinel))
        return pl.read_avro(io.BytesIO(b"".join((self._head, block, bodies, self._sentinel, _SYNC))))


@cache
def body_codec(schema: AvroSchema) -> BodyCodec:
    """The codec of `schema`, made once."""
    return BodyCodec(schema)


def _decode_group(
    records: TopicRecords, indices: NDArray[np.int64], header: int, codec: BodyCodec, decoded: Decoded
) -> None:
    whole = len(indices) == len(records)
    keys = pa.array(records.keys if whole else [records.keys[i] for i in indices], pa.large_binary())
    values = pa.array(records.values if whole else [records.values[i] for i in indices], pa.large_binary())
    bodies = pc.binary_slice(values, header, np.iinfo(np.int32).max)
    good: list[NDArray[np.int64]] = []
    frames: list[pl.DataFrame] = []
    ranges = [(0, len(indices))]
    while ranges:
        low, high = ranges.pop()
        frame = codec.many(bodies.slice(low, high - low), keys.slice(low, high - low))
        if frame is not None:
            good.append(indices[low:high])
            frames.append(frame)
        elif high - low > LEAF_MESSAGES:
            middle = (low + high) // 2
            ranges += [(middle, high), (low, middle)]
        else:
            _decode_leaf(records, indices[low:high], header, codec, decoded, good, frames)
    if frames:
        kept = np.concatenate(good)
        frame = pl.concat(frames, rechunk=False).with_columns(
            pl.Series("kafka_partition", records.partitions[kept], pl.Int32),
            pl.Series("kafka_offset", records.offsets[kept], pl.Int64),
        )
        decoded.frames.append(_without_bad_times(records, frame, kept, decoded))


def _decode_leaf(
    records: TopicRecords,
    indices: NDArray[np.int64],
    header: int,
    codec: BodyCodec,
    decoded: Decoded,
    good: list[NDArray[np.int64]],
    frames: list[pl.DataFrame],
) -> None:
    rows: list[dict[str, Any]] = []
    kept: list[int] = []
    for index in indices:
        value = records.values[index]
        assert value is not None, "messages without a value never reach a schema group"
        outcome = codec.one(value[header:], records.keys[index])
        if isinstance(outcome, dict):
            rows.append(outcome)
            kept.append(int(index))
        else:
            decoded.bad.append(bad_message(records, int(index), *outcome))
    if rows:
        good.append(np.asarray(kept, np.int64))
        frames.append(pl.from_dicts(rows, schema=codec.frame_schema))


def _without_bad_times(
    records: TopicRecords, frame: pl.DataFrame, kept: NDArray[np.int64], decoded: Decoded
) -> pl.DataFrame:
    usable = ((frame["time_us"] >= 0) & (frame["time_us"] < MAX_TIME_US)).to_numpy()
    if usable.all():
        return frame
    for position in np.flatnonzero(~usable):
        detail = f"time_us {frame['time_us'][int(position)]} lies outside the years 1970 to 9999"
        decoded.bad.append(bad_message(records, int(kept[position]), DeadLetterReason.BAD_TIME, detail))
    return frame.filter(pl.Series(usable))


def _long(value: int) -> bytes:
    """Avro's zigzag variable-length encoding of a non-negative long."""
    value <<= 1
    encoded = bytearray()
    while value > 0x7F:
        encoded.append((value & 0x7F) | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _string(text: bytes) -> bytes:
    return _long(len(text)) + text


def _blank(parsed: Any) -> dict[str, Any]:
    """A record of the sentinel account with every other field empty."""
    blanks: dict[str, Any] = {"long": 0, "int": 0, "string": "", "boolean": False, "bytes": b"", "double": 0.0}
    row: dict[str, Any] = {}
    for member in parsed["fields"]:
        kind = member["type"]
        nullable = isinstance(kind, list) and "null" in kind
        row[member["name"]] = None if nullable else [] if isinstance(kind, dict) else blanks[kind]
    row["did"] = SENTINEL_DID
    return row

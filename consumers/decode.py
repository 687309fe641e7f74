"""Kafka values of one topic to typed columns, natively: no Python object per event unless an event is damaged.

The values of a batch that share a writer's schema are joined into one Avro container file in memory (Avro 1.11, "Object
Container Files": one block of concatenated records) and decoded in one call. The framing header of each value stays where
it is and is declared as two leading fields. Records have no length of their own there, so four checks find a damaged
one: the number of rows, the header of every row, the `did` of every row against its Kafka key, and a sentinel record
behind the last one. When a check fails the batch is halved until the damaged messages are among few; those are decoded one
by one with a second implementation, which also gives the reason.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import fastavro
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from consumers.layouts import fields_of, read_alike
from consumers.records import Slices, TopicRecords
from schemas.avro_schemas import AvroSchema, schema_by_fingerprint
from schemas.errors import BadRecord, DeadLetterReason
from schemas.framing import (
    REGISTRY_HEADER_BYTES,
    REGISTRY_MAGIC,
    SINGLE_OBJECT_HEADER_BYTES,
    SINGLE_OBJECT_MAGIC,
    SchemaRef,
    split,
)

SchemaLookup = Callable[[SchemaRef], AvroSchema | None]
"""Which schema a framing header names, or None when it is unknown for good; raises TryAgain while it cannot be told."""

SENTINEL_DID: Final = "did:sentinel:end-of-block"
LEAF_MESSAGES: Final = 32
"""Halving stops here: below this, decoding one by one costs less than further containers."""
PIECE_MESSAGES: Final = 16_384
"""Decoded at once: their memory is used again for the next ones while the processor still has it at hand."""
MAX_TIME_US: Final = 253_402_300_800_000_000
"""Start of the year 10000: later times have no hour folder and no timestamp in SQL."""

_SYNC: Final = b"\x00" * 16
_MAGIC, _NAMED = "framing_magic", "framing_schema"
_HEADER_FIELDS: Final = {
    SINGLE_OBJECT_HEADER_BYTES: {"name": _NAMED, "type": "double"},
    REGISTRY_HEADER_BYTES: {"name": _NAMED, "type": "float"},
}


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
    """The readable messages of a topic, as frames of one writer's schema each, and the others.

    Each frame has the schema's Avro fields plus `kafka_partition` (int32) and `kafka_offset` (int64).
    """

    frames: list[pl.DataFrame | pa.Table] = field(default_factory=list)
    bad: list[BadMessage] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Readable messages."""
        return sum(len(frame) for frame in self.frames)


def released_schemas(reference: SchemaRef) -> AvroSchema | None:
    """The lookup without a registry: fingerprints of released schemas only."""
    return schema_by_fingerprint(reference.value) if reference.kind == "fingerprint" else None


def decode(records: TopicRecords, schema_name: str, lookup: SchemaLookup = released_schemas) -> Decoded:
    """Decode the messages of one topic whose released schema is called `schema_name`.

    Never raises for a bad message: it is in `Decoded.bad`. Rows keep the order of arrival within one frame.
    """
    decoded = Decoded()
    if _decode_uniform(records, schema_name, lookup, decoded):
        return decoded
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


def _decode_uniform(records: TopicRecords, schema_name: str, lookup: SchemaLookup, decoded: Decoded) -> bool:
    """Decode at once when all messages carry one schema and none is damaged; False, with nothing done, when not so."""
    if not len(records):
        return False
    first = records.values[0] or b""
    try:
        reference, body = split(first)
    except BadRecord:
        return False
    schema = lookup(reference)
    if schema is None or schema.name != schema_name:
        return False
    header = first[: len(first) - len(body)]
    codec = body_codec(schema)
    alike: list[tuple[NDArray[np.int64], pl.DataFrame | pa.Table]] = []
    alike += read_alike(records.values, records.keys, header, codec.fields)
    rest = _others(len(records), alike)
    frames = alike.copy()
    for start in range(0, len(rest), PIECE_MESSAGES):
        piece = rest[start : start + PIECE_MESSAGES]
        frame = codec.many(records.values.at(piece), records.keys.at(piece), header)
        if frame is None:
            return False
        frames.append((piece, frame))
    for places, rows in frames:
        _keep(records, rows, places, decoded)
    return True


def _others(count: int, alike: Sequence[tuple[NDArray[np.int64], object]]) -> NDArray[np.int64]:
    """The places below `count` that are in none of `alike`."""
    left = np.ones(count, np.bool_)
    for places, _ in alike:
        left[places] = False
    return np.flatnonzero(left)


def _by_framing(records: TopicRecords, decoded: Decoded) -> Iterator[tuple[SchemaRef, NDArray[np.int64]]]:
    """Group message indices by the schema their header names; what carries no framing goes to `decoded.bad`."""
    lengths = records.values.size
    data = records.values.data if len(records.values.data) else np.zeros(1, np.uint8)
    # Reading past the end of a short value is harmless: the length is looked at as well.
    head = data[np.minimum(records.values.begin[:, None] + np.arange(SINGLE_OBJECT_HEADER_BYTES), len(data) - 1)]
    single = (
        (lengths >= SINGLE_OBJECT_HEADER_BYTES)
        & (head[:, 0] == SINGLE_OBJECT_MAGIC[0])
        & (head[:, 1] == SINGLE_OBJECT_MAGIC[1])
    )
    registry = (lengths >= REGISTRY_HEADER_BYTES) & (head[:, 0] == REGISTRY_MAGIC[0])
    for index in np.flatnonzero(~(single | registry)):
        value = records.values[int(index)]
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
    """Decodes bodies of one schema, many at once or one by one."""

    def __init__(self, schema: AvroSchema) -> None:
        self._parsed = schema.parsed
        self.fields = fields_of(schema.parsed)
        declared = json.loads(schema.text)
        # Both headers read as Avro: their first bytes are a variable-length long, what names the schema is a float.
        self._framed_heads = {
            length: _container_head(
                json.dumps({**declared, "fields": [{"name": _MAGIC, "type": "long"}, named, *declared["fields"]]})
            )
            for length, named in _HEADER_FIELDS.items()
        }
        sentinel = io.BytesIO()
        fastavro.schemaless_writer(sentinel, self._parsed, _blank(self._parsed))
        self._sentinel = sentinel.getvalue()
        self.frame_schema: pl.Schema = _read(_container_head(schema.text), 1, [self._sentinel]).schema

    def many(self, values: Slices, keys: Slices, header: bytes) -> pl.DataFrame | None:
        """All `values` in one native call, or None unless each is `header` and a record of its key's account."""
        count = len(values)
        try:
            bodies = values.arrow().buffers()[2]
            frame = _read(self._framed_heads[len(header)], count + 1, [bodies, header, self._sentinel])
        except Exception:
            return None
        except BaseException as error:
            # A Rust panic of the decoder on damaged bytes; it derives from BaseException and leaves no state behind.
            if type(error).__name__ != "PanicException":
                raise
            return None
        if frame.height != count + 1 or frame["did"][-1] != SENTINEL_DID:
            return None
        # Every row has to begin with the header that the sentinel has: a body that is too long or too short for its
        # neighbour's place would have moved it.
        bits = frame[_NAMED].to_numpy().view(np.uint64 if len(header) == SINGLE_OBJECT_HEADER_BYTES else np.uint32)
        magic = frame[_MAGIC].to_numpy()
        if (bits != bits[-1]).any() or (magic != magic[-1]).any():
            return None
        frame = frame.drop(_MAGIC, _NAMED).head(count)
        # Slots of missing keys compare as null, which `all` must not skip.
        dids = frame["did"].to_arrow().cast(pa.large_binary())
        same = pc.all(pc.equal(dids, keys.arrow()), skip_nulls=False).as_py()
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


def _read(head: bytes, count: int, bodies: Sequence[Any]) -> pl.DataFrame:
    """Decode `count` records that stand in `bodies`, pieces of memory, joined, after `head`."""
    block = _long(count) + _long(sum(map(len, bodies)))
    return pl.read_avro(io.BytesIO(b"".join((head, block, *bodies, _SYNC))))


def _container_head(schema: str) -> bytes:
    metadata = _string(b"avro.schema") + _string(schema.encode()) + _string(b"avro.codec") + _string(b"null")
    return b"Obj\x01" + _long(2) + metadata + _long(0) + _SYNC


@cache
def body_codec(schema: AvroSchema) -> BodyCodec:
    """The codec of `schema`, made once."""
    return BodyCodec(schema)


def _decode_group(
    records: TopicRecords, indices: NDArray[np.int64], header: int, codec: BodyCodec, decoded: Decoded
) -> None:
    """Decode messages of one schema and framing, halving whatever does not pass the checks as a whole."""
    values, keys = records.values.at(indices), records.keys.at(indices)
    prefix = (values[0] or b"")[:header]
    good: list[NDArray[np.int64]] = []
    frames: list[pl.DataFrame] = []
    ranges = [(0, len(indices))]
    while ranges:
        low, high = ranges.pop()
        piece = slice(low, high)
        frame = codec.many(values.at(piece), keys.at(piece), prefix)
        if frame is not None:
            good.append(indices[low:high])
            frames.append(frame)
        elif high - low > LEAF_MESSAGES:
            middle = (low + high) // 2
            ranges += [(middle, high), (low, middle)]
        else:
            _decode_leaf(records, indices[low:high], header, codec, decoded, good, frames)
    if frames:
        _keep(records, pl.concat(frames, rechunk=False), np.concatenate(good), decoded)


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


def _keep(records: TopicRecords, frame: pl.DataFrame | pa.Table, kept: NDArray[np.int64], decoded: Decoded) -> None:
    """Add decoded rows, made of the messages at `kept`, with their provenance; impossible times are set aside."""
    partitions, offsets = records.partitions[kept], records.offsets[kept]
    if isinstance(frame, pa.Table):
        frame = frame.append_column("kafka_partition", pa.array(partitions)).append_column(
            "kafka_offset", pa.array(offsets)
        )
    else:
        frame = frame.with_columns(
            pl.Series("kafka_partition", partitions, pl.Int32), pl.Series("kafka_offset", offsets, pl.Int64)
        )
    times = np.asarray(frame["time_us"])
    usable = (times >= 0) & (times < MAX_TIME_US)
    if usable.all():
        decoded.frames.append(frame)
        return
    for position in np.flatnonzero(~usable):
        detail = f"time_us {int(times[position])} lies outside the years 1970 to 9999"
        decoded.bad.append(bad_message(records, int(kept[position]), DeadLetterReason.BAD_TIME, detail))
    decoded.frames.append(frame.filter(pa.array(usable) if isinstance(frame, pa.Table) else pl.Series(usable)))


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

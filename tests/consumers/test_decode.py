"""Decoding: equal to a second implementation for good messages, and no damaged byte may cost a neighbour its row."""

from __future__ import annotations

import io
import random
from typing import Any

import fastavro
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumers.decode import MAX_TIME_US, Decoded, body_codec, decode
from consumers.records import TopicRecords
from schemas.avro_schemas import AvroSchema, latest, released
from schemas.errors import DeadLetterReason
from schemas.framing import RegistryFraming, SchemaRef, SingleObjectFraming
from schemas.records import EVENT_FIELDS

POST = "app.bsky.feed.post"
TOPIC = "bluesky.app.bsky.feed.post"


def record(schema: AvroSchema, number: int, rng: random.Random) -> dict[str, Any]:
    """A record with a random part of its optional fields set."""
    words = ["", "wörld", "日本語", "😀 text", "a" * 300]
    row: dict[str, Any] = {}
    for member in schema.parsed["fields"]:
        kind = member["type"]
        if isinstance(kind, list):
            kind = rng.choice(["null", kind[1]])
        if isinstance(kind, dict):
            row[member["name"]] = [rng.choice(words) for _ in range(rng.randrange(3))]
        else:
            row[member["name"]] = {
                "null": None,
                "string": rng.choice(words),
                "long": rng.choice([0, -1, 2**62, -(2**63), 5]),
                "boolean": rng.random() < 0.5,
            }[kind]
    row["did"] = f"did:plc:{rng.randrange(50):024d}"
    row["time_us"] = 1_700_000_000_000_000 + number
    return row


def body_of(schema: AvroSchema, row: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema.parsed, row)
    return stream.getvalue()


def records(values: list[bytes | None], keys: list[bytes | None], topic: str = TOPIC) -> TopicRecords:
    count = len(values)
    return TopicRecords.of(
        topic,
        np.zeros(count, np.int32),
        # Offsets have holes in reality.
        np.arange(count, dtype=np.int64) * 3 + 7,
        np.full(count, 1_700_000_000_000, np.int64),
        keys,
        values,
    )


def rows_of(decoded: Decoded) -> dict[int, dict[str, Any]]:
    frames = [pl.from_arrow(frame) if isinstance(frame, pa.Table) else frame for frame in decoded.frames]
    return {row["kafka_offset"]: row for frame in frames for row in frame.to_dicts()}


@pytest.mark.parametrize("name", sorted(EVENT_FIELDS))
def test_native_decoding_equals_the_second_implementation(name: str) -> None:
    schema = latest(name)
    rng = random.Random(name)
    rows = [record(schema, number, rng) for number in range(300)]
    framing = SingleObjectFraming()
    decoded = decode(
        records([framing.frame(name, body_of(schema, row)) for row in rows], [row["did"].encode() for row in rows]),
        name,
    )
    assert not decoded.bad
    found = rows_of(decoded)
    assert [found[number * 3 + 7] for number in range(300)] == [
        {**row, "kafka_partition": 0, "kafka_offset": number * 3 + 7} for number, row in enumerate(rows)
    ]


def test_both_framings_and_several_schema_versions_in_one_batch() -> None:
    first = latest(POST)
    # A later release adds a field; both are in flight while producers are upgraded one after the other.
    text = first.text.rstrip().removesuffix("}").rstrip().removesuffix("]")
    second = AvroSchema(POST, 2, text + ', {"name": "later", "type": ["null", "string"], "default": null}]}', 77)
    ids = {SchemaRef("registry", 5): first, SchemaRef("registry", 6): second}
    rng = random.Random(1)
    rows = [record(first, number, rng) for number in range(90)]
    values: list[bytes | None] = []
    for number, row in enumerate(rows):
        if number % 3 == 0:
            values.append(SingleObjectFraming().frame(POST, body_of(first, row)))
        elif number % 3 == 1:
            values.append(RegistryFraming({POST: 5}).frame(POST, body_of(first, row)))
        else:
            values.append(RegistryFraming({POST: 6}).frame(POST, body_of(second, {**row, "later": "x"})))
    decoded = decode(
        records(values, [row["did"].encode() for row in rows]),
        POST,
        lambda ref: first if ref.kind == "fingerprint" else ids.get(ref),
    )
    assert not decoded.bad
    assert decoded.rows == 90
    assert sorted(rows_of(decoded)) == [number * 3 + 7 for number in range(90)]
    assert sum("later" in frame.columns for frame in decoded.frames) == 1


def damage(value: bytes, rng: random.Random) -> bytes:
    """One damage, anywhere behind the framing, that no checksum of Kafka would report (a faulty producer)."""
    body = bytearray(value)
    match rng.randrange(5):
        case 0:
            body[rng.randrange(10, len(body))] = rng.randrange(256)
        case 1:
            del body[rng.randrange(10, len(body)) :]
        case 2:
            body += rng.randbytes(rng.randrange(1, 20))
        case 3:
            place = rng.randrange(10, len(body))
            body[place : place + 1] = b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01"
        case _:
            body[10:] = rng.randbytes(rng.randrange(60))
    return bytes(body)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), count=st.integers(1, 150), damaged=st.integers(1, 8))
def test_damaged_messages_never_cost_a_neighbour(seed: int, count: int, damaged: int) -> None:
    rng = random.Random(seed)
    schema = latest(POST)
    framing = SingleObjectFraming()
    rows = [record(schema, number, rng) for number in range(count)]
    values: list[bytes | None] = [framing.frame(POST, body_of(schema, row)) for row in rows]
    keys: list[bytes | None] = [row["did"].encode() for row in rows]
    hit = {rng.randrange(count) for _ in range(damaged)}
    for index in hit:
        original = values[index]
        assert original is not None
        values[index] = damage(original, rng)
    decoded = decode(records(values, keys), POST)
    found = rows_of(decoded)
    for number, row in enumerate(rows):
        if number not in hit:
            assert found[number * 3 + 7] == {**row, "kafka_partition": 0, "kafka_offset": number * 3 + 7}
    # Nothing vanishes: every message is a row or set aside, with its original bytes.
    assert decoded.rows + len(decoded.bad) == count
    assert {(message.offset - 7) // 3 for message in decoded.bad} <= hit
    for message in decoded.bad:
        assert message.value == values[(message.offset - 7) // 3]


def test_every_kind_of_bad_message_has_its_reason() -> None:
    schema, rng, framing = latest(POST), random.Random(3), SingleObjectFraming()
    rows = [record(schema, number, rng) for number in range(9)]
    rows[7]["time_us"] = MAX_TIME_US
    rows[8]["time_us"] = -1
    values: list[bytes | None] = [framing.frame(POST, body_of(schema, row)) for row in rows]
    keys: list[bytes | None] = [row["did"].encode() for row in rows]
    values[0] = None
    values[1] = b"{}"
    values[2] = RegistryFraming({POST: 9}).frame(POST, b"body")
    values[3] = SingleObjectFraming().header("identity") + b"body"
    keys[4] = b"did:plc:somebody-else"
    keys[5] = None
    values[6] = framing.header(POST) + b"\xff"
    decoded = decode(records(values, keys), POST)
    assert decoded.rows == 0
    reasons = {(message.offset - 7) // 3: message.reason for message in decoded.bad}
    assert reasons == {
        0: DeadLetterReason.UNKNOWN_FRAMING,
        1: DeadLetterReason.UNKNOWN_FRAMING,
        2: DeadLetterReason.UNKNOWN_SCHEMA,
        3: DeadLetterReason.UNKNOWN_SCHEMA,
        4: DeadLetterReason.KEY_MISMATCH,
        5: DeadLetterReason.KEY_MISMATCH,
        6: DeadLetterReason.UNDECODABLE,
        7: DeadLetterReason.BAD_TIME,
        8: DeadLetterReason.BAD_TIME,
    }


def test_every_released_schema_can_be_decoded_natively() -> None:
    for (name, _), schema in released().items():
        if name in EVENT_FIELDS:
            assert body_codec(schema).frame_schema.names()[:2] == ["time_us", "did"]

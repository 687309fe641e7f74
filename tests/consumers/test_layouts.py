"""Reading by position gives what the general decoder gives, and leaves it everything that does not lie alike."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers import layouts
from consumers.decode import Decoded, body_codec, decode
from consumers.records import TopicRecords
from lake.convert import to_lake
from schemas.avro_schemas import latest
from schemas.framing import SingleObjectFraming
from tests.consumers.support import events

LIKE = "app.bsky.feed.like"
TABLES = (LIKE, "app.bsky.graph.follow", "app.bsky.feed.post", "identity", "account", "other")


def value_of(table: str, rng: random.Random, shape: int) -> tuple[bytes, bytes]:
    """A value and its key: rows of one `shape` differ in content only."""
    schema, plan = latest(table), random.Random(shape)
    row: dict[str, Any] = {}
    for member in schema.parsed["fields"]:
        kind = member["type"]
        if isinstance(kind, list):
            kind = kind[1] if plan.random() < 0.7 else "null"
        width = plan.choice([0, 1, 13, 59, 63, 64, 70])
        row[member["name"]] = (
            None
            if kind == "null"
            else "".join(rng.choice("abcXYZ 019/:") for _ in range(width))
            if kind == "string"
            else plan.choice([1, 300, 2**40, 2**61]) + rng.randrange(60)
            if kind == "long"
            else rng.random() < 0.5
            if kind == "boolean"
            else ["en"] * plan.randrange(2)
        )
    row["did"] = f"did:plc:{rng.randrange(50):024d}"
    row["time_us"] = 1_700_000_000_000_000 + rng.randrange(10**9)
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema.parsed, row)
    return SingleObjectFraming().frame(table, stream.getvalue()), row["did"].encode()


def damaged(value: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(value))
    match rng.randrange(4):
        case 0:
            return value[:place] + bytes([value[place] ^ 1 << rng.randrange(8)]) + value[place + 1 :]
        case 1:
            return value[:place] + value[place + 1 :]
        case 2:
            return value[:place] + b"\x00" + value[place:]
        case _:
            return value[:place]


def records(table: str, values: list[bytes | None], keys: list[bytes | None]) -> TopicRecords:
    count = len(values)
    return TopicRecords.of(
        f"bluesky.{table}", np.zeros(count, np.int32), np.arange(count, dtype=np.int64), np.full(count, 5), keys, values
    )


def outcome(decoded: Decoded) -> tuple[dict[int, Any], dict[int, Any]]:
    rows = {
        row["kafka_offset"]: row
        for frame in decoded.frames
        for row in (frame.to_pylist() if isinstance(frame, pa.Table) else frame.to_dicts())
    }
    return rows, {bad.offset: (bad.reason, bad.value) for bad in decoded.bad}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(TABLES), st.integers(0, 2**32), st.integers(0, 4), st.booleans())
def test_the_same_rows_and_the_same_bad_messages(table: str, seed: int, harmed: int, mixed: bool) -> None:
    rng = random.Random(seed)
    made = [value_of(table, rng, seed + rng.randrange(3) * mixed) for _ in range(24)]
    values: list[bytes | None] = [value for value, _ in made]
    keys: list[bytes | None] = [key for _, key in made]
    for _ in range(harmed):
        place = rng.randrange(len(values))
        match rng.randrange(4):
            case 0:
                keys[place] = rng.choice(
                    [None, b"", b"did:plc:other", made[0][1], made[place][1] + b"1", made[place][1][:-1]]
                )
            case 1:
                values[place] = rng.choice([None, b"", b"\xc3\x01"])
            case _:
                values[place] = damaged(made[place][0], rng)
    batch = records(table, values, keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "FEWEST", 10**9)
        expected = outcome(decode(batch, table))
        patch.setattr(layouts, "FEWEST", 3)
        patch.setattr(layouts, "_PIECE", 5)
        assert outcome(decode(batch, table)) == expected


def test_most_of_a_batch_is_read_by_position() -> None:
    made = [event for event in events(4000, seed=5) if event.table == LIKE]
    keys = [event.key for event in made]
    batch = records(LIKE, [event.value for event in made], list(keys))
    header = SingleObjectFraming().header(LIKE)
    found = list(layouts.read_alike(batch.values, batch.keys, header, body_codec(latest(LIKE)).fields))
    assert sum(rows.num_rows for _, rows in found) > 0.9 * len(made)
    places = np.concatenate([places for places, _ in found])
    assert len(np.unique(places)) == len(places)
    assert all(rows["did"].to_pylist() == [keys[at].decode() for at in places] for places, rows in found)
    assert all(to_lake(LIKE, with_places(rows)).num_rows == rows.num_rows for _, rows in found)


def with_places(rows: pa.Table) -> pa.Table:
    count = rows.num_rows
    return rows.append_column("kafka_partition", pa.array(np.zeros(count, np.int32))).append_column(
        "kafka_offset", pa.array(np.arange(count))
    )


@pytest.mark.parametrize("ending", [b"", b"\x00", b"\xff" * 12])
def test_what_is_no_record_has_no_layout(ending: bytes) -> None:
    value, _ = value_of(LIKE, random.Random(1), 1)
    fields = body_codec(latest(LIKE)).fields
    assert layouts.layout_of(value, 10, fields) is not None
    assert layouts.layout_of(value[:-1] + ending, 10, fields) is None or ending == b"\x00"


@pytest.mark.parametrize("change", [lambda key: key + b"1", lambda key: key[:-1]])
def test_a_key_that_only_begins_like_the_account_is_another(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(layouts, "FEWEST", 3)
    made = [value_of(LIKE, random.Random(number), 1) for number in range(9)]
    keys: list[bytes | None] = [key for _, key in made]
    keys[4] = change(made[4][1])
    rows, bad = outcome(decode(records(LIKE, [value for value, _ in made], keys), LIKE))
    assert (sorted(rows), list(bad)) == ([0, 1, 2, 3, 5, 6, 7, 8], [4])

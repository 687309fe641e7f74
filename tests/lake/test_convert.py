"""Every value comes back from the lake's columns exactly, whatever the network sent."""

from __future__ import annotations

import base64
import hashlib

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake import base32
from lake.convert import from_lake, lake_schema, to_lake
from lake.errors import ForeignTable
from schemas.lexicons import Kind
from schemas.records import EVENT_FIELDS, REQUIRED

TID = st.from_regex(r"\A[2-7a-j][2-7a-z]{12}\Z")
DID = st.sampled_from(["did:plc:ewvi7nxzyoun6zhxrhs64oiz", "did:web:example.com", "did:plc:ab"])


def cid_of(data: bytes) -> str:
    digest = bytes.fromhex("01711220") + hashlib.sha256(data).digest()
    return "b" + base64.b32encode(digest).decode().lower().rstrip("=")


CID = st.binary(max_size=4).map(cid_of)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
DATETIME = st.one_of(
    st.datetimes().map(lambda t: t.strftime("%Y-%m-%dT%H:%M:%S.") + f"{t.microsecond // 1000:03d}Z"),
    st.datetimes().map(lambda t: t.isoformat() + "+02:00"),
    st.from_regex(r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})\Z"),
    st.from_regex(r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z\Z"),
)
URI = st.one_of(
    st.builds(lambda d, c, r: f"at://{d}/{c}/{r}", DID, st.sampled_from(["app.bsky.feed.post", "ü", ""]), TID | TEXT),
    st.from_regex(r"\A(at:)?/{0,3}[a-zü:/]*/?[2-7a-z]{13}/?\Z"),
)
VALUES = {
    Kind.TID: TID | TEXT | st.from_regex(r"\A[0-9a-z]{13}\Z"),
    Kind.CID: CID | TEXT | CID.map(lambda c: c[:-1] + "7") | CID.map(str.upper) | st.from_regex(r"\Ab[a-z2-7]{58}\Z"),
    Kind.URI: URI | TEXT,
    Kind.DATETIME: DATETIME | TEXT,
    Kind.DID: DID | TEXT,
    Kind.TEXT: TEXT,
    Kind.JSON: TEXT,
    Kind.INTEGER: st.integers(-(2**63), 2**63 - 1),
    Kind.MICROS: st.integers(-(2**63), 2**63 - 1),
    Kind.BOOLEAN: st.booleans(),
    Kind.STRINGS: st.lists(TEXT, max_size=3),
}
POLARS = {
    Kind.INTEGER: pl.Int64,
    Kind.MICROS: pl.Int64,
    Kind.BOOLEAN: pl.Boolean,
    Kind.STRINGS: pl.List(pl.String),
}


@st.composite
def batches(draw: st.DrawFn, table: str) -> list[dict[str, object]]:
    row = st.fixed_dictionaries(
        {
            field.name: VALUES[field.kind] if field.name in REQUIRED else st.none() | VALUES[field.kind]
            for field in EVENT_FIELDS[table]
        }
    )
    return draw(st.lists(row, max_size=4))


def frame(table: str, rows: list[dict[str, object]]) -> pl.DataFrame:
    schema = {field.name: POLARS.get(field.kind, pl.String) for field in EVENT_FIELDS[table]}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        kafka_partition=pl.lit(3, pl.Int64), kafka_offset=pl.int_range(pl.len(), dtype=pl.Int64)
    )


@pytest.mark.parametrize("table", ["app.bsky.feed.post", "app.bsky.feed.like", "other", "identity", "account", "sync"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_row_comes_back(table: str, data: st.DataObject) -> None:
    rows = data.draw(batches(table))
    stored = to_lake(table, frame(table, rows))
    assert stored.schema == lake_schema(table)
    stored.validate(full=True)
    back = from_lake(table, stored)
    for number, (row, seen) in enumerate(zip(rows, back, strict=True)):
        assert seen == {**row, "kafka_partition": 3, "kafka_offset": number, "erased": None}


@settings(max_examples=300, deadline=None)
@given(values=st.lists(st.none() | VALUES[Kind.DATETIME], max_size=5))
def test_times_come_back_and_parse_as_written(values: list[str | None]) -> None:
    rows = [{"time_us": 0, "did": "d", "created_at": value} for value in values]
    stored = to_lake("app.bsky.graph.block", frame("app.bsky.graph.block", rows))
    assert [row["created_at"] for row in from_lake("app.bsky.graph.block", stored)] == values


@pytest.mark.parametrize(
    ("text", "micros", "raw"),
    [
        ("2026-07-04T14:38:08.999Z", 1_783_175_888_999_000, None),
        ("1969-12-31T23:59:59.999Z", -1000, None),
        ("2000-02-29T00:00:00.000Z", 951_782_400_000_000, None),
        ("1900-02-29T00:00:00.000Z", None, "1900-02-29T00:00:00.000Z"),
        ("2026-07-04T14:38:08Z", 1_783_175_888_000_000, "2026-07-04T14:38:08Z"),
        ("2026-07-04T14:38:08.999999Z", 1_783_175_888_999_999, "2026-07-04T14:38:08.999999Z"),
        ("2026-07-04T16:38:08.999+02:00", 1_783_175_888_999_000, "2026-07-04T16:38:08.999+02:00"),
        ("2026-07-04T14:38:08.9990000001Z", 1_783_175_888_999_000, "2026-07-04T14:38:08.9990000001Z"),
        ("2026-07-04", None, "2026-07-04"),
        ("2026-13-04T14:38:08.999Z", None, "2026-13-04T14:38:08.999Z"),
        ("2026-07-04T24:00:00.000Z", None, "2026-07-04T24:00:00.000Z"),
        ("0000-01-01T00:00:00.000Z", None, "0000-01-01T00:00:00.000Z"),
        ("0001-01-01T00:00:00.000Z", -62_135_596_800_000_000, None),
        ("9999-12-31T23:59:59.999Z", 253_402_300_799_999_000, None),
    ],
)
def test_time_spellings(text: str, micros: int | None, raw: str | None) -> None:
    rows = [{"time_us": 0, "did": "d", "created_at": text}]
    stored = to_lake("app.bsky.graph.block", frame("app.bsky.graph.block", rows))
    # Kept in milliseconds; finer digits are in the raw text.
    assert stored.column("created_at").cast(pa.int64()).to_pylist() == [None if micros is None else micros // 1000]
    assert stored.column("created_at_text").to_pylist() == [raw]


def test_compact_columns_hold_what_they_say() -> None:
    row = {
        "time_us": 1,
        "did": "did:plc:a",
        "rkey": "3jzfcijpj2z2a",
        "rev": "self",
        "cid": cid_of(b"x"),
        "subject_uri": "at://did:plc:b/app.bsky.feed.post/3jzfcijpj2z2a",
        "subject_cid": "bafkqaaa",
    }
    stored = to_lake("app.bsky.feed.like", frame("app.bsky.feed.like", [row])).to_pylist()[0]
    number = 0
    for character in "3jzfcijpj2z2a":
        number = number * 32 + "234567abcdefghijklmnopqrstuvwxyz".index(character)
    assert stored["rkey_tid"] == number
    assert stored["rkey_text"] is None
    assert (stored["rev_tid"], stored["rev_text"]) == (None, "self")
    assert stored["cid"] == hashlib.sha256(b"x").digest()
    assert (stored["subject_did"], stored["subject_collection"]) == ("did:plc:b", "app.bsky.feed.post")
    assert (stored["subject_rkey_tid"], stored["subject_uri_text"]) == (number, None)
    assert (stored["subject_cid"], stored["subject_cid_text"]) == (None, "bafkqaaa")


@given(st.lists(st.integers(0, 2**63 - 1)))
def test_tids_sort_as_their_numbers(numbers: list[int]) -> None:
    texts = [bytes(row) for row in base32.encode_tids(np.array(numbers, np.int64))]
    assert sorted(texts) == [text for _, text in sorted(zip(numbers, texts, strict=True))]


def test_a_column_the_old_schema_lacked_is_null() -> None:
    decoded = frame("account", [{"time_us": 1, "did": "d", "active": True}]).drop("status", "relay_seq")
    assert to_lake("account", decoded).column("relay_seq").to_pylist() == [None]


def test_an_unknown_table_is_named() -> None:
    with pytest.raises(ForeignTable, match=r"app\.example"):
        lake_schema("app.example")

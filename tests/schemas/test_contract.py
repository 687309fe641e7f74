"""The contract's files agree with each other and with what has been released."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import binary
from schemas.avro_schemas import latest, released, schema_by_fingerprint
from schemas.bodies import Cursor, DeadLetter, Gap
from schemas.errors import BadRecord
from schemas.framing import RegistryFraming, SingleObjectFraming, split
from schemas.lexicons import LEXICONS
from schemas.records import EVENT_FIELDS, SERVICE_RECORDS, avro_schema
from schemas.tables import TABLES
from schemas.telemetry import METRICS
from schemas.topics import DEAD_LETTER, TABLE_TOPICS, TOPICS, topic_for

ROOT = Path(__file__).parents[2] / "schemas"
NAMES = [*EVENT_FIELDS, *SERVICE_RECORDS]


@pytest.mark.parametrize("name", NAMES)
def test_the_newest_schema_file_is_what_the_encoder_writes(name: str) -> None:
    assert json.loads(latest(name).text) == avro_schema(name)


def test_released_schemas_are_never_edited() -> None:
    pinned = json.loads((ROOT / "avro" / "RELEASED.json").read_text())
    current = {f"{name}.v{version}": f"{schema.fingerprint:016x}" for (name, version), schema in released().items()}
    assert {name: current.get(name) for name in pinned} == pinned, "a released schema was edited: add a version instead"
    assert current.keys() == pinned.keys(), "pin the new version in schemas/avro/RELEASED.json when it is released"


@pytest.mark.parametrize("name", NAMES)
def test_versions_count_from_one_and_each_reads_its_neighbour(name: str) -> None:
    versions = sorted(version for known, version in released() if known == name)
    assert versions == list(range(1, len(versions) + 1))
    for old, new in itertools.pairwise(versions):
        for writer, reader in ((old, new), (new, old)):
            _read_with(released()[name, writer].parsed, released()[name, reader].parsed)


def _read_with(writer: Any, reader: Any) -> None:
    stream = io.BytesIO()
    row = {field["name"]: _example(field["type"]) for field in writer["fields"]}
    fastavro.schemaless_writer(stream, writer, row)
    stream.seek(0)
    fastavro.schemaless_reader(stream, writer, reader)


def _example(kind: Any) -> Any:
    return None if isinstance(kind, list) else {"long": 1, "string": "x", "boolean": True, "bytes": b"x"}[kind]


def test_topics_and_tables_cover_each_other() -> None:
    assert TABLE_TOPICS.keys() == TABLES.keys() == EVENT_FIELDS.keys()
    assert {topic_for(nsid) for nsid in LEXICONS} == {TABLE_TOPICS[nsid] for nsid in LEXICONS}
    for name, topic in TOPICS.items():
        assert name.startswith("bluesky.")
        assert topic.schema in NAMES
        assert topic.description.endswith(".")
        assert topic.partitions >= 1
        assert (ROOT / "topics" / f"{name}.yaml").is_file()
        if topic.dead_letter is not None:
            assert topic.dead_letter == DEAD_LETTER
            assert TOPICS[DEAD_LETTER].max_message_bytes > topic.max_message_bytes
            assert TOPICS[DEAD_LETTER].retention_ms > topic.retention_ms


def test_metric_names_are_unique_and_explained() -> None:
    assert all(name.startswith("explorer.") and metric.meaning.endswith(".") for name, metric in METRICS.items())


@pytest.mark.parametrize("name", NAMES)
def test_both_framings_name_their_schema(name: str) -> None:
    ref, body = split(SingleObjectFraming().frame(name, b"body"))
    schema = schema_by_fingerprint(ref.value)
    assert schema is not None
    assert (ref.kind, schema.name, body) == ("fingerprint", name, b"body")
    ref, body = split(RegistryFraming({name: 70_000}).frame(name, b"body"))
    assert (ref.kind, ref.value, body) == ("registry", 70_000, b"body")


@given(st.binary(max_size=12))
def test_unframed_bytes_are_refused(value: bytes) -> None:
    if value[:2] != b"\xc3\x01" and value[:1] != b"\x00":
        with pytest.raises(BadRecord):
            split(value)


@pytest.mark.parametrize(
    "record",
    [
        DeadLetter("r", "d", "producer", 1, "h", "v1", None, 2, None, "c", None, None, None, b"\x00\xff"),
        Cursor("wss://h", "v2", 7, 8, 9),
        Cursor("wss://h", "v1", None, None, 9),
        Cursor("wss://h", "v2", 7, 8, 9, 6),
        Gap("h", "CursorTooOld", 1, None, None, 5, "detail", 9),
    ],
)
def test_service_records_come_back_equal(record: DeadLetter | Cursor | Gap) -> None:
    assert type(record).decode(record.encode()) == record


_TEXTS = st.text(max_size=20)
_NUMBERS = st.none() | st.integers(-(2**63), 2**63 - 1)


@given(_TEXTS, _TEXTS, _NUMBERS, _NUMBERS, st.integers(-(2**63), 2**63 - 1))
def test_cursors_of_the_first_release_are_read(
    host: str, protocol: str, seq: int | None, time_us: int | None, updated_us: int
) -> None:
    body = io.BytesIO()
    row = {"host": host, "protocol": protocol, "seq": seq, "time_us": time_us, "updated_us": updated_us}
    fastavro.schemaless_writer(body, released()["jetstream-cursor", 1].parsed, row)
    assert Cursor.decode(body.getvalue()) == Cursor(host, protocol, seq, time_us, updated_us, None)
    with pytest.raises(BadRecord):
        Cursor.decode(body.getvalue() + b"\x02")


@given(st.integers(-(2**63), 2**63 - 1))
def test_longs_are_read_by_fastavro(value: int) -> None:
    assert fastavro.schemaless_reader(io.BytesIO(binary.long(value)), "long", "long") == value


@given(st.none() | st.text(max_size=5000))
def test_nullable_text_is_read_by_fastavro(value: str | None) -> None:
    schema = ["null", "string"]
    assert fastavro.schemaless_reader(io.BytesIO(binary.some_text(value)), schema, schema) == value

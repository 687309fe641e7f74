"""What goes through the codec comes back equal, typed where it fits and in `extra_json` where it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.avro_schemas import latest
from schemas.bodies import decode_body
from schemas.codec import EventEncoder, UpstreamKind
from schemas.errors import BadRecord, DeadLetterReason
from schemas.json_text import dumps, loads
from schemas.lexicons import LEXICONS, Kind
from schemas.rebuild import ABSENT_RECORD, record_json, upstream_text
from schemas.topics import TOPICS, topic_for

DID = "did:plc:aaaabbbbccccddddeeeeffff"
CID = "bafyreihtvuuwbqzdyfi5ehnp3o7b5bqbdqzx6f7mxhpxbk7jvzwllvjp4i"
TIME = 1_783_175_888_085_434

text = st.text(st.characters(codec=None, categories=None), max_size=20)  # lone surrogates and NUL included
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
refs = st.fixed_dictionaries({"uri": text, "cid": text})
_TYPED: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.TEXT: text,
    Kind.DATETIME: text,
    Kind.DID: text,
    Kind.URI: text,
    Kind.INTEGER: st.integers(-(2**63), 2**63 - 1),
    Kind.BOOLEAN: st.booleans(),
    Kind.STRINGS: st.lists(text, max_size=4),
    Kind.JSON: json_values,
    Kind.REF: refs,
    Kind.REPLY: st.fixed_dictionaries({"root": refs, "parent": refs}),
}


def same(left: Any, right: Any) -> bool:
    """Equality of JSON values; Python holds True equal to 1, JSON does not."""
    if isinstance(left, bool) != isinstance(right, bool):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return (type(left) is type(right) and left == right) or (
        isinstance(left, int | float) and isinstance(right, int | float) and left == right
    )


@st.composite
def records(draw: st.DrawFn) -> tuple[str, Any]:
    nsid = draw(st.sampled_from(sorted(LEXICONS)))
    members = {
        member.name: draw(st.one_of(_TYPED[member.kind], json_values))
        for member in LEXICONS[nsid].members
        if draw(st.booleans())
    }
    if draw(st.booleans()):
        members["$type"] = draw(st.just(nsid) | json_values)
    if draw(st.integers(0, 3)) == 0:
        members |= draw(st.dictionaries(text, json_values, max_size=3))
    return nsid, members


def encode(collection: str, record: Any, operation: str = "create", ascii_only: bool = True) -> dict[str, Any]:
    encoder = EventEncoder("wss://host.example", "v2")
    raw = None if record is ABSENT_RECORD else json.dumps(record, ensure_ascii=ascii_only).encode()
    topic, body = encoder.commit(
        TIME, DID, operation, collection, "3mptbyplj5d2a", "3mptbypluud2a", CID, 7, TIME + 9, False, True, None, raw
    )
    assert topic == topic_for(collection)
    return decode_body(TOPICS[topic].schema, body)


@given(records())
def test_record_of_a_known_lexicon_is_rebuilt_exactly(case: tuple[str, Any]) -> None:
    nsid, record = case
    row = encode(nsid, record)
    assert same(record_json(row), record)
    assert (row["did"], row["time_us"], row["seq"], row["cid"], row["resync"]) == (DID, TIME, 7, CID, True)


@given(st.sampled_from([*sorted(LEXICONS), "fm.teal.alpha.feed.play"]), json_values)
def test_arbitrary_json_is_rebuilt_exactly(collection: str, record: Any) -> None:
    assert same(record_json(encode(collection, record)), record)


@pytest.mark.parametrize("collection", [*sorted(LEXICONS), "site.standard.document"])
@pytest.mark.parametrize("record", [{}, [], None, 0, "", {"$type": None}, {"createdAt": None}, {"langs": []}])
def test_absent_null_and_empty_stay_different(collection: str, record: Any) -> None:
    row = encode(collection, record)
    assert same(record_json(row), record)
    assert record_json(row) is not ABSENT_RECORD


@pytest.mark.parametrize("collection", [*sorted(LEXICONS), "site.standard.document"])
def test_a_delete_has_no_record(collection: str) -> None:
    encoder = EventEncoder("wss://host.example", "v2")
    topic, body = encoder.commit(
        TIME, DID, "delete", collection, "3mptbyplj5d2a", "3mptbypluud2a", None, 7, TIME, False, False, None, None
    )
    assert record_json(decode_body(TOPICS[topic].schema, body)) is ABSENT_RECORD


def test_the_strict_path_fills_typed_fields_and_leaves_no_rest() -> None:
    record = {
        "$type": "app.bsky.feed.post",
        "text": "héllo #Tag",
        "createdAt": "2026-07-04T14:38:08.999Z",
        "langs": ["en"],
        "reply": {"root": {"uri": "at://a", "cid": "b"}, "parent": {"uri": "at://c", "cid": "d"}},
        "embed": {
            "$type": "app.bsky.embed.recordWithMedia",
            "record": {"record": {"uri": "at://q/app.bsky.feed.post/1", "cid": "x"}},
            "media": {"$type": "app.bsky.embed.images", "images": [{"alt": "a cat"}, {"alt": ""}]},
        },
        "facets": [
            {
                "index": {"byteStart": 0, "byteEnd": 4},
                "features": [{"$type": "app.bsky.richtext.facet#tag", "tag": "Tag"}],
            },
            {
                "index": {"byteStart": 5, "byteEnd": 9},
                "features": [{"$type": "app.bsky.richtext.facet#link", "uri": "https://u@WWW.Example.com:8/x?y"}],
            },
        ],
        "labels": {"$type": "com.atproto.label.defs#selfLabels", "values": [{"val": "porn"}]},
    }
    row = encode("app.bsky.feed.post", record, ascii_only=False)
    assert row["extra_json"] is None
    assert row["text"] == record["text"]
    assert row["quote_uri"] == "at://q/app.bsky.feed.post/1"
    assert (row["media_kind"], row["media_count"], row["alt_texts"]) == ("images", 2, ["a cat"])
    assert (row["hashtags"], row["domains"], row["self_labels"]) == (["tag"], ["example.com"], ["porn"])
    assert row["reply_parent_cid"] == "d"


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("identity", {"did": DID, "handle": "a.example", "seq": 1, "time": "2026-05-25T14:23:29.950Z"}),
        ("identity", {"did": DID, "seq": 1, "time": "x"}),
        ("identity", {"seq": 1}),
        ("identity", {"did": None, "handle": None, "seq": "1"}),
        ("account", {"did": DID, "active": False, "status": "deleted", "seq": 2, "time": "t"}),
        ("account", {"did": "did:plc:other", "active": "no", "new": [1]}),
        ("sync", {"did": DID, "blocks": {"$bytes": "OqJl"}, "rev": "3mptbyp63ih2m", "seq": 3, "time": ""}),
        ("sync", {"did": DID, "blocks": {"$bytes": ""}, "rev": "3mptbyp63ih2m", "seq": 0, "time": ""}),
        ("sync", {"did": DID, "blocks": "odd", "rev": 5}),
    ],
)
def test_upstream_objects_are_rebuilt_exactly(kind: UpstreamKind, payload: dict[str, Any]) -> None:
    encoder = EventEncoder("h", "v2")
    topic, body = encoder.upstream(kind, TIME, DID, 1, TIME, False, False, None, json.dumps(payload).encode())
    row = decode_body(TOPICS[topic].schema, body)
    assert json.loads(upstream_text(row)) == payload


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"[" * 100_000 + b"]" * 100_000, DeadLetterReason.TOO_DEEP),
        (b'{"a": NaN}', DeadLetterReason.NOT_JSON),
        (b'{"a": 1e400}', DeadLetterReason.NUMBER_OUT_OF_RANGE),
        (b'{"a": ' + b"9" * 5000 + b"}", DeadLetterReason.NUMBER_OUT_OF_RANGE),
        (b'{"text": "\xff"}', DeadLetterReason.INVALID_UTF8),
        (b"{", DeadLetterReason.NOT_JSON),
    ],
)
def test_what_is_no_json_value_is_a_bad_record(raw: bytes, reason: DeadLetterReason) -> None:
    encoder = EventEncoder("h", "v2")
    with pytest.raises(BadRecord) as caught:
        encoder.commit(TIME, DID, "create", "app.bsky.feed.post", "r", "v", None, 1, TIME, False, False, None, raw)
    assert caught.value.reason is reason


def test_an_unknown_operation_and_a_missing_record_are_bad_records() -> None:
    encoder = EventEncoder("h", "v2")
    for operation, record, reason in (
        ("frob", b"{}", DeadLetterReason.UNKNOWN_OPERATION),
        ("create", None, DeadLetterReason.MISSING_RECORD),
    ):
        with pytest.raises(BadRecord) as caught:
            encoder.commit(TIME, DID, operation, "x.y.z", "r", "v", None, 1, TIME, False, False, None, record)
        assert caught.value.reason is reason


@given(json_values)
def test_tolerant_json_is_always_encodable_and_equal(value: Any) -> None:
    assert same(loads(dumps(value).encode()), value)


def test_damaged_bodies_are_refused() -> None:
    encoder = EventEncoder("h", "v2")
    _, body = encoder.commit(
        TIME, DID, "delete", "app.bsky.feed.like", "r", "v", None, 1, TIME, False, False, None, None
    )
    for damaged in (body[:-1], body + b"\x00", b"", b"\xff" * 40):
        with pytest.raises(BadRecord):
            decode_body(latest("app.bsky.feed.like"), damaged)


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "schemas" / "examples").glob("*.json")), ids=lambda f: f.stem
)
def test_every_example_record_is_rebuilt_exactly(file: Path) -> None:
    examples = json.loads(file.read_text())
    assert examples
    for record in examples:
        for ascii_only in (True, False):
            row = encode(file.stem, record, ascii_only=ascii_only)
            assert same(record_json(row), record)


def test_every_known_lexicon_has_an_example() -> None:
    stems = {file.stem for file in (Path(__file__).parents[2] / "schemas" / "examples").glob("*.json")}
    assert stems >= LEXICONS.keys()

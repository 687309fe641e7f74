"""Both wires: every valid frame becomes its event with nothing lost; no bytes whatever make a decoder raise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from producers import wire_v1, wire_v2
from producers.wire import (
    Account,
    Commit,
    Identity,
    Info,
    Rejected,
    StreamError,
    Sync,
    Unknown,
    format_time,
    parse_canonical_time,
    parse_time,
)
from schemas.avro_schemas import latest
from schemas.bodies import decode_body
from schemas.codec import EventEncoder
from schemas.errors import BadRecord, DeadLetterReason
from schemas.rebuild import frame_v1, frame_v2
from schemas.topics import TOPICS

PREFIX = "network.bsky.jetstream.subscribeEvents#"
TIME = "2026-07-04T14:39:14.329308Z"
TIME_US = 1783175954329308
RECORD = {
    "$type": "app.bsky.feed.like",
    "createdAt": "2026-07-04T14:38:08.999Z",
    "subject": {"cid": "c", "uri": "at://x"},
}
COMMIT: dict[str, Any] = {
    "rev": "3mptbypluud2a", "operation": "create", "collection": "app.bsky.feed.like", "rkey": "3mptbyplj5d2a",
    "record": RECORD, "cid": "bafyrei",
}  # fmt: skip
RELAY = {"did": "did:plc:a", "seq": 31527015470, "time": "2026-07-04T14:38:07.877Z"}
V1 = {"did": "did:plc:a", "time_us": TIME_US, "cursor": 5, "kind": "commit", "commit": COMMIT}
V2 = {"$type": "message", "payload": {"$type": PREFIX + "commit", "did": "did:plc:a", "seq": 5, "time": TIME, **COMMIT}}


def v2(kind: str, **members: Any) -> dict[str, Any]:
    return {
        "$type": "message",
        "payload": {"$type": PREFIX + kind, "did": "did:plc:a", "seq": 5, "time": TIME, **members},
    }


def raw(value: Any) -> bytes:
    return json.dumps(value).encode()


def through_avro(frame: bytes, wire: str) -> Any:
    """The value of the frame rebuilt from the Avro body of its event."""
    return json.loads(text_through_avro(frame, wire))


def text_through_avro(frame: bytes, wire: str) -> str:
    """What `events --wire` prints for what this frame stored."""
    event = {"v1": wire_v1, "v2": wire_v2}[wire].decode(frame)
    encoder = EventEncoder("host", wire)
    if isinstance(event, Commit):
        topic, body = encoder.commit(
            event.time_us, event.did, event.operation, event.collection, event.rkey, event.rev, event.cid, event.seq,
            1, False, False, event.envelope_json, event.record,
        )  # fmt: skip
    else:
        assert isinstance(event, (Identity, Account, Sync))
        topic, body = encoder.upstream(
            event.kind, event.time_us, event.did, event.seq, 1, False, False, event.envelope_json, event.payload
        )
    row = decode_body(latest(TOPICS[topic].schema), body)
    text = frame_v1(row) if wire == "v1" else frame_v2(row)
    assert text is not None
    return text


SOUND = [
    ("v1", V1),
    ("v1", {name: value for name, value in V1.items() if name != "cursor"}),
    ("v1", {**V1, "commit": {name: COMMIT[name] for name in ("rev", "collection", "rkey")} | {"operation": "delete"}}),
    ("v1", {"did": "did:plc:a", "time_us": TIME_US, "cursor": 3, "kind": "identity", "identity": RELAY}),
    ("v1", {"did": "did:plc:a", "time_us": TIME_US, "kind": "identity", "identity": RELAY | {"handle": "a.example"}}),
    ("v1", {"did": "did:plc:a", "time_us": TIME_US, "kind": "account", "account": RELAY | {"active": True}}),
    ("v1", {"did": "did:plc:a", "time_us": TIME_US, "kind": "account", "account": RELAY | {"active": False, "status": "new"}}),
    ("v1", {**V1, "commit": COMMIT | {"seq": 77, "unknown": [1, {"a": None}]}, "extra": "x"}),
    ("v1", {**V1, "commit": COMMIT | {"cid": None}}),
    ("v1", {**V1, "commit": COMMIT | {"record": {}}}),
    ("v1", {**V1, "commit": COMMIT | {"record": {"text": "\0 \ud800 <>&"}, "collection": "app.bsky.feed.post"}}),
    ("v1", {**V1, "commit": COMMIT | {"record": [1, 2.5, None], "collection": "org.example.thing"}}),
    ("v2", V2),
    ("v2", v2("commit", **{name: COMMIT[name] for name in ("rev", "collection", "rkey")} | {"operation": "delete"})),
    ("v2", v2("identity", identity=RELAY)),
    ("v2", v2("account", account=RELAY | {"active": False, "status": "deleted"})),
    ("v2", v2("sync", sync=RELAY | {"rev": "3mptbyp63ih2m", "blocks": {"$bytes": "OqJlcm9vdHOB"}})),
    ("v2", v2("sync", sync={"did": "did:plc:a", "seq": 0, "time": "", "rev": "3mptbyp63ih2m", "blocks": {"$bytes": ""}})),
    ("v2", V2 | {"trace": {"id": 1}}),
    ("v2", v2("commit", **COMMIT | {"cid": None, "new": True})),
    ("v2", v2("commit", **COMMIT) | {"payload": V2["payload"] | {"time": "2026-07-04T16:39:14.3+02:00"}}),  # type: ignore[operator]
]  # fmt: skip


@pytest.mark.parametrize(("wire", "frame"), SOUND, ids=range(len(SOUND)))
def test_a_frame_comes_back_as_the_same_json_value(wire: str, frame: dict[str, Any]) -> None:
    assert through_avro(raw(frame), wire) == frame


@given(st.data())
def test_member_order_does_not_matter(data: st.DataObject) -> None:
    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: shuffled(value[name]) for name in data.draw(st.permutations(sorted(value)))}

    wire, frame = data.draw(st.sampled_from(SOUND))
    assert through_avro(raw(shuffled(frame)), wire) == frame


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(SOUND), st.dictionaries(st.text(), JSON, max_size=3), JSON)
def test_unknown_members_and_any_record_survive(
    sound: tuple[str, dict[str, Any]], unknown: dict[str, Any], record: Any
) -> None:
    wire, frame = sound
    frame = {**unknown, **json.loads(json.dumps(frame))}
    commit = frame.get("commit") if wire == "v1" else frame["payload"]
    if isinstance(commit, dict) and "record" in commit:
        commit["record"] = record
    try:
        assert through_avro(raw(frame), wire) == frame
    except BadRecord as bad:
        assert bad.reason is DeadLetterReason.NUMBER_OUT_OF_RANGE  # noqa: PT017


def test_v1_hides_what_follows_a_sync() -> None:
    encoder = EventEncoder("host", "v2")
    arguments = (
        TIME_US,
        "did:plc:a",
        "create",
        "app.bsky.feed.like",
        "3mptbyplj5d2a",
        "3mptbypluud2a",
        None,
        5,
        1,
        False,
    )
    for resync, carried in ((False, True), (True, False)):
        topic, body = encoder.commit(*arguments, resync, None, raw(RECORD))
        row = decode_body(latest(TOPICS[topic].schema), body)
        assert (frame_v1(row) is not None) is carried
        assert json.loads(frame_v2(row))["payload"]["seq"] == 5


NUMBERS = [
    "1",
    "1.0",
    "-0",
    "-0.0",
    "1E5",
    "1e-400",
    "1e400",
    "-1e400",
    "9" * 5000,
    "12345678901234567890.5",
    "1" + "0" * 40,
]


@pytest.mark.parametrize("number", NUMBERS, ids=range(len(NUMBERS)))
@pytest.mark.parametrize("wire", ["v1", "v2"])
def test_a_number_of_an_unknown_collection_keeps_its_text(wire: str, number: str) -> None:
    """Doubles that overflow and integers beyond Python's parser included: nothing has to read them."""
    source = raw(V1 if wire == "v1" else V2).replace(b"app.bsky.feed.like", b"org.example.thing")
    record = f'{{"a":[{number},{{"b": {number}}}]}}'
    frame = source.replace(raw(RECORD).replace(b"app.bsky.feed.like", b"org.example.thing"), record.encode())
    assert f'"record":{record}' in text_through_avro(frame, wire)


@pytest.mark.parametrize("number", [text for text in NUMBERS if len(text) < 100 and "e400" not in text])
@pytest.mark.parametrize("place", ["createdAt", "unknown", "subject"])
def test_a_number_of_a_known_collection_keeps_its_value(place: str, number: str) -> None:
    """The value is that of a 64-bit float where it has a fraction or an exponent, and exact where it has not."""
    frame = raw(V2).replace(
        b'"createdAt"', f'"{place}": {number}, "createdAt"'.encode() if place == "unknown" else b'"createdAt"'
    )
    if place != "unknown":
        old = raw(RECORD[place])
        frame = raw(V2).replace(b'"%s": %s' % (place.encode(), old), f'"{place}": {number}'.encode())
    assert number.encode() in frame
    assert json.loads(text_through_avro(frame, "v2")) == json.loads(frame)


def test_damage_below_a_lone_surrogate_is_still_found() -> None:
    """The strict decoder stops at the surrogate; whoever takes over checks the rest of the record as well."""
    for bad in (b"tru", b"[1,]", b'{"b" 1}', b"01", b"-"):
        frame = (
            raw(V2)
            .replace(b"app.bsky.feed.like", b"org.example.thing")
            .replace(b'"subject"', b'"odd": "\\ud800", "bad": ' + bad + b', "subject"')
        )
        result = wire_v2.decode(frame)
        assert isinstance(result, Rejected)
        assert result.reason is DeadLetterReason.NOT_JSON


DEEP = b"[" * 20_000 + b"]" * 20_000
DEEP_TEXT = DEEP.decode()


@pytest.mark.parametrize("wire", ["v1", "v2"])
def test_a_deep_record_of_an_unknown_collection_is_printed_as_it_came(wire: str) -> None:
    source = raw(V1 if wire == "v1" else V2).replace(b"app.bsky.feed.like", b"org.example.thing")
    frame = source.replace(b'"2026-07-04T14:38:08.999Z"', DEEP)
    assert f'"createdAt": {DEEP_TEXT}' in text_through_avro(frame, wire)


POISON = [
    b"", b" ", b"null", b"0", b"[]", b"{", b"{}", b'{"a"', b"\xff\xfe", b"\xef\xbb\xbf{}", b'{"kind":"commit"}', DEEP,
    raw(V1).replace(b'"bafyrei"', DEEP), raw(V2).replace(b'"bafyrei"', DEEP),
    raw(V1).replace(b'"did:plc:a"', b'"\\ud800"'), raw(V2).replace(b'"did:plc:a"', b'"\\ud800"'),
    raw(V1).replace(b'"create"', b'"merge"'), raw(V2).replace(b'"create"', b'"merge"'),
    raw(V1 | {"time_us": 10**30}), raw(V1 | {"time_us": -1}), raw(V1 | {"time_us": 1.5}), raw(V1 | {"time_us": "1"}),
    raw(v2("commit", **COMMIT | {"time": "0001-01-01T00:00:00.000000Z"})), raw(v2("commit", **COMMIT | {"time": ""})),
    raw(v2("commit", **COMMIT | {"seq": 2**64})), raw(v2("commit", **COMMIT | {"seq": None})),
    raw(v2("commit", **{name: value for name, value in COMMIT.items() if name != "record"})),
    raw(v2("identity", identity=[])), raw(v2("identity")), raw({"$type": "message", "payload": []}),
    raw({"$type": 5}), raw({"payload": V2["payload"]}), b'{"time_us":' + b"9" * 5000 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("frame", POISON, ids=range(len(POISON)))
def test_poison_is_rejected_with_a_reason(frame: bytes) -> None:
    results = [decode(frame) for decode in (wire_v1.decode, wire_v2.decode)]
    assert all(isinstance(result, Rejected) for result in results)


@given(st.binary(max_size=300))
@example(DEEP)
def test_no_bytes_make_a_decoder_raise(frame: bytes) -> None:
    for decode in (wire_v1.decode, wire_v2.decode):
        decode(frame)


@given(st.sampled_from(SOUND), st.data())
def test_no_damage_to_a_sound_frame_makes_a_decoder_raise(
    sound: tuple[str, dict[str, Any]], data: st.DataObject
) -> None:
    frame = bytearray(raw(sound[1]))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))
    for decode in (wire_v1.decode, wire_v2.decode):
        decode(bytes(frame))
        decode(bytes(frame[:cut]))


def test_what_no_frame_of_events_is() -> None:
    assert wire_v2.decode(raw({"$type": "error", "error": "ConsumerTooSlow", "message": "m"})) == StreamError(
        "ConsumerTooSlow", "m"
    )
    assert wire_v2.decode(raw({"$type": "error", "error": "InternalError"})) == StreamError("InternalError", "")
    info = {"$type": "message", "payload": {"$type": PREFIX + "info", "name": "OutdatedCursor", "message": "m"}}
    assert wire_v2.decode(raw(info)) == Info("OutdatedCursor", "m")
    assert wire_v2.decode(raw({"$type": "surprise"})) == Unknown("surprise", None, None)
    assert wire_v2.decode(raw(v2("novelty"))) == Unknown("novelty", 5, TIME_US)
    assert wire_v1.decode(raw({"did": "did:plc:a", "time_us": 7, "cursor": 3, "kind": "novelty"})) == Unknown(
        "novelty", 3, 7
    )


def test_a_rejection_shows_where_in_the_stream_it_was() -> None:
    rejected = wire_v2.decode(raw(V2).replace(b'"bafyrei"', DEEP))
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.seq, rejected.time_us, rejected.did) == (
        DeadLetterReason.TOO_DEEP, 5, TIME_US, "did:plc:a",
    )  # fmt: skip


@given(st.integers(0, 253_402_300_799_999_999))
def test_times_go_both_ways(time_us: int) -> None:
    text = format_time(time_us)
    assert len(text) == 27
    assert parse_canonical_time(text) == parse_time(text) == time_us


@pytest.mark.parametrize(
    ("text", "time_us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T01:00:00.5+01:00", 500_000),
        ("1970-01-01T00:00:00.123456789Z", 123_456),
        ("2026-07-04T14:39:60.000000Z", None),
        ("2026-13-04T14:39:14.329308Z", None),
        ("0001-01-01T00:00:00.000000Z", None),
        ("2026-07-04 14:39:14.329308", None),
        ("2026-07-04T14:39:1٤.329308Z", None),
        ("", None),
        ("yesterday", None),
    ],
)
def test_other_times(text: str, time_us: int | None) -> None:
    assert parse_time(text) == time_us

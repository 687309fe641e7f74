"""Pure parts of the server: v1 from v2, WebSocket framing, and the rules for query parameters."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from simulator.events import COMMIT_FRAME, Batch, EventWriter, Moment
from simulator.flaws import FLAWS, broken
from simulator.request import Filter, RequestRefusedError, options_update, parse_v1, parse_v2
from simulator.wire import BINARY, TEXT, error_frame, framed, info_frame, micros_text, v1_frame

DID = "did:plc:aaaabbbbccccddddeeeeffff"
WHEN = Moment(1_783_175_954_329_308, b"2026-07-04T14:39:14.329308Z")


def _commit(record: bytes) -> bytes:
    return COMMIT_FRAME % (
        b"bafyrei", b"app.bsky.feed.post", DID.encode(), b"create", record, b"3mptbypluud2a", b"3mptbyplj5d2a", 7, WHEN.stamp,
    )  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_v1_commit_holds_what_the_v2_commit_holds(record: Any) -> None:
    frame = _commit(json.dumps(record).encode())
    expected = {
        "did": DID,
        "time_us": WHEN.time_us,
        "cursor": 7,
        "kind": "commit",
        "commit": {
            "rev": "3mptbypluud2a",
            "operation": "create",
            "collection": "app.bsky.feed.post",
            "rkey": "3mptbyplj5d2a",
            "record": record,
            "cid": "bafyrei",
        },
    }
    assert json.loads(v1_frame(frame, 7, WHEN.time_us, cursor=True)) == expected
    del expected["cursor"]
    assert json.loads(v1_frame(frame, 7, WHEN.time_us, cursor=False)) == expected
    extended = json.loads(v1_frame(frame[:-2] + b',"trace":{"hop":[1]}}}', 7, WHEN.time_us, cursor=False))
    assert extended == expected | {"trace": {"hop": [1]}}


def test_v1_of_the_other_kinds() -> None:
    import numpy as np

    events, out = EventWriter(7, np.random.default_rng(1), content_cids=False), Batch()
    did = DID.encode()
    events.identity(out, did, b"alice.example", WHEN)
    events.account(out, did, False, b"deleted", WHEN)
    events.commit(out, 3, "app.bsky.graph.follow", did, b"key", b"rev", b"", WHEN)
    events.unknown(out, did, WHEN, envelope=False)
    identity, account, delete, unknown = (
        json.loads(v1_frame(frame, seq, WHEN.time_us, cursor=True))
        for frame, seq in zip(out.frames, out.seqs, strict=True)
    )
    assert identity["identity"] == {
        "did": DID,
        "handle": "alice.example",
        "seq": 31_000_000_007,
        "time": "2026-07-04T14:39:14.329Z",
    }
    assert account["account"]["status"] == "deleted"
    assert account["account"]["active"] is False
    assert delete["commit"] == {
        "rev": "rev",
        "operation": "delete",
        "collection": "app.bsky.graph.follow",
        "rkey": "key",
    }
    assert unknown["kind"] == "label"
    assert [event["cursor"] for event in (identity, account, delete, unknown)] == [7, 8, 9, 10]


@pytest.mark.parametrize("kind", [TEXT, BINARY])
def test_bulk_framing_is_read_by_the_library(kind: int) -> None:
    payloads = [bytes(size) for size in (0, 1, 125, 126, 127, 1000, 65_535, 65_536, 70_000)]
    reader = StreamReader()
    reader.feed_data(b"".join(framed(payloads, kind)))
    reader.feed_eof()
    for payload in payloads:
        parser = Frame.parse(reader.read_exact, mask=False)
        with pytest.raises(StopIteration) as done:
            next(parser)
        frame = done.value.value
        assert (frame.fin, frame.opcode, bytes(frame.data)) == (
            True,
            Opcode.TEXT if kind == TEXT else Opcode.BINARY,
            payload,
        )


@pytest.mark.parametrize("flaw", range(1, len(FLAWS) + 1))
def test_no_reader_can_know_a_broken_frame(flaw: int) -> None:
    frame = _commit('{"$type":"app.bsky.feed.post","text":"日本語 text"}'.encode())
    for whole in (frame, v1_frame(frame, 7, WHEN.time_us, cursor=True)):
        carried = broken(whole, flaw, 7)
        carried.decode()  # a text message must stay UTF-8, or the library ends the connection
        assert broken(whole, flaw, 7) == carried
        try:
            value = json.loads(carried)
        except json.JSONDecodeError:
            continue
        payload = value.get("payload", value) if isinstance(value, dict) else {}
        assert not isinstance(payload.get("did"), str)


def test_info_and_error_frames_and_times() -> None:
    assert json.loads(info_frame("OutdatedCursor", "old"))["payload"] == {
        "$type": "network.bsky.jetstream.subscribeEvents#info", "name": "OutdatedCursor", "message": "old",
    }  # fmt: skip
    assert json.loads(error_frame("ConsumerTooSlow", "slow")) == {
        "$type": "error",
        "error": "ConsumerTooSlow",
        "message": "slow",
    }
    assert micros_text(WHEN.time_us) == WHEN.stamp


@pytest.mark.parametrize(
    ("query", "accepted"),
    [
        ({}, True),
        ({"cursor": ["0"]}, True),
        ({"cursor": ["-1"]}, False),
        ({"cursor": ["x"]}, False),
        ({"cursor": ["1", "2"]}, False),
        ({"cursor": [str(2**63)]}, False),
        ({"kinds": ["commit", "identity", "account", "sync"]}, True),
        ({"kinds": ["commit"] * 5}, False),
        ({"kinds": ["label"]}, False),
        ({"collections": ["app.bsky.*"]}, True),
        ({"collections": ["app.*"]}, False),
        ({"collections": ["app.bsky.fo*"]}, False),
        ({"collections": ["not a name"]}, False),
        ({"collections": ["app.bsky.feed.post"] * 101}, False),
        ({"collections": ["app.bsky.feed.post"], "kinds": ["identity"]}, False),
        ({"dids": [DID]}, True),
        ({"dids": ["alice.example"]}, False),
        ({"dids": [DID] * 10_001}, False),
        ({"maxMessageSizeBytes": ["1000"]}, True),
        ({"maxMessageSizeBytes": ["-5"]}, False),
        ({"maxMessageSizeBytes": [str(2**32)]}, False),
        ({"zstdDictionary": ["0"]}, False),
        ({"wantedCollections": ["app.bsky.feed.post"]}, False),
        ({"wantedDids": [DID]}, False),
        ({"requireHello": ["true"]}, False),
        ({"compress": ["true"]}, False),
        ({"compress": ["false"], "whatever": ["1"]}, True),
    ],
)
def test_v2_parameters(query: dict[str, list[str]], accepted: bool) -> None:
    if accepted:
        assert parse_v2(query, {}).version == 2
    else:
        with pytest.raises(RequestRefusedError) as refusal:
            parse_v2(query, {})
        assert (refusal.value.status, refusal.value.name) == (400, "InvalidRequest")


@pytest.mark.parametrize(
    ("query", "headers", "accepted"),
    [
        ({"wantedCollections": ["app.*"]}, {}, True),
        ({"wantedCollections": ["app.bsky.fo*"]}, {}, False),
        ({"wantedCollections": ["app.bsky.feed.post"] * 500}, {}, True),
        ({"wantedCollections": [f"app.bsky.n{at}" for at in range(101)]}, {}, False),
        ({"wantedDids": ["nobody"]}, {}, False),
        ({"maxMessageSizeBytes": ["lots"]}, {}, True),
        ({"cursor": ["soon"]}, {}, False),
        ({"compress": ["true"]}, {"sec-websocket-extensions": "permessage-deflate"}, False),
        ({}, {"socket-encoding": "zstd", "sec-websocket-extensions": "permessage-deflate"}, False),
        ({}, {"sec-websocket-extensions": "permessage-deflate"}, True),
    ],
)
def test_v1_parameters(query: dict[str, list[str]], headers: dict[str, str], accepted: bool) -> None:
    if accepted:
        assert parse_v1(query, headers, 5).version == 1
    else:
        with pytest.raises(RequestRefusedError):
            parse_v1(query, headers, 5)


def test_v1_compression_is_asked_for_in_two_ways() -> None:
    assert parse_v1({}, {}, 5).dictionary is None
    assert parse_v1({"compress": ["true"]}, {}, 5).dictionary == 5
    assert parse_v1({"compress": ["1"]}, {}, 5).dictionary is None
    assert parse_v1({}, {"socket-encoding": "zstd"}, 5).dictionary == 5


def test_options_update_replaces_the_whole_filter() -> None:
    text = '{"type":"options_update","payload":{"wantedCollections":["app.bsky.feed.*"],"maxMessageSizeBytes":5}}'
    assert options_update(text) == Filter(frozenset(), (b"app.bsky.feed.",), None, None, 5)
    assert options_update('{"type":"options_update","payload":{}}') == Filter()
    assert options_update('{"type":"hello"}') is None
    with pytest.raises(msgspec.DecodeError):
        options_update("{")
    with pytest.raises(msgspec.DecodeError):
        options_update('{"type":"options_update","payload":{"wantedDids":"did:plc:x"}}')
    with pytest.raises(ValueError, match="invalid DID"):
        options_update('{"type":"options_update","payload":{"wantedDids":["nobody"]}}')


def test_filters_are_combined() -> None:
    frame = _commit(b"{}")
    assert Filter().wants(frame)
    assert Filter(collections=frozenset([b"app.bsky.feed.post"])).wants(frame)
    assert Filter(collections=frozenset(), prefixes=(b"app.bsky.feed.",)).wants(frame)
    assert not Filter(collections=frozenset([b"app.bsky.feed.like"])).wants(frame)
    assert not Filter(collections=frozenset([b"app.bsky.feed.post"]), dids=frozenset([b"did:plc:other"])).wants(frame)
    assert not Filter(kinds=frozenset([b"identity"])).wants(frame)

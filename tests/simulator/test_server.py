"""The server keeps the contract of both wires as the reference describes it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
import zstandard
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.simulator.conftest import START, V1, V2, XRPC, Running, collect

START_US = int(START.timestamp() * 1e6)


def _refused(running: Running, path: str, **query: object) -> tuple[int, str, str]:
    with pytest.raises(InvalidStatus) as refusal, running.connect(path, **query):
        pass
    response = refusal.value.response
    return response.status_code, response.headers["Content-Type"], response.body.decode()


def test_the_whole_history_on_both_wires(shared: Running) -> None:
    events = list(shared.ledger.events())
    v2 = shared.read(len(events), cursor=1)
    assert [str(text).encode() for text in v2] == [event.raw for event in events]
    visible = [event for event in events if event.kind != "sync"]
    for text, event in zip(shared.read(len(visible), V1, cursor=1), visible, strict=True):
        value = json.loads(text)
        assert (value["did"], value["time_us"], value["kind"], value["cursor"]) == (
            event.did,
            event.time_us,
            event.kind,
            event.seq,
        )
        assert value[event.kind].get("record", value[event.kind] if event.kind != "commit" else None) == event.record


def test_subprotocol_is_echoed_only_when_offered(shared: Running) -> None:
    with connect("ws://" + shared.url(V2), subprotocols=[Subprotocol("xrpc.v1.json")], compression=None) as client:
        assert client.subprotocol == "xrpc.v1.json"
    with shared.connect() as client:
        assert client.subprotocol is None


def test_zstd_frames_hold_exactly_the_text_frames(shared: Running) -> None:
    status, headers, blob = shared.get(XRPC + "getZstdDictionary")
    number = int(headers["x-zstd-dictionary-id"])
    assert status == 200
    assert headers["etag"] == f'"zstd-dict-{number}"'
    assert headers["content-type"] == "application/octet-stream"
    assert blob[:4] == (0xEC30A437).to_bytes(4, "little")
    assert int.from_bytes(blob[4:8], "little") == number
    decompressor = zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(blob))
    frames = shared.read(500, cursor=1, zstdDictionary=number)
    assert all(isinstance(frame, bytes) for frame in frames)
    parameters = zstandard.get_frame_parameters(frames[0])
    assert (parameters.dict_id, parameters.has_checksum) == (number, True)
    texts = [decompressor.decompress(frame, max_output_size=2**25).decode() for frame in frames]
    assert texts == shared.read(500, cursor=1)
    assert sum(map(len, frames)) < 0.5 * sum(map(len, texts))


def test_v1_compression(shared: Running) -> None:
    blob = shared.get("/_simulator/v1-dictionary")[2]
    decompressor = zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(blob))
    frames = shared.read(100, V1, cursor=1, compress="true")
    assert [decompressor.decompress(frame, max_output_size=2**25).decode() for frame in frames] == shared.read(
        100, V1, cursor=1
    )
    with pytest.raises(InvalidStatus) as refusal, connect("ws://" + shared.url(V1, compress="true")):
        pass
    assert refusal.value.response.status_code == 400


def test_cursors_are_inclusive_and_resume_repeats_one_event(shared: Running) -> None:
    assert shared.read_seqs(3, cursor=100) == [100, 101, 102]
    assert shared.read_seqs(2, cursor=102) == [102, 103]
    assert shared.read_seqs(1, cursor=0) == [1]


def test_timestamp_cursors_find_the_event_in_sealed_segments(shared: Running) -> None:
    events = list(shared.ledger.events())
    wanted = events[700]
    first = json.loads(shared.read(1, cursor=wanted.time_us)[0])["payload"]
    assert first["seq"] == next(event.seq for event in events if event.time_us >= wanted.time_us)


def test_timestamp_cursors_in_the_active_segment_begin_at_its_start(shared: Running) -> None:
    events = list(shared.ledger.events())
    first_of_active = json.loads(shared.read(1, cursor=events[-1].time_us)[0])["payload"]["seq"]
    assert first_of_active < events[-1].seq - 100
    assert first_of_active == json.loads(shared.read(1, cursor=events[-200].time_us)[0])["payload"]["seq"]


@pytest.mark.parametrize("cursor", [10**14, 4_000_000_000_000_000])
def test_future_cursors_go_live_in_silence(shared: Running, cursor: int) -> None:
    with shared.connect(cursor=cursor) as client, pytest.raises(TimeoutError):
        client.recv(timeout=0.3)


def test_below_the_floor(start: Callable[..., Running]) -> None:
    running = start()
    running.scenario("raise-floor", amount=500)
    floor = running.status()["last_seq"] - 499
    code, kind, body = _refused(running, V2, cursor=5)
    assert (code, kind) == (400, "application/json")
    assert json.loads(body)["error"] == "CursorTooOld"
    assert str(floor) in json.loads(body)["message"]
    assert _refused(running, V2, cursor=0)[0] == 400
    assert json.loads(running.read(1, V1, cursor=5)[0])["cursor"] == floor
    info, first = (json.loads(text)["payload"] for text in running.read(2, cursor=START_US - 3_600_000_000))
    assert info["$type"].endswith("#info")
    assert info["name"] == "OutdatedCursor"
    assert first["seq"] == floor
    assert json.loads(running.read(1, V1, cursor=START_US - 3_600_000_000)[0])["cursor"] == floor


def test_the_floor_is_a_whole_segment(start: Callable[..., Running]) -> None:
    running = start(cursor_lookback_hours=0.5)
    assert _refused(running, V2, cursor=1)[0] == 400
    info, first = (json.loads(text)["payload"] for text in running.read(2, cursor=START_US - 7_200_000_000))
    assert "seq" not in info
    half = next(event.seq for event in running.ledger.events() if event.time_us >= START_US - 1_800_000_000)
    assert half - 1200 < first["seq"] <= half


def test_retention_zero_ignores_cursors(start: Callable[..., Running]) -> None:
    running = start(cursor_lookback_hours=0.0)
    with running.connect(cursor=1) as client, pytest.raises(TimeoutError):
        client.recv(timeout=0.3)


def test_filters(shared: Running) -> None:
    events = list(shared.ledger.events())
    posts = [event.seq for event in events if event.collection == "app.bsky.feed.post"]
    assert shared.read_seqs(len(posts), cursor=1, collections="app.bsky.feed.post", kinds="commit") == posts
    feed = [event.seq for event in events if event.collection is None or event.collection.startswith("app.bsky.feed.")]
    assert shared.read_seqs(len(feed), cursor=1, collections="app.bsky.feed.*") == feed
    did = events[10].did
    own = [event.seq for event in events if event.did == did]
    assert shared.read_seqs(len(own), cursor=1, dids=did) == own
    others = [event.seq for event in events if event.kind in ("identity", "account")]
    assert shared.read_seqs(len(others), cursor=1, kinds=["identity", "account"]) == others
    short = [event.seq for event in events if len(event.raw) <= 400]
    assert shared.read_seqs(len(short), cursor=1, maxMessageSizeBytes=400) == short
    v1 = [
        event.seq
        for event in events
        if event.kind != "sync" and (event.collection or "app.bsky.graph.x").startswith("app.bsky.graph.")
    ]
    texts = shared.read(len(v1), V1, cursor=1, wantedCollections="app.bsky.graph.*")
    assert [json.loads(text)["cursor"] for text in texts] == v1


def test_a_filter_of_thousands_of_dids_fits_the_url(shared: Running) -> None:
    events = list(shared.ledger.events())
    dids = [events[10].did] + [f"did:plc:{at:024d}" for at in range(8000)]
    own = [event.seq for event in events if event.did == events[10].did]
    assert shared.read_seqs(len(own), cursor=1, dids=dids) == own


def test_errors_before_the_upgrade_have_two_body_formats(shared: Running) -> None:
    code, kind, body = _refused(shared, V2, cursor="soon")
    assert (code, kind, json.loads(body)["error"]) == (400, "application/json", "InvalidRequest")
    code, kind, body = _refused(shared, V1, cursor="soon")
    assert (code, kind.partition(";")[0]) == (400, "text/plain")
    assert "invalid cursor" in body
    code, _, body = _refused(shared, V2, zstdDictionary=5)
    current = shared.status()["dictionary"]
    assert (code, json.loads(body)["error"]) == (400, "UnknownZstdDictionary")
    assert str(current) in json.loads(body)["message"]
    code, _, body = shared.get(XRPC + "getZstdDictionary", id=5)
    assert (code, json.loads(body)["error"]) == (404, "DictionaryNotFound")
    assert shared.get("/nothing")[0] == 404
    assert shared.get(V2)[0] == 400


def test_any_client_data_closes_v2(shared: Running) -> None:
    with shared.connect() as client:
        client.send("hello")
        with pytest.raises(ConnectionClosedError) as closed:
            client.recv(timeout=5)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "unexpected data message")


def test_v1_options_update_and_its_errors(start: Callable[..., Running]) -> None:
    running = start(rate=300.0)
    with running.connect(V1, requireHello="true", cursor=1) as client:
        with pytest.raises(TimeoutError):
            client.recv(timeout=0.3)
        client.send(json.dumps({"type": "options_update", "payload": {"wantedCollections": ["app.bsky.graph.follow"]}}))
        kinds = [json.loads(client.recv(timeout=10)) for _ in range(20)]
        assert {event.get("commit", {}).get("collection") for event in kinds} <= {"app.bsky.graph.follow", None}
        client.send(b"binary is ignored")
        client.send('{"type":"something"}')
        client.recv(timeout=10)
    for text, code in (("{", 1007), ('{"type":"options_update","payload":{"wantedDids":["x"]}}', 1008)):
        with running.connect(V1) as client:
            client.send(text)
            with pytest.raises(ConnectionClosedError) as closed:
                collect(client, [])
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code


def test_live_events_follow_the_history_without_a_seam(start: Callable[..., Running]) -> None:
    running = start(rate=2000.0)
    history = running.status()["last_seq"]
    seqs = running.read_seqs(history + 3000, cursor=1)
    assert seqs == list(range(1, history + 3001))
    assert running.read_seqs(1)[0] > history


def test_pause_and_resume(start: Callable[..., Running]) -> None:
    running = start(rate=1000.0)
    running.get("/_simulator/pause")
    before = running.status()["last_seq"]
    time.sleep(0.2)
    assert running.status()["last_seq"] == before
    running.get("/_simulator/resume")
    running.wait(lambda: running.status()["last_seq"] > before)


def test_the_clock_can_run_faster(start: Callable[..., Running]) -> None:
    running = start(rate=200.0, speed=3600.0, history_hours=0.1)
    times = [json.loads(text)["payload"]["time"] for text in running.read(300)]
    assert times == sorted(times)
    assert times[-1] > "2026-07-04T12:30"


def test_pings_come_and_a_missing_pong_drops(start: Callable[..., Running]) -> None:
    import socket

    running = start(ping_seconds=0.2, deadline_seconds=0.5)
    with running.connect() as client, pytest.raises(TimeoutError):
        client.recv(timeout=1.5)  # the library answers pings: the connection lives
    raw = socket.create_connection(("127.0.0.1", running.service.port))
    raw.settimeout(5)
    with raw:
        raw.sendall(
            f"GET {V2} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        data = b""
        try:
            while chunk := raw.recv(4096):
                data += chunk
        except ConnectionResetError:
            pass
    assert data.startswith(b"HTTP/1.1 101")
    assert b"\x89\x09jetstream" in data


def test_a_reader_that_takes_nothing_is_dropped(start: Callable[..., Running]) -> None:
    import socket

    running = start(history_hours=10.0, history_rate=2.0, deadline_seconds=0.5)
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", running.service.port))
    with raw:
        raw.sendall(
            f"GET {V2}?cursor=1 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        running.wait(lambda: running.status()["subscribers"] == 1)
        running.wait(lambda: running.status()["subscribers"] == 0)


def test_shutdown_says_1001(start: Callable[..., Running]) -> None:
    running = start()
    with running.connect() as client:
        running.scenario("disconnect-all")
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=5)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "server shutting down")


def test_legacy_software(start: Callable[..., Running]) -> None:
    running = start(legacy=True)
    assert _refused(running, V2)[0] == 404
    assert running.get(XRPC + "getZstdDictionary")[0] == 404
    events = [event for event in running.ledger.events() if event.kind != "sync"]
    wanted = events[-50]
    first = json.loads(running.read(1, V1, cursor=wanted.time_us)[0])
    assert "cursor" not in first
    assert first["time_us"] == wanted.time_us


def test_subscribers_are_bounded(start: Callable[..., Running]) -> None:
    running = start(max_subscribers=1)
    with running.connect():
        assert _refused(running, V2)[0] == 503

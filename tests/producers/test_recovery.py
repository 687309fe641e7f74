"""What the producer does when the source misbehaves: one test per line of the reference's problem tables.

The server is scripted, the broker is real; what counts is which events and gaps are in the topics afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pipeline.kafka import KafkaSettings
from producers.compression import DICTIONARY_PATH
from producers.errors import SourceSettingsError
from producers.wire import TIMESTAMP_CURSOR_FLOOR
from tests.producers.harness import Broker, Running, wait_for
from tests.producers.scripted import Peer, Script, ScriptedServer, info, now_us, tid, v1_like, v2_like

SECOND = 1_000_000
T0 = now_us() - 600 * SECOND
T1 = T0 + 10 * SECOND


@pytest.fixture
def broker(kafka_broker: KafkaSettings) -> Broker:
    return Broker(kafka_broker)


def sends(*frames: Any, then: Callable[[Peer], None] = Peer.hold) -> Script:
    """Accept, send, and go on with `then`."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.send(*frames)
        then(peer)

    return script


def refuses(status: int, body: str = "", **headers: str) -> Script:
    return lambda peer: peer.refuse(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def xrpc(error: str, message: str = "") -> str:
    return json.dumps({"error": error, "message": message})


class Capture:
    """A producer against scripted servers until so many events are in the topics."""

    def __init__(self, broker: Broker, *servers: ScriptedServer, **source: Any) -> None:
        self._stack = ExitStack()
        self.broker = broker
        urls = tuple(self._stack.enter_context(server.serve()) for server in servers)
        service, self.reports = broker.producer(urls, {"backoff_longest": 0.2, **source}, batch_seconds=0.05)
        self.running = Running(service)

    def wait(self, events: int) -> list[dict[str, Any]]:
        """Wait for so many events, stop, and return the rows in order of arrival."""
        try:
            wait_for(
                lambda: self.running.ended or (bool(self.reports) and int(str(self.reports[-1]["enqueued"])) >= events),
                f"{events} events",
                20.0,
            )
        finally:
            self.running.stop.set()
            try:
                self.running.join()
            finally:
                self._stack.close()
        return sorted(self.broker.rows(), key=lambda row: (row["received_us"], row["time_us"], row["seq"] or 0))

    def last(self, name: str) -> Any:
        """A value of the last report."""
        return self.reports[-1][name]


def seqs(rows: list[dict[str, Any]]) -> list[int]:
    return [row["seq"] for row in rows]


def dropped(peer: Peer) -> None:
    peer.drop()


def closed(code: int, reason: str = "") -> Callable[[Peer], None]:
    return lambda peer: peer.close(code, reason)


@pytest.mark.parametrize(
    "ending",
    [
        dropped,
        closed(1001, "server shutting down"),
        closed(1000, "terminated by the operator"),
        closed(1008, "policy"),
        closed(1011, "broken"),
        lambda peer: peer.send({"$type": "error", "error": "ConsumerTooSlow", "message": "m"}) or peer.drop(),
        lambda peer: peer.send({"$type": "error", "error": "Novelty"}) or peer.drop(),
    ],
    ids=["1006", "1001", "1000", "1008", "1011", "error frame", "unknown error frame"],
)
def test_after_any_end_it_resumes_inclusively_and_drops_the_one_repeated_event(
    broker: Broker, ending: Callable[[Peer], None]
) -> None:
    first, second = (v2_like(seq, T0 + seq) for seq in (7, 8))
    server = ScriptedServer([sends(first, second, then=ending), sends(second, v2_like(9, T0 + 9))])
    rows = Capture(broker, server).wait(3)
    assert seqs(rows) == [7, 8, 9]
    assert [peer.cursor for peer in server.peers] == [TIMESTAMP_CURSOR_FLOOR, 8]
    assert broker.gaps() == []


@pytest.mark.parametrize(
    "refusal",
    [
        refuses(503, xrpc("ServiceUnavailable")),
        refuses(429, "", Retry_After="0"),
        refuses(502, "<html>Bad Gateway</html>"),
        refuses(500),
        lambda peer: peer.drop(),
    ],
    ids=["503", "429", "502", "500", "reset during the upgrade"],
)
def test_a_server_that_is_not_ready_is_asked_again(broker: Broker, refusal: Script) -> None:
    server = ScriptedServer([refusal, refusal, sends(v2_like(1, T0))])
    assert seqs(Capture(broker, server).wait(1)) == [1]
    assert len(server.peers) == 3


@pytest.mark.parametrize("protocol", ["v1", "v2"])
@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refusal_for_good_on_the_only_host_stops_with_an_instruction(
    broker: Broker, status: int, protocol: str
) -> None:
    server = ScriptedServer(
        [refuses(status, xrpc("InvalidRequest", "bad filter") if protocol == "v2" else "bad filter")]
    )
    with pytest.raises(SourceSettingsError, match="bad filter") as stopped:
        Capture(broker, server, protocol=protocol).wait(1)
    assert "EXPLORER_SOURCE_HOSTS" in stopped.value.remedy


def test_a_refusal_for_good_on_one_host_leaves_the_others(broker: Broker) -> None:
    refusing, serving = ScriptedServer([refuses(401)]), ScriptedServer([sends(v2_like(1, T0))])
    assert seqs(Capture(broker, refusing, serving).wait(1)) == [1]
    assert len(refusing.peers) == 1


def test_auto_speaks_v1_to_a_server_that_lacks_v2(broker: Broker) -> None:
    def only_v1(peer: Peer) -> None:
        if peer.path == "/subscribe":
            sends(v1_like(T0, None), v1_like(T0 + 1, None))(peer)
        else:
            peer.refuse(404, "404 page not found")

    server = ScriptedServer([only_v1])
    rows = Capture(broker, server).wait(2)
    assert [(row["protocol"], row["seq"], row["time_us"]) for row in rows] == [("v1", None, T0), ("v1", None, T0 + 1)]


def test_seq_cursor_too_old_becomes_a_gap_and_a_resume_by_time(broker: Broker) -> None:
    server = ScriptedServer(
        [
            sends(v2_like(7, T0), then=dropped),
            lambda peer: peer.refuse_xrpc(400, "CursorTooOld", "requested 7, floor 5000"),
            sends(info("OutdatedCursor", "using seq 5000"), v2_like(5000, T0 + 300 * SECOND)),
        ]
    )
    rows = Capture(broker, server).wait(2)
    assert seqs(rows) == [7, 5000]
    assert [peer.cursor for peer in server.peers][1:] == [7, T0 - 300 * SECOND]
    (gap,) = broker.gaps()
    assert (gap.reason, gap.from_us, gap.to_us) == ("cursor_too_old", T0, T0 + 300 * SECOND)
    assert (gap.host, gap.from_seq, gap.to_seq) == (server.name, 7, 5000)


def test_an_outdated_time_cursor_becomes_a_gap(broker: Broker) -> None:
    start = "2026-01-01T00:00:00Z"
    server = ScriptedServer([sends(info("OutdatedCursor", "using seq 40"), v2_like(40, T0))])
    Capture(broker, server, start=start).wait(1)
    (gap,) = broker.gaps()
    assert (gap.reason, gap.from_us, gap.to_us, gap.to_seq) == ("outdated_cursor", 1767225600 * SECOND, T0, 40)


def test_v1_raises_silently_to_its_floor_which_is_noticed_as_a_jump(broker: Broker) -> None:
    server = ScriptedServer([sends(v1_like(T0, 7), then=dropped), sends(v1_like(T0 + 400 * SECOND, 900))])
    rows = Capture(broker, server, protocol="v1").wait(2)
    assert seqs(rows) == [7, 900]
    (gap,) = broker.gaps()
    assert (gap.reason, gap.from_us, gap.to_us, gap.from_seq, gap.to_seq) == (
        "jump", T0, T0 + 400 * SECOND, 7, 900,
    )  # fmt: skip


def test_a_legacy_server_is_resumed_by_rewound_time(broker: Broker) -> None:
    first, second = v1_like(T0 + 20 * SECOND, None), v1_like(T0 + 21 * SECOND, None)
    server = ScriptedServer([sends(first, then=dropped), sends(first, second)])
    rows = Capture(broker, server, protocol="v1").wait(2)
    assert {row["time_us"] for row in rows} == {T0 + 20 * SECOND, T0 + 21 * SECOND}
    assert server.peers[1].cursor == T0 + 10 * SECOND
    assert broker.gaps() == []


def test_a_rebuilt_archive_is_noticed_and_read_by_time(broker: Broker) -> None:
    server = ScriptedServer(
        [
            sends(v2_like(100_000, T0), then=dropped),
            # The stored sequence lies in the future of the new numbering, so the server silently goes live.
            sends(v2_like(50, T0 + 60 * SECOND), then=Peer.hold),
            sends(
                v2_like(1, T0 - 5), v2_like(2, T0, rkey="3mp0000100000"), v2_like(49, T1), v2_like(50, T0 + 60 * SECOND)
            ),
        ]
    )
    rows = Capture(broker, server).wait(4)
    assert [peer.cursor for peer in server.peers][1:] == [100_000, T0 - 300 * SECOND]
    assert {1, 49, 50, 100_000} <= set(seqs(rows))
    assert broker.gaps() == []


def test_reused_sequence_numbers_are_noticed_and_nothing_is_dropped(broker: Broker) -> None:
    server = ScriptedServer(
        [
            sends(v2_like(7, T0), v2_like(8, T0 + 1), then=dropped),
            sends(v2_like(8, T0 + 90 * SECOND, rkey="3mpother00000"), then=Peer.hold),
            sends(v2_like(7, T0), v2_like(8, T0 + 90 * SECOND, rkey="3mpother00000")),
        ]
    )
    rows = Capture(broker, server).wait(4)
    assert {(row["seq"], row["rkey"]) for row in rows} >= {(8, "3mp0000000008"), (8, "3mpother00000")}


def test_reused_number_within_a_moment_is_not_taken_for_the_repeated_event(broker: Broker) -> None:
    other = v2_like(8, T0 + 2, rkey="3mpother00000")
    server = ScriptedServer([sends(v2_like(8, T0 + 1), then=dropped), sends(other)])
    rows = Capture(broker, server).wait(2)
    assert {row["rkey"] for row in rows} == {"3mp0000000008", "3mpother00000"}


def test_history_before_the_time_asked_for_is_passed_over(broker: Broker) -> None:
    early = [v2_like(seq, T0 - 3600 * SECOND + seq) for seq in range(1, 50)]
    server = ScriptedServer([sends(v2_like(5, T0), then=dropped), refuses(503)])
    other = ScriptedServer([sends(*early, v2_like(99, T0 - 200 * SECOND), v2_like(100, T0 + 1))])
    capture = Capture(broker, server, other, failures_before_switch=1)
    rows = capture.wait(3)
    assert sorted(seqs(rows)) == [5, 99, 100]
    assert other.peers[0].cursor == T0 - 300 * SECOND
    assert capture.last("repeated") == 49


def test_it_fails_over_with_a_rewound_time_and_returns_to_the_preferred_host(broker: Broker) -> None:
    def preferred(peer: Peer) -> None:
        (preferred_scripts.pop(0) if preferred_scripts else sends(v2_like(6, T0), v2_like(7, T1)))(peer)

    preferred_scripts: list[Script] = [sends(v2_like(5, T0 - SECOND), then=dropped), refuses(503), refuses(503)]
    first = ScriptedServer([preferred])
    second = ScriptedServer(
        [sends(v2_like(9_000, T0 - SECOND, rkey="3mp0000000005"), v2_like(9_001, T0, rkey="3mp0000000006"))]
    )
    capture = Capture(broker, first, second, failures_before_switch=2, return_after=0.5, silence_timeout=30)
    rows = capture.wait(5)
    assert second.peers[0].cursor == T0 - 301 * SECOND
    assert first.peers[-1].cursor == T0 - 300 * SECOND
    assert {row["rkey"] for row in rows} == {"3mp0000000005", "3mp0000000006", "3mp0000000007"}
    assert {row["source_host"] for row in rows} == {first.name, second.name}
    assert broker.gaps() == []


def test_nothing_is_skipped_on_return_from_a_host_that_is_behind(broker: Broker) -> None:
    """The other host witnesses now what was made an hour ago: all that it had not come to is asked of the preferred one."""
    made = T0 - 3600 * SECOND
    preferred_scripts: list[Script] = [sends(v2_like(5, made, rkey="3mp0000000005"), then=dropped), refuses(503)]

    def preferred(peer: Peer) -> None:
        rest = sends(
            v2_like(6, made + SECOND), *(v2_like(seq, made + (seq - 6) * 700 * SECOND) for seq in range(7, 12))
        )
        (preferred_scripts.pop(0) if preferred_scripts else rest)(peer)

    first = ScriptedServer([preferred])
    second = ScriptedServer(
        [
            sends(
                v2_like(8_000, made - 2 * SECOND, rkey="3mp0000000004", rev=tid(made - 3601 * SECOND)),
                v2_like(9_000, T0 - SECOND, rkey="3mp0000000005", rev=tid(made)),
                v2_like(9_001, T0, rkey="3mp0000000006", rev=tid(made + SECOND)),
            )
        ]
    )
    capture = Capture(broker, first, second, failures_before_switch=1, return_after=0.5, silence_timeout=30)
    rows = capture.wait(10)
    assert first.peers[-1].cursor == made + SECOND - 300 * SECOND
    assert {row["rkey"] for row in rows} == {f"3mp{seq:010d}" for seq in range(4, 12)}
    assert broker.gaps() == []


def test_a_restart_knows_that_the_last_host_was_behind(broker: Broker) -> None:
    behind = ScriptedServer([sends(v2_like(9_000, T0, rev=tid(T0 - 3600 * SECOND)))])
    Capture(broker, behind).wait(1)
    other = ScriptedServer([sends(v2_like(5, T0 - 3600 * SECOND))])
    Capture(broker, other).wait(1)
    assert other.peers[0].cursor == T0 - 3900 * SECOND
    assert broker.gaps() == []


def test_a_silent_connection_is_given_up(broker: Broker) -> None:
    server = ScriptedServer([sends(v2_like(1, T0)), sends(v2_like(1, T0), v2_like(2, T1))])
    rows = Capture(broker, server, silence_timeout=0.5).wait(2)
    assert seqs(rows) == [1, 2]


def test_a_filtered_stream_may_be_silent_while_pongs_come(broker: Broker) -> None:
    def late(peer: Peer) -> None:
        peer.accept()
        peer.hold(1.5)
        peer.send(v2_like(1, T0))
        peer.hold()

    server = ScriptedServer([late])
    Capture(broker, server, silence_timeout=0.6, ping_interval=0.1, collections=("app.bsky.*",)).wait(1)
    assert len(server.peers) == 1
    assert server.peers[0].query["collections"] == ["app.bsky.*"]


def test_after_a_long_quiet_spell_a_filtered_stream_is_resumed_by_the_time_of_listening(broker: Broker) -> None:
    """The sequence of the last event would have left the server's history, though nothing was missed."""

    def quiet(peer: Peer) -> None:
        peer.hold(1.5)
        peer.drop()

    server = ScriptedServer([sends(v2_like(1, T0), then=quiet), sends(v2_like(2, now_us()))])
    before = now_us()
    capture = Capture(broker, server, quiet_limit=0.3, switch_margin=60, ping_interval=0.1, collections=("app.bsky.*",))
    assert seqs(capture.wait(2)) == [1, 2]
    cursor = server.peers[1].cursor
    assert cursor is not None
    assert before - 70 * SECOND < cursor < now_us() - 60 * SECOND
    assert broker.gaps() == []


def test_the_servers_pings_are_answered_while_events_flow(broker: Broker) -> None:
    def pinging(peer: Peer) -> None:
        peer.accept()
        for seq in range(1, 6):
            peer.ping()
            peer.send(v2_like(seq, T0 + seq))
        peer.hold(1.0)
        assert peer._protocol.parser_exc is None
        peer.hold()

    assert seqs(Capture(broker, ScriptedServer([pinging])).wait(5)) == [1, 2, 3, 4, 5]


def test_a_frame_of_a_megabyte_and_a_half_passes(broker: Broker) -> None:
    big = v2_like(2, T0 + 2)
    big["payload"]["record"]["text"] = "x" * 1_500_000
    server = ScriptedServer([sends(v2_like(1, T0 + 1), big, v2_like(3, T0 + 3))])
    assert seqs(Capture(broker, server).wait(3)) == [1, 2, 3]


def test_a_frame_above_the_limit_does_not_end_in_a_loop(broker: Broker) -> None:
    big = v2_like(2, T0 + 2)
    big["payload"]["record"]["text"] = "x" * 6_000_000
    server = ScriptedServer([sends(v2_like(1, T0 + 1), big, v2_like(3, T0 + 3))])
    rows = Capture(broker, server).wait(2)
    assert seqs(rows) == [1, 3]
    (letter,) = broker.dead_letters()
    assert (letter.reason, letter.seq, json.loads(letter.raw)) == ("too_large", 2, big)


DEEP = b"[" * 20_000 + b"]" * 20_000


def test_poison_is_set_aside_with_its_bytes_and_the_stream_goes_on(broker: Broker) -> None:
    poison = [
        json.dumps(v2_like(2, T0 + 2)).encode().replace(b'"bafy"', DEEP),
        json.dumps(v2_like(3, T0 + 3)).encode().replace(b'"did:plc:scripted"', b'"\\ud800"'),
        json.dumps(v2_like(4, T0 + 4)).encode()[:-40],
        b'{"$type":"message","payload":{}}',
        json.dumps(v2_like(5, T0 + 5)).encode().replace(b"create", b"merge!"),
        json.dumps(v2_like(6, now_us() + 10**12)).encode(),
    ]
    unknown = [
        {"$type": "novelty"},
        {"$type": "message", "payload": {"$type": "network.bsky.jetstream.subscribeEvents#novelty"}},
    ]
    capture = Capture(broker, ScriptedServer([sends(v2_like(1, T0 + 1), *poison, *unknown, v2_like(7, T0 + 7))]))
    assert seqs(capture.wait(2)) == [1, 7]
    letters = broker.dead_letters()
    assert [letter.raw for letter in letters] == poison
    assert [letter.reason for letter in letters] == [
        "too_deep", "unrepresentable", "not_json", "not_an_event", "unknown_operation", "bad_time",
    ]  # fmt: skip
    assert (capture.last("dead_letters"), capture.last("unknown")) == (6, 2)


def test_creates_after_a_sync_are_marked_as_resync(broker: Broker) -> None:
    sync = {
        "$type": "message",
        "payload": {
            "$type": "network.bsky.jetstream.subscribeEvents#sync", "did": "did:plc:scripted", "seq": 2,
            "time": v2_like(2, T0)["payload"]["time"],
            "sync": {"did": "did:plc:scripted", "rev": "3mptbyp63ih2m", "seq": 0, "time": "", "blocks": {"$bytes": ""}},
        },
    }  # fmt: skip
    server = ScriptedServer(
        [
            sends(
                v2_like(1, T0), sync, v2_like(3, T0, rev="3mptbyp63ih2m"), v2_like(4, T0, rev="3mptbyp63ih2m"),
                v2_like(5, T0, rev="3mptbyp63ih2m", did="did:plc:another"), v2_like(6, T0, rev="3mptbyp73ih2m"),
            )
        ]
    )  # fmt: skip
    rows = Capture(broker, server).wait(6)
    assert {row["seq"] for row in rows if row["resync"]} == {3, 4}


def test_history_is_marked_as_replayed(broker: Broker) -> None:
    server = ScriptedServer([sends(v2_like(1, T0), v2_like(2, now_us() + 30 * SECOND))])
    rows = Capture(broker, server).wait(2)
    assert [row["replayed"] for row in rows] == [True, False]


def test_records_are_stamped_within_what_brokers_keep_and_take(broker: Broker) -> None:
    hour_ms = 3_600_000
    times = [T0 - 30 * 24 * 3600 * SECOND, T0, now_us() + 3 * 3600 * SECOND]
    server = ScriptedServer([sends(*(v2_like(seq, time_us) for seq, time_us in enumerate(times, 1)))])
    rows = Capture(broker, server).wait(3)
    assert sorted(row["time_us"] for row in rows) == times
    old, exact, ahead = sorted(stamp for _, _, _, stamp in broker.records("bluesky.app.bsky.feed.like"))
    now_ms = now_us() // 1000
    assert now_ms - 25 * hour_ms < old <= now_ms - 24 * hour_ms
    assert exact == T0 // 1000
    assert now_ms < ahead < now_ms + hour_ms


def dictionary(number: int) -> zstandard.ZstdCompressionDict:
    samples = [json.dumps(v2_like(seq, T0 + seq)).encode() for seq in range(1, 2000)]
    return zstandard.ZstdCompressionDict(zstandard.train_dictionary(4096, samples, dict_id=number).as_bytes())


def compressed(frame: dict[str, Any], with_dictionary: zstandard.ZstdCompressionDict) -> bytes:
    return zstandard.ZstdCompressor(dict_data=with_dictionary, write_checksum=True, write_content_size=False).compress(
        json.dumps(frame).encode()
    )


def zstd_sends(
    with_dictionary: zstandard.ZstdCompressionDict, *frames: dict[str, Any], then: Callable[[Peer], None] = Peer.hold
) -> Script:
    def script(peer: Peer) -> None:
        assert peer.query["zstdDictionary"] == [str(with_dictionary.dict_id())]
        peer.accept()
        peer.send_binary(*(compressed(frame, with_dictionary) for frame in frames))
        then(peer)

    return script


def test_zstd_with_a_dictionary_that_rotates(broker: Broker) -> None:
    old, new = dictionary(1001), dictionary(1002)
    served = [old, new]
    server = ScriptedServer(
        [
            zstd_sends(old, v2_like(1, T0), then=dropped),
            lambda peer: peer.refuse_xrpc(400, "UnknownZstdDictionary", "current is 1002"),
            zstd_sends(new, v2_like(1, T0), v2_like(2, T0 + 2)),
        ],
        {DICTIONARY_PATH: lambda: (200, served.pop(0).as_bytes())},
    )
    assert seqs(Capture(broker, server, compression="zstd").wait(2)) == [1, 2]


def test_a_dictionary_that_stays_unknown_is_given_up_for_plain_frames(broker: Broker) -> None:
    def script(peer: Peer) -> None:
        if "zstdDictionary" in peer.query:
            peer.refuse_xrpc(400, "UnknownZstdDictionary", "current is 1")
        else:
            sends(v2_like(1, T0))(peer)

    server = ScriptedServer([script], {DICTIONARY_PATH: lambda: (200, dictionary(1001).as_bytes())})
    assert seqs(Capture(broker, server, compression="zstd").wait(1)) == [1]


def test_frames_of_another_dictionary_are_read_again_and_not_set_aside(broker: Broker) -> None:
    old, new = dictionary(1001), dictionary(1002)
    served = [old, new]

    def wrong(peer: Peer) -> None:
        peer.accept()
        peer.send_binary(compressed(v2_like(1, T0), new))
        peer.hold()

    server = ScriptedServer(
        [wrong, zstd_sends(new, v2_like(1, T0), v2_like(2, T1))],
        {DICTIONARY_PATH: lambda: (200, served.pop(0).as_bytes())},
    )
    assert seqs(Capture(broker, server, compression="zstd").wait(2)) == [1, 2]
    assert broker.dead_letters() == []


def test_zstd_on_v1_with_a_dictionary_file(broker: Broker, tmp_path: Path) -> None:
    file = tmp_path / "dictionary"
    file.write_bytes(dictionary(77).as_bytes())

    def script(peer: Peer) -> None:
        assert peer.query["compress"] == ["true"]
        assert "permessage-deflate" not in peer.head
        peer.accept()
        peer.send_binary(compressed(v1_like(T0, 1), dictionary(77)))
        peer.hold()

    rows = Capture(broker, ScriptedServer([script]), protocol="v1", compression="zstd", dictionary=file).wait(1)
    assert seqs(rows) == [1]


def test_many_accounts_are_asked_for_in_the_first_message_on_v1(broker: Broker) -> None:
    def script(peer: Peer) -> None:
        assert peer.query["requireHello"] == ["true"]
        peer.accept()
        peer.hold(0.5)
        peer.send(v1_like(T0, 1))
        peer.hold()

    server = ScriptedServer([script])
    dids = tuple(f"did:plc:{number:024d}" for number in range(500))
    Capture(broker, server, protocol="v1", dids=dids).wait(1)
    (hello,) = server.peers[0].received
    assert json.loads(hello)["payload"]["wantedDids"] == list(dids)

"""The pure policies: backoff, which host, where to resume, what the first event shows, settings, retried dead letters."""

from __future__ import annotations

import json
import random
import ssl
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from producers import wire_v1, wire_v2
from producers.backoff import Disposition, delays, disposition
from producers.compression import Dictionary, ServedDictionaries, load_dictionary
from producers.config import SourceSettings
from producers.cursor import Position
from producers.dead_letters import Ceiling, from_frame, from_refused_record
from producers.errors import ConnectFailedError, HandshakeRefusedError, SourceSettingsError, TooManyDeadLettersError
from producers.hosts import HostRotation, subscribe_url
from producers.http import HttpFailure
from producers.resume import Resume, Verdict, judge, resume_after, resume_at_time, resume_live, resume_oldest
from producers.retry import retried
from producers.tls import client_context
from producers.wire import TIMESTAMP_CURSOR_FLOOR, Commit, Rejected
from schemas.bodies import DeadLetter, decode_body
from schemas.errors import BadRecord, DeadLetterReason
from schemas.framing import SingleObjectFraming
from tests.producers.scripted import v1_like, v2_like

SECOND = 1_000_000
T = 1_780_000_000 * SECOND


def test_delays_double_up_to_the_longest_and_are_shortened_by_at_most_half() -> None:
    for seed in range(20):
        found = list(islice(delays(0.25, 30.0, random.Random(seed)), 12))
        full = [min(0.25 * 2**step, 30.0) for step in range(12)]
        assert all(whole / 2 <= delay <= whole for delay, whole in zip(found, full, strict=True))


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (ConnectFailedError("name cannot be resolved"), Disposition.RETRY),
        (HandshakeRefusedError(503, b"", None), Disposition.RETRY),
        (HandshakeRefusedError(500, b"", None), Disposition.RETRY),
        (HandshakeRefusedError(502, b"<html>", None), Disposition.RETRY),
        (HandshakeRefusedError(429, b"", 3.0), Disposition.RETRY),
        (HandshakeRefusedError(408, b"", None), Disposition.RETRY),
        (HandshakeRefusedError(302, b"", None), Disposition.RETRY),
        (HandshakeRefusedError(400, b'{"error":"CursorTooOld"}', None), Disposition.CURSOR_TOO_OLD),
        (HandshakeRefusedError(400, b'{"error":"UnknownZstdDictionary"}', None), Disposition.UNKNOWN_DICTIONARY),
        (HandshakeRefusedError(400, b'{"error":"InvalidRequest"}', None), Disposition.REFUSED),
        (HandshakeRefusedError(400, b"choose one compression", None), Disposition.REFUSED),
        (HandshakeRefusedError(400, b'{"error":7}', None), Disposition.REFUSED),
        (HandshakeRefusedError(400, b"[" * 5000, None), Disposition.REFUSED),
        (HandshakeRefusedError(401, b"", None), Disposition.REFUSED),
        (HandshakeRefusedError(403, b"", None), Disposition.REFUSED),
        (HandshakeRefusedError(404, b"", None), Disposition.NOT_THIS_WIRE),
        (HandshakeRefusedError(200, b"<html>", None), Disposition.NOT_THIS_WIRE),
    ],
)
def test_retry_or_raise(failure: ConnectFailedError, expected: Disposition) -> None:
    assert disposition(failure) is expected


def rotation(*urls: str, protocol: str = "v2", failures: int = 2, back: float = 100.0) -> HostRotation:
    return HostRotation(urls, protocol, failures, back)


def test_hosts_change_after_repeated_failures_and_come_round() -> None:
    hosts = rotation("ws://a", "ws://b", "ws://c")
    names = []
    for _ in range(8):
        names.append(hosts.current.name)
        hosts.failed(0.0)
    assert names == ["a", "a", "b", "b", "c", "c", "a", "a"]


def test_progress_forgives_failures() -> None:
    hosts = rotation("ws://a", "ws://b")
    for _ in range(5):
        hosts.failed(0.0)
        hosts.connected()
    assert hosts.current.name == "a"


def test_the_preferred_host_is_due_again_after_a_while_and_not_at_once_again() -> None:
    hosts = rotation("ws://a", "ws://b", failures=1)
    assert not hosts.due_to_return(1e9)
    hosts.failed(10.0)
    assert [hosts.due_to_return(now) for now in (20.0, 109.0, 110.0, 111.0, 209.0, 211.0)] == [
        False, False, True, False, False, True,
    ]  # fmt: skip
    hosts.return_to_preferred()
    assert hosts.current.name == "a"
    assert not hosts.due_to_return(1e9)


def test_a_refused_host_is_never_used_again() -> None:
    hosts = rotation("ws://a", "ws://b", failures=1)
    hosts.refuse("401", 0.0)
    for _ in range(3):
        assert hosts.current.name == "b"
        hosts.failed(0.0)
    assert hosts.preferred is None
    hosts.refuse("401", 0.0)
    assert not hosts.usable


def test_auto_tries_the_other_wire_at_once_and_both_again_later() -> None:
    hosts = rotation("ws://a", protocol="auto", failures=3)
    wires = []
    for _ in range(4):
        wires.append(hosts.current.protocol)
        hosts.lacks_wire(0.0)
    assert wires == ["v2", "v1", "v2", "v1"]
    assert rotation("ws://a", protocol="auto").lacks_wire(0.0)


@pytest.mark.parametrize(
    ("url", "protocol", "expected"),
    [
        ("ws://h:1", "v2", "ws://h:1/xrpc/network.bsky.jetstream.subscribeEvents?cursor=5"),
        ("wss://h/", "v1", "wss://h/subscribe?cursor=5"),
        ("wss://h/behind/proxy", "v1", "wss://h/behind/proxy/subscribe?cursor=5"),
        ("ws://h/subscribe", "auto", "ws://h/subscribe?cursor=5"),
        ("ws://h/xrpc/network.bsky.jetstream.subscribeEvents", "auto",
         "ws://h/xrpc/network.bsky.jetstream.subscribeEvents?cursor=5"),
    ],
)  # fmt: skip
def test_urls(url: str, protocol: str, expected: str) -> None:
    host = rotation(url, protocol=protocol).current
    assert subscribe_url(host, host.protocol, [("cursor", "5")]) == expected


def test_every_parameter_of_both_wires() -> None:
    settings = SourceSettings(
        hosts=("ws://h",),
        collections=("app.bsky.feed.*", "app.bsky.graph.follow"),
        dids=("did:plc:a", "did:web:example.com"),
        kinds=("commit", "sync"),
        max_message_bytes=1000,
    )
    shared = ["app.bsky.feed.*", "app.bsky.graph.follow"]
    assert wire_v2.parameters(settings, 7, 9) == [
        *(("collections", name) for name in shared), ("dids", "did:plc:a"), ("dids", "did:web:example.com"),
        ("kinds", "commit"), ("kinds", "sync"), ("maxMessageSizeBytes", "1000"), ("cursor", "7"), ("zstdDictionary", "9"),
    ]  # fmt: skip
    assert wire_v1.parameters(settings, 7, compress=True) == [
        *(("wantedCollections", name) for name in shared), ("wantedDids", "did:plc:a"),
        ("wantedDids", "did:web:example.com"), ("maxMessageSizeBytes", "1000"), ("cursor", "7"), ("compress", "true"),
    ]  # fmt: skip
    assert wire_v2.parameters(SourceSettings(hosts=("ws://h",)), None, None) == []


def like(seq: int | None, time_us: int, rkey: str = "3mptbyplj5d2a") -> Commit:
    return Commit(seq, time_us, "did:plc:a", "create", "app.bsky.feed.like", rkey, "3mptbypluud2a", None, b"{}")


def test_where_to_resume() -> None:
    known = Position("a", "v2", 77, T)
    assert resume_after(known, "a", 300 * SECOND).cursor == 77
    assert resume_after(known, "b", 300 * SECOND).cursor == T - 300 * SECOND
    assert resume_after(known, "a", 300 * SECOND, "cursor_too_old").cursor == T - 300 * SECOND
    assert resume_after(Position("a", "v1", None, T), "a", 300 * SECOND).cursor == T - 10 * SECOND
    assert resume_after(Position("a", "v1", None, 5), "b", 300 * SECOND).cursor == TIMESTAMP_CURSOR_FLOOR
    behind = known._replace(made_us=T - 3600 * SECOND)
    assert resume_after(behind, "a", 300 * SECOND).cursor == 77
    assert resume_after(behind, "b", 300 * SECOND).cursor == T - 3900 * SECOND
    assert resume_after(behind, "a", 300 * SECOND, "renumbered").cursor == T - 300 * SECOND, "by its own clock"
    assert resume_after(known._replace(made_us=T + SECOND), "b", 300 * SECOND).cursor == T - 300 * SECOND
    assert resume_live().cursor is None
    assert resume_oldest().cursor == TIMESTAMP_CURSOR_FLOOR
    assert resume_at_time(T).cursor == T


@given(st.integers(0, 2**63 - 1), st.integers(0, 2 * 10**15), st.integers(60, 7200))
def test_a_cursor_is_never_in_the_other_number_space(seq: int, time_us: int, margin: int) -> None:
    position = Position("a", "v2", seq if seq < TIMESTAMP_CURSOR_FLOOR else None, time_us)
    for host in ("a", "b"):
        resume = resume_after(position, host, margin * SECOND)
        assert resume.cursor is not None
        assert (resume.cursor < TIMESTAMP_CURSOR_FLOOR) == (resume.seq is not None)
        assert resume.seq is None or host == "a"


BY_SEQ = resume_after(Position("a", "v2", 77, T), "a", 300 * SECOND)
BY_TIME = resume_after(Position("b", "v2", 77, T), "a", 300 * SECOND)
BEHIND = resume_after(Position("b", "v2", 77, T, T - 3600 * SECOND), "a", 300 * SECOND)


@pytest.mark.parametrize(
    ("resume", "first", "last", "verdict"),
    [
        (BY_SEQ, like(77, T), None, Verdict.REPEATS),
        (BY_SEQ, like(77, T), like(77, T), Verdict.REPEATS),
        (BY_SEQ, like(77, T, "other"), like(77, T), Verdict.RENUMBERED),
        (BY_SEQ, like(77, T + 1), None, Verdict.RENUMBERED),
        (BY_SEQ, like(3, T + 900 * SECOND), None, Verdict.RENUMBERED),
        (BY_SEQ, like(78, T + SECOND), None, Verdict.CONTINUES),
        (BY_SEQ, like(900, T + 900 * SECOND), None, Verdict.GAP),
        (BY_TIME, like(3, T - 300 * SECOND), None, Verdict.CONTINUES),
        (BY_TIME, like(3, T + 11 * SECOND), None, Verdict.GAP),
        (BEHIND, like(3, T - 3600 * SECOND), None, Verdict.CONTINUES),
        (BEHIND, like(3, T - 300 * SECOND), None, Verdict.GAP),
        (resume_live(), like(3, T), None, Verdict.CONTINUES),
        (resume_oldest(), like(3, T), None, Verdict.CONTINUES),
        (resume_at_time(T), like(3, T + 60 * SECOND), None, Verdict.GAP),
    ],
)
def test_what_the_first_event_shows(resume: Resume, first: Commit, last: Commit | None, verdict: Verdict) -> None:
    assert judge(resume, first, last, 10 * SECOND) is verdict


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"hosts": ("http://h",)}, "use ws://host:port or wss://host"),
        ({"hosts": ("ws://",)}, "is not a source"),
        ({"hosts": ("ws://h:99999",)}, "is not a source"),
        ({"hosts": ("wss://user:secret@h",)}, "use authorization"),
        ({"hosts": ("ws://h", "ws://h")}, "listed twice"),
        ({"hosts": ()}, "at least 1"),
        ({"start": "yesterday"}, "neither live, oldest nor"),
        ({"start": "2026-07-04T00:00:00"}, "has no offset"),
        ({"collections": ("app.bsky.fo*",)}, "neither a collection nor"),
        ({"dids": ("alice",)}, "is not a DID"),
        ({"collections": ("app.bsky.*",), "kinds": ("sync",)}, "leaves commits out"),
        ({"kinds": ("sync",), "protocol": "v1"}, "filter of v2"),
        ({"compression": "zstd", "protocol": "v1"}, "needs dictionary"),
        ({"backoff_first": 60.0}, "longer than"),
        ({"unknown": 1}, "Extra inputs"),
    ],
)
def test_unusable_settings_are_refused_with_the_reason(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told) as refused:
        SourceSettings(**settings)
    assert "secret" not in str(refused.value.errors(include_input=False))


def test_a_bad_dictionary_file_stops_with_an_instruction(tmp_path: Path) -> None:
    wrong = tmp_path / "dictionary"
    wrong.write_bytes(b"not a dictionary")
    for path in (wrong, tmp_path / "missing"):
        with pytest.raises(SourceSettingsError, match=str(path)) as stopped:
            load_dictionary(path)
        assert "EXPLORER_SOURCE_DICTIONARY" in stopped.value.remedy


def test_a_server_without_a_dictionary_is_used_uncompressed_and_asked_again_later() -> None:
    answers: list[bytes | HttpFailure] = [HttpFailure("503"), b"garbage"]

    def fetch(url: str, timeout: float, tls: ssl.SSLContext) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, HttpFailure):
            raise answer
        return answer

    served = ServedDictionaries(1.0, client_context(None), fetch)
    assert served.of("ws://h") is None
    assert served.of("ws://h") is None
    assert answers == []


@given(st.binary(max_size=100))
def test_no_bytes_break_a_dictionary_or_a_frame(data: bytes) -> None:
    try:
        Dictionary(data).decompress(data, 1000)
    except ValueError:
        return


def test_the_ceiling_stops_on_a_share_and_not_on_a_number() -> None:
    ceiling = Ceiling(0.2, 1_000)
    for _ in range(10_000):
        ceiling.passed(10)
        ceiling.bad(DeadLetterReason.NOT_JSON)

    def worse() -> None:
        for _ in range(1_000):
            ceiling.passed(2)
            ceiling.bad(DeadLetterReason.NOT_JSON)

    with pytest.raises(TooManyDeadLettersError, match="not_json"):
        worse()


def letter_of(frame: bytes, protocol: str) -> DeadLetter:
    return from_frame(Rejected(DeadLetterReason.UNKNOWN_KIND, "detail"), frame, "host", protocol, 5, 10**6)


@pytest.mark.parametrize(("frame", "protocol"), [(v1_like(T, 3), "v1"), (v2_like(3, T), "v2")])
def test_a_letter_that_can_be_read_now_becomes_a_record(frame: dict[str, Any], protocol: str) -> None:
    again = retried(letter_of(json.dumps(frame).encode(), protocol))
    row = decode_body("app.bsky.feed.like", again.body)
    assert (again.topic, again.key, again.timestamp_ms) == ("bluesky.app.bsky.feed.like", row["did"], T // 1000)
    assert (row["replayed"], row["received_us"], row["protocol"], row["source_host"]) == (True, 5, protocol, "host")


def test_a_letter_that_is_still_bad_says_so() -> None:
    for frame in (b"", b"{}", json.dumps({"$type": "novelty"}).encode()):
        with pytest.raises(BadRecord):
            retried(letter_of(frame, "v2"))


def test_a_record_that_the_broker_refused_comes_back_as_it_was() -> None:
    first = retried(letter_of(json.dumps(v2_like(3, T)).encode(), "v2"))
    value = SingleObjectFraming().frame("app.bsky.feed.like", first.body)
    letter = from_refused_record(first.topic, first.key.encode(), value, "too large", 9, 10**6)
    assert retried(letter) == first


def test_a_letter_of_the_writer_is_not_ours() -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="stage writer"):
        retried(replace(letter_of(b"{}", "v2"), stage="writer"))


def test_a_long_frame_is_cut_and_the_letter_says_so() -> None:
    letter = from_frame(Rejected(DeadLetterReason.TOO_LARGE, "big \ud800"), b"x" * 100, "h", "v2", 5, 10)
    assert (letter.raw, letter.detail) == (b"x" * 10, "big \\ud800 (first 10 of 100 bytes kept)")
    assert DeadLetter.decode(letter.encode()) == letter

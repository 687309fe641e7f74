"""Points in time and identifiers: what is read, what is refused, and that reading gives back what was written."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.identifiers import RecordUri, parse_actor, parse_record_uri, tid_text, tid_value
from api.times import format_time, parse_time, to_datetime, to_micros

MIDNIGHT = int(datetime(2026, 11, 23, tzinfo=UTC).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2026-11-23", MIDNIGHT),
        ("2026-11-23T00:00", MIDNIGHT),
        ("2026-11-23 00:00:00", MIDNIGHT),
        ("2026-11-23T00:00:00.000001Z", MIDNIGHT + 1),
        ("2026-11-23T00:00:00,5", MIDNIGHT + 500_000),
        ("2026-11-23T00:00:00.123456789Z", MIDNIGHT + 123_456),
        ("2026-11-23T01:00:00+01:00", MIDNIGHT),
        ("2026-11-23T01:00:00 01:00", MIDNIGHT),
        ("2026-11-22T23:30:00-00:30", MIDNIGHT),
        ("1d", MIDNIGHT - 86_400_000_000),
        ("90m", MIDNIGHT - 5_400_000_000),
    ],
)
def test_times_are_read(text: str, micros: int) -> None:
    assert parse_time(text, now_us=MIDNIGHT) == micros


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2026-13-01", "2026-02-30", "2026-1-1", "20261123", "12", "1y", "999999w", "2026-11-23T25:00"],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="2026-11-23"):
        parse_time(text, now_us=MIDNIGHT)


@given(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999))
def test_times_come_back(micros: int) -> None:
    assert parse_time(format_time(micros)) == micros
    assert to_micros(to_datetime(micros)) == micros


@given(st.integers(0, 2**63 - 1))
def test_tids_come_back(value: int) -> None:
    assert tid_value(tid_text(value)) == value


@given(st.text(max_size=20))
def test_other_keys_are_no_tids(text: str) -> None:
    value = tid_value(text)
    assert value is None or tid_text(value) == text


@pytest.mark.parametrize(
    "text",
    [
        "at://did:plc:abc/app.bsky.feed.post/3l6oveex3ii2l",
        "at://Alice.example.com/app.bsky.feed.post/self",
        "https://bsky.app/profile/did:web:x.example/post/3l6oveex3ii2l",
    ],
)
def test_uris_are_read(text: str) -> None:
    uri = parse_record_uri(text)
    assert parse_record_uri(str(uri)) == uri
    assert isinstance(uri, RecordUri)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "at://",
        "at://x/y/z",
        "http://did:plc:abc/app.bsky.feed.post/a",
        "at://did:plc:abc/app.bsky.feed.post",
        "at://did:plc:abc/app.bsky.feed.post/a/b",
        "at://did:plc:abc/nsid/a",
        "at://did:plc:abc/app.bsky.feed.post/a b",
        "file:///etc/passwd",
    ],
)
def test_other_uris_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="at://"):
        parse_record_uri(text)


def test_actors() -> None:
    assert parse_actor("@Alice.Example.COM ") == "alice.example.com"
    assert parse_actor("did:plc:ewvi7nxzyoun6zhxrhs64oiz") == "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
    for text in ("", "alice", "a..b", "did:", "*.example.com", "../x.y", "alice@example.com"):
        with pytest.raises(ValueError, match="neither a DID nor a handle"):
            parse_actor(text)

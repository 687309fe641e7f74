"""What a Jetstream frame can be, whichever wire carried it; the two wires decode bytes into these and nothing else.

Pure: no clock, no network. `producers.wire_v1` and `producers.wire_v2` hold the decoders; format facts come from the
Jetstream sources (v2 server 0.2.0 and the legacy server of December 2024).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Final, NamedTuple, Protocol

import msgspec

from schemas.codec import UpstreamKind
from schemas.errors import DeadLetterReason

MAX_SEQ: Final = 2**63 - 1
TIMESTAMP_CURSOR_FLOOR: Final = 10**15
"""Cursors below are sequence numbers, from here on unix microseconds (v2 software)."""

MIN_TIME_US: Final = 0
MAX_TIME_US: Final = 253_402_300_799_999_999
"""Witness times outside 1970-01-01 to 9999-12-31 are no times of events."""

OPERATIONS: Final = frozenset({"create", "update", "delete"})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Commit(msgspec.Struct, frozen=True, gc=False):
    """One record operation.

    `seq` is the host's sequence number, None on legacy software; `time_us` the witness time in unix microseconds;
    `record` the exact JSON text of the record, None for a delete; `envelope_json` a JSON object to be deep-merged over
    the rebuilt frame, None when nothing but the known members was sent.
    """

    seq: int | None
    time_us: int
    did: str
    operation: str
    collection: str
    rkey: str
    rev: str
    cid: str | None
    record: bytes | None
    envelope_json: str | None = None


class _Upstream(msgspec.Struct, frozen=True, gc=False):
    kind: ClassVar[UpstreamKind]

    seq: int | None
    time_us: int
    did: str
    payload: bytes
    envelope_json: str | None = None


class Identity(_Upstream, frozen=True, gc=False):
    """A handle or DID document changed; `payload` is the exact JSON text of the relay's object."""

    kind: ClassVar[UpstreamKind] = "identity"


class Account(_Upstream, frozen=True, gc=False):
    """An account's hosting status changed; `payload` is the exact JSON text of the relay's object."""

    kind: ClassVar[UpstreamKind] = "account"


class Sync(_Upstream, frozen=True, gc=False):
    """A repository was re-read (v2 only); `payload` is the exact JSON text of the relay's object."""

    kind: ClassVar[UpstreamKind] = "sync"


class Info(NamedTuple):
    """A notice about the stream itself (v2 only); it does not move the cursor."""

    name: str
    message: str


class StreamError(NamedTuple):
    """A terminal error frame (v2 only); the server drops the connection right after it."""

    error: str
    message: str


class Unknown(NamedTuple):
    """A frame of a type that this release does not know; counted and passed over."""

    name: str
    seq: int | None
    time_us: int | None


class Rejected(NamedTuple):
    """A frame that is no event; `seq` and `time_us` are what a scan of the bytes could still find."""

    reason: DeadLetterReason
    detail: str
    seq: int | None = None
    time_us: int | None = None
    did: str | None = None


Event = Commit | Identity | Account | Sync
Frame = Event | Info | StreamError | Unknown | Rejected


class Decoder(Protocol):
    """Turns the bytes of one frame into what it means; never raises."""

    def __call__(self, frame: bytes, /) -> Frame: ...


_SEQ_SCAN: Final = re.compile(rb'"(?:seq|cursor)"\s*:\s*([0-9]{1,19})\b')
_TIME_US_SCAN: Final = re.compile(rb'"time_us"\s*:\s*([0-9]{1,18})\b')
_TIME_SCAN: Final = re.compile(rb'"time"\s*:\s*"([0-9T:.Z+-]{20,32})"')
_DID_SCAN: Final = re.compile(rb'"did"\s*:\s*"(did:[a-z]+:[A-Za-z0-9._:%-]{1,2000})"')

_seconds: dict[str, int] = {}
_MAX_SECONDS: Final = 1024


def parse_canonical_time(text: str) -> int | None:
    """Unix microseconds of a time exactly as the v2 wire writes it (UTC, six fractional digits, Z), None for any other.

    Read by position, with the seconds cached: this runs once per event.
    """
    if len(text) != 27 or text[26] != "Z":
        return None
    second, fraction = text[:20], text[20:26]
    base = _seconds.get(second)
    if base is None:
        base = _second_us(second)
        if base is None:
            return None
        if len(_seconds) >= _MAX_SECONDS:
            _seconds.clear()
        _seconds[second] = base
    return base + int(fraction) if fraction.isdecimal() and fraction.isascii() else None


def parse_time(text: str) -> int | None:
    """Unix microseconds of any RFC 3339 time, None when it is none or outside 1970 to 9999.

    Any offset and precision; digits beyond microseconds are cut off.
    """
    time_us = parse_canonical_time(text)
    return _parse_time_slowly(text) if time_us is None else time_us


def format_time(time_us: int) -> str:
    """RFC 3339 in UTC with six fractional digits and Z, the form of the v2 wire; inverse of `parse_time`."""
    return (_EPOCH + timedelta(microseconds=time_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")


def _second_us(second: str) -> int | None:
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.", second) is None:
        return None
    return _since_epoch(second[:19] + "+00:00")


_RFC3339: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]+))?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def _parse_time_slowly(text: str) -> int | None:
    match = _RFC3339.fullmatch(text)
    if match is None:
        return None
    day, clock, fraction, offset = match.groups()
    whole = _since_epoch(f"{day}T{clock}{'+00:00' if offset in 'Zz' else offset}")
    if whole is None:
        return None
    value = whole + int(((fraction or "") + "000000")[:6])
    return value if MIN_TIME_US <= value <= MAX_TIME_US else None


def _since_epoch(text: str) -> int | None:
    try:
        value = (datetime.fromisoformat(text) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        return None
    return value if MIN_TIME_US <= value <= MAX_TIME_US else None


def rejected(reason: DeadLetterReason, detail: str, frame: bytes) -> Rejected:
    """A rejection that carries whatever position the bytes still show.

    The position is only a hint for people who read the dead letter; the cursor moves by events alone, because a record
    may hold a member of the same name.
    """
    seqs = _SEQ_SCAN.findall(frame)
    seq = int(seqs[-1]) if seqs else None
    time_us = None
    if (match := _TIME_US_SCAN.search(frame)) is not None:
        time_us = int(match.group(1))
    elif times := _TIME_SCAN.findall(frame):
        time_us = parse_time(times[-1].decode("ascii"))
    did = _DID_SCAN.search(frame)
    return Rejected(
        reason,
        detail,
        seq if seq is not None and seq <= MAX_SEQ else None,
        time_us,
        did.group(1).decode("ascii") if did else None,
    )

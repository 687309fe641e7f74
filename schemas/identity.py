"""Event identity: two events with the same identity are the same fact, whichever host or restart delivered them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Identity = tuple[str, ...]

_TID_LENGTH: Final = 13
_TID_CLOCK_BITS: Final = 10
_DIGITS: Final = str.maketrans("234567abcdefghijklmnopqrstuvwxyz0189_+- ", "0123456789abcdefghijklmnopqrstuv!!!!!!!!")
"""From the digits of TIDs to those of `int`; what else `int` would take becomes no digit."""


def tid_micros(tid: str) -> int | None:
    """When a TID (a record key, or the rev of a commit) says that it was made, in unix microseconds; None when it is no TID.

    Source: atproto specification, "Timestamp Identifiers (TIDs)".
    """
    if len(tid) != _TID_LENGTH or not tid.isascii():
        return None
    try:
        return int(tid.translate(_DIGITS), 32) >> _TID_CLOCK_BITS
    except ValueError:
        return None


def commit_identity(did: str, collection: str, rkey: str, rev: str, operation: str) -> Identity:
    """Identity of a record operation."""
    return ("commit", did, collection, rkey, rev, operation)


def relay_identity(kind: str, did: str, relay_seq: int | None, relay_time: str | None) -> Identity:
    """Identity of an `identity` or `account` event: the relay's sequence, or its time when the sequence is 0 or absent."""
    return (kind, did, f"seq:{relay_seq}") if relay_seq else (kind, did, f"time:{relay_time or ''}")


def sync_identity(did: str, rev: str) -> Identity:
    """Identity of a `sync` event."""
    return ("sync", did, rev)


def row_identity(row: Mapping[str, Any]) -> Identity:
    """Identity of a decoded Avro event (field names of `schemas.records`)."""
    kind = row["kind"]
    if kind == "commit":
        return commit_identity(
            row["did"], row["collection"] or "", row["rkey"] or "", row["rev"] or "", row["operation"] or ""
        )
    if kind == "sync":
        return sync_identity(row["did"], row["rev"] or "")
    return relay_identity(kind, row["did"], row["relay_seq"], row["relay_time"])

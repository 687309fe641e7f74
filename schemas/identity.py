"""Event identity: two events with the same identity are the same fact, whichever host or restart delivered them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Identity = tuple[str, ...]


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

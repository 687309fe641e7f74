"""Which commits are a repository read again rather than activity: those that share the revision of the account's last `#sync`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from producers.publisher import StoredRecord
from schemas.avro_schemas import latest, schema_by_fingerprint
from schemas.bodies import decode_body
from schemas.errors import BadRecord
from schemas.framing import split
from schemas.topics import SYNC, TOPICS

_MAX_ACCOUNTS: Final = 100_000


class _SyncRev(msgspec.Struct):
    rev: str | None = None


class Resyncs:
    """Remembers the revision of each account's last `#sync`, for so many accounts as fit; the oldest are forgotten first."""

    def __init__(self) -> None:
        self._revs: dict[str, str] = {}
        self._decode = msgspec.json.Decoder(_SyncRev).decode

    def note(self, did: str, payload: bytes) -> None:
        """Take in a sync event's payload; one without a readable revision forgets the account."""
        try:
            rev = self._decode(payload).rev
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            rev = None
        self.mark(did, rev)

    def mark(self, did: str, rev: str | None) -> None:
        """Note that commits of `did` with `rev` are a re-read; None forgets the account."""
        self._revs.pop(did, None)
        if rev:
            if len(self._revs) >= _MAX_ACCOUNTS:
                del self._revs[next(iter(self._revs))]
            self._revs[did] = rev

    @property
    def revs(self) -> dict[str, str]:
        """Account → revision; to be read only."""
        return self._revs

    def restore(self, records: Iterable[StoredRecord]) -> None:
        """Take in sync events that were published before this process started, oldest first.

        A restart may fall between a `#sync` and the creates that belong to it.
        """
        for record in records:
            try:
                reference, body = split(record.value or b"")
                writer = schema_by_fingerprint(reference.value) if reference.kind == "fingerprint" else None
                row = decode_body(writer or latest(TOPICS[SYNC].schema), body)
            except BadRecord:
                continue  # a reader of the topic will say so; here it only costs one mark
            self.mark(row["did"], row["rev"])

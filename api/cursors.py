"""Opaque, signed page cursors: the key of the last row of a page, bound to the query that made it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_VERSION: Final = 1
_MAC_BYTES: Final = 12
MAX_CHARACTERS: Final = 512


class CursorError(ValueError):
    """The cursor was not made by this server, or for another query; the message holds the remedy."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page ended: `key` holds the values of the sort key of its last row, in order (integers or strings)."""

    key: tuple[int | str, ...]


def query_digest(query: Mapping[str, Any]) -> str:
    """Short digest of a query's meaning: filters and order, without page size, page position or chosen fields."""
    text = json.dumps(query, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class CursorCodec:
    """Encodes and checks cursors with one secret; `secret` must outlive restarts for cursors to do so."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def encode(self, cursor: Cursor, digest: str) -> str:
        """Text for the client, URL-safe."""
        body = json.dumps([_VERSION, list(cursor.key)], separators=(",", ":"), ensure_ascii=False).encode()
        return _to_text(self._mac(body, digest) + body)

    def decode(self, text: str, digest: str) -> Cursor:
        """The cursor; CursorError when it is malformed, was changed, or belongs to a query with another digest."""
        if len(text) > MAX_CHARACTERS:
            raise CursorError("it is too long: pass the `next_cursor` of an answer unchanged")
        try:
            raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raise CursorError(
                "it is not a cursor of this service: pass the `next_cursor` of an answer unchanged"
            ) from None
        mac, body = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(body, digest)):
            raise CursorError(
                "it belongs to another query or server: repeat every other parameter of the first page, "
                "or leave it out to start again"
            )
        version, key = json.loads(body)
        if version != _VERSION:
            raise CursorError("it was made by an older release: leave it out to start again")
        return Cursor(tuple(key))

    def _mac(self, body: bytes, digest: str) -> bytes:
        return hmac.new(self._secret, digest.encode() + b"\0" + body, hashlib.sha256).digest()[:_MAC_BYTES]


def _to_text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")

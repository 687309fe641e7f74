"""The text of an API key: `bpe_<id>_<secret><checksum>`. Pure.

The id (8 characters) is for look-up and may be shown. The secret is 32 random bytes, so that a plain SHA-256 of the key can
be stored. The checksum tells a mistyped key from a wrong one, and secret scanners a key from other text.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass
from typing import Final

PREFIX: Final = "bpe"
_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_DIGITS: Final = "abcdefghjkmnpqrstuvwxyz23456789"
_ID_LENGTH: Final = 8
_SECRET_LENGTH: Final = 43
_CHECKSUM_LENGTH: Final = 6
_TOKEN: Final = re.compile(rf"({PREFIX}_([a-z0-9]{{8}})_[0-9A-Za-z]{{43}})([0-9A-Za-z]{{6}})", re.ASCII)
LOOKS_LIKE_KEY: Final = re.compile(rb"bpe_[a-z0-9]{8}_[0-9A-Za-z]{8,}")
"""Finds a key, or most of one, in bytes that must not hold any."""


@dataclass(frozen=True, slots=True)
class Token:
    """A well-formed key as sent by a client; `digest` is what the store holds of it."""

    key_id: str
    digest: bytes


def _text(value: int, digits: str, length: int) -> str:
    found = ""
    for _ in range(length):
        value, rest = divmod(value, len(digits))
        found = digits[rest] + found
    return found


def make_token(entropy: bytes) -> tuple[str, Token]:
    """The key's text and its parsed form from 40 random bytes: 32 for the secret, 8 for the id."""
    if len(entropy) != 40:
        raise ValueError("a key is made of 40 random bytes")
    key_id = _text(int.from_bytes(entropy[32:], "big"), _ID_DIGITS, _ID_LENGTH)
    body = f"{PREFIX}_{key_id}_{_text(int.from_bytes(entropy[:32], 'big'), _DIGITS, _SECRET_LENGTH)}"
    text = body + _checksum(body)
    return text, Token(key_id, _digest(text))


def parse_token(text: str) -> Token | None:
    """The parsed key; None when the form or the checksum is wrong (mistyped or cut off)."""
    match = _TOKEN.fullmatch(text)
    if match is None or match[3] != _checksum(match[1]):
        return None
    return Token(match[2], _digest(text))


def _checksum(body: str) -> str:
    return _text(zlib.crc32(body.encode()), _DIGITS, _CHECKSUM_LENGTH)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()

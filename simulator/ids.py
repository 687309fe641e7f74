"""Identifiers of the AT protocol, made in bulk: DIDs, TIDs, CIDs and time texts.

Formats: TID and DID from the atproto specification; CID version 1 with multihash sha2-256. Everything works on numpy arrays
because one call per identifier would cost more than the rest of an event.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

TID_ALPHABET = b"234567abcdefghijklmnopqrstuvwxyz"
BASE32_ALPHABET = b"abcdefghijklmnopqrstuvwxyz234567"

_TID_CHARS = np.frombuffer(TID_ALPHABET, dtype=np.uint8)
_BASE32_CHARS = np.frombuffer(BASE32_ALPHABET, dtype=np.uint8)
_TID_SHIFTS = np.arange(60, -1, -5, dtype=np.uint64)
_CID_DAG_CBOR = np.frombuffer(b"bafyrei", dtype=np.uint8)
_CID_RAW = np.frombuffer(b"bafkrei", dtype=np.uint8)

# Base32 three characters at a time: a table of 2^15 texts is four times as fast as single characters.
_THREE = [
    bytes((BASE32_ALPHABET[code >> 10], BASE32_ALPHABET[code >> 5 & 31], BASE32_ALPHABET[code & 31]))
    for code in range(1 << 15)
]
_THREE_SHIFTS = range(255, -1, -15)

Ints = npt.NDArray[np.int64]


def tid_text(value: int) -> bytes:
    """The 13 characters of one TID value (microseconds << 10 | clock id)."""
    return bytes(TID_ALPHABET[(value >> shift) & 31] for shift in range(60, -1, -5))


def tid_value(text: bytes) -> int:
    """Inverse of `tid_text`; ValueError when the text holds another character."""
    value = 0
    for byte in text:
        value = value << 5 | TID_ALPHABET.index(byte)
    return value


def tid_texts(values: Ints) -> list[bytes]:
    """`tid_text` of many values at once."""
    digits = (values.astype(np.uint64)[:, None] >> _TID_SHIFTS) & np.uint64(31)
    return _rows(_TID_CHARS[digits.astype(np.intp)])


def random_dids(rng: np.random.Generator, count: int) -> list[bytes]:
    """`did:plc:` and 24 random base32 characters, as texts."""
    out = np.empty((count, 32), dtype=np.uint8)
    out[:, :8] = np.frombuffer(b"did:plc:", dtype=np.uint8)
    out[:, 8:] = _BASE32_CHARS[rng.integers(0, 32, (count, 24), dtype=np.uint8)]
    return _rows(out)


def random_cids(rng: np.random.Generator, count: int, *, raw: bool = False) -> list[bytes]:
    """Texts of random CIDv1 sha2-256 CIDs: dag-cbor (records), or raw (blobs).

    36 bytes make 58 base32 characters: after the constant prefix the first carries 3 bits of the digest and the last carries
    3 bits and two zero bits, so both are drawn from a smaller alphabet to keep every CID decodable.
    """
    draw = rng.integers(0, 32, (count, 52), dtype=np.uint8)
    draw[:, 0] &= 0b00111
    draw[:, 51] &= 0b11100
    out = np.empty((count, 59), dtype=np.uint8)
    out[:, :7] = _CID_RAW if raw else _CID_DAG_CBOR
    out[:, 7:] = _BASE32_CHARS[draw]
    return _rows(out)


def cid_of_digest(digest: bytes) -> bytes:
    """Text of the dag-cbor CID whose sha2-256 digest is given."""
    value = int.from_bytes(digest, "big") << 2  # two bits of padding at the end
    return b"bafyrei" + b"".join([_THREE[(value >> shift) & 0x7FFF] for shift in _THREE_SHIFTS])[2:]


def time_texts(micros: Ints, unit: Literal["ms", "us"]) -> list[bytes]:
    """RFC 3339 UTC texts with a `Z`; `unit` is `ms` (three digits) or `us` (six digits)."""
    stamps: npt.NDArray[np.datetime64] = micros.astype("datetime64[us]")
    plain = np.datetime_as_string(stamps, unit=unit, casting="unsafe")  # cuts to the unit, as the servers do
    texts: list[bytes] = np.char.add(plain.astype(f"S{24 if unit == 'ms' else 27}"), b"Z").tolist()
    return texts


def zipf_indexes(rng: np.random.Generator, count: int, size: int, exponent: float) -> list[int]:
    """`count` indexes below `size` whose frequencies fall with rank to the power `exponent` (which must not be 1)."""
    power = 1.0 - exponent
    drawn = ((float(size + 1) ** power - 1.0) * rng.random(count) + 1.0) ** (1.0 / power)
    out: list[int] = np.minimum(drawn.astype(np.int64) - 1, size - 1).tolist()
    return out


def _rows(chars: npt.NDArray[np.uint8]) -> list[bytes]:
    width = chars.shape[1]
    flat: npt.NDArray[Any] = np.ascontiguousarray(chars).view(f"S{width}").ravel()
    out: list[bytes] = flat.tolist()
    return out

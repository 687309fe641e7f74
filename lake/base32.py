"""Whole columns of base32 text to numbers and back: TIDs and CIDs, exact or not at all.

TID: https://atproto.com/specs/tid (13 characters of the sortable alphabet, a 64-bit number with the top bit 0).
CID: https://atproto.com/specs/data-model (base32 "b…" of CIDv1, dag-cbor, sha2-256; 59 characters).
Eight characters become 40 bits with three shift-and-mask steps over a whole column, so a million CIDs take a fraction of a second.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

TID_LENGTH: Final = 13
CID_LENGTH: Final = 59
DIGEST_LENGTH: Final = 32

_TID_ALPHABET: Final = b"234567abcdefghijklmnopqrstuvwxyz"
_CID_ALPHABET: Final = b"abcdefghijklmnopqrstuvwxyz234567"
_INVALID: Final = 0xFF
_CID_HEADER: Final = np.frombuffer(bytes.fromhex("01711220"), np.uint8)
"""CIDv1, dag-cbor, sha2-256, 32 bytes."""


def _lookup(alphabet: bytes) -> Bytes:
    table = np.full(256, _INVALID, np.uint8)
    table[np.frombuffer(alphabet, np.uint8)] = np.arange(32, dtype=np.uint8)
    return table


_TID_VALUE: Final = _lookup(_TID_ALPHABET)
_CID_VALUE: Final = _lookup(_CID_ALPHABET)
_TID_CHARACTER: Final = np.frombuffer(_TID_ALPHABET, np.uint8)
_CID_CHARACTER: Final = np.frombuffer(_CID_ALPHABET, np.uint8)


def _u64(value: int) -> np.uint64:
    return np.uint64(value)


def _pack(values: Bytes) -> Words:
    """Rows of 8·k five-bit values to rows of k 40-bit numbers."""
    words = np.ascontiguousarray(values).view(">u8").astype(np.uint64)
    words = ((words & _u64(0x1F001F001F001F00)) >> _u64(3)) | (words & _u64(0x001F001F001F001F))
    words = ((words & _u64(0x03FF000003FF0000)) >> _u64(6)) | (words & _u64(0x000003FF000003FF))
    packed: Words = ((words & _u64(0x000FFFFF00000000)) >> _u64(12)) | (words & _u64(0x00000000000FFFFF))
    return packed


def _unpack(words: Words) -> Bytes:
    """The inverse of `_pack`."""
    words = ((words << _u64(12)) & _u64(0x000FFFFF00000000)) | (words & _u64(0x00000000000FFFFF))
    words = ((words << _u64(6)) & _u64(0x03FF000003FF0000)) | (words & _u64(0x000003FF000003FF))
    words = ((words << _u64(3)) & _u64(0x1F001F001F001F00)) | (words & _u64(0x001F001F001F001F))
    return words.astype(">u8").view(np.uint8)


def decode_tids(text: Bytes) -> tuple[npt.NDArray[np.int64], Mask]:
    """(n, 13) characters to n numbers and which of them are exact; the number of an inexact row means nothing."""
    rows = len(text)
    values = np.zeros((rows, 16), np.uint8)
    values[:, 3:] = _TID_VALUE[text]
    # A first character above 7 would need the 64th bit: such text stays text, so that numbers sort as the texts do.
    valid = (values < 32).all(axis=1) & (values[:, 3] < 8)
    words = _pack(values)
    numbers = (words[:, 0] << _u64(40)) | words[:, 1]
    return numbers.view(np.int64), valid


def encode_tids(numbers: npt.NDArray[np.int64]) -> Bytes:
    """n numbers (none negative) to (n, 13) characters."""
    unsigned = numbers.view(np.uint64)
    words = np.empty((len(numbers), 2), np.uint64)
    words[:, 0] = unsigned >> _u64(40)
    words[:, 1] = unsigned & _u64((1 << 40) - 1)
    return _TID_CHARACTER[_unpack(words)[:, 3:]]


def decode_cids(text: Bytes) -> tuple[Bytes, Mask]:
    """(n, 59) characters to (n, 32) digest bytes and which of them are exact."""
    rows = len(text)
    values = np.zeros((rows, 64), np.uint8)
    values[:, :58] = _CID_VALUE[text[:, 1:]]
    valid = (text[:, 0] == ord("b")) & (values < 32).all(axis=1)
    raw = _pack(values).astype(">u8").view(np.uint8).reshape(rows, 8, 8)[:, :, 3:].reshape(rows, 40)
    # 58 characters are 290 bits: the two after the digest have to be zero for the text to come back as it was.
    valid &= (raw[:, :4] == _CID_HEADER).all(axis=1) & ((raw[:, 36] & 0xC0) == 0)
    return np.ascontiguousarray(raw[:, 4:36]), valid


def encode_cids(digests: Bytes) -> Bytes:
    """(n, 32) digest bytes to (n, 59) characters."""
    rows = len(digests)
    raw = np.zeros((rows, 8, 8), np.uint8)
    packed = np.zeros((rows, 40), np.uint8)
    packed[:, :4] = _CID_HEADER
    packed[:, 4:36] = digests
    raw[:, :, 3:] = packed.reshape(rows, 8, 5)
    values = _unpack(raw.reshape(rows, 64).view(">u8").astype(np.uint64))
    text = np.empty((rows, CID_LENGTH), np.uint8)
    text[:, 0] = ord("b")
    text[:, 1:] = _CID_CHARACTER[values[:, :58]]
    return text

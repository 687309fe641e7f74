"""Whole columns of base32 text to numbers and back: TIDs and CIDs, exact or not at all.

TID: https://atproto.com/specs/tid (13 characters of the sortable alphabet, a 64-bit number with the top bit 0).
CID: https://atproto.com/specs/data-model (base32 "b…" of CIDv1, dag-cbor, sha2-256; 59 characters).

Two characters at a time are looked up as ten bits; shifts over 64-bit words then join four such pairs to 40 bits, five bytes.
Columns are worked on in blocks that stay in the processor's cache: about ten million TIDs or CIDs a second and core.
"""

from __future__ import annotations

from collections.abc import Iterator
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
_CID_HEADER: Final = 0x01711220
"""CIDv1, dag-cbor, sha2-256, 32 bytes."""
_BLOCK: Final = 4096
_BAD_PAIR: Final = 0x8000
_BAD: Final = np.uint64(0x8000800080008000)


def _pair_values(alphabet: bytes) -> npt.NDArray[np.uint16]:
    """For two characters read as one little-endian number: their ten bits, or _BAD_PAIR."""
    value = np.full(256, _BAD_PAIR, np.uint16)
    value[np.frombuffer(alphabet, np.uint8)] = np.arange(32, dtype=np.uint16)
    first, second = np.meshgrid(value, value, indexing="xy")
    return np.where((first | second) & _BAD_PAIR, _BAD_PAIR, first << 5 | second).astype(np.uint16).reshape(-1)


def _pair_characters(alphabet: bytes) -> npt.NDArray[np.uint16]:
    """The inverse of `_pair_values` for its 1,024 good values."""
    characters = np.frombuffer(alphabet, np.uint8).astype(np.uint16)
    return (characters[:, None] | characters[None, :] << 8).astype(np.uint16).reshape(-1)


_TID_VALUES: Final = _pair_values(_TID_ALPHABET)
_CID_VALUES: Final = _pair_values(_CID_ALPHABET)
_TID_CHARACTERS: Final = _pair_characters(_TID_ALPHABET)
_CID_CHARACTERS: Final = _pair_characters(_CID_ALPHABET)


def _u64(value: int) -> np.uint64:
    return np.uint64(value)


def _pack(words: Words) -> Words:
    """Four ten-bit lanes per word, the first in the lowest bits, to one 40-bit number with the first on top."""
    words = ((words & _u64(0x000003FF000003FF)) << _u64(10)) | ((words & _u64(0x03FF000003FF0000)) >> _u64(16))
    packed: Words = ((words & _u64(0x00000000000FFFFF)) << _u64(20)) | (words >> _u64(32))
    return packed


def _unpack(numbers: Words) -> Words:
    """The inverse of `_pack`."""
    words = (numbers >> _u64(20)) | ((numbers & _u64(0xFFFFF)) << _u64(32))
    unpacked: Words = ((words & _u64(0x000FFC00000FFC00)) >> _u64(10)) | (
        (words & _u64(0x000003FF000003FF)) << _u64(16)
    )
    return unpacked


def _blocks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _BLOCK):
        yield slice(start, min(start + _BLOCK, rows))


def decode_tids(text: Bytes) -> tuple[npt.NDArray[np.int64], Mask]:
    """(n, 13) characters to n numbers and which of them are exact; the number of an inexact row means nothing."""
    rows = len(text)
    numbers, valid = np.empty(rows, np.uint64), np.empty(rows, np.bool_)
    # Three characters of value 0 in front make 16.
    padded = np.full((min(rows, _BLOCK), 16), _TID_ALPHABET[0], np.uint8)
    for part in _blocks(rows):
        characters = padded[: part.stop - part.start]
        characters[:, 3:] = text[part]
        words = _TID_VALUES.take(characters.view("<u2")).view("<u8")
        packed = _pack(words)
        # A first character above 7 would need the 64th bit: such text stays text, so that numbers sort as the texts do.
        valid[part] = (((words[:, 0] | words[:, 1]) & _BAD) == 0) & (packed[:, 0] < _u64(1 << 23))
        numbers[part] = (packed[:, 0] << _u64(40)) | packed[:, 1]
    return numbers.view(np.int64), valid


def encode_tids(numbers: npt.NDArray[np.int64]) -> Bytes:
    """n numbers (none negative) to (n, 13) characters."""
    text = np.empty((len(numbers), TID_LENGTH), np.uint8)
    unsigned = numbers.view(np.uint64)
    for part in _blocks(len(numbers)):
        words = np.stack((unsigned[part] >> _u64(40), unsigned[part] & _u64((1 << 40) - 1)), axis=1)
        text[part] = _TID_CHARACTERS.take(_unpack(words).view("<u2")).view(np.uint8)[:, 3:]
    return text


def decode_cids(text: Bytes) -> tuple[Bytes, Mask]:
    """(n, 59) characters to (n, 32) digest bytes and which of them are exact."""
    rows = len(text)
    digests, valid = np.empty((rows, DIGEST_LENGTH), np.uint8), np.empty(rows, np.bool_)
    digest = digests.view(np.uint64)
    # Six characters of value 0 behind the 58 that follow the "b".
    padded = np.full((min(rows, _BLOCK), 64), _CID_ALPHABET[0], np.uint8)
    for part in _blocks(rows):
        characters = padded[: part.stop - part.start]
        characters[:, :58] = text[part, 1:]
        words = _CID_VALUES.take(characters.view("<u2")).view("<u8")
        bad = words[:, 0] | words[:, 1] | words[:, 2] | words[:, 3]
        bad |= words[:, 4] | words[:, 5] | words[:, 6] | words[:, 7]
        packed = _pack(words)
        # The last word holds the digest's last byte, two bits that must be zero for the text to come back, and padding.
        exact = ((bad & _BAD) == 0) & (packed[:, 0] >> _u64(8) == _u64(_CID_HEADER))
        valid[part] = exact & (text[part, 0] == ord("b")) & ((packed[:, 7] & _u64(0x00FFFFFFFF)) == 0)
        digest[part] = _digest_words(packed).byteswap()
    return digests, valid


def _digest_words(packed: Words) -> Words:
    """Eight 40-bit numbers, 320 bits of which the digest is bits 32 to 287, to the digest as four 64-bit numbers."""
    words = np.empty((len(packed), 4), np.uint64)
    words[:, 0] = (packed[:, 0] << _u64(56)) | (packed[:, 1] << _u64(16)) | (packed[:, 2] >> _u64(24))
    words[:, 1] = (packed[:, 2] << _u64(40)) | packed[:, 3]
    words[:, 2] = (packed[:, 4] << _u64(24)) | (packed[:, 5] >> _u64(16))
    words[:, 3] = (packed[:, 5] << _u64(48)) | (packed[:, 6] << _u64(8)) | (packed[:, 7] >> _u64(32))
    return words


def _packed_words(digest: Words) -> Words:
    """The inverse of `_digest_words`, with the header in front and zeros behind."""
    packed = np.empty((len(digest), 8), np.uint64)
    low = _u64((1 << 40) - 1)
    packed[:, 0] = _u64(_CID_HEADER << 8) | (digest[:, 0] >> _u64(56))
    packed[:, 1] = (digest[:, 0] >> _u64(16)) & low
    packed[:, 2] = ((digest[:, 0] << _u64(24)) & low) | (digest[:, 1] >> _u64(40))
    packed[:, 3] = digest[:, 1] & low
    packed[:, 4] = digest[:, 2] >> _u64(24)
    packed[:, 5] = ((digest[:, 2] << _u64(16)) & low) | (digest[:, 3] >> _u64(48))
    packed[:, 6] = (digest[:, 3] >> _u64(8)) & low
    packed[:, 7] = (digest[:, 3] & _u64(0xFF)) << _u64(32)
    return packed


def encode_cids(digests: Bytes) -> Bytes:
    """(n, 32) digest bytes to (n, 59) characters."""
    text = np.empty((len(digests), CID_LENGTH), np.uint8)
    text[:, 0] = ord("b")
    digest = np.ascontiguousarray(digests).view(">u8")
    for part in _blocks(len(digests)):
        words = _unpack(_packed_words(digest[part].astype(np.uint64)))
        text[part, 1:] = _CID_CHARACTERS.take(words.view("<u2")).view(np.uint8)[:, :58]
    return text

"""The bytes of a side file of the account index (`lake.account_index`): what it has of an account, found by three small reads.

Format: b"PXA" + format number 3 (1 byte), number of pages, number of blocks of kinds, number of row groups, CRC-32 of these 16
bytes. Then the directory, in pieces of 33 numbers: where the first of 32 parts begins, and the end of each, counted from the end
of the directory; behind each piece its CRC-32, begun with the number of the piece. Then the parts, first the pages, then the
blocks of kinds, then of each row group where its pages lie (`lake.page_places`; none for most files), each with its CRC-32 at its
end, begun with the number of the part. Numbers are 4 bytes, little endian.

A page has the lower 5 bytes (big endian) of what identifies each of its accounts, in order, and then for each the number of its
kind (1 byte; 255: read the file). A kind is a line of JSON: what an account has, as a list of [collection, creates, updates,
deletes, records that are not erased], behind them perhaps a number, whose bits are the pages of the file with its rows; a block
has 16 kinds. An account is identified by the XXH64 (seed 0) of its DID: the upper
bits, as many as number the pages, name its page, and the next 40 are what it has there. Accounts of a file that are identified
alike are one of kind 255; that an account which a file does not have is taken for one that it has, happens once in some billion
looks.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

_HEADER: Final = b"PXA\x03"
_HEADER_BYTES: Final = 20
_NUMBER: Final = 4
_PIECE_PARTS: Final = 32
_PIECE: Final = _NUMBER * (_PIECE_PARTS + 1)
_HASH_BYTES: Final = 5
_READ_FILE: Final = 255
_PLACED_KINDS: Final = 64
"""At least so many of the kinds may tell pages, where the file has such: the most frequent ones, of accounts with a row or two."""
_BLOCK_KINDS: Final = 16
_PAGE_ACCOUNTS: Final = 64
"""About as many: a page is read and checked as one."""
_FIRST_READ: Final = 8 << 10
"""Header and directory of a file of up to 100,000 accounts."""


class Damaged(Exception):  # noqa: N818 - an outcome
    """A side file is not what was written."""


def hash_of(did: str) -> int:
    """What identifies an account."""
    return xxhash.xxh64_intdigest(did.encode())


class Pages:
    """An open side file. Reads what it is asked for and keeps nothing of it."""

    def __init__(self, descriptor: int) -> None:
        """Raises Damaged, OSError."""
        self._descriptor = descriptor
        self._front = os.pread(descriptor, _FIRST_READ, 0)
        if len(self._front) < _HEADER_BYTES or self._front[:_NUMBER] != _HEADER:
            raise Damaged("it does not begin as such a file does")
        self._pages, self._blocks, self._groups, crc = struct.unpack_from("<IIII", self._front, _NUMBER)
        if zlib.crc32(self._front[: _HEADER_BYTES - _NUMBER]) != crc:
            raise Damaged("its header is not as it was written")
        self._begin = _HEADER_BYTES + _pieces(self._pages + self._blocks + self._groups) * (_PIECE + _NUMBER)

    def line(self, hashed: int) -> bytes | None:
        """The kind of an account: empty for one that is not there, None when only the file tells. Raises Damaged, OSError."""
        bits = self._pages.bit_length() - 1
        page = self._part(hashed >> (64 - bits))
        lower = (hashed >> (64 - bits - 8 * _HASH_BYTES)) & ((1 << 8 * _HASH_BYTES) - 1)
        kind = _kind_of(page, lower.to_bytes(_HASH_BYTES, "big"))
        if kind is None:
            return b""
        if kind == _READ_FILE:
            return None
        block, place = divmod(kind, _BLOCK_KINDS)
        return self._part(self._pages + block).split(b"\n")[place]

    def groups(self) -> list[bytes]:
        """Where the pages of each row group lie. Raises Damaged, OSError."""
        return [self._part(self._pages + self._blocks + number) for number in range(self._groups)]

    def _part(self, number: int) -> bytes:
        piece, place = divmod(number, _PIECE_PARTS)
        where = _HEADER_BYTES + piece * (_PIECE + _NUMBER)
        front = self._front
        if where + _PIECE + _NUMBER > len(front):
            front, where = os.pread(self._descriptor, _PIECE + _NUMBER, where), 0
        begin, end = struct.unpack_from(
            "<II", _checked(front[where : where + _PIECE + _NUMBER], piece), _NUMBER * place
        )
        return _checked(os.pread(self._descriptor, end - begin, self._begin + begin), number, end - begin)


def encoded(accounts: pl.DataFrame, groups: Sequence[bytes] = ()) -> bytes:
    """A side file of some accounts, as columns `did`, `kind`, and `placed` where there are groups: lines as the format has them,
    without and with pages."""
    codes, lines = _codes(accounts)
    hashes = np.fromiter(map(hash_of, accounts["did"]), np.uint64, count=accounts.height)
    bits = max(1, (accounts.height // _PAGE_ACCOUNTS).bit_length())
    order = np.argsort(hashes)
    hashes, codes = hashes[order], codes[order]
    identities = hashes >> np.uint64(64 - bits - 8 * _HASH_BYTES)
    first = np.ones(len(identities), np.bool_)
    first[1:] = identities[1:] != identities[:-1]
    codes[:-1][~first[1:]] = _READ_FILE
    identities, codes = identities[first], codes[first]
    blocks = [b"\n".join(lines[place : place + _BLOCK_KINDS]) for place in range(0, len(lines), _BLOCK_KINDS)]
    parts = [
        part + zlib.crc32(part, number).to_bytes(_NUMBER, "little")
        for number, part in enumerate([*_pages(identities, codes, bits), *blocks, *groups])
    ]
    head = _HEADER + struct.pack("<III", 1 << bits, len(blocks), len(groups))
    return b"".join([head, zlib.crc32(head).to_bytes(_NUMBER, "little"), *_directory(parts), *parts])


def _checked(found: bytes, number: int, size: int = _PIECE + _NUMBER) -> bytes:
    """The bytes before the CRC-32 at the end of `size` bytes."""
    content = found[:-_NUMBER]
    if len(found) != size or zlib.crc32(content, number) != int.from_bytes(found[-_NUMBER:], "little"):
        raise Damaged(f"part {number} is not as it was written")
    return content


def _pieces(parts: int) -> int:
    return -(-parts // _PIECE_PARTS)


def _kind_of(page: bytes, identity: bytes) -> int | None:
    """The kind of an account of a page; None when it is not there."""
    end = len(page) // (_HASH_BYTES + 1) * _HASH_BYTES
    place = page.find(identity, 0, end)
    while place >= 0 and place % _HASH_BYTES:
        place = page.find(identity, place + 1, end)
    return None if place < 0 else page[end + place // _HASH_BYTES]


def _codes(accounts: pl.DataFrame) -> tuple[npt.NDArray[np.uint8], list[bytes]]:
    """For each account the number of its kind, and the kinds, a line each: the most frequent ones, and of those with pages as many
    as there are numbers left."""
    placed = "placed" in accounts.columns
    frequent = _frequent(accounts["kind"], _READ_FILE - _PLACED_KINDS if placed else _READ_FILE)
    codes = _numbered(accounts["kind"], frequent, 0)
    lines = frequent.to_list()
    if placed:
        more = _frequent(accounts["placed"], _READ_FILE - len(frequent))
        numbers = _numbered(accounts["placed"], more, len(frequent))
        codes = np.where(numbers == _READ_FILE, codes, numbers)
        lines += more.to_list()
    return codes, [line.encode() for line in lines]


def _frequent(kinds: pl.Series, count: int) -> pl.Series:
    counted = kinds.alias("kind").value_counts().sort("count", "kind", descending=[True, False])
    return counted["kind"].head(count)


def _numbered(kinds: pl.Series, frequent: pl.Series, first: int) -> npt.NDArray[np.uint8]:
    numbers = np.arange(first, first + len(frequent))
    return kinds.replace_strict(frequent, numbers, default=_READ_FILE, return_dtype=pl.UInt8).to_numpy().copy()


def _pages(identities: npt.NDArray[np.uint64], codes: npt.NDArray[np.uint8], bits: int) -> Iterator[bytes]:
    pages = (identities >> np.uint64(8 * _HASH_BYTES)).astype(np.int64)
    lower = identities.astype(">u8").view(np.uint8).reshape(-1, 8)[:, -_HASH_BYTES:]
    begin = 0
    for end in np.cumsum(np.bincount(pages, minlength=1 << bits)).tolist():
        yield lower[begin:end].tobytes() + codes[begin:end].tobytes()
        begin = end


def _directory(parts: Sequence[bytes]) -> Iterator[bytes]:
    ends = np.cumsum([len(part) for part in parts])
    ends = np.concatenate([[0], ends, np.repeat(ends[-1:], _pieces(len(parts)) * _PIECE_PARTS - len(parts))])
    for number in range(_pieces(len(parts))):
        piece = ends[number * _PIECE_PARTS : (number + 1) * _PIECE_PARTS + 1].astype("<u4").tobytes()
        yield piece + zlib.crc32(piece, number).to_bytes(_NUMBER, "little")

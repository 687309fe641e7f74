"""A skip index for text search: which files of posts can hold a word or phrase at all.

Beside each rolled file of posts lies `<lake>/.text-index/<sha256 of the file>.grams`: a bloom filter of the short runs of
characters (grams) that occur in its texts. A search for a word opens only the files that have all grams of the word. A
gram is 5 or 6 characters, or 2 or 3 where the first is of a wide script (Chinese, Japanese, Korean, emoji). Characters that differ
in case only count as one, and a run of white space counts as one space. A file without a side file has to be read. Named
by the digest of the file it describes, a side file can be missing but never stale.

Format: b"PXG" + format number 2 (1 byte), number of bits, CRC-32 of these eight bytes; then the bits, least significant first,
in blocks of 4092 bytes (the last may be shorter), each followed by the CRC-32 of its bytes, begun with the number of the block.
Numbers are 4 bytes, little endian. A gram sets the bits at its hash and at the upper half of its hash, both modulo the
number of bits. A block that is not what was written counts as if it held every gram: damage makes searches slower, never wrong.
"""

from __future__ import annotations

import logging
import os
import sys
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lake.manifest import LiveFile, Snapshot
from lake.paths import sync_folder
from lake.store import LakeStore

log = logging.getLogger("explorer.lake")

FOLDER: Final = ".text-index"
TABLE: Final = "app.bsky.feed.post"
_HEADER: Final = b"PXG\x02"
_HEADER_BYTES: Final = 12
_BLOCK: Final = 4092
_CRC_BYTES: Final = 4
_SUFFIX: Final = ".grams"
_NARROW: Final = (5, 6)
"""Measured on English: grams of 4 let half of the files through that have no match, 5 a sixth; a word of 5 needs 5."""
_WIDE: Final = (2, 3)
_FIRST_WIDE: Final = 0x2E80
_FILL: Final = 0.5
"""The filter is halved as long as no more of its bits than this are set: a gram is found wrongly in a quarter at most."""
_LEAST_BITS: Final = 1024
_MOST_BITS: Final = 3 << 28
_LARGEST_SHARE: Final = 0.099
"""The bits are at most this share of the file, whatever that does to their fill; with checksums that is a tenth at most."""
_ROWS_AT_ONCE: Final = 16_384
_SPACE: Final = 0x20
_BREAK: Final = 0
"""Stands between texts and for characters whose case is not known here; no gram has it."""

_CASED: Final = ((0, 0x2E80), (0xA000, 0xAC00), (0xF900, 0x20000))
"""Where letters with case, white space and code points that may become such lie."""

Codes = npt.NDArray[np.uint32]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Grams:
    """The texts must have all of these grams (hashes); made by `literal`."""

    hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every part must hold."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one part must hold."""

    parts: tuple[Condition, ...]


Condition = Grams | AllOf | AnyOf
"""What a file must have to hold a match. A search that asks for nothing the index knows has None instead."""


def literal(text: str) -> Condition | None:
    """What texts must have that contain `text`, in any case; None when it is too short to tell."""
    codes = _folded(np.frombuffer(text.encode("utf-32-le"), np.uint32))
    hashes = tuple(sorted({int(value) for grams in _grams(codes) for value in grams}))
    return Grams(hashes) if hashes else None


def all_of(parts: Iterable[Condition | None]) -> Condition | None:
    """The conjunction; parts that ask for nothing fall away."""
    known = tuple(part for part in parts if part is not None)
    return (known[0] if len(known) == 1 else AllOf(known)) if known else None


def any_of(parts: Iterable[Condition | None]) -> Condition | None:
    """The disjunction; None as soon as one part asks for nothing, and for no parts."""
    known: list[Condition] = []
    for part in parts:
        if part is None:
            return None
        known.append(part)
    return (known[0] if len(known) == 1 else AnyOf(tuple(known))) if known else None


def build(store: LakeStore, file: LiveFile) -> int:
    """Write the side file of one file of posts, durably; returns its bytes.

    Blocks for reading the texts: about a second per 100,000 posts. Raises FileDamaged, OSError.
    """
    texts = store.read(file.path, ["text"]).column("text")
    bits = _filter_of(texts, int(file.bytes * _LARGEST_SHARE))
    folder = store.root / FOLDER
    folder.mkdir(exist_ok=True)
    path = _path(store.root, file)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as out:
        written = out.write(_encoded(bits))
        out.flush()
        os.fsync(out.fileno())
    temporary.rename(path)
    sync_folder(folder)
    return written


def missing(root: Path, snapshot: Snapshot) -> list[LiveFile]:
    """Rolled files of posts without a side file, newest first."""
    have = _names(root)
    files = [file for file in snapshot.files(TABLE) if file.kind == "rolled" and f"{file.sha256}{_SUFFIX}" not in have]
    return sorted(files, key=lambda file: file.hour_us, reverse=True)


def sweep(root: Path, snapshot: Snapshot) -> int:
    """Remove side files of files that are not in the lake any more; returns how many. Call under the maintenance lock."""
    wanted = {f"{file.sha256}{_SUFFIX}" for file in snapshot.files(TABLE)}
    gone = _names(root) - wanted
    for name in gone:
        (root / FOLDER / name).unlink(missing_ok=True)
    return len(gone)


def candidates(root: Path, files: Sequence[LiveFile], condition: Condition | None) -> list[LiveFile]:
    """The files that can hold a match, in their order: never too few.

    Blocks for some ten microseconds per file when the side files are in memory, else for a few reads each.
    """
    if condition is None:
        return list(files)
    folder = f"{root / FOLDER}{os.sep}"
    return [file for file in files if file.kind != "rolled" or _may_hold(f"{folder}{file.sha256}{_SUFFIX}", condition)]


def _path(root: Path, file: LiveFile) -> Path:
    return root / FOLDER / f"{file.sha256}{_SUFFIX}"


def _names(root: Path) -> set[str]:
    with suppress(FileNotFoundError):
        return {path.name for path in (root / FOLDER).iterdir()}
    return set()


def _encoded(bits: npt.NDArray[np.uint8]) -> bytes:
    data = bits.tobytes()
    head = _HEADER + (8 * len(data)).to_bytes(4, "little")
    parts = [head, zlib.crc32(head).to_bytes(_CRC_BYTES, "little")]
    for number in range(-(-len(data) // _BLOCK)):
        block = data[number * _BLOCK : (number + 1) * _BLOCK]
        parts += [block, zlib.crc32(block, number).to_bytes(_CRC_BYTES, "little")]
    return b"".join(parts)


def _may_hold(path: str, condition: Condition) -> bool:
    """What the side file says; true without one that can be used."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        return _holds(condition, _Filter(descriptor))
    except _DamagedError as error:
        log.warning(
            "a side file of the text index is damaged and not used: remove it, maintenance makes it anew",
            extra={"path": path, "cause": str(error)},
        )
        return True
    finally:
        os.close(descriptor)


class _DamagedError(Exception):
    """A side file is not what was written."""


class _Filter:
    """An open side file; every block is checked when it is first looked into."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._blocks: dict[int, bytes] = {}
        head = os.pread(descriptor, _HEADER_BYTES, 0)
        self._bits = int.from_bytes(head[4:8], "little")
        size = self._bits // 8
        whole = _HEADER_BYTES + size + _CRC_BYTES * -(-size // _BLOCK)
        if head[:4] != _HEADER or zlib.crc32(head[:8]) != int.from_bytes(head[8:], "little") or not self._bits:
            raise _DamagedError("its header is not as it was written")
        if os.fstat(descriptor).st_size != whole:
            raise _DamagedError(f"it has {os.fstat(descriptor).st_size} bytes instead of {whole}")

    def has(self, value: int) -> bool:
        """Whether the gram of a hash may be in the texts. Raises _DamagedError."""
        return self._bit(value % self._bits) and self._bit((value >> 32) % self._bits)

    def _bit(self, place: int) -> bool:
        number, byte = divmod(place >> 3, _BLOCK)
        block = self._blocks.get(number) or self._read(number)
        return bool(block[byte] >> (place & 7) & 1)

    def _read(self, number: int) -> bytes:
        size = min(_BLOCK, self._bits // 8 - number * _BLOCK)
        found = os.pread(self._descriptor, size + _CRC_BYTES, _HEADER_BYTES + number * (_BLOCK + _CRC_BYTES))
        block = found[:size]
        if zlib.crc32(block, number) != int.from_bytes(found[size:], "little"):
            raise _DamagedError(f"block {number} is not as it was written")
        self._blocks[number] = block
        return block


def _holds(condition: Condition, bits: _Filter) -> bool:
    match condition:
        case Grams(hashes):
            return all(bits.has(value) for value in hashes)
        case AllOf(parts):
            return all(_holds(part, bits) for part in parts)
        case AnyOf(parts):
            return any(_holds(part, bits) for part in parts)


def _filter_of(texts: pa.ChunkedArray, most_bytes: int) -> npt.NDArray[np.uint8]:
    """The packed bits of the grams of some texts, as many as the fill asks for but not more than `most_bytes`."""
    bits = 3 * _LEAST_BITS
    while bits < min(_MOST_BITS, 256 * len(texts)):
        bits *= 2
    seen = np.zeros(bits, np.bool_)
    for codes in _codes(texts):
        for hashes in _grams(codes):
            seen[hashes % np.uint64(bits)] = True
            seen[(hashes >> np.uint64(32)) % np.uint64(bits)] = True
    # Folding to a part keeps every place modulo the new size; the third of the size before is two thirds of the last.
    before = None
    while len(seen) > 3 * _LEAST_BITS:
        half = _fold(seen, 2)
        if len(seen) <= 8 * most_bytes and not _sparse(half):
            break
        before, seen = seen, half
    if before is not None and _sparse(third := _fold(before, 3)):
        seen = third
    return np.packbits(seen, bitorder="little")


def _fold(seen: npt.NDArray[np.bool_], parts: int) -> npt.NDArray[np.bool_]:
    folded: npt.NDArray[np.bool_] = np.any(seen.reshape(parts, -1), axis=0)
    return folded


def _sparse(seen: npt.NDArray[np.bool_]) -> bool:
    return bool(np.count_nonzero(seen) <= _FILL * len(seen))


def _codes(texts: pa.ChunkedArray) -> Iterator[Codes]:
    """The folded characters of some texts at a time, with a break between any two."""
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        part = texts.slice(start, _ROWS_AT_ONCE).drop_null().combine_chunks()
        if len(part) == 0:
            continue
        lists = pa.ListArray.from_arrays(pa.array([0, len(part)], pa.int32()), part)
        joined = pc.binary_join(lists, chr(_BREAK))[0].as_py()
        yield _folded(np.frombuffer(joined.encode("utf-32-le"), np.uint32))


def _folded(codes: Codes) -> Codes:
    """Characters as the index compares them: without case, each run of white space as one space."""
    folded = _folding()[codes]
    space = folded == _SPACE
    again = space[1:] & space[:-1]
    return folded if not again.any() else folded[np.concatenate(([True], ~again))[: len(folded)]]


def _grams(codes: Codes) -> Iterator[Hashes]:
    """The hashes of all grams, one kind after the other."""
    wide = codes >= _FIRST_WIDE
    for width, starts in [*((width, ~wide) for width in _NARROW), *((width, wide) for width in _WIDE)]:
        count = len(codes) - width + 1
        if count <= 0:
            continue
        good = starts[:count].copy()
        for place in range(width):
            good &= codes[place : place + count] != _BREAK
        at = np.flatnonzero(good)
        hashes = np.full(len(at), width, np.uint64)
        for place in range(width):
            hashes = (hashes ^ codes[at + place]) * np.uint64(0x9E3779B97F4A7C15)
            hashes ^= hashes >> np.uint64(29)
        hashes *= np.uint64(0xBF58476D1CE4E5B9)
        hashes ^= hashes >> np.uint64(32)
        yield hashes


@cache
def _folding() -> Codes:
    """Code point → the one that stands for all that differ from it in case only (and perhaps for some more)."""
    table = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    parent: dict[int, int] = {}

    def root(code: int) -> int:
        while code in parent:
            code = parent[code]
        return code

    for first, end in _CASED:
        for code in range(first, end):
            char = chr(code)
            category = unicodedata.category(char)
            if char.isspace() or category[0] == "Z":
                table[code] = _SPACE
            elif category == "Cn":
                # A later Unicode may give it a case that the search engine knows already.
                table[code] = _BREAK
            for other in {char.lower(), char.upper(), char.title(), char.casefold()}:
                if other != char and len(other) == 1:
                    low, high = sorted((root(code), root(ord(other))))
                    if low != high:
                        parent[high] = low
    for code in parent:
        table[code] = root(code)
    return table

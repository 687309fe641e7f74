"""A skip index for text search: which rows of which files of posts can hold a word or phrase at all.

Beside each rolled file of posts lies `<lake>/.text-index/<sha256 of the file>.slots`: a bloom filter of the short runs of
characters (grams) that occur in its texts, kept apart for eight blocks of its rows, its pages as a rule. A
search opens only the files in which one block has all grams of a word. A gram has 3, 4, 5 or 7 characters, or 2 or 5 where the
first is of a wide script (Chinese, Japanese, Korean, emoji). Characters that differ in case only count as one, and a run of
white space counts as one space. A file without a side file has to be read. Named by the digest of the file it describes, a side
file can be missing but never stale.

Format: b"PXG" + format number 4 (1 byte), number of slots, for each of the eight blocks the number of the row behind its last,
CRC-32 of these bytes; then the slots, one byte each, in pieces of 1020 bytes (the last may be shorter), each followed by the CRC-32
of its bytes, begun with the number of the piece. Numbers are 4 bytes, little endian. Bit b of a slot stands for block b. A gram
sets its bit in the slot at the lower half of its hash, and all but those of 7 characters also in that at the upper half, both
scaled to the number of slots. A piece that is not what was written counts as if every block held every gram: damage makes searches
slower, never wrong.
"""

from __future__ import annotations

import itertools
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lake import side_files
from lake.layout import POST_PAGES
from lake.manifest import LiveFile, Snapshot
from lake.store import LakeStore, read_columns
from lake.text_grams import codes_of, grams, numbers_of

log = logging.getLogger("explorer.lake")

FOLDER: Final = ".text-index"
TABLE: Final = "app.bsky.feed.post"
_HEADER: Final = b"PXG\x04"
_HEADER_BYTES: Final = 44
_PIECE: Final = 1020
_CRC_BYTES: Final = 4
_SUFFIX: Final = ".slots"
_BLOCKS: Final = POST_PAGES
"""One bit of a slot for each: mostly the pages of the file. Posts lie by language, so that a block is mostly of one."""
_EVERY_BLOCK: Final = (1 << _BLOCKS) - 1
_FILL: Final = 0.4
"""The filter is halved as long as no block has more of its bits set than this."""
_LEAST_SLOTS: Final = 512
_SLOTS_PER_ROW: Final = 64
_MOST_SLOTS: Final = 3 << 25
_LARGEST_SHARE: Final = 0.15
"""The slots are at most this share of the file of posts, whatever that does to their fill. Posts are less than half of a lake, so
that this is less than a tenth of all bytes."""
Rows = tuple[tuple[int, int], ...]
"""Stretches of rows of a file: first number, from 0, and the one behind the last; in order and apart."""


@dataclass(frozen=True, slots=True)
class Grams:
    """One text must have all of these grams, each given by one or two numbers of 32 bits; made by `literal`."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every part must hold."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one part must hold."""

    parts: tuple[Condition, ...]


Condition = Grams | AllOf | AnyOf
"""What a text must have to be a match. A search that asks for nothing the index knows has None instead."""


@dataclass(frozen=True, slots=True)
class Part:
    """A file that may hold a match, and where; `rows` is None when it may be anywhere."""

    file: LiveFile
    rows: Rows | None


def literal(text: str) -> Condition | None:
    """What texts must have that contain `text`, in any case; None when it is too short to tell."""
    numbers = numbers_of(text)
    return Grams(numbers) if numbers else None


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
    with store.open(file.path) as parquet:
        groups = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
        texts = read_columns(parquet, file.path, ["text"]).column("text")
    ends = _block_ends(texts, groups)
    slots = _filter_of(texts, ends, int(file.bytes * _LARGEST_SHARE))
    return side_files.write(_path(store.root, file), _encoded(slots, ends))


def missing(root: Path, snapshot: Snapshot) -> list[LiveFile]:
    """Rolled files of posts without a side file, newest first."""
    have = side_files.names(root / FOLDER)
    files = [file for file in snapshot.files(TABLE) if file.kind == "rolled" and f"{file.sha256}{_SUFFIX}" not in have]
    return sorted(files, key=lambda file: file.hour_us, reverse=True)


def sweep(root: Path, snapshot: Snapshot) -> int:
    """Remove side files of files that are not in the lake any more; returns how many. Call under the maintenance lock."""
    wanted = {f"{file.sha256}{_SUFFIX}" for file in snapshot.files(TABLE)}
    return side_files.remove(root / FOLDER, side_files.names(root / FOLDER) - wanted)


def parts(root: Path, files: Sequence[LiveFile], condition: Condition | None) -> list[Part]:
    """The files that can hold a match, in their order, with the rows that have to be read of each: never too few.

    Blocks for some ten microseconds per file when the side files are in memory, else for a few reads each.
    """
    if condition is None:
        return [Part(file, None) for file in files]
    folder = f"{root / FOLDER}{os.sep}"
    found = []
    for file in files:
        rows = _rows(f"{folder}{file.sha256}{_SUFFIX}", condition) if file.kind == "rolled" else None
        if rows != ():
            found.append(Part(file, rows))
    return found


def _path(root: Path, file: LiveFile) -> Path:
    return root / FOLDER / f"{file.sha256}{_SUFFIX}"


def _encoded(slots: npt.NDArray[np.uint8], ends: Sequence[int]) -> bytes:
    data = slots.tobytes()
    head = _HEADER + b"".join(number.to_bytes(4, "little") for number in (len(data), *ends))
    encoded = [head, zlib.crc32(head).to_bytes(_CRC_BYTES, "little")]
    for number in range(-(-len(data) // _PIECE)):
        piece = data[number * _PIECE : (number + 1) * _PIECE]
        encoded += [piece, zlib.crc32(piece, number).to_bytes(_CRC_BYTES, "little")]
    return b"".join(encoded)


def _rows(path: str, condition: Condition) -> Rows | None:
    """The rows that may match, as the side file says; None (all of them) without one that can be used."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        found = _Filter(descriptor)
        blocks = _holds(condition, found)
    except _DamagedError as error:
        log.warning(
            "a side file of the text index is damaged and not used: remove it, maintenance makes it anew",
            extra={"path": path, "cause": str(error)},
        )
        return None
    finally:
        os.close(descriptor)
    return _stretches(blocks, found.ends)


def _stretches(blocks: int, ends: Sequence[int]) -> Rows:
    stretches: list[tuple[int, int]] = []
    for block, (first, end) in enumerate(itertools.pairwise((0, *ends))):
        if not blocks >> block & 1:
            continue
        if stretches and stretches[-1][1] == first:
            first = stretches.pop()[0]
        stretches.append((first, end))
    return tuple(stretches)


class _DamagedError(Exception):
    """A side file is not what was written."""


class _Filter:
    """An open side file; every piece is checked when it is first looked into."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pieces: dict[int, bytes] = {}
        head = os.pread(descriptor, _HEADER_BYTES, 0)
        crc = int.from_bytes(head[-_CRC_BYTES:], "little")
        if len(head) < _HEADER_BYTES or head[:4] != _HEADER or zlib.crc32(head[:-_CRC_BYTES]) != crc:
            raise _DamagedError("its header is not as it was written")
        self._slots: int
        self.ends: list[int]
        self._slots, *self.ends = np.frombuffer(head[4:-_CRC_BYTES], "<u4").tolist()
        whole = _HEADER_BYTES + self._slots + _CRC_BYTES * -(-self._slots // _PIECE)
        if os.fstat(descriptor).st_size != whole:
            raise _DamagedError(f"it has {os.fstat(descriptor).st_size} bytes instead of {whole}")

    def blocks(self, number: int) -> int:
        """The blocks, as bits, that may have the gram with this number. Raises _DamagedError."""
        piece, place = divmod(number * self._slots >> 32, _PIECE)
        return (self._pieces.get(piece) or self._read(piece))[place]

    def _read(self, number: int) -> bytes:
        size = min(_PIECE, self._slots - number * _PIECE)
        found = os.pread(self._descriptor, size + _CRC_BYTES, _HEADER_BYTES + number * (_PIECE + _CRC_BYTES))
        piece = found[:size]
        if zlib.crc32(piece, number) != int.from_bytes(found[size:], "little"):
            raise _DamagedError(f"piece {number} is not as it was written")
        self._pieces[number] = piece
        return piece


def _holds(condition: Condition, found: _Filter) -> int:
    """The blocks, as bits, in which a text may meet the condition."""
    blocks = _EVERY_BLOCK
    match condition:
        case Grams(numbers):
            for number in numbers:
                blocks &= found.blocks(number)
                if not blocks:
                    break
        case AllOf(conditions):
            for part in conditions:
                blocks &= _holds(part, found)
                if not blocks:
                    break
        case AnyOf(conditions):
            blocks = 0
            for part in conditions:
                blocks |= _holds(part, found)
    return blocks


def _block_ends(texts: pa.ChunkedArray, groups: Sequence[int]) -> list[int]:
    """For each block the number of the row behind its last: mostly the pages of a file with row groups of so many rows, which
    readers can leave out; whole pages with about as many characters each where it has more of them."""
    characters = np.cumsum(np.asarray(pc.fill_null(pc.utf8_length(texts), 0)), dtype=np.int64)
    if not len(characters):
        return [0] * _BLOCKS
    step, first, pages = -(-len(texts) // _BLOCKS), 0, []
    for rows in groups:
        pages += [*range(first + step, first + rows, step), first + rows]
        first += rows
    edges = np.asarray(pages, np.int64)
    with_text = edges[np.diff(characters[edges - 1], prepend=0) > 0]
    if len(with_text) <= _BLOCKS:
        return [*with_text[:-1].tolist(), *[len(texts)] * (_BLOCKS + 1 - max(1, len(with_text)))]
    shares = characters[-1] * np.arange(1, _BLOCKS) / _BLOCKS
    wanted = np.searchsorted(characters, shares) + 1
    return [int(edges[np.argmin(np.abs(edges - end))]) for end in wanted] + [len(texts)]


def _filter_of(texts: pa.ChunkedArray, ends: Sequence[int], most_bytes: int) -> npt.NDArray[np.uint8]:
    """The slots of the grams of some texts in blocks, as many as the fill asks for but at most `most_bytes`."""
    size = 3 * _LEAST_SLOTS
    while size < min(_MOST_SLOTS, _SLOTS_PER_ROW * len(texts)):
        size *= 2
    slots = np.zeros(size, np.uint8)
    for block, (first, end) in enumerate(itertools.pairwise((0, *ends))):
        seen = np.zeros(size, np.bool_)
        for codes in codes_of(texts.slice(first, end - first)):
            for _, numbers in grams(codes):
                seen[numbers * np.uint64(size) >> np.uint64(32)] = True
        slots |= seen.view(np.uint8) << np.uint8(block)
    best = None
    for folded in _foldings(slots):
        if best is not None and not _sparse(folded):
            break
        if len(folded) <= max(most_bytes, _LEAST_SLOTS):
            best = folded
    assert best is not None
    return best


def _foldings(slots: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    """The filter in all its sizes, the largest first. A slot is a share of the hashes, so that neighbours make one of a smaller
    filter."""
    yield slots
    while len(slots) > 3 * _LEAST_SLOTS:
        half = _fold(slots, 2)
        yield half
        yield _fold(slots, 3)
        slots = half
    yield _fold(slots, 3)


def _fold(slots: npt.NDArray[np.uint8], neighbours: int) -> npt.NDArray[np.uint8]:
    folded: npt.NDArray[np.uint8] = np.bitwise_or.reduce(slots.reshape(-1, neighbours), axis=1)
    return folded


def _sparse(slots: npt.NDArray[np.uint8]) -> bool:
    return all(np.count_nonzero(slots & np.uint8(1 << block)) <= _FILL * len(slots) for block in range(_BLOCKS))

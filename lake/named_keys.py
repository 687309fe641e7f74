"""An index of what is liked, reposted and answered: which record keys the rows of a rolled file name, and how often.

Beside each rolled file of likes, reposts and posts lies `<lake>/.engagement-index/<sha256 of the file>.named`. How often a post
was named is then summed up from small files instead of read from every like; that gives an upper bound of its likes, for
whoever asks whether a post can have many of them at all. A file without a side file has to be read. Named by the digest of the
file it describes, a side file can be missing but never stale.

A key is the time of a TID in units of 1,024 microseconds (`units_of`): posts of one unit share a count, which stays an upper
bound. What is named by a text that is no TID is not counted, and neither is what was erased.

Format: b"PXN" + format number 1 (1 byte), number of hours, number of keys, bytes of the body, CRC-32 of the rest of the head;
then the rest of the head, for each hour in which named keys lie, in order: the hour since 1970, how many keys it and all before
it have, the largest count of one key, the sum of the counts; then the body and its CRC-32. The body is compressed with zstd:
for each key, in order, the difference to the one before in its hour (to the hour's begin for the first), then for each the
count; of all numbers the lowest bytes first, then the second ones and so on. Numbers are 4 bytes, little endian.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import zstandard

from lake import side_files
from lake.commit import TID_CLOCK_BITS
from lake.manifest import HOUR_US, LiveFile, Snapshot
from lake.store import LakeStore

FOLDER: Final = ".engagement-index"
NAMING: Final[Mapping[str, str]] = {
    "app.bsky.feed.like": "subject_rkey_tid",
    "app.bsky.feed.repost": "subject_rkey_tid",
    "app.bsky.feed.post": "reply_parent_rkey_tid",
}
"""Table → the column that names a record."""
_SUFFIX: Final = ".named"
_HEADER: Final = b"PXN\x01"
_NUMBER: Final = 4
_FIXED_BYTES: Final = 5 * _NUMBER
_PER_HOUR: Final = 4
_FIRST_READ: Final = 8 << 10
"""The whole head of most side files."""
_LEVEL: Final = 9
_UNIT_BITS: Final = 10 + TID_CLOCK_BITS
_FEW_KEYS: Final = 16
"""Of more keys, whose hours a file names, one is named there nearly always."""
HOUR_UNITS: Final = HOUR_US >> 10
"""Units of an hour: it is a whole number of them."""

log = logging.getLogger("explorer.lake")
Numbers = npt.NDArray[np.int64]
_Integer = TypeVar("_Integer", bound=np.integer[Any])


class DamagedError(Exception):
    """A side file is not what was written."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a side file says of its hours: `hours` (since 1970, in order), and for each where its keys end, the largest count of a
    key, and the sum of the counts."""

    hours: Numbers
    ends: Numbers
    most: Numbers
    names: Numbers


@dataclass(frozen=True, slots=True)
class Named:
    """All that a side file holds: `units` in order, each with its count."""

    head: Head
    units: Numbers
    counts: Numbers

    def of_hour(self, number: int) -> slice:
        """Where the keys of the hour with this number in the head lie."""
        return slice(int(self.head.ends[number - 1]) if number else 0, int(self.head.ends[number]))


def units_of(tids: Numbers) -> Numbers:
    """The keys of records by the numbers of their TIDs."""
    return tids >> _UNIT_BITS


def named_of(units: Numbers, counts: Numbers) -> Named:
    """Keys in order, each once, with their hours."""
    hours, first = np.unique(units // HOUR_UNITS, return_index=True)
    ends = np.append(first[1:], len(units))[: len(hours)]
    if not len(units):
        none = np.zeros(0, np.int64)
        return Named(Head(none, none, none, none), units, counts)
    return Named(Head(hours, ends, np.maximum.reduceat(counts, first), np.add.reduceat(counts, first)), units, counts)


def build(store: LakeStore, file: LiveFile) -> int:
    """Write the side file of one file, durably; returns its bytes.

    Blocks for reading one column: about 50 ms per million rows. Raises FileDamaged, OSError.
    """
    tids = store.read(file.path, [NAMING[file.table]]).column(0).drop_null()
    units, counts = np.unique(units_of(np.asarray(tids, np.int64)), return_counts=True)
    return write(store.root, f"{file.sha256}{_SUFFIX}", _encoded(named_of(units, counts)))


def missing(root: Path, snapshot: Snapshot) -> list[LiveFile]:
    """Rolled files without a side file, newest first."""
    have = names(root)
    files = [file for table in NAMING for file in snapshot.files(table) if file.kind == "rolled"]
    return sorted(
        (file for file in files if f"{file.sha256}{_SUFFIX}" not in have), key=lambda file: file.hour_us, reverse=True
    )


def sweep(root: Path, snapshot: Snapshot) -> int:
    """Remove side files of files that are not in the lake any more; returns how many. Call under the maintenance lock."""
    wanted = {f"{file.sha256}{_SUFFIX}" for table in NAMING for file in snapshot.files(table)}
    gone = {name for name in names(root) if name.endswith(_SUFFIX)} - wanted
    return side_files.remove(root / FOLDER, gone)


def head_of(root: Path, file: LiveFile) -> Head | None:
    """The hours of a file's named keys; None without a side file. Blocks for one read. Raises DamagedError."""
    path = path_of(root, file)
    return None if path is None else _open(path, body=False).head


def read(root: Path, file: LiveFile) -> Named | None:
    """The named keys of a file; None without a side file. Blocks for half a millisecond per 100,000 keys. Raises DamagedError."""
    path = path_of(root, file)
    return None if path is None else _open(path, body=True)


def may_name(root: Path, files: Iterable[LiveFile], tids: Numbers) -> list[LiveFile]:
    """The files that can name one of these record keys, in their order; never too few. Blocks for reading the side files that name
    the hours of the keys."""
    units = np.unique(units_of(tids))
    hours = np.unique(units // HOUR_UNITS)
    return [file for file in files if _may_name(root, file, units, hours)]


def among(values: npt.NDArray[_Integer], ordered: npt.NDArray[_Integer]) -> npt.NDArray[np.bool_]:
    """Which values are in an array that is in order: for a few of both, a fraction of what `np.isin` takes."""
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    found: npt.NDArray[np.bool_] = ordered[places] == values
    return found


def path_of(root: Path, file: LiveFile) -> Path | None:
    """Where the side file of a file lies if it has one."""
    path = root / FOLDER / f"{file.sha256}{_SUFFIX}"
    return path if file.kind == "rolled" and path.exists() else None


def names(root: Path) -> set[str]:
    """The names of all side files in the folder."""
    return side_files.names(root / FOLDER)


def write(root: Path, name: str, content: bytes) -> int:
    """Put a side file in place, durably; returns its bytes. Raises OSError."""
    return side_files.write(root / FOLDER / name, content)


def packed(content: bytes) -> bytes:
    """The body of a side file, with its CRC-32."""
    body = zstandard.ZstdCompressor(level=_LEVEL).compress(content)
    return body + zlib.crc32(body).to_bytes(_NUMBER, "little")


def unpacked(body: bytes, size: int) -> bytes:
    """The content of a body with its CRC-32, which has this many bytes. Raises DamagedError."""
    content = memoryview(body)[:-_NUMBER]
    if zlib.crc32(content) != int.from_bytes(body[-_NUMBER:], "little"):
        raise DamagedError("its body is not as it was written")
    found = zstandard.ZstdDecompressor().decompress(content, max_output_size=max(1, size))
    if len(found) != size:
        raise DamagedError(f"its body has {len(found)} bytes instead of {size}")
    return found


def _may_name(root: Path, file: LiveFile, units: Numbers, hours: Numbers) -> bool:
    try:
        head = head_of(root, file)
        if head is None:
            return True
        if not among(head.hours, hours).any():
            return False
        named = read(root, file) if len(units) <= _FEW_KEYS else None
    except DamagedError as error:
        log.warning(
            "a side file of the engagement index is damaged and not used: remove it, maintenance makes it anew",
            extra={"path": path_of(root, file), "cause": str(error)},
        )
        return True
    return named is None or bool(np.isin(units, named.units).any())


def _encoded(named: Named) -> bytes:
    head = named.head
    gaps = np.diff(named.units, prepend=0)
    starts = np.concatenate(([0], head.ends[:-1])) if len(head.ends) else head.ends
    gaps[starts] = named.units[starts] - head.hours * HOUR_UNITS
    numbers = np.stack([gaps.astype("<u4"), named.counts.astype("<u4")])
    # The bytes of one rank lie together: the lowest are noise, the others hardly change.
    body = packed(numbers.view(np.uint8).reshape(2, -1, _NUMBER).transpose(0, 2, 1).tobytes())
    rest = b"".join(column.astype("<u4").tobytes() for column in (head.hours, head.ends, head.most, head.names))
    sizes = (len(head.hours), len(named.units), len(body))
    fixed = _HEADER + b"".join(size.to_bytes(_NUMBER, "little") for size in sizes)
    return fixed + zlib.crc32(rest, zlib.crc32(fixed)).to_bytes(_NUMBER, "little") + rest + body


def _open(path: Path, *, body: bool) -> Named:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = os.pread(descriptor, _FIRST_READ, 0)
        if len(found) < _FIXED_BYTES or found[:_NUMBER] != _HEADER:
            raise DamagedError("it does not begin as such a file does")
        hours, keys, size, crc = np.frombuffer(found[_NUMBER:_FIXED_BYTES], "<u4").tolist()
        begin = _FIXED_BYTES + _NUMBER * _PER_HOUR * hours
        if begin + size != os.fstat(descriptor).st_size:
            raise DamagedError(f"it has {os.fstat(descriptor).st_size} bytes instead of {begin + size}")
        wanted = begin + size if body else begin
        if wanted > len(found):
            found += os.pread(descriptor, wanted - len(found), len(found))
    finally:
        os.close(descriptor)
    rest = found[_FIXED_BYTES:begin]
    if zlib.crc32(rest, zlib.crc32(found[: _FIXED_BYTES - _NUMBER])) != crc:
        raise DamagedError("its head is not as it was written")
    head = Head(*np.frombuffer(rest, "<u4").reshape(_PER_HOUR, hours).astype(np.int64))
    none = np.zeros(0, np.int64)
    if not body:
        return Named(head, none, none)
    planes = np.frombuffer(unpacked(found[begin : begin + size], 2 * _NUMBER * keys), np.uint8).reshape(
        2, _NUMBER, keys
    )
    gaps, counts = (np.ascontiguousarray(one.T).view("<u4").reshape(-1).astype(np.int64) for one in planes)
    return Named(head, _units(head, gaps), counts)


def _units(head: Head, gaps: Numbers) -> Numbers:
    """The keys again from the differences that begin anew with each hour."""
    sums = np.cumsum(gaps)
    starts = np.concatenate(([0], head.ends[:-1])) if len(head.ends) else head.ends
    before = sums[starts] - gaps[starts]
    units: Numbers = sums + np.repeat(head.hours * HOUR_UNITS - before, np.diff(head.ends, prepend=0))
    return units

"""How often each post of a rolled file was named at most, row by row: what finds the most liked posts of a month without counting.

Beside a rolled file of posts lies `<lake>/.engagement-index/<sha256 of the file>.bounds`: for each row how many likes, reposts
and replies name its key (in the sense of `lake.named_keys`) in the files that the side file covers. Whoever adds what the other
files say has an upper bound; it stays one when a covered file is replaced, for then it is counted twice. Maintenance makes a side
file anew when others have much about it.

Format: b"PXE" + format number 1 (1 byte), number of rows, of hours, of covered files, sum of all counts, bytes of the body, CRC-32
of the rest of the head, all of 4 bytes, little endian; then the rest of the head: the hours since 1970 in which the keys of the
posts lie (4 bytes each) and of each covered file the first 8 bytes of its digest, in order; then the body, compressed with zstd,
and its CRC-32: the likes of all rows, then the reposts, then the replies, of 2 bytes each. `UNKNOWN` there is a row whose key is
no TID, or one that was named that often or more.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lake import side_files
from lake.manifest import LiveFile, Snapshot
from lake.named_keys import (
    FOLDER,
    HOUR_UNITS,
    NAMING,
    DamagedError,
    Named,
    Numbers,
    names,
    packed,
    path_of,
    read,
    units_of,
    unpacked,
    write,
)
from lake.named_places import NONE_COVERED, Places, listed, slices, summed
from lake.store import LakeStore

log = logging.getLogger("explorer.lake")

POSTS: Final = "app.bsky.feed.post"
UNKNOWN: Final = 0xFFFF
_SUFFIX: Final = ".bounds"
_HEADER: Final = b"PXE\x01"
_NUMBER: Final = 4
_COUNT: Final = 2
_FIXED_BYTES: Final = 7 * _NUMBER
_KINDS: Final = tuple(NAMING)
_BATCH: Final = 24
"""Files of posts that share one pass over the side files of named keys."""
_STALE_SHARE, _STALE_LEAST = 16, 64
"""A side file is made anew when files that it does not cover name its hours more often than one time in so many, and so often."""


@dataclass(frozen=True, slots=True)
class BoundsHead:
    """What the counts of a side file are about: `hours` of the posts' keys, `covered` files (ids, in order), the sum of counts.
    `crc` tells it from that of another side file of the same posts."""

    rows: int
    hours: Numbers
    covered: npt.NDArray[np.uint64]
    names: int
    crc: int = 0


def read_head(root: Path, file: LiveFile) -> BoundsHead | None:
    """What a file's bounds are about; None without a usable side file. Blocks for one read."""
    found = _open(root, file)
    return None if found is None else found[0]


def read_bounds(root: Path, file: LiveFile, head: BoundsHead) -> list[npt.NDArray[np.uint16]] | None:
    """For each table of NAMING how often it names each row of a file in covered files, at most; None without a usable side file,
    or when it is another than the one that `head` is of.

    Blocks for half a millisecond per 100,000 rows.
    """
    found = _open(root, file)
    if found is None or found[0].crc != head.crc:
        return None
    try:
        body = unpacked(found[1], head.rows * len(_KINDS) * _COUNT)
    except DamagedError as error:
        _tell(root, file, str(error))
        return None
    return list(np.frombuffer(body, "<u2").reshape(len(_KINDS), head.rows))


def update(store: LakeStore, snapshot: Snapshot, go_on: Callable[[], bool]) -> tuple[int, bool]:
    """Make the side files that are missing or stale, newest first; returns how many, and whether that were all.

    Blocks for a pass over the side files of named keys per `_BATCH` files; `go_on` is asked before each. Raises FileDamaged,
    OSError.
    """
    root = store.root
    places = [Places(*listed(root, snapshot.files(table))[:2]) for table in _KINDS]
    posts = [file for file in snapshot.files(POSTS) if file.kind == "rolled"]
    stale = [file for file in posts if _is_stale(root, file, places)]
    stale.sort(key=lambda file: file.hour_us, reverse=True)
    made = 0
    for first in range(0, len(stale), _BATCH):
        if not go_on():
            return made, False
        some = stale[first : first + _BATCH]
        _build(store, some, places)
        made += len(some)
    return made, True


def sweep(root: Path, snapshot: Snapshot) -> int:
    """Remove side files of files that are not in the lake any more; returns how many. Call under the maintenance lock."""
    wanted = {f"{file.sha256}{_SUFFIX}" for file in snapshot.files(POSTS)}
    gone = {name for name in names(root) if name.endswith(_SUFFIX)} - wanted
    return side_files.remove(root / FOLDER, gone)


def keys_of(tids: pa.ChunkedArray) -> Numbers:
    """The keys of records by their TIDs; -1 where the record key is none."""
    # Shifting keeps the -1.
    return units_of(np.asarray(pc.fill_null(tids, -1), np.int64))


def hours_of(units: Numbers) -> Numbers:
    """The hours in which some keys lie."""
    return np.unique(units[units >= 0] // HOUR_UNITS)


def _is_stale(root: Path, file: LiveFile, places: Sequence[Places]) -> bool:
    head = read_head(root, file)
    if head is None:
        return True
    others = sum(kind.names(kind.naming(hour, head.covered)) for kind in places for hour in head.hours.tolist())
    return others > max(_STALE_LEAST, head.names // _STALE_SHARE)


def _build(store: LakeStore, files: Sequence[LiveFile], places: Sequence[Places]) -> None:
    keys = [keys_of(store.read(file.path, ["rkey_tid"]).column(0)) for file in files]
    hours = [hours_of(units).tolist() for units in keys]
    counts = [[np.zeros(len(units), np.int64) for _ in _KINDS] for units in keys]
    covered: list[set[int]] = [set() for _ in files]
    for kind, known in enumerate(places):
        wanted = {hour: known.naming(hour, NONE_COVERED) for some in hours for hour in some}
        found = slices(known, wanted, lambda file: _undamaged(store.root, file))
        for number, units in enumerate(keys):
            mine = [part for hour in hours[number] for part in found.get(hour, ())]
            counts[number][kind] = summed(mine, units)
            covered[number] |= {int(known.ids[part.file]) for part in mine}
    for number, file in enumerate(files):
        total = sum(int(one.sum()) for one in counts[number])
        for one in counts[number]:
            one[keys[number] < 0] = UNKNOWN
        ids = np.array(sorted(covered[number]), np.uint64)
        head = BoundsHead(len(keys[number]), np.array(hours[number], np.int64), ids, min(total, 2**32 - 1))
        write(store.root, f"{file.sha256}{_SUFFIX}", _encoded(head, counts[number]))


def _undamaged(root: Path, file: LiveFile | None) -> Named | None:
    """The named keys of a file; a side file that is not what was written goes, so that the next run makes it anew."""
    assert file is not None
    try:
        return read(root, file)
    except DamagedError as error:
        path = path_of(root, file)
        log.warning(
            "a side file of the engagement index is damaged and removed", extra={"path": path, "cause": str(error)}
        )
        if path is not None:
            path.unlink(missing_ok=True)
        return None


def _encoded(head: BoundsHead, counts: Sequence[Numbers]) -> bytes:
    body = packed(b"".join(np.minimum(one, UNKNOWN).astype("<u2").tobytes() for one in counts))
    rest = head.hours.astype("<u4").tobytes() + head.covered.astype("<u8").tobytes()
    numbers = (head.rows, len(head.hours), len(head.covered), head.names, len(body))
    fixed = _HEADER + b"".join(number.to_bytes(_NUMBER, "little") for number in numbers)
    return fixed + zlib.crc32(rest, zlib.crc32(fixed)).to_bytes(_NUMBER, "little") + rest + body


def _open(root: Path, file: LiveFile) -> tuple[BoundsHead, bytes] | None:
    if file.kind != "rolled":
        return None
    try:
        content = Path(f"{root / FOLDER}{os.sep}{file.sha256}{_SUFFIX}").read_bytes()
    except FileNotFoundError:
        return None
    if len(content) < _FIXED_BYTES or content[:_NUMBER] != _HEADER:
        _tell(root, file, "it does not begin as such a file does")
        return None
    rows, hours, covered, total, size, crc = np.frombuffer(content[_NUMBER:_FIXED_BYTES], "<u4").tolist()
    middle = _FIXED_BYTES + _NUMBER * hours
    begin = middle + 8 * covered
    rest = content[_FIXED_BYTES:begin]
    if len(content) != begin + size or zlib.crc32(rest, zlib.crc32(content[: _FIXED_BYTES - _NUMBER])) != crc:
        _tell(root, file, "its head is not as it was written")
        return None
    of_hours = np.frombuffer(content[_FIXED_BYTES:middle], "<u4").astype(np.int64)
    ids = np.frombuffer(content[middle:begin], "<u8").astype(np.uint64)
    return BoundsHead(rows, of_hours, ids, total, crc), content[begin:]


def _tell(root: Path, file: LiveFile, cause: str) -> None:
    log.warning(
        "a side file of the engagement index is damaged and not used: remove it, maintenance makes it anew",
        extra={"path": f"{root / FOLDER}{os.sep}{file.sha256}{_SUFFIX}", "cause": cause},
    )

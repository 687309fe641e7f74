"""Which hours the named keys of many files are about: where to look for how often the posts of one hour are named.

The heads of the side files of `lake.named_keys`, taken together; keys and counts are read of those only that are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lake.manifest import LiveFile
from lake.named_keys import DamagedError, Head, Named, Numbers, among, head_of

NONE_COVERED: Final = np.zeros(0, np.uint64)


class Slice(NamedTuple):
    """Keys in order and their counts, from the file with this number."""

    file: int
    units: Numbers
    counts: Numbers


class Places:
    """Which hours some files name, of one kind: the heads of their named keys, hour by hour. None stands for files that have no
    side file, taken together."""

    def __init__(self, files: Sequence[LiveFile | None], heads: Sequence[Head]) -> None:
        sizes = [len(head.hours) for head in heads]
        none = np.zeros(0, np.int64)
        hours = np.concatenate([none, *(head.hours for head in heads)])
        order = np.argsort(hours, kind="stable")
        self.files = files
        self.ids = np.fromiter((0 if file is None else file_id(file) for file in files), np.uint64, count=len(files))
        self._hours = hours[order]
        self._file = np.repeat(np.arange(len(files)), sizes)[order]
        self._number = np.concatenate([none, *(np.arange(size) for size in sizes)])[order]
        self._most = np.concatenate([none, *(head.most for head in heads)])[order]
        self._names = np.concatenate([none, *(head.names for head in heads)])[order]

    def naming(self, hour: int, covered: npt.NDArray[np.uint64]) -> Numbers:
        """The places, for the other functions, of what names an hour in files that are not covered (ids, in order)."""
        first, end = np.searchsorted(self._hours, [hour, hour + 1])
        return np.arange(first, end)[~among(self.ids[self._file[first:end]], covered)]

    def most(self, places: Numbers) -> int:
        """How often one key can be named there at most."""
        return int(self._most[places].sum())

    def names(self, places: Numbers) -> int:
        """How often all keys are named there."""
        return int(self._names[places].sum())

    def parts(self, places: Numbers) -> list[tuple[int, int]]:
        """The number of the file, and of the hour in its head, of each place."""
        return list(zip(self._file[places].tolist(), self._number[places].tolist(), strict=True))


def file_id(file: LiveFile) -> int:
    """What side files call a file that they cover."""
    return int(file.sha256[:16], 16)


def listed(root: Path, files: Iterable[LiveFile]) -> tuple[list[LiveFile], list[Head], list[LiveFile]]:
    """The files whose named keys have a side file, what its head says, and the other files. Blocks for a read a file."""
    known, heads, others = [], [], []
    for file in files:
        try:
            head = head_of(root, file)
        except DamagedError:
            head = None
        if head is None:
            others.append(file)
        else:
            known.append(file)
            heads.append(head)
    return known, heads, others


def slices(
    known: Places, wanted: Mapping[int, Numbers], reader: Callable[[LiveFile | None], Named | None]
) -> dict[int, list[Slice]]:
    """The keys and counts at some places of each hour. `reader` gives the named keys of a file, or None to leave it out; it is
    asked once for each file."""
    asked: dict[int, list[tuple[int, int]]] = {}
    for hour, places in wanted.items():
        for file, part in known.parts(places):
            asked.setdefault(file, []).append((hour, part))
    found: dict[int, list[Slice]] = {}
    for file, parts in asked.items():
        named = reader(known.files[file])
        if named is None:
            continue
        for hour, part in parts:
            some = named.of_hour(part)
            # Copies, so that the rest of the file can go.
            found.setdefault(hour, []).append(Slice(file, named.units[some].copy(), named.counts[some].copy()))
    return found


def summed(parts: Sequence[Slice], wanted: Numbers) -> Numbers:
    """For each wanted key the sum of its counts in all parts."""
    if not parts:
        return np.zeros(len(wanted), np.int64)
    units = np.concatenate([part.units for part in parts])
    order = np.argsort(units, kind="stable")
    distinct, first = np.unique(units[order], return_index=True)
    counts = np.add.reduceat(np.concatenate([part.counts for part in parts])[order], first)
    place = np.minimum(np.searchsorted(distinct, wanted), len(distinct) - 1)
    return np.where(distinct[place] == wanted, counts[place], 0)

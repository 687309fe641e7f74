"""Copies that came late: rows which a host that is behind delivered, looked for when the prompt copy of the same event follows.

A prompt copy lies under the hour in which its event was made, a late one under any hour after that. Where the lake has no later
hour, as is so at live rate, there is nothing to look for. Else the late rows of the later files are kept by the hour in which they
were made, each file read once: two columns of it, and the identities of its late rows, which are few unless the host was behind.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lake.commit import LATE_US
from lake.lagging import made_columns, made_hours
from lake.manifest import HOUR_US, LiveFile, Snapshot
from lake.store import LakeStore

Hashes = npt.NDArray[np.uint64]

_NONE: Final = np.empty(0, np.uint64)


class LateCopies:
    """Identities of late rows. Not for use from several threads.

    identities: the hashes of rows of a table, for which `columns(table)` are read. max_rows: most hashes to keep (8 bytes each);
    the files asked about longest ago are forgotten, and read again on demand.
    """

    def __init__(
        self,
        store: LakeStore,
        identities: Callable[[str, pa.Table], Hashes],
        columns: Callable[[str], Iterable[str]],
        max_rows: int,
    ) -> None:
        self._store = store
        self._identities = identities
        self._columns = columns
        self._max_rows = max_rows
        self._files: OrderedDict[str, Mapping[int, Hashes]] = OrderedDict()
        self._rows = 0

    @property
    def rows(self) -> int:
        """Hashes in memory."""
        return self._rows

    def forget(self) -> None:
        """Drop everything."""
        self._files.clear()
        self._rows = 0

    def known(
        self, table: str, hour_us: int, hashes: Hashes, made: npt.NDArray[np.int64], files: Iterable[LiveFile]
    ) -> npt.NDArray[np.bool_]:
        """Which rows under `hour_us`, by their identities and the hours in which they were made, `files` of other hours have as
        late rows. Only rows made about then can be prompt.

        Blocks for reading files that were not asked about before. Raises FileDamaged.
        """
        found = np.zeros(len(hashes), np.bool_)
        prompt = made >= hour_us - HOUR_US
        if not prompt.any():
            return found
        hours = np.unique(made[prompt]).tolist()
        for file in files:
            late = self._late(table, file)
            for hour in hours:
                if len(there := late.get(hour, _NONE)):
                    found |= np.isin(hashes, there) & prompt
        while self._rows > self._max_rows and len(self._files) > 1:
            _, gone = self._files.popitem(last=False)
            self._rows -= sum(map(len, gone.values()))
        return found

    def _late(self, table: str, file: LiveFile) -> Mapping[int, Hashes]:
        """The late rows of a file, by the hour in which they were made."""
        late = self._files.get(file.path)
        if late is None:
            late = self._files[file.path] = self._read(table, file)
            self._rows += sum(map(len, late.values()))
        self._files.move_to_end(file.path)
        return late

    def _read(self, table: str, file: LiveFile) -> Mapping[int, Hashes]:
        made = made_hours(table, self._store.read(file.path, made_columns(table)))
        late = np.flatnonzero((made < file.hour_us - HOUR_US) & (made >= file.hour_us - LATE_US))
        if not len(late):
            return {}
        rows = self._store.read(file.path, list(self._columns(table)))
        hashes = self._identities(table, rows.take(pa.array(late)))
        made = made[late]
        return {hour: np.sort(hashes[made == hour]) for hour in np.unique(made).tolist()}


def later_files(snapshot: Snapshot, table: str, hour_us: int) -> list[LiveFile]:
    """The files under which late copies of rows of an hour may lie that are not compared with it in any case."""
    return snapshot.files(table, hour_us + 2 * HOUR_US, hour_us + LATE_US + HOUR_US)

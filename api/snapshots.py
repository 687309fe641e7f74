"""Which version of the lake an answer is about, which files it reads, and what is known to be missing from them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from api.citations import AsOf, Citations
from api.sql import Bound, any_of
from api.times import format_time
from lake.errors import SnapshotExpired
from lake.manifest import Gap, LiveFile, Manifest, Snapshot
from lake.text_index import Rows
from schemas.topics import TABLE_TOPICS

_END_OF_TIME_US: Final = 253_402_300_799_999_999
MOST_FILES: Final = 96
"""Files of a step of a walk, whole hours apart: those of which some rows are read are branches of one statement."""
BACKFILLED: Final = "backfilled"
"""Reason of a gap that reports, beside the gap of the same stretch, that it was filled from an archive (topic bluesky.gap)."""


class SnapshotSource:
    """Gives snapshots of the manifest; thread-safe. Every call may block for the manifest's busy timeout."""

    def __init__(self, opener: Callable[[], Manifest], reuse_seconds: float, citations: Citations) -> None:
        """`opener` is called on first use, and again until it succeeds: the API may start before the writer."""
        self._opener = opener
        self._reuse_seconds = reuse_seconds
        self._citations = citations
        self._lock = threading.Lock()
        self._manifest: Manifest | None = None
        self._newest: tuple[float, Snapshot, AsOf] | None = None

    def newest(self) -> Snapshot:
        """The newest version, at most `reuse_seconds` old. Raises ManifestUnavailable while there is no manifest."""
        return self._current()[0]

    def cited(self) -> tuple[Snapshot, AsOf]:
        """The newest version, for an answer that names it, and the same as a later `as_of` will find it."""
        snapshot, named = self._current()
        self._citations.add(named)
        return snapshot, named

    def as_of(self, version: int) -> AsOf:
        """An older version to ask about. Raises SnapshotExpired when it never was, or is not known any more: no answer named
        it, and the manifest has thinned it out."""
        with self._lock:
            manifest = self._open()
        known = manifest.version_info(version)
        found = self._citations.find(version)
        # A manifest that was made anew counts its versions anew.
        if found is not None and (known is None or known.created_us == found.created_us):
            return found
        newest = self.newest().version
        if known is None and version > newest:
            raise SnapshotExpired(
                f"There is no version {version}; the newest is {newest}.", "Use the version that an answer named."
            )
        positions = manifest.positions(version)
        return AsOf(version, known.created_us if known is not None else 0, positions)

    def names(self, path: str) -> bool:
        """Whether the newest version has a file of this path (of the manifest: relative to the lake)."""
        with self._lock:
            manifest = self._open()
        return manifest.file(path) is not None

    def close(self) -> None:
        """Close the manifest; later calls open it again."""
        with self._lock:
            if self._manifest is not None:
                self._manifest.close()
            self._manifest = self._newest = None
        self._citations.close()

    def _current(self) -> tuple[Snapshot, AsOf]:
        with self._lock:
            now = time.monotonic()
            if self._newest is None or now - self._newest[0] > self._reuse_seconds:
                self._newest = (now, *_with_positions(self._open()))
            return self._newest[1:]

    def _open(self) -> Manifest:
        if self._manifest is None:
            self._manifest = self._opener()
        return self._manifest


def _with_positions(manifest: Manifest) -> tuple[Snapshot, AsOf]:
    """The newest version and where it ends, read without the history of positions."""
    while True:
        snapshot = manifest.snapshot()
        offsets = manifest.offsets()
        if manifest.snapshot().version == snapshot.version:
            positions = {partition: position.next_offset for partition, position in offsets.items()}
            return snapshot, AsOf(snapshot.version, snapshot.created_us, positions)


@dataclass(frozen=True)
class Scan:
    """The files of one table that a query has to read, in the order of their hours.

    `snapshot` is the newest one: what ended since `as_of` (None = now) is left out of every answer. `stretches`: by path, the
    rows of a file that can hold a match, where it is known; a reader may read the others too. `counts`: by path, how many rows of
    a file can match at most, where the index of accounts knows; None when nobody asked it. `accounts`: whose rows (DIDs) were
    counted; others do not match.
    """

    snapshot: Snapshot
    table: str
    files: tuple[LiveFile, ...]
    as_of: AsOf | None = None
    stretches: Mapping[str, Rows] = field(default_factory=dict)
    counts: Mapping[str, int] | None = None
    accounts: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows in those files, an upper bound of what matches."""
        return sum(file.rows for file in self.files)

    def rows_to_read(self, file: LiveFile) -> int:
        """Rows of one of the files that can match."""
        stretches = self.stretches.get(file.path)
        return file.rows if stretches is None else sum(end - first for first, end in stretches)

    @property
    def bytes(self) -> int:
        """Compressed bytes of those files, an upper bound of what is read."""
        return sum(file.bytes for file in self.files)

    def steps(
        self,
        *,
        newest_first: bool,
        first_rows: int,
        largest_rows: int,
        rows_of: Callable[[LiveFile], int] | None = None,
    ) -> list[tuple[LiveFile, ...]]:
        """The files in steps of whole hours along the walk; each has about twice the rows of the one before (`rows_of` a file;
        None: those to read), and no further hour once it has MOST_FILES."""
        counted = rows_of or self.rows_to_read
        hours: dict[int, list[LiveFile]] = {}
        for file in self.files:
            hours.setdefault(file.hour_us, []).append(file)
        steps: list[tuple[LiveFile, ...]] = []
        step: list[LiveFile] = []
        rows, target = 0, first_rows
        for hour in sorted(hours, reverse=newest_first):
            step += hours[hour]
            rows += sum(counted(file) for file in hours[hour])
            if rows >= target or len(step) >= MOST_FILES:
                steps.append(tuple(step))
                step, rows, target = [], 0, min(target * 2, largest_rows)
        if step:
            steps.append(tuple(step))
        return steps


def scan(snapshot: Snapshot, table: str, start_us: int | None, end_us: int | None, as_of: AsOf | None = None) -> Scan:
    """Plan the files for a range of arrival time. Raises SnapshotExpired."""
    found = snapshot.files(table, start_us, end_us)
    kept = [
        file
        for file in found
        if (end_us is None or file.min_time_us < end_us) and (start_us is None or file.max_time_us >= start_us)
    ]
    return Scan(snapshot, table, tuple(kept), as_of)


def as_of_predicate(as_of: AsOf, table: str, bound: Bound) -> str:
    """That a row of `table` was visible in the older version."""
    topic = TABLE_TOPICS[table]
    parts = [
        f"kafka_partition = {bound.bind(partition)} AND kafka_offset < {bound.bind(offset)}"
        for (name, partition), offset in sorted(as_of.positions.items())
        if name == topic
    ]
    return any_of(parts)


def _stretch(gap: Gap) -> tuple[object, ...]:
    """What a gap and the report of its filling have in common."""
    return gap.source_host, gap.start_us, gap.end_us, gap.first_seq, gap.last_seq


def snapshot_json(snapshot: Snapshot, as_of: AsOf | None = None) -> dict[str, Any]:
    """How an answer names its snapshot: the version it is about, and the version whose deletions it honours."""
    about = as_of or snapshot
    return {"version": about.version, "created": format_time(about.created_us), "current_version": snapshot.version}


def coverage_json(
    snapshot: Snapshot, tables: Sequence[str], start_us: int | None, end_us: int | None
) -> dict[str, Any]:
    """What the archive has of a range: first and newest event of the tables, and the gaps that overlap the range."""
    totals = [snapshot.totals(table) for table in tables]
    oldest = min((t.min_time_us for t in totals if t.min_time_us is not None), default=None)
    newest = max((t.max_time_us for t in totals if t.max_time_us is not None), default=None)
    gaps = snapshot.gaps(start_us if start_us is not None else 0, end_us if end_us is not None else _END_OF_TIME_US)
    # The report of a filling is about the same stretch as its gap, so that it overlaps the range too.
    filled = {_stretch(gap) for gap in gaps if gap.reason == BACKFILLED}
    return {
        "start": format_time(start_us) if start_us is not None else None,
        "end": format_time(end_us) if end_us is not None else None,
        "oldest_event": format_time(oldest) if oldest is not None else None,
        "newest_event": format_time(newest) if newest is not None else None,
        "lag_seconds": None if newest is None else round(max(0.0, time.time() - newest / 1e6), 3),
        "gaps": [
            {
                "start": format_time(gap.start_us) if gap.start_us is not None else None,
                "end": format_time(gap.end_us) if gap.end_us is not None else None,
                "source": gap.source_host,
                "reason": gap.reason,
                "filled": _stretch(gap) in filled,
            }
            for gap in gaps
            if gap.reason != BACKFILLED
        ],
    }

"""Replay-and-replace: hours of a table made anew from messages read again, swapped in as one version.

The caller (consumers) reads the offset ranges of a plan from the broker, decodes them with today's code and stages the rows here;
`replace` then builds every hour and swaps. Rows that came from other offsets than those read again are kept, so live ingest goes on
meanwhile; what was erased is erased again before a byte is visible.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lake.commit import spans_of, superseding_rows, witnessed_since
from lake.convert import ERASED, lake_schema
from lake.dedupe import Hashes, identity_columns, identity_hashes
from lake.dictionaries import joined
from lake.ended_keys import LATE_HORIZON_US, bury_late
from lake.errors import CommitRefused
from lake.file_batch import disk_errors
from lake.fold import blank, erasable, read_endings
from lake.lagging import earlier_homes, made_hours
from lake.late_copies import LateCopies, later_files
from lake.manifest import HOUR_US, HourCount, LiveFile, Manifest, NewFile, Snapshot, Swap
from lake.merge import Merge, merged_footer, row_groups
from lake.paths import sync_folder
from lake.replay_file import ReplayNote, begin, settle
from lake.roll import change_id
from lake.steps import CommitStep, Hook, no_hook
from lake.store import LakeStore
from schemas.topics import TABLE_TOPICS

_STAGING: Final = ".replay"
_LATE_ROWS: Final = 10_000_000
"""Identities of late rows that a replay keeps in memory: 80 MB."""


@dataclass(frozen=True, slots=True)
class Range:
    """Offsets `first` <= offset < `end` of one partition of the table's topic."""

    partition: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """What a replay of some hours has to read: all messages that gave the rows of these hours, up to the plan's version."""

    id: str
    table: str
    topic: str
    hours: tuple[int, ...]
    ranges: tuple[Range, ...]
    version: int


@dataclass(frozen=True, slots=True)
class HourChange:
    """What the replay of one hour finds: rows before and after, how many of them only the one or the other has."""

    hour_us: int
    before: int
    after: int
    added: int
    dropped: int
    erased: int


@dataclass(frozen=True, slots=True)
class Replaced:
    """version: None for a dry run."""

    version: int | None
    hours: tuple[HourChange, ...]


def plan_replay(manifest: Manifest, table: str, start_us: int, end_us: int) -> ReplayPlan:
    """The plan for all hours that overlap start_us <= t < end_us. An hour without files has no ranges: the caller adds some."""
    snapshot = manifest.snapshot()
    files = [file for file in snapshot.files(table) if file.hour_us + HOUR_US > start_us and file.hour_us < end_us]
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for file in files:
        for span in manifest.spans(file.path):
            first[span.partition] = min(span.first_offset, first.get(span.partition, span.first_offset))
            last[span.partition] = max(span.last_offset, last.get(span.partition, span.last_offset))
    hours = tuple(sorted({file.hour_us for file in files}))
    ranges = tuple(Range(partition, first[partition], last[partition] + 1) for partition in sorted(first))
    identity = change_id("replay", [table, *map(str, hours), *map(str, ranges)])
    return ReplayPlan(identity, table, TABLE_TOPICS[table], hours, ranges, snapshot.version)


class Staging:
    """Rows of a replay on their way, on disk so that an interrupted replay goes on; no reader sees them."""

    def __init__(self, store: LakeStore, plan: ReplayPlan) -> None:
        self.plan = plan
        self._folder = store.root / _STAGING / plan.id
        self._progress = self._folder / "progress.json"

    def positions(self) -> dict[int, int]:
        """The next offset to read of every partition of the plan."""
        found = {part.partition: part.first for part in self.plan.ranges}
        if self._progress.exists():
            found |= {
                int(partition): after for partition, after in json.loads(self._progress.read_text())["next"].items()
            }
        return found

    def add(self, rows: pa.Table, positions: Mapping[int, int]) -> None:
        """Stages lake rows and remembers how far reading went. Rows of hours that are not in the plan are left out.

        Raises DiskFull; then nothing of these rows counts as read.
        """
        with disk_errors(self._folder):
            self._add(rows, positions)

    def _add(self, rows: pa.Table, positions: Mapping[int, int]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # A name of its own: two pieces may reach the same offsets in different partitions.
        name = uuid.uuid4().hex
        times = np.asarray(rows.column("time").cast(pa.int64()))
        hours = times - times % HOUR_US
        for hour in np.unique(hours).tolist():
            if hour in self.plan.hours:
                piece = io.BytesIO()
                pq.write_table(rows.filter(pa.array(hours == hour)), piece, compression="zstd", compression_level=1)
                self._place(f"{hour}-{name}.parquet", piece.getvalue())
        # What a crash leaves before this line is staged a second time, and told by its offsets.
        reached = {str(partition): after for partition, after in (self.positions() | dict(positions)).items()}
        self._place(self._progress.name, json.dumps({"next": reached}).encode())
        sync_folder(self._folder)

    def _place(self, name: str, content: bytes) -> None:
        """Writes a file whole or not at all."""
        temporary = self._folder / f"{name}.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._folder / name)
        finally:
            temporary.unlink(missing_ok=True)

    def rows(self, hour_us: int, schema: pa.Schema) -> pa.Table:
        """The staged rows of an hour, each message once."""
        files = sorted(self._folder.glob(f"{hour_us}-*.parquet"))
        rows = pa.concat_tables([schema.empty_table(), *(pq.read_table(file).cast(schema) for file in files)])
        return _distinct(rows)

    def discard(self) -> None:
        """Removes everything staged."""
        shutil.rmtree(self._folder, ignore_errors=True)


def replace(
    store: LakeStore,
    manifest: Manifest,
    staging: Staging,
    *,
    dead_letters: Mapping[int, int] | None = None,
    dry_run: bool = False,
    keep_edits: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    hook: Hook = no_hook,
) -> Replaced:
    """Builds every hour of the plan from the staged rows and swaps all of them in as one version.

    Call under the maintenance lock, when everything of the plan's ranges is staged. dead_letters: by hour, how many more
    messages ended as dead letters than the first time (may be negative). Raises CommitRefused (files changed meanwhile: call
    again), DiskFull (when there is room call again), FileDamaged, ManifestUnavailable.
    """
    plan = staging.plan
    behind = [part for part in plan.ranges if staging.positions()[part.partition] < part.end]
    if behind:
        raise CommitRefused(f"The replay of {plan.table} has not read {behind[0]} to its end.", "Go on reading.")
    snapshot = manifest.snapshot()
    replaced = {hour: snapshot.files(plan.table, hour, hour + HOUR_US) for hour in plan.hours}
    retired = {file.path: file.sha256 for inputs in replaced.values() for file in inputs}
    swap_id = change_id("replay", [plan.id, *retired])
    files: list[NewFile] = []
    counts: list[HourCount] = []
    changes: list[HourChange] = []
    known = _Known(store, snapshot, plan)
    for number, (hour_us, inputs) in enumerate(replaced.items()):
        build = _build_hour(store, snapshot, staging, hour_us, inputs, known, keep_edits)
        changes.append(build.change)
        if not dry_run:
            if build.rows.num_rows:
                files.append(_write_hour(store, plan, swap_id, hour_us, inputs, build.rows, hook))
            more_dead = (dead_letters or {}).get(hour_us, 0)
            more_rows = build.change.after - build.change.before
            counts.append(HourCount(plan.topic, hour_us, 0, -more_rows - more_dead, more_rows, more_dead))
        progress(number + 1, len(plan.hours))
    if dry_run:
        return Replaced(None, tuple(changes))
    begin(store, ReplayNote(swap_id, plan.table, retired, [file.path for file in files]))
    hook(CommitStep.SWAP_FILES_DURABLE)
    version = manifest.swap(Swap(swap_id, tuple(retired), tuple(files), "replay", counts=tuple(counts)))
    hook(CommitStep.SWAP_COMMITTED)
    settle(store, manifest)
    return Replaced(version, tuple(changes))


class _Known:
    """Identities of the hours that this replay built already and of those that it leaves alone: their repeats are dropped."""

    def __init__(self, store: LakeStore, snapshot: Snapshot, plan: ReplayPlan) -> None:
        self._store = store
        self._snapshot = snapshot
        self._plan = plan
        self._hours: dict[int, Hashes] = {}
        self._late = LateCopies(store, identity_hashes, identity_columns, _LATE_ROWS)

    def fresh(self, hour_us: int, rows: pa.Table) -> pa.Table:
        table = self._plan.table
        hashes = identity_hashes(table, rows)
        _, first = np.unique(hashes, return_index=True)
        keep = np.zeros(len(hashes), np.bool_)
        keep[first] = True
        for near in (hour_us - HOUR_US, hour_us + HOUR_US):
            keep &= ~np.isin(hashes, self._hashes(near))
        made = made_hours(table, rows)
        for home, places in earlier_homes(hour_us, made):
            keep[places] &= ~np.isin(hashes[places], self._hashes(home))
        # Hours of the plan are built later, and their late rows compared with this one.
        later = [file for file in later_files(self._snapshot, table, hour_us) if file.hour_us not in self._plan.hours]
        keep &= ~self._late.known(table, hour_us, hashes, made, later)
        self._hours[hour_us] = hashes[keep]
        return rows.filter(pa.array(keep))

    def _hashes(self, hour_us: int) -> Hashes:
        """Of an hour of the plan nothing before it was built."""
        if hour_us not in self._hours and hour_us not in self._plan.hours:
            table = self._plan.table
            files = self._snapshot.files(table, hour_us, hour_us + HOUR_US)
            columns = list(identity_columns(table))
            parts = [identity_hashes(table, self._store.read(file.path, columns)) for file in files]
            self._hours[hour_us] = np.concatenate([np.empty(0, np.uint64), *parts])
        return self._hours.get(hour_us, np.empty(0, np.uint64))


@dataclass(frozen=True, slots=True)
class _Build:
    rows: pa.Table
    change: HourChange


def _build_hour(
    store: LakeStore,
    snapshot: Snapshot,
    staging: Staging,
    hour_us: int,
    inputs: Sequence[LiveFile],
    known: _Known,
    keep_edits: bool,
) -> _Build:
    table = staging.plan.table
    before = pa.concat_tables([lake_schema(table).empty_table(), *(store.read(file.path) for file in inputs)])
    other = before.filter(pa.array(~_in_ranges(before, staging.plan.ranges)))
    # Rows read before come first: where a message was repeated, the copy that readers saw stays.
    staged = bury_late(store, snapshot, table, staging.rows(hour_us, before.schema), LATE_HORIZON_US)
    rows = known.fresh(hour_us, pa.concat_tables([other, staged]))
    erased = 0
    if rows.num_rows:
        endings = read_endings(store, snapshot, table, _since(rows, inputs))
        reasons = erasable(table, rows, endings, keep_edits=keep_edits)
        rows = blank(table, rows, reasons)
        erased = rows.num_rows - rows.column(ERASED).null_count
    old, new = identity_hashes(table, before), identity_hashes(table, rows)
    change = HourChange(
        hour_us,
        before.num_rows,
        rows.num_rows,
        int((~np.isin(new, old)).sum()),
        int((~np.isin(old, new)).sum()),
        erased,
    )
    return _Build(rows, change)


def _write_hour(
    store: LakeStore,
    plan: ReplayPlan,
    swap_id: str,
    hour_us: int,
    inputs: Sequence[LiveFile],
    rows: pa.Table,
    hook: Hook,
) -> NewFile:
    paths = [file.path for file in inputs]
    since = _since(rows, inputs)
    name = change_id("replay", [plan.id, *paths])
    with store.writer(plan.table, hour_us, name, kind="rolled", rows=rows.num_rows, hook=hook) as writer:
        for piece in row_groups(joined(plan.table, [rows]), Merge(plan.table, hour_us)):
            writer.write(piece)
        writer.footer.update(merged_footer(paths, [store.footer(path) for path in paths]), since_us=since)
        # The hours of one replay hold together: a rebuild has to tell one that was never swapped in.
        writer.footer.update(replay=plan.id, swap=swap_id, inputs=paths)
    written = writer.result()
    return NewFile(
        written.path,
        plan.table,
        hour_us,
        written.rows,
        written.bytes,
        written.min_time_us,
        written.max_time_us,
        written.sha256,
        "rolled",
        superseding_rows(plan.table, rows),
        spans_of(plan.topic, rows),
        # A replay may have found deletions that nobody applied yet.
        True,
        written.erased,
        since,
    )


def _since(rows: pa.Table, inputs: Sequence[LiveFile]) -> int:
    return min([witnessed_since(rows), *(file.since_us for file in inputs)])


def _in_ranges(rows: pa.Table, ranges: Sequence[Range]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    partition, offset = (np.asarray(rows.column(name)) for name in ("kafka_partition", "kafka_offset"))
    inside = np.zeros(rows.num_rows, np.bool_)
    for part in ranges:
        inside |= (partition == part.partition) & (offset >= part.first) & (offset < part.end)
    return inside


def _distinct(rows: pa.Table) -> pa.Table:
    order = pc.sort_indices(rows, sort_keys=[("kafka_partition", "ascending"), ("kafka_offset", "ascending")])
    rows = rows.take(order)
    partition, offset = (np.asarray(rows.column(name)) for name in ("kafka_partition", "kafka_offset"))
    first = np.ones(rows.num_rows, np.bool_)
    first[1:] = (partition[1:] != partition[:-1]) | (offset[1:] != offset[:-1])
    return rows.filter(pa.array(first))


def staged_replays(store: LakeStore) -> Iterator[Path]:
    """Folders of replays that were begun and neither finished nor discarded."""
    folder = store.root / _STAGING
    if folder.is_dir():
        yield from sorted(folder.iterdir())

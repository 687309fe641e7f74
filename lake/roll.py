"""Rolling: the small files of a topic-hour become one sorted file, in one version that readers see or do not see.

Memory is bounded by `max_rows`: an hour with more rows is sorted in several passes, each over one range of time.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake.commit import superseding_mask
from lake.convert import lake_schema
from lake.dictionaries import compacted, joined, taken
from lake.fold import Endings, blank, erasable, may_have_ended, read_endings
from lake.layout import row_group_rows, sort_keys, with_sort_columns
from lake.manifest import HOUR_US, FileKind, LiveFile, Manifest, NewFile, Snapshot, Swap, coalesce_spans
from lake.steps import CommitStep, Hook, no_hook
from lake.store import LakeStore

MAX_ROWS: Final = 1_500_000
"""Rows held in memory at once by default: about 600 MB of likes, with what sorting and writing take."""

_MIN_APART: Final = 10_000
_MOST_APART: Final = 0.05
"""Ending rows get a row group of their own if they are many but few beside the others: a row group repeats dictionaries."""


@dataclass(frozen=True, slots=True)
class Rolled:
    """What one roll did; `file` is None when there was nothing to merge."""

    version: int
    file: NewFile | None
    merged: int
    rows: int


def hours_to_roll(snapshot: Snapshot, closed_before_us: int) -> list[tuple[str, int]]:
    """(table, hour) pairs with small files in hours that start before `closed_before_us`, oldest first.

    The caller chooses the time: the end of an hour plus the lateness it expects. A file that arrives later makes the hour
    appear here again.
    """
    found = set()
    for table in snapshot.tables():
        for file in snapshot.files(table, None, closed_before_us):
            if file.kind == "small" and file.hour_us < closed_before_us:
                found.add((file.hour_us, table))
    return [(table, hour) for hour, table in sorted(found)]


def crowded_hours(snapshot: Snapshot, most_small_files: int) -> list[tuple[str, int]]:
    """(table, hour) pairs with more small files than that: they are worth merging while their hour is open."""
    counts: dict[tuple[int, str], int] = {}
    for table in snapshot.tables():
        for file in snapshot.files(table):
            if file.kind == "small":
                counts[file.hour_us, table] = counts.get((file.hour_us, table), 0) + 1
    return [(table, hour) for (hour, table), count in sorted(counts.items()) if count > most_small_files]


def roll_hour(
    store: LakeStore,
    manifest: Manifest,
    table: str,
    hour_us: int,
    *,
    kind: FileKind = "rolled",
    max_rows: int = MAX_ROWS,
    keep_edits: bool = False,
    hook: Hook = no_hook,
) -> Rolled:
    """Merges the files of a table's hour into one; with kind "small" only its small files, for an hour still open.

    A merge to "rolled" also erases what other rows, in any file, have ended. Call under the maintenance lock. Blocks for the
    whole merge. Raises CommitRefused (the files changed meanwhile: plan again), FileDamaged (a file is torn: nothing
    changed), DiskFull, ManifestUnavailable. keep_edits: the setting that keeps replaced versions.
    """
    snapshot = manifest.snapshot()
    inputs = snapshot.files(table, hour_us, hour_us + HOUR_US)
    if kind == "small":
        inputs = [file for file in inputs if file.kind == "small"]
    if not inputs or (len(inputs) == 1 and inputs[0].kind == kind):
        return Rolled(snapshot.version, None, 0, 0)
    endings = None
    if kind == "rolled":
        endings = read_endings(store, snapshot, table, min(file.since_us for file in inputs))
    merge = Merge(table, hour_us, kind, endings, keep_edits, max_rows)
    swap_id = change_id("roll", [file.path for file in inputs])
    file = merge_files(store, manifest, inputs, merge, swap_id, hook)
    reason = "roll" if kind == "rolled" else "merge"
    version = manifest.swap(Swap(swap_id, tuple(f.path for f in inputs), (file,), reason))
    hook(CommitStep.SWAP_COMMITTED)
    return Rolled(version, file, len(inputs), file.rows)


@dataclass(frozen=True, slots=True)
class Merge:
    """How files become one: `endings` are applied to the rows (None = none); max_rows are held in memory at once;
    rewritten: for erasure, see `lake.layout.Compression`."""

    table: str
    hour_us: int
    kind: FileKind = "rolled"
    endings: Endings | None = None
    keep_edits: bool = False
    max_rows: int = MAX_ROWS
    rewritten: bool = False


def merge_files(
    store: LakeStore, manifest: Manifest, inputs: Sequence[LiveFile], merge: Merge, name: str, hook: Hook = no_hook
) -> NewFile:
    """Writes the rows of `inputs` as one durable sorted file, not yet visible; see `roll_hour` for errors."""
    spans = coalesce_spans([span for file in inputs for span in manifest.spans(file.path)])
    footers = [store.footer(file.path) for file in inputs]
    since = min(file.since_us for file in inputs)
    total = sum(file.rows for file in inputs)
    with store.writer(
        merge.table, merge.hour_us, name, kind=merge.kind, rows=total, rewritten=merge.rewritten, hook=hook
    ) as writer:
        for rows in sorted_rows(store, inputs, merge):
            writer.write(rows)
        writer.footer.update(merged_footer([file.path for file in inputs], footers), since_us=since)
    hook(CommitStep.SWAP_FILES_DURABLE)
    written = writer.result()
    return NewFile(
        written.path,
        merge.table,
        merge.hour_us,
        written.rows,
        written.bytes,
        written.min_time_us,
        written.max_time_us,
        written.sha256,
        merge.kind,
        sum(file.supersedes for file in inputs),
        spans,
        any(file.pending for file in inputs),
        written.erased,
        since,
    )


def sorted_rows(store: LakeStore, inputs: Sequence[LiveFile], merge: Merge) -> Iterator[pa.Table]:
    """All rows of `inputs`, ended ones emptied, in the table's sort order, a row group at a time."""
    for low, high in _time_ranges(store, inputs, merge.max_rows):
        parts = (_between(store.read_merging(file.path), low, high) for file in inputs)
        yield from row_groups(joined(merge.table, parts), merge)


def row_groups(rows: pa.Table, merge: Merge) -> Iterator[pa.Table]:
    """Sorted pieces of `rows` (of `merge_schema`), ended ones emptied.

    Many ending rows get a row group of their own, so that erasure and answers read little else.
    """
    table = merge.table
    order = pc.sort_indices(with_sort_columns(table, rows), sort_keys=sort_keys(table))
    gone, emptied = _ended(rows, merge)
    if emptied is not None:
        order = order.filter(pc.invert(gone.take(order)))
    ends = superseding_mask(table, rows).take(order)
    count = pc.sum(ends).as_py() or 0
    apart = _MIN_APART <= count <= rows.num_rows * _MOST_APART
    orders = [order.filter(pc.invert(ends)), order.filter(ends)] if apart else [order]
    del order, ends
    while orders:
        piece = taken(rows, orders.pop(0))
        if not orders:
            # Tombstones come last: their place among sorted rows would tell what they were. The input is not needed any more.
            rows = rows.schema.empty_table()
            if emptied is not None:
                piece = joined(table, [piece, emptied])
        step = row_group_rows("rolled")
        for start in range(0, piece.num_rows, step):
            yield piece if piece.num_rows <= step else compacted(piece.slice(start, step))


def _ended(rows: pa.Table, merge: Merge) -> tuple[pa.Array, pa.Table | None]:
    """Which rows have ended, and those rows without their content; None if there are none."""
    nothing = pa.array(np.zeros(rows.num_rows, np.bool_))
    if merge.endings is None or merge.endings.empty:
        return nothing, None
    suspects = np.flatnonzero(may_have_ended(rows, merge.endings))
    if not len(suspects):
        return nothing, None
    picked = rows.take(pa.array(suspects)).cast(lake_schema(merge.table))
    reasons = erasable(merge.table, picked, merge.endings, keep_edits=merge.keep_edits)
    found = reasons.is_not_null().to_numpy()
    if not found.any():
        return nothing, None
    gone = np.zeros(rows.num_rows, np.bool_)
    gone[suspects[found]] = True
    return pa.array(gone), blank(merge.table, picked.filter(pa.array(found)), reasons.drop_nulls())


def change_id(reason: str, paths: Iterable[str]) -> str:
    """The same for the same inputs, so that an interrupted change, done again, writes the same names."""
    digest = hashlib.sha256("\n".join(sorted(paths)).encode()).hexdigest()[:24]
    return f"{reason}-{digest}"


def merged_footer(paths: Sequence[str], footers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Footer facts of a file that replaces others: everything a rebuild could learn from those.

    replaces: the files it stands for, also those that its inputs stood for; advances: how far the topic had moved.
    """
    reached: dict[tuple[str, int], int] = {}
    replaces = set(paths)
    counts = np.zeros(4, np.int64)
    spans: dict[tuple[str, int], list[int]] = {}
    for footer in footers:
        replaces.update(footer.get("replaces", ()))
        for topic, partition, _, after in footer.get("advances", ()):
            reached[topic, partition] = max(after, reached.get((topic, partition), 0))
        for row in footer.get("counts", ()):
            counts += row
        for topic, partition, first, last, rows in footer.get("spans", ()):
            seen = spans.setdefault((topic, partition), [first, last, 0])
            seen[:] = [min(seen[0], first), max(seen[1], last), seen[2] + rows]
    return {
        "replaces": sorted(replaces),
        "advances": [[topic, partition, 0, after] for (topic, partition), after in sorted(reached.items())],
        "counts": [counts.tolist()],
        "spans": [[topic, partition, *seen] for (topic, partition), seen in sorted(spans.items())],
        "supersedes": sum(footer.get("supersedes", 0) for footer in footers),
    }


def _time_ranges(
    store: LakeStore, inputs: Sequence[LiveFile], max_rows: int
) -> Iterator[tuple[int | None, int | None]]:
    """Half-open ranges of event time with at most about `max_rows` rows each; None is an open end."""
    passes = -(-sum(file.rows for file in inputs) // max_rows)
    edges: list[int | None] = [None]
    if passes > 1:
        columns = [store.read(file.path, ["time"]).column("time").cast(pa.int64()) for file in inputs]
        times = np.sort(np.concatenate([np.asarray(column) for column in columns]))
        edges += sorted({int(times[len(times) * n // passes]) for n in range(1, passes)})
    return itertools.pairwise([*edges, None])


def _between(rows: pa.Table, low: int | None, high: int | None) -> pa.Table:
    if low is None and high is None:
        return rows
    times = np.asarray(rows.column("time").cast(pa.int64()))
    mask = np.ones(len(times), np.bool_)
    if low is not None:
        mask &= times >= low
    if high is not None:
        mask &= times < high
    return rows.filter(pa.array(mask))

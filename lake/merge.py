"""Several files of a table's hour as one: joined, ended rows emptied, sorted, written as numbers into dictionaries.

Memory is bounded by `Merge.max_rows`: more rows are sorted in several passes, each over one range of time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake.commit import superseding_mask
from lake.dictionaries import joined, taken
from lake.emptying import cut, find_ended
from lake.file_writer import Spliced
from lake.fold import Endings
from lake.layout import sort_keys, with_sort_columns
from lake.manifest import FileKind, LiveFile, Manifest, NewFile, coalesce_spans
from lake.steps import CommitStep, Hook, no_hook
from lake.store import LakeStore

MAX_ROWS: Final = 1_500_000
"""Rows held in memory at once by default: about 600 MB of likes, with what sorting and writing take."""

_MIN_APART: Final = 10_000
_MOST_APART: Final = 0.05
"""Ending rows get a row group of their own if they are many but few beside the others: a row group repeats dictionaries."""


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
    store: LakeStore,
    manifest: Manifest,
    inputs: Sequence[LiveFile],
    merge: Merge,
    name: str,
    hook: Hook = no_hook,
    content: Iterator[pa.Table] | Spliced | None = None,
) -> NewFile:
    """Writes the rows of `inputs` as one durable sorted file, not yet visible; see `lake.roll.roll_hour` for errors.

    content: those rows, if the caller has them ready.
    """
    spans = coalesce_spans([span for file in inputs for span in manifest.spans(file.path)])
    footers = [store.footer(file.path) for file in inputs]
    since = min(file.since_us for file in inputs)
    total = sum(file.rows for file in inputs)
    with store.writer(
        merge.table, merge.hour_us, name, kind=merge.kind, rows=total, rewritten=merge.rewritten, hook=hook
    ) as writer:
        if isinstance(content, Spliced):
            writer.splice(content)
        else:
            for rows in content or sorted_rows(store, inputs, merge):
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
        rows = joined(merge.table, (_between(store.read_merging(file.path), low, high) for file in inputs))
        yield from row_groups(rows, merge)


def row_groups(rows: pa.Table, merge: Merge) -> Iterator[pa.Table]:
    """Sorted pieces of `rows` (of `merge_schema`), ended ones emptied.

    Many ending rows get a row group of their own, so that erasure and answers read little else.
    """
    table = merge.table
    ended = find_ended(table, rows, merge.endings, keep_edits=merge.keep_edits)
    order = pc.sort_indices(with_sort_columns(table, rows), sort_keys=sort_keys(table))
    if ended is not None:
        kept = np.ones(rows.num_rows, np.bool_)
        kept[ended.places] = False
        order = order.filter(pa.array(kept).take(order))
    ends = superseding_mask(table, rows).take(order)
    count = pc.sum(ends).as_py() or 0
    apart = _MIN_APART <= count <= rows.num_rows * _MOST_APART
    orders = [order.filter(pc.invert(ends)), order.filter(ends)] if apart else [order]
    # Tombstones come last: their place among sorted rows would tell what they were.
    tombstones = None if ended is None else ended.emptied(table, rows)
    del order, ends
    while orders:
        piece = taken(rows, orders.pop(0))
        if not orders:
            rows = rows.schema.empty_table()
            if tombstones is not None:
                piece = joined(table, [piece, tombstones])
        yield from cut(table, piece)


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

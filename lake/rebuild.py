"""A lost manifest made again from the files: each names in its footer the commit it belongs to, or the files it replaced.

Gaps come back from `lake.gap_file`, and those of the source once more from their topic, which the writer reads from its start.
What the files cannot tell: the books of hours in which everything was a duplicate or a dead letter; offsets of the very last
messages if all of them were dropped (the writer reads those again and drops them again); the list of versions, so that as-of
questions about the time before have no answer. Whether a replay was swapped in is in `lake.replay_file`; one that a crash cut
between its swap and its note, with the manifest lost before anybody could settle it, is taken back and named.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake.commit import spans_of, superseding_rows, witnessed_since
from lake.convert import EDIT, ERASED
from lake.dedupe import Hashes, identity_columns, identity_hashes
from lake.errors import LakeError
from lake.found_files import (
    Found,
    reached,
    read_footers,
    without_incomplete,
    without_replaced,
    without_retired,
    without_unfinished_replays,
)
from lake.gap_file import load_gaps
from lake.manifest import HOUR_US, Advance, Commit, HourCount, Manifest, NewFile, TopicPartition
from lake.paths import parse_path, sha256_of
from lake.replay_file import load_replays
from lake.roll import change_id
from lake.store import LakeStore
from schemas.topics import TABLE_TOPICS


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was found. replaced: files left out because others stand for them; incomplete: files of a commit or a replay that
    never finished, as far as can be told; merged: files written anew because two held the same events; damaged: files that
    cannot be read; undecided: tables with a replay that was taken back though it may have been swapped in; gaps: how many were
    restored."""

    files: int
    rows: int
    positions: dict[TopicPartition, int]
    replaced: tuple[str, ...]
    incomplete: tuple[str, ...]
    merged: tuple[str, ...]
    damaged: tuple[str, ...]
    undecided: tuple[str, ...]
    gaps: int


def rebuild(store: LakeStore, manifest: Manifest) -> Rebuilt:
    """Fills an empty manifest from the files below `store`; no writer may run. Blocks while it reads every file.

    Raises LakeError if the manifest is not empty, or the list of gaps or of replays is damaged. A second run after a crash
    starts from an empty manifest again: nothing is visible before the one commit at the end.
    """
    if manifest.snapshot().version or manifest.offsets():
        raise LakeError(f"The manifest {manifest.url} is not empty.", "Move it away first, or name a new one.")
    gaps, notes = tuple(load_gaps(store)), load_replays(store)
    found, damaged = read_footers(store)
    kept, retired = without_retired(store, found, notes)
    kept, unfinished = without_unfinished_replays(kept, notes)
    kept, replaced = without_replaced(kept)
    kept, incomplete = without_incomplete(kept, retired)
    # How far the topics were read is known from retired files too: a replay may have put nothing in their place.
    positions = reached([*kept, *retired])
    files, counts, merged = _describe(store, kept)
    undecided = {note.table for note in notes if not note.committed and not set(unfinished).isdisjoint(note.files)}
    epochs = manifest.claim(positions, "rebuild")
    advances = tuple(
        Advance(key.topic, key.partition, 0, after, epochs[key].epoch) for key, after in sorted(positions.items())
    )
    manifest.commit(
        Commit(change_id("rebuild", [file.path for file in files]), advances, tuple(files), counts, gaps, "rebuild")
    )
    return Rebuilt(
        len(files),
        sum(file.rows for file in files),
        positions,
        tuple(sorted((*replaced, *(file.path for file in retired)))),
        tuple(sorted((*incomplete, *unfinished))),
        tuple(merged),
        tuple(damaged),
        tuple(sorted(undecided)),
        len(gaps),
    )


def _describe(store: LakeStore, kept: Sequence[Found]) -> tuple[list[NewFile], tuple[HourCount, ...], list[str]]:
    hours: dict[tuple[str, int], list[Found]] = defaultdict(list)
    for file in kept:
        hours[file.table, file.hour_us].append(file)
    files: list[NewFile] = []
    counts: list[HourCount] = []
    merged: list[str] = []
    before = _Identities("", 0, np.empty(0, np.uint64))
    for (table, hour_us), members in sorted(hours.items()):
        described = [_describe_file(store, file) for file in members]
        known = before.hashes if before.next_to(table, hour_us) else before.hashes[:0]
        hashes = _identities(store, table, [file.path for file in described])
        if len(np.unique(hashes)) < len(hashes) or np.isin(hashes, known).any() or _overlap(store, described):
            merged += [file.path for file in described]
            described = _merge_distinct(store, table, hour_us, members, known)
            hashes = _identities(store, table, [file.path for file in described])
        before = _Identities(table, hour_us, hashes)
        files += described
        topic, rows = TABLE_TOPICS[table], sum(file.rows for file in described)
        totals = np.sum([row for file in members for row in file.footer.get("counts", [])] or [[0, 0, 0, 0]], axis=0)
        duplicates, dead_letters = int(totals[1]), int(totals[3])
        counts.append(HourCount(topic, hour_us, rows + duplicates + dead_letters, duplicates, rows, dead_letters))
    return files, tuple(counts), merged


@dataclass(frozen=True, slots=True)
class _Identities:
    """Event identities of the hour described last: no event is in two neighbouring hours."""

    table: str
    hour_us: int
    hashes: Hashes

    def next_to(self, table: str, hour_us: int) -> bool:
        return self.table == table and self.hour_us == hour_us - HOUR_US


def _identities(store: LakeStore, table: str, paths: Sequence[str]) -> Hashes:
    columns = list(identity_columns(table))
    return np.concatenate([np.empty(0, np.uint64), *(identity_hashes(table, store.read(p, columns)) for p in paths)])


def _describe_file(store: LakeStore, file: Found) -> NewFile:
    rows = store.read(file.path)
    return _entry(store, file.path, file.table, file.hour_us, rows, sha256_of(store.absolute(file.path)))


def _entry(store: LakeStore, path: str, table: str, hour_us: int, rows: pa.Table, sha256: str) -> NewFile:
    limits = pc.min_max(rows.column("time").cast(pa.int64())).as_py()
    parsed = parse_path(path)
    assert parsed is not None
    return NewFile(
        path,
        table,
        hour_us,
        rows.num_rows,
        store.absolute(path).stat().st_size,
        limits["min"] or 0,
        limits["max"] or 0,
        sha256,
        parsed[2],
        superseding_rows(table, rows),
        spans_of(TABLE_TOPICS[table], rows),
        # Whether its deletions were applied everywhere is not known: they are applied again, which changes nothing.
        True,
        int(pc.sum(pc.not_equal(rows.column(ERASED), EDIT)).as_py() or 0),
        witnessed_since(rows) if rows.num_rows else None,
    )


def _overlap(store: LakeStore, files: Sequence[NewFile]) -> bool:
    """Whether two files hold the same message: a crash left one behind that a later commit repeated."""
    if len(files) < 2:
        return False
    keys = pa.concat_tables([store.read(file.path, ["kafka_partition", "kafka_offset"]) for file in files])
    return bool(keys.group_by(["kafka_partition", "kafka_offset"]).aggregate([]).num_rows < keys.num_rows)


def _merge_distinct(
    store: LakeStore, table: str, hour_us: int, members: Sequence[Found], known: Hashes
) -> list[NewFile]:
    """One file with every message and every event of `members` once, without those of `known`; an erased copy wins over one
    with content. No file when nothing is left."""
    rows = pa.concat_tables([store.read(file.path) for file in members])
    order = pc.sort_indices(
        rows.select(["kafka_partition", "kafka_offset"]).append_column(
            "alive", pc.cast(pc.is_null(rows.column(ERASED)), pa.int8())
        ),
        sort_keys=[("kafka_partition", "ascending"), ("kafka_offset", "ascending"), ("alive", "ascending")],
    )
    rows = rows.take(order)
    partition, offset = (np.asarray(rows.column(name)) for name in ("kafka_partition", "kafka_offset"))
    first = np.ones(rows.num_rows, np.bool_)
    first[1:] = (partition[1:] != partition[:-1]) | (offset[1:] != offset[:-1])
    rows = rows.filter(pa.array(first))
    alive = np.asarray(pc.is_null(rows.column(ERASED)))
    rows = rows.take(pa.array(np.argsort(alive, kind="stable")))
    hashes = identity_hashes(table, rows)
    keep = np.zeros(len(hashes), np.bool_)
    keep[np.unique(hashes, return_index=True)[1]] = True
    rows = rows.filter(pa.array(keep & ~np.isin(hashes, known)))
    if not rows.num_rows:
        return []
    replaces = sorted({atom for file in members for atom in file.atoms})
    footer = {
        "replaces": replaces,
        "advances": [[key.topic, key.partition, 0, after] for key, after in sorted(reached(members).items())],
    }
    name = change_id("rebuild", [file.path for file in members])
    written = store.write_table(rows, table, hour_us, name, kind="small", footer=footer)
    return [_entry(store, written.path, table, hour_us, rows, written.sha256)]

"""Erasure: the content of ended rows leaves every file; a tombstone with identity and time stays.

A pass takes all pending files (those whose deletions, updates, account deletions and syncs are not applied yet), looks
into every file that could hold a row they end, rewrites the files that do, and marks the pending ones as applied. It can be cut
short after any file and started again. Bytes are gone when the retired files are unlinked (`lake.retire.unlink_retired`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from lake.convert import ERASED, lake_schema
from lake.fold import ENDING_COLUMNS, Endings, erasable, may_have_ended, read_endings
from lake.manifest import LiveFile, Manifest, Snapshot, Swap
from lake.roll import MAX_ROWS, Merge, change_id, merge_files
from lake.steps import CommitStep, Hook, no_hook
from lake.store import LakeStore

_JUDGED: Final = [*ENDING_COLUMNS, "kind", ERASED]


@dataclass(frozen=True, slots=True)
class Erasure:
    """What a pass did. complete: everything pending was applied; otherwise call again.

    applied: pending files that are done with.
    """

    complete: bool
    looked_at: int
    rewritten: int
    rows: int
    applied: int


def erase(
    store: LakeStore,
    manifest: Manifest,
    *,
    keep_edits: bool = False,
    max_rows: int = MAX_ROWS,
    go_on: Callable[[], bool] = lambda: True,
    hook: Hook = no_hook,
) -> Erasure:
    """Erases what has ended; call under the maintenance lock, beside writers and readers.

    go_on is asked before each file and ends the pass when false (a deadline, a stop signal). Blocks for the rewriting.
    Raises FileDamaged, DiskFull, ManifestUnavailable; what was rewritten before stays so.
    """
    snapshot = manifest.snapshot()
    pending = [file for table in snapshot.tables() for file in snapshot.superseding(table) if file.pending]
    # Where each pending file is now: the pass may rewrite some of them.
    applied = {file.path: file.path for file in pending}
    looked_at = rewritten = rows = 0
    for file, endings in _candidates(store, snapshot, pending):
        if not go_on():
            return Erasure(False, looked_at, rewritten, rows, 0)
        looked_at += 1
        ended = ended_rows(store, file, endings, keep_edits=keep_edits)
        if ended:
            merge = Merge(file.table, file.hour_us, file.kind, endings, keep_edits, max_rows)
            path = _rewrite(store, manifest, file, merge, hook)
            if file.path in applied:
                applied[file.path] = path
            rewritten += 1
            rows += ended
    if pending:
        paths = tuple(sorted(applied.values()))
        manifest.swap(Swap(change_id("applied", paths), (), (), "erase", applied=paths))
    return Erasure(True, looked_at, rewritten, rows, len(pending))


def ended_rows(store: LakeStore, file: LiveFile, endings: Endings, *, keep_edits: bool = False) -> int:
    """How many rows of `file` would lose their content. Reads the record keys, and more only if one of them ended."""
    keys = ["rkey_tid", "rkey_text", "did"] if file.table not in ("identity", "sync") else ["did"]
    with store.open(file.path, ["rkey_text", "did"]) as parquet:
        suspects = np.flatnonzero(may_have_ended(parquet.read(keys, use_threads=False), endings))
        if not len(suspects):
            return 0
        rows = parquet.read([name for name in _JUDGED if name in parquet.schema_arrow.names], use_threads=False)
    picked = rows.take(pa.array(suspects))
    schema = lake_schema(file.table)
    plain = picked.cast(pa.schema([schema.field(name) for name in picked.column_names]))
    reasons = erasable(file.table, plain, endings, keep_edits=keep_edits)
    return len(reasons) - reasons.null_count()


def _candidates(store: LakeStore, snapshot: Snapshot, pending: list[LiveFile]) -> Iterator[tuple[LiveFile, Endings]]:
    """Files that pending rows can reach, newest first: recent content is asked for most."""
    with_endings = {file.table for file in pending}
    of_accounts = bool(with_endings & {"account", "sync"})
    for table in snapshot.tables():
        if table == "account" or not (of_accounts or table in with_endings):
            continue
        endings = read_endings(store, snapshot, table)
        if endings.empty:
            continue
        for file in reversed(snapshot.files(table)):
            if file.erased < file.rows:
                yield file, endings


def _rewrite(store: LakeStore, manifest: Manifest, file: LiveFile, merge: Merge, hook: Hook) -> str:
    swap_id = change_id("erase", [file.path])
    new = merge_files(store, manifest, [file], merge, swap_id, hook)
    manifest.swap(Swap(swap_id, (file.path,), (new,), "erase"))
    hook(CommitStep.SWAP_COMMITTED)
    return new.path

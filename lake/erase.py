"""Erasure: the content of ended rows leaves every file; a tombstone with identity and time stays.

A pass takes all pending files (those whose deletions, updates, account deletions and syncs are not applied yet), looks
into every file that could hold a row they end, rewrites the files that do, and marks the pending ones as applied. It can be cut
short after any file and started again. Bytes are gone when the retired files are unlinked (`lake.retire.unlink_retired`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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
    workers: int = 2,
    go_on: Callable[[], bool] = lambda: True,
    hook: Hook = no_hook,
) -> Erasure:
    """Erases what has ended; call under the maintenance lock, beside writers and readers.

    workers: files worked on at once, as long as they have at most `max_rows` rows together. go_on is asked before each
    file and ends the pass when false (a deadline, a stop signal). Blocks for the rewriting. Raises FileDamaged, DiskFull,
    ManifestUnavailable; what was rewritten before stays so.
    """
    snapshot = manifest.snapshot()
    pending = [file for table in snapshot.tables() for file in snapshot.superseding(table) if file.pending]
    work = _Pass(store, manifest, keep_edits, max_rows, hook)
    complete = True
    with ThreadPoolExecutor(workers, "erase") as pool:
        running: dict[Future[None], int] = {}
        for file, endings in _candidates(store, snapshot, pending):
            while running and (len(running) >= workers or sum(running.values()) + file.rows > max_rows):
                _finish(running, FIRST_COMPLETED)
            complete = go_on()
            if not complete:
                break
            running[pool.submit(work.look_into, file, endings)] = file.rows
        _finish(running, ALL_COMPLETED)
    # Where each pending file is now: the pass may have rewritten some of them.
    paths = tuple(sorted(work.moved.get(file.path, file.path) for file in pending))
    if complete and paths:
        manifest.swap(Swap(change_id("applied", paths), (), (), "erase", applied=paths))
    return Erasure(complete, work.looked_at, len(work.moved), work.rows, len(paths) if complete else 0)


def _finish(running: dict[Future[None], int], when: str) -> None:
    done, _ = wait(running, return_when=when)
    for future in done:
        del running[future]
        future.result()


class _Pass:
    """The work of one pass, file by file, in several threads; counts what was done."""

    def __init__(self, store: LakeStore, manifest: Manifest, keep_edits: bool, max_rows: int, hook: Hook) -> None:
        self._store = store
        self._manifest = manifest
        self._keep_edits = keep_edits
        self._max_rows = max_rows
        self._hook = hook
        self._lock = threading.Lock()
        self.looked_at = 0
        self.rows = 0
        self.moved: dict[str, str] = {}

    def look_into(self, file: LiveFile, endings: Endings) -> None:
        """Rewrites `file` if some of its rows ended."""
        ended = ended_rows(self._store, file, endings, keep_edits=self._keep_edits)
        if ended:
            merge = Merge(
                file.table, file.hour_us, file.kind, endings, self._keep_edits, self._max_rows, rewritten=True
            )
            swap_id = change_id("erase", [file.path])
            new = merge_files(self._store, self._manifest, [file], merge, swap_id, self._hook)
            self._manifest.swap(Swap(swap_id, (file.path,), (new,), "erase"))
            self._hook(CommitStep.SWAP_COMMITTED)
        with self._lock:
            self.looked_at += 1
            if ended:
                self.rows += ended
                self.moved[file.path] = new.path


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

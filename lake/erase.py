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

import pyarrow as pa

from lake.dictionaries import joined
from lake.fold import Endings, may_have_ended, read_endings
from lake.manifest import LiveFile, Manifest, NewFile, Snapshot, Swap
from lake.merge import MAX_ROWS, Merge, find_ended, merge_files, without_ended
from lake.roll import change_id
from lake.steps import CommitStep, Hook, no_hook
from lake.store import LakeStore


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
        merge = Merge(file.table, file.hour_us, file.kind, endings, self._keep_edits, self._max_rows, rewritten=True)
        ended, new = 0, None
        if _may_hold(self._store, file, endings):
            ended, new = self._rewrite(file, merge)
        with self._lock:
            self.looked_at += 1
            if new is not None:
                self.rows += ended
                self.moved[file.path] = new.path

    def _rewrite(self, file: LiveFile, merge: Merge) -> tuple[int, NewFile | None]:
        swap_id = change_id("erase", [file.path])
        pieces: Iterator[pa.Table] | None = None
        ended = 0
        if file.rows <= merge.max_rows:
            rows = joined(file.table, [self._store.read_merging(file.path)])
            found = find_ended(rows, merge)
            if found is None:
                return 0, None
            ended = len(found.places)
            if file.kind == "rolled":
                pieces = without_ended(rows, found, file.table)
        new = merge_files(self._store, self._manifest, [file], merge, swap_id, self._hook, pieces)
        ended = ended or new.erased - file.erased
        if not ended:
            self._store.unlink([new.path])
            return 0, None
        self._manifest.swap(Swap(swap_id, (file.path,), (new,), "erase"))
        self._hook(CommitStep.SWAP_COMMITTED)
        return ended, new


def _may_hold(store: LakeStore, file: LiveFile, endings: Endings) -> bool:
    """False only if no row of the file has the key or account of an ending. Reads nothing but these columns."""
    keys = ["did"] if file.table in ("identity", "sync") else ["rkey_tid", "rkey_text", "did"]
    with store.open(file.path, ["rkey_text", "did"]) as parquet:
        return bool(may_have_ended(parquet.read(keys, use_threads=False), endings).any())


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

"""Erasure: the content of ended rows leaves every file; a tombstone with identity and time stays.

A pass takes all pending files (those whose deletions, updates, account deletions and syncs are not applied yet), looks
into every file that could hold a row they end, rewrites the files that do, and marks the pending ones as applied. It can be
cut short after any file and goes on later with those it has not looked into. Bytes are gone when the retired files are
unlinked (`lake.retire.unlink_retired`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final

import polars as pl
import pyarrow as pa

from lake.account_index import AccountIndex
from lake.dictionaries import joined
from lake.emptying import together, without_ended
from lake.file_writer import Spliced
from lake.fold import Endings, read_endings
from lake.manifest import LiveFile, Manifest, NewFile, Snapshot, Swap
from lake.merge import MAX_ROWS, Merge, merge_files
from lake.roll import change_id
from lake.splice import find_in_groups, splice
from lake.steps import CommitStep, Hook, no_hook
from lake.store import LakeStore

_MOST_ASKED: Final = 200
"""Accounts that the account index is asked for, ten microseconds each; beyond, reading whose rows a file has is as quick."""


@dataclass(slots=True)
class Unfinished:
    """What a pass that was cut short has done, kept by the caller for the next call; a pass from the start is as good.

    pending: the files whose endings it applies; later ones wait for the next pass, or it would never end.
    looked_at: files that hold nothing more to erase for these. moved: old path → new one of the files it rewrote.
    """

    pending: frozenset[str] = frozenset()
    looked_at: set[str] = field(default_factory=set)
    moved: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Erasure:
    """What a call did. complete: everything that was pending at the start of the pass is applied; otherwise call again.

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
    unfinished: Unfinished | None = None,
    go_on: Callable[[], bool] = lambda: True,
    hook: Hook = no_hook,
) -> Erasure:
    """Erases what has ended; call under the maintenance lock, beside writers and readers.

    workers: files worked on at once, as long as they have at most `max_rows` rows together. unfinished: the same object each
    time lets a pass go on where go_on, asked before each file, ended it (a deadline, a stop signal). Blocks for the rewriting.
    Raises FileDamaged, DiskFull, ManifestUnavailable; what was rewritten before stays so.
    """
    snapshot = manifest.snapshot()
    progress = Unfinished() if unfinished is None else unfinished
    pending = [file for table in snapshot.tables() for file in snapshot.superseding(table) if file.pending]
    if not progress.pending:
        progress.pending = frozenset(file.path for file in pending)
    work = _Pass(store, manifest, keep_edits, max_rows, hook, progress)
    complete = True
    with ThreadPoolExecutor(workers, "erase") as pool:
        running: dict[Future[None], int] = {}
        for file, endings in _candidates(store, snapshot, pending, pool):
            if file.path in progress.looked_at:
                continue
            while running and (len(running) >= workers or sum(running.values()) + file.rows > max_rows):
                _finish(running, FIRST_COMPLETED)
            complete = go_on()
            if not complete:
                break
            running[pool.submit(work.look_into, file, endings)] = file.rows
        _finish(running, ALL_COMPLETED)
    if not complete:
        return Erasure(False, work.looked_at, work.rewritten, work.rows, 0)
    # Where each pending file is by now: the pass may have rewritten it. One that was rolled meanwhile is pending anew.
    paths = tuple(sorted(_newest(path, progress.moved) for path in progress.pending))
    if paths:
        manifest.swap(Swap(change_id("applied", paths), (), (), "erase", applied=paths))
    progress.pending = frozenset()
    progress.looked_at.clear()
    progress.moved.clear()
    return Erasure(True, work.looked_at, work.rewritten, work.rows, len(paths))


def _newest(path: str, moved: Mapping[str, str]) -> str:
    while path in moved:
        path = moved[path]
    return path


def _finish(running: dict[Future[None], int], when: str) -> None:
    done, _ = wait(running, return_when=when)
    for future in done:
        del running[future]
        future.result()


class _Pass:
    """The work of one pass, file by file, in several threads; counts what was done."""

    def __init__(
        self,
        store: LakeStore,
        manifest: Manifest,
        keep_edits: bool,
        max_rows: int,
        hook: Hook,
        progress: Unfinished,
    ) -> None:
        self._store = store
        self._accounts = AccountIndex(store.root)
        self._manifest = manifest
        self._keep_edits = keep_edits
        self._max_rows = max_rows
        self._hook = hook
        self._progress = progress
        self._lock = threading.Lock()
        self.looked_at = 0
        self.rewritten = 0
        self.rows = 0

    def look_into(self, file: LiveFile, endings: Endings) -> None:
        """Rewrites `file` if some of its rows ended."""
        merge = Merge(file.table, file.hour_us, file.kind, endings, self._keep_edits, self._max_rows, rewritten=True)
        ended, new = self._rewrite(file, merge, endings) if self._may_hold(file, endings) else (0, None)
        with self._lock:
            self.looked_at += 1
            self._progress.looked_at.add(file.path if new is None else new.path)
            if new is not None:
                self.rewritten += 1
                self.rows += ended
                self._progress.moved[file.path] = new.path

    def _may_hold(self, file: LiveFile, endings: Endings) -> bool:
        """False only if no account of the endings has a row in the file."""
        frames = (endings.records, endings.accounts, endings.syncs)
        if sum(frame.height for frame in frames) > _MOST_ASKED:
            return True
        accounts = pl.concat([frame["did"] for frame in frames]).unique().to_list()
        return bool(self._accounts.may_hold([file], accounts))

    def _rewrite(self, file: LiveFile, merge: Merge, endings: Endings) -> tuple[int, NewFile | None]:
        found = find_in_groups(self._store, file, endings, keep_edits=self._keep_edits)
        ended = together(found)
        if ended is None:
            return 0, None
        content: Spliced | Iterator[pa.Table] | None = None
        if file.kind == "rolled" and file.rows <= merge.max_rows:
            content = splice(self._store, file, found)
            if content is None:
                rows = joined(file.table, [self._store.read_merging(file.path)])
                content = without_ended(rows, ended, file.table)
        swap_id = change_id("erase", [file.path])
        new = merge_files(self._store, self._manifest, [file], merge, swap_id, self._hook, content)
        self._manifest.swap(Swap(swap_id, (file.path,), (new,), "erase"))
        self._hook(CommitStep.SWAP_COMMITTED)
        return len(ended.places), new


def _candidates(
    store: LakeStore, snapshot: Snapshot, pending: list[LiveFile], pool: ThreadPoolExecutor
) -> Iterator[tuple[LiveFile, Endings]]:
    """Files that pending rows can reach, newest hour first: recent content is asked for most.

    Hour by hour and not table by table, so that a large file and small ones are worked on at once.
    """
    with_endings = {file.table for file in pending}
    of_accounts = bool(with_endings & {"account", "sync"})
    endings: dict[str, Endings] = {}
    files: list[LiveFile] = []
    tables = [table for table in snapshot.tables() if table != "account" and (of_accounts or table in with_endings)]
    for table, found in zip(tables, pool.map(lambda name: read_endings(store, snapshot, name), tables), strict=True):
        if not found.empty:
            endings[table] = found
            files += [file for file in snapshot.files(table) if file.erased < file.rows]
    for file in sorted(files, key=lambda file: (-file.hour_us, -file.rows, file.path)):
        yield file, endings[file.table]

"""Files that become durable together: all are synced at once, then all renamed into place, then their folders synced.

A disk writes what many threads wait for in little more time than what one waits for; file after file, a commit of twenty
files would take ten times as long.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from lake.errors import DiskFull, LakeError
from lake.file_writer import FileWriter
from lake.layout import Compression, row_group_rows, writer_options
from lake.manifest.facts import FileKind
from lake.paths import folder_of, make_folder, sync_folder
from lake.steps import CommitStep, Hook

TEMPORARY: Final = ".tmp"
"""Folder below the root for files that are being written."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,120}")
_SYNCING: Final = 4
"""Threads that wait for the disk; more of them are no faster."""

T = TypeVar("T")


class FileBatch:
    """Made by `LakeStore.batch`; used from one thread. `placed`: paths of the files that have their final names."""

    def __init__(self, root: Path, compression: Compression, hook: Hook) -> None:
        self._root = root
        self._compression = compression
        self._hook = hook
        self._written: list[FileWriter] = []
        self.placed: list[str] = []

    @contextmanager
    def writer(
        self, table: str, hour_us: int, name: str, *, kind: FileKind, rows: int, rewritten: bool = False
    ) -> Generator[FileWriter]:
        """A file to be filled piece by piece, written (not synced) at the end of the block; see `LakeStore.writer`."""
        if not _NAME.fullmatch(name):
            raise LakeError(f"{name!r} is not a usable file name.")
        folder = folder_of(table, hour_us)
        temporary = self._root / TEMPORARY / f"{name}-{hour_us}-{table}.parquet"
        with disk_errors(self._root / folder):
            make_folder(temporary.parent, self._root)
            make_folder(self._root / folder, self._root)
            options = writer_options(table, kind, self._compression, rows, rewritten=rewritten)
            path, groups = f"{folder}/{kind}-{name}.parquet", row_group_rows(table, kind, rows)
            writer = FileWriter(path, temporary, table, hour_us, kind, options, group_rows=groups)
            try:
                yield writer
                writer.finish()
            except BaseException:
                writer.abandon()
                raise
            self._written.append(writer)
            self._hook(CommitStep.FILE_WRITTEN)

    def place(self) -> None:
        """Makes every written file durable under its final name. Blocks for the disk. Raises DiskFull."""
        with disk_errors(self._root):
            _together(FileWriter.sync, self._written)
            for _ in self._written:
                self._hook(CommitStep.FILE_SYNCED)
            for writer in self._written:
                writer.temporary.rename(self._root / writer.path)
                self.placed.append(writer.path)
                self._hook(CommitStep.FILE_RENAMED)
            _together(sync_folder, {(self._root / path).parent for path in self.placed})

    def abandon(self) -> None:
        """Removes the files that have no final name yet."""
        for writer in self._written:
            writer.abandon()


def _together(work: Callable[[T], None], items: Iterable[T]) -> None:
    """Does `work` on every item in several threads; raises the first error after all have ended."""
    todo = list(items)
    if len(todo) < 2:
        for item in todo:
            work(item)
        return
    with ThreadPoolExecutor(min(_SYNCING, len(todo)), "sync") as pool:
        for future in [pool.submit(work, item) for item in todo]:
            future.result()


@contextmanager
def disk_errors(target: Path) -> Generator[None]:
    """Turns the errors of a full volume into DiskFull; `target` says which volume."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"The volume of {target} is full.",
                "Free space or grow the volume; taking in resumes by itself, nothing is lost.",
            ) from error
        raise

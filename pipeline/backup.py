"""A consistent copy of a lake in another folder, taken while it is written; repeated, it copies only what is new.

Order: the manifest is copied first, by SQLite's own backup, under a temporary name; then the files that this copy names,
which never change; then the manifest gets its name; last, files go that it does not name any more. So the backup is whole
at every moment, and what was erased from the lake leaves its backup too.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lake.manifest import LiveFile, open_manifest
from lake.paths import parse_path, sync_folder
from schemas.errors import ExplorerError

MANIFEST: Final = "manifest.sqlite"
_ATTEMPTS: Final = 5
"""How often the manifest is copied anew because a file was replaced and unlinked meanwhile (its grace time is minutes)."""


class BackupError(ExplorerError):
    """The backup could not be made; the one that was there is unchanged."""


@dataclass(frozen=True)
class BackedUp:
    """What the backup holds, and what had to be done for it. Bytes are those of the copied files."""

    version: int
    rows: int
    files: int
    copied: int
    copied_bytes: int
    removed: int


def back_up(
    manifest: str, lake: Path, target: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> BackedUp:
    """Makes or renews the backup in `target`. Blocks for as long as copying takes; safe beside writers and maintenance.

    `progress` gets files done and files in all. Raises BackupError for a manifest on PostgreSQL, for a target inside the
    lake, and when files vanish faster than they can be copied.
    """
    if "://" in manifest:
        raise BackupError(
            "only a manifest in SQLite is copied by this command",
            "pg_dump the manifest's database first, then copy the Parquet files",
        )
    if target.absolute().is_relative_to(lake.absolute()):
        raise BackupError(f"{target} is inside the lake", "choose a folder on another disk")
    target.mkdir(parents=True, exist_ok=True)
    fresh = target / f"{MANIFEST}.new"
    for attempt in range(_ATTEMPTS):
        copy_database(Path(manifest), fresh)
        version, rows, files = _live(fresh)
        try:
            copied, size = _copy_files(lake, target, files, progress)
            break
        except FileNotFoundError as error:
            if attempt == _ATTEMPTS - 1:
                raise BackupError(
                    f"{error.filename} is named by the manifest and is not there",
                    "post-explorer lake verify tells whether the lake is damaged",
                ) from error
    _settle(fresh, target)
    return BackedUp(version, rows, len(files), copied, size, _remove_unnamed(target, {file.path for file in files}))


def copy_database(source: Path, target: Path) -> None:
    """A consistent copy of a SQLite database that is in use, as one file."""
    target.unlink(missing_ok=True)
    if not source.exists():
        raise BackupError(f"there is no manifest at {source}", "correct EXPLORER_MANIFEST, or start the writer once")
    with (
        closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as read,
        closing(sqlite3.connect(target)) as write,
    ):
        read.backup(write)
        # The copy is opened where no shared memory may be made, such as a read-only disk.
        write.execute("PRAGMA journal_mode=DELETE")


def _live(manifest: Path) -> tuple[int, int, list[LiveFile]]:
    opened = open_manifest(str(manifest), read_only=True)
    try:
        snapshot = opened.snapshot()
        tables = snapshot.tables()
        files = [file for table in tables for file in snapshot.files(table)]
        return snapshot.version, sum(snapshot.total_rows(table) for table in tables), files
    finally:
        opened.close()


def _copy_files(
    lake: Path, target: Path, files: list[LiveFile], progress: Callable[[int, int], None]
) -> tuple[int, int]:
    """Copies what the target lacks; a file of the right size is there already, since none ever changes."""
    copied = size = 0
    for number, file in enumerate(files):
        progress(number, len(files))
        destination = target / file.path
        with suppress(FileNotFoundError):
            if destination.stat().st_size == file.bytes:
                continue
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = destination.with_suffix(".part")
        shutil.copyfile(lake / file.path, temporary)
        _sync(temporary)
        temporary.replace(destination)
        sync_folder(destination.parent)
        copied += 1
        size += file.bytes
    progress(len(files), len(files))
    return copied, size


def _settle(fresh: Path, target: Path) -> None:
    """Gives the copied manifest its name; from here on the backup is that version."""
    _sync(fresh)
    for leftover in (f"{MANIFEST}-wal", f"{MANIFEST}-shm"):
        (target / leftover).unlink(missing_ok=True)
    fresh.replace(target / MANIFEST)
    sync_folder(target)


def _remove_unnamed(target: Path, named: set[str]) -> int:
    """Unlinks Parquet files that the lake itself would have written and the manifest does not name."""
    removed = 0
    for path in target.rglob("*.parquet"):
        relative = path.relative_to(target).as_posix()
        if relative not in named and parse_path(relative) is not None:
            path.unlink()
            removed += 1
    return removed


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())

"""An index of accounts: which rolled files have rows of an account, and how many records, edits and deletions of it.

Beside each rolled file lies `<lake>/.account-index/<sha256 of the file>.pages`: every account of the file with the number of
its rows by collection and operation (`lake.account_pages` has the bytes). What an account did over months is then summed up
instead of read, and whoever looks for rows of an account opens only the files that have some. A file without a side file has to
be read. Named by the digest of the file it describes, a side file can be missing but never stale.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import polars as pl

from lake import side_files
from lake.account_pages import Damaged, Pages, encoded, hash_of
from lake.convert import ERASED
from lake.manifest import LiveFile, Snapshot
from lake.store import LakeStore

log = logging.getLogger("explorer.lake")

FOLDER: Final = ".account-index"
_SUFFIX: Final = ".pages"
_PARSED_KINDS: Final = 4096
"""Most of them are the same in every file."""
_COLUMNS: Final = ("did", "collection", "operation", ERASED)


class Activity(NamedTuple):
    """Rows of one account in a file; `standing` are records (creates and updates) that are not erased. `collection` is None, and
    every number 0, for what happened to the account itself."""

    collection: str | None
    creates: int
    updates: int
    deletes: int
    standing: int


class AccountIndex:
    """Answers from the side files of one lake. Keeps nothing open; thread-safe."""

    def __init__(self, root: Path) -> None:
        self._folder = f"{root / FOLDER}{os.sep}"

    def activity(self, file: LiveFile, did: str) -> Sequence[Activity] | None:
        """What the file has of an account: empty for no row at all; None when only reading it tells.

        Blocks for some ten microseconds when the side file is in memory, else for three reads.
        """
        return self._look(file, (hash_of(did),))[0]

    def of(self, files: Iterable[LiveFile], dids: Sequence[str]) -> list[tuple[LiveFile, Sequence[Activity] | None]]:
        """The files that can have a row of one of the accounts, in their order, never too few, each with what it has of all of
        them together; None when only reading it tells. Blocks like `activity`, for each file."""
        hashed = [hash_of(did) for did in dids]
        found: list[tuple[LiveFile, Sequence[Activity] | None]] = []
        for file in files:
            parts = self._look(file, hashed)
            if any(part is None for part in parts):
                found.append((file, None))
            elif any(parts):
                found.append((file, tuple(one for part in parts if part for one in part)))
        return found

    def may_hold(self, files: Iterable[LiveFile], dids: Sequence[str]) -> list[LiveFile]:
        """The files that can have a row of one of the accounts, in their order; never too few."""
        return [file for file, _ in self.of(files, dids)]

    def _look(self, file: LiveFile, hashed: Sequence[int]) -> Sequence[Sequence[Activity] | None]:
        """What the file has of each account."""
        unknown = [None] * len(hashed)
        if file.kind != "rolled":
            return unknown
        path = f"{self._folder}{file.sha256}{_SUFFIX}"
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return unknown
        except OSError as error:
            return _unusable(path, error, unknown)
        try:
            pages = Pages(descriptor)
            return [_parsed(pages.line(one)) for one in hashed]
        except (Damaged, OSError) as error:
            return _unusable(path, error, unknown)
        finally:
            os.close(descriptor)


def build(store: LakeStore, file: LiveFile) -> int:
    """Write the side file of one file, durably; returns its bytes.

    Blocks for reading three columns: about a second per million rows. Raises FileDamaged, OSError.
    """
    return side_files.write(store.root / FOLDER / f"{file.sha256}{_SUFFIX}", encoded(_kinds(store, file)))


def missing(root: Path, snapshot: Snapshot) -> list[LiveFile]:
    """Rolled files without a side file, newest first."""
    have = side_files.names(root / FOLDER)
    files = [file for table in snapshot.tables() for file in snapshot.files(table) if file.kind == "rolled"]
    return sorted(
        (file for file in files if f"{file.sha256}{_SUFFIX}" not in have), key=lambda file: file.hour_us, reverse=True
    )


def sweep(root: Path, snapshot: Snapshot) -> int:
    """Remove side files of files that are not in the lake any more; returns how many. Call under the maintenance lock."""
    wanted = {f"{file.sha256}{_SUFFIX}" for table in snapshot.tables() for file in snapshot.files(table)}
    return side_files.remove(root / FOLDER, side_files.names(root / FOLDER) - wanted)


@lru_cache(maxsize=_PARSED_KINDS)
def _parsed(line: bytes | None) -> Sequence[Activity] | None:
    if not line:
        return None if line is None else ()
    return tuple(Activity(*part) for part in json.loads(line))


def _unusable(path: str, error: Exception, unknown: list[None]) -> list[None]:
    log.warning(
        "a side file of the account index is damaged and not used: remove it, maintenance makes it anew",
        extra={"path": path, "cause": str(error)},
    )
    return unknown


def _kinds(store: LakeStore, file: LiveFile) -> pl.DataFrame:
    """Each account of a file with its kind."""
    rows = pl.from_arrow(store.read(file.path, list(_COLUMNS)))
    assert isinstance(rows, pl.DataFrame)
    is_record = pl.col("operation").is_in(["create", "update"])
    counted = rows.group_by("did", "collection").agg(
        *((pl.col("operation") == name).sum().alias(name) for name in ("create", "update", "delete")),
        standing=(is_record & pl.col(ERASED).is_null()).sum(),
    )
    names = counted["collection"].unique()
    quoted = pl.col("collection").replace_strict(names, [json.dumps(name) for name in names], return_dtype=pl.String)
    part = pl.format("[{},{},{},{},{}]", quoted, "create", "update", "delete", "standing")
    return (
        counted.sort("collection")
        .select("did", part=part)
        .group_by("did", maintain_order=True)
        .agg(pl.format("[{}]", pl.col("part").str.join(",")).alias("kind"))
    )

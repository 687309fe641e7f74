"""An index of accounts: which rolled files have rows of an account, and how many records, edits and deletions of it.

Beside each rolled file lies `<lake>/.account-index/<sha256 of the file>.accounts`: every account of the file with the number of
its rows by collection and operation (`lake.account_pages` has the bytes). What an account did over months is then summed up
instead of read, and whoever looks for rows of an account opens only the files that have some. Of posts it also tells in which pages
of the file the rows of most accounts are, and where those lie, so that few rows are read by themselves (`lake.page_rows`). A file
without a side file has to be read. Named by the digest of the file it describes, a side file can be missing but never stale.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np
import polars as pl

from lake import page_places, side_files
from lake.account_pages import Damaged, Pages, encoded, hash_of
from lake.convert import ERASED
from lake.manifest import LiveFile, Snapshot
from lake.page_places import EVERY_PAGE, Group, pages_of, places_of
from lake.store import LakeStore

T = TypeVar("T")
log = logging.getLogger("explorer.lake")

FOLDER: Final = ".account-index"
_SUFFIX: Final = ".accounts"
_PARSED_KINDS: Final = 4096
"""Most of them are the same in every file."""
_POSTS: Final = "app.bsky.feed.post"
"""The one table whose columns lie in several pages."""
_DID: Final = "did"
_COLUMNS: Final = (_DID, "collection", "operation", ERASED)


class Activity(NamedTuple):
    """Rows of one account in a file; `standing` are records (creates and updates) that are not erased. `collection` is None, and
    every number 0, for what happened to the account itself."""

    collection: str | None
    creates: int
    updates: int
    deletes: int
    standing: int


class _Kind(NamedTuple):
    """What an account has, and the pages of the file that its rows are in, as bits; None where only reading tells."""

    parts: Sequence[Activity]
    pages: int | None


_NOTHING: Final = _Kind((), 0)


class AccountIndex:
    """Answers from the side files of one lake. Keeps nothing open; thread-safe."""

    def __init__(self, root: Path) -> None:
        self._folder = f"{root / FOLDER}{os.sep}"

    def activity(self, file: LiveFile, did: str) -> Sequence[Activity] | None:
        """What the file has of an account: empty for no row at all; None when only reading it tells.

        Blocks for some ten microseconds when the side file is in memory, else for three reads.
        """
        kind = self._look(file, (hash_of(did),))[0]
        return None if kind is None else kind.parts

    def of(self, files: Iterable[LiveFile], dids: Sequence[str]) -> list[tuple[LiveFile, Sequence[Activity] | None]]:
        """The files that can have a row of one of the accounts, in their order, never too few, each with what it has of all of
        them together; None when only reading it tells. Blocks like `activity`, for each file."""
        hashed = [hash_of(did) for did in dids]
        found: list[tuple[LiveFile, Sequence[Activity] | None]] = []
        for file in files:
            kinds = self._look(file, hashed)
            if any(kind is None for kind in kinds):
                found.append((file, None))
                continue
            parts = tuple(one for kind in kinds if kind for one in kind.parts)
            if parts:
                found.append((file, parts))
        return found

    def places(self, file: LiveFile, dids: Sequence[str]) -> list[tuple[Group, list[int]]] | None:
        """The row groups of a file that can have rows of some accounts, each with the numbers of the pages of its accounts that
        can, never too few; None when only reading it tells. Blocks like `activity`, for a few reads more."""
        return self._opened(file, lambda pages: _places(pages, [hash_of(did) for did in dids]), None)

    def may_hold(self, files: Iterable[LiveFile], dids: Sequence[str]) -> list[LiveFile]:
        """The files that can have a row of one of the accounts, in their order; never too few."""
        return [file for file, _ in self.of(files, dids)]

    def _look(self, file: LiveFile, hashed: Sequence[int]) -> Sequence[_Kind | None]:
        """What the file has of each account."""
        return self._opened(file, lambda pages: [_parsed(pages.line(one)) for one in hashed], [None] * len(hashed))

    def _opened(self, file: LiveFile, look: Callable[[Pages], T], unknown: T) -> T:
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
            return look(Pages(descriptor))
        except (Damaged, OSError) as error:
            return _unusable(path, error, unknown)
        finally:
            os.close(descriptor)


def build(store: LakeStore, file: LiveFile) -> int:
    """Write the side file of one file, durably; returns its bytes.

    Blocks for reading four columns, about a second per million rows; all columns of posts are unpacked too, which takes a
    second more. Raises FileDamaged, OSError.
    """
    groups = places_of(store, file) if file.table == _POSTS else ()
    content = encoded(_kinds(store, file, groups), [page_places.encoded(group) for group in groups])
    return side_files.write(store.root / FOLDER / f"{file.sha256}{_SUFFIX}", content)


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
def _parsed(line: bytes | None) -> _Kind | None:
    if not line:
        return None if line is None else _NOTHING
    parts = json.loads(line)
    pages = parts.pop() if isinstance(parts[-1], int) else None
    return _Kind(tuple(Activity(*part) for part in parts), pages)


def _places(pages: Pages, hashed: Sequence[int]) -> list[tuple[Group, list[int]]] | None:
    groups = [page_places.decoded(part) for part in pages.groups()]
    if not groups:
        return None
    bits = 0
    for kind in [_parsed(pages.line(one)) for one in hashed]:
        bits |= EVERY_PAGE if kind is None or kind.pages is None else kind.pages
    found: list[tuple[Group, list[int]]] = [(group, []) for group in groups]
    for number, place, bit in pages_of(groups, _DID):
        if bits >> bit & 1:
            found[number][1].append(place)
    return [(group, numbers) for group, numbers in found if numbers]


def _unusable(path: str, error: Exception, unknown: T) -> T:
    log.warning(
        "a side file of the account index is damaged and not used: remove it, maintenance makes it anew",
        extra={"path": path, "cause": str(error)},
    )
    return unknown


def _kinds(store: LakeStore, file: LiveFile, groups: Sequence[Group]) -> pl.DataFrame:
    """Each account of a file with its kind, without pages and with them where there are groups."""
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
    kinds = (
        counted.sort("collection")
        .select("did", part=part)
        .group_by("did", maintain_order=True)
        .agg(pl.format("[{}]", pl.col("part").str.join(",")).alias("kind"))
    )
    if not groups:
        return kinds
    bits = np.repeat(
        [1 << bit for _, _, bit in pages_of(groups, _DID)],
        [page.rows for group in groups for page in group.columns[_DID].pages],
    )
    pages = rows.select("did", bits=pl.Series(bits)).unique().group_by("did").agg(pl.col("bits").sum())
    placed = pl.format("{},{}]", pl.col("kind").str.strip_suffix("]"), "bits")
    return kinds.join(pages, on="did").select("did", "kind", placed=placed)

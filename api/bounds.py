"""How much engagement each post of a plan can have at most, from the lake's engagement index: which rows are worth counting.

An upper bound of a post's likes is how often files name its key: what the post's own side file says for the files that this one
covers, and what the side files of the others say. Files without a side file, those of an open hour, are read.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from api.engagement import ENGAGEMENT
from api.engine import Session
from api.relation import READ_FILES, ROW, Lake
from api.snapshots import Scan, scan
from lake.engagement_bounds import UNKNOWN, BoundsHead, hours_of, keys_of, read_bounds, read_head
from lake.manifest import LiveFile
from lake.named_keys import NAMING, DamagedError, Named, Numbers, named_of, read, units_of
from lake.named_places import NONE_COVERED, Places, listed, slices, summed
from lake.text_index import Rows

log = logging.getLogger("explorer.api")

_MOST_UNLISTED: Final = 6_000_000
"""Likes, reposts and posts in files without side file that are read for a query; with more, reading all takes little longer."""
_MOST_UNBOUNDED: Final = 2_000_000
"""Posts in files without side file, whose keys are looked up one by one."""
_LOOSE: Final = 2
"""Up to so much is added to all posts of a file, instead of reading which of them it is about."""
_MANY: Final = 4
"""Where more than one row of a file in so many is left, naming them costs more than it saves."""
_MOST_KEPT: Final = 400_000
"""So many rows with the highest scores are kept in memory, perhaps twice as many, so that the side files are read once."""
_NO_BOUND: Final = 1 << 28
HIGHEST: Final = UNKNOWN
"""Scores that are higher are not told apart."""


@dataclass(frozen=True)
class _Top:
    """The highest scores of a plan: how many rows have each or more (`reaching`), and by path the rows that have `least`, in order,
    with their scores."""

    reaching: Numbers
    least: int
    of: Mapping[str, tuple[Numbers, Numbers]]

    def at(self, path: str, places: Numbers) -> Numbers | None:
        """The scores of some rows of a file; None where one of them is not known."""
        rows, scores = self.of[path]
        found = np.minimum(np.searchsorted(rows, places), len(rows) - 1)
        return scores[found] if len(rows) and bool((rows[found] == places).all()) else None


@dataclass(frozen=True)
class Bounds:
    """Upper bounds for the posts of `plan` in some kinds of engagement; made by `bounds_of`.

    heads: of the side files that posts have, by path. more: by path and kind, what is to be added to what the side file says: one
    number, or one for each row.
    """

    root: Path
    plan: Scan
    kinds: tuple[str, ...]
    heads: Mapping[str, BoundsHead]
    more: Mapping[str, Sequence[int | Numbers]]

    def at_least(self, minimums: Mapping[str, int]) -> Scan:
        """The plan with the rows that can have so much of each kind. Blocks for the side files."""

        def chosen(file: LiveFile) -> npt.NDArray[np.bool_]:
            of_kinds = dict(zip(self.kinds, self._of(file), strict=True))
            found: npt.NDArray[np.bool_] = np.logical_and.reduce(
                [of_kinds[kind] >= least for kind, least in minimums.items()]
            )
            return found

        return self._only(chosen, most=_MANY)

    def scoring(self, least: int, below: int) -> Scan:
        """The plan with the rows that can have at least so much, and less than `below`, of all kinds together; HIGHEST stands for
        all from there on. May block for the side files."""

        def chosen(file: LiveFile) -> npt.NDArray[np.bool_]:
            scores = self._score(file)
            found: npt.NDArray[np.bool_] = (scores >= least) & (scores < below)
            return found

        top = self._top
        if least < top.least:
            return self._only(chosen, most=1)
        files, stretches = [], dict(self.plan.stretches)
        for file in self.plan.files:
            rows, scores = top.of[file.path]
            rows = rows[(scores >= least) & (scores < below)]
            if len(rows):
                files.append(file)
                stretches[file.path] = _stretches(rows)
        return replace(self.plan, files=tuple(files), stretches=stretches)

    def least_of(self, count: int) -> int:
        """The highest score that at least `count` rows of the plan can have, 0 when it has fewer. May block for the side files."""
        return max(0, int(np.searchsorted(-self.reaching, -count, side="right")) - 1)

    def of_rows(self, rows: pa.Table) -> Numbers:
        """The highest score, at most HIGHEST, that each of some rows (with the columns ROW) can have. Blocks for the side files."""
        paths, places = rows[ROW[0]].combine_chunks().dictionary_encode(), np.asarray(rows[ROW[1]], np.int64)
        files = {str(self.root / file.path): file for file in self.plan.files}
        numbers, scores = np.asarray(paths.indices), np.zeros(rows.num_rows, np.int64)
        for number, path in enumerate(paths.dictionary.to_pylist()):
            mine = numbers == number
            found = self._top.at(files[path].path, places[mine])
            scores[mine] = self._score(files[path])[places[mine]] if found is None else found
        return scores

    @property
    def reaching(self) -> Numbers:
        """How many rows of the plan can have a score of 0, 1, … HIGHEST or more. May block for the side files."""
        return self._top.reaching

    @cached_property
    def _top(self) -> _Top:
        counts = np.zeros(HIGHEST + 1, np.int64)
        kept: dict[str, tuple[Numbers, Numbers]] = {}
        least = number = 0
        for file in self.plan.files:
            scores = self._score(file)
            if file.path in self.plan.stretches:
                scores = np.where(self._in_plan(file), scores, -1)
            counts += np.bincount(scores[scores >= 0], minlength=HIGHEST + 1)
            rows = np.flatnonzero(scores >= least)
            kept[file.path] = rows, scores[rows]
            number += len(rows)
            if number > 2 * _MOST_KEPT:
                least = max(least, int(np.searchsorted(-np.cumsum(counts[::-1])[::-1], -_MOST_KEPT)))
                least = min(least, HIGHEST)
                kept = {path: (rows[scores >= least], scores[scores >= least]) for path, (rows, scores) in kept.items()}
                number = sum(len(rows) for rows, _ in kept.values())
        return _Top(np.cumsum(counts[::-1])[::-1], least, kept)

    def _score(self, file: LiveFile) -> Numbers:
        first, *others = self._of(file)
        return np.minimum(sum(others, start=first), HIGHEST)

    def _of(self, file: LiveFile) -> list[Numbers]:
        more, head = self.more[file.path], self.heads.get(file.path)
        if head is None:
            return [np.zeros(file.rows, np.int64) + counts for counts in more]
        known = read_bounds(self.root, file, head)
        if known is None:
            return [np.full(file.rows, _NO_BOUND) for _ in self.kinds]
        found = []
        for kind, counts in zip(self.kinds, more, strict=True):
            column = known[_NUMBER[kind]]
            counted = column.astype(np.int32) + counts
            found.append(
                np.where(column == UNKNOWN, _NO_BOUND, counted) if column.max(initial=0) == UNKNOWN else counted
            )
        return found

    def _in_plan(self, file: LiveFile) -> npt.NDArray[np.bool_]:
        """The rows of a file that the plan has."""
        stretches = self.plan.stretches.get(file.path)
        rows = np.full(file.rows, stretches is None)
        for first, end in stretches or ():
            rows[first:end] = True
        return rows

    def _only(self, chosen: Callable[[LiveFile], npt.NDArray[np.bool_]], most: int) -> Scan:
        """The plan with the chosen rows; of a file in which more than one row in `most` is chosen, as the plan has it."""
        files, stretches = [], dict(self.plan.stretches)
        for file in self.plan.files:
            found = chosen(file)
            rows = np.flatnonzero(found & self._in_plan(file) if file.path in self.plan.stretches else found)
            if not len(rows):
                continue
            files.append(file)
            if most * len(rows) <= file.rows:
                stretches[file.path] = _stretches(rows)
        return replace(self.plan, files=tuple(files), stretches=stretches)


_NUMBER: Final = {kind: list(NAMING).index(table) for kind, (table, _) in ENGAGEMENT.items() if kind != "quotes"}
"""Kind of engagement → its number in a side file."""


def bounds_of(session: Session, lake: Lake, plan: Scan, start_us: int | None, kinds: Sequence[str]) -> Bounds | None:
    """Bounds of posts of a plan; None where too much has no side file, or one is damaged. `start_us`: as for `count_subjects`.

    Blocks for the heads of the side files, and for reading files that have none.
    """
    heads = {file.path: head for file in plan.files if (head := read_head(lake.root, file)) is not None}
    if sum(file.rows for file in plan.files if file.path not in heads) > _MOST_UNBOUNDED:
        return None
    known = []
    for kind in kinds:
        found = _known(session, lake, plan, start_us, kind)
        if found is None:
            return None
        known.append(found)
    more: dict[str, list[int | Numbers]] = {}
    for path, head in heads.items():
        of_kinds = [
            max((places.most(places.naming(hour, head.covered)) for hour in head.hours.tolist()), default=0)
            for places, _ in known
        ]
        if max(of_kinds) <= _LOOSE:
            more[path] = list(of_kinds)
    keys = {file.path: _keys(session, lake, file) for file in plan.files if file.path not in more}
    try:
        for places, unlisted in known:
            for path, counts in _rows(lake.root, places, unlisted, keys, heads).items():
                more.setdefault(path, []).append(counts)
    except DamagedError as error:
        log.warning(
            "a side file of the engagement index is damaged and not used: remove it, maintenance makes it anew",
            extra={"cause": str(error)},
        )
        return None
    return Bounds(lake.root, plan, tuple(kinds), heads, more)


def _known(session: Session, lake: Lake, plan: Scan, start_us: int | None, kind: str) -> tuple[Places, Named] | None:
    """Which hours the records of a kind name, and all that those without side file name."""
    table, stem = ENGAGEMENT[kind]
    files, heads, others = listed(lake.root, scan(plan.snapshot, table, start_us, None).files)
    if sum(file.rows for file in others) > _MOST_UNLISTED:
        return None
    tids = np.zeros(0, np.int64)
    if others:
        column = f"{stem}_rkey_tid"
        statement = f"SELECT {column} FROM {READ_FILES} WHERE {column} IS NOT NULL"
        tids = np.asarray(session.table(statement, {"files": lake.paths(others)}).column(0), np.int64)
    unlisted = named_of(*np.unique(units_of(tids), return_counts=True))
    return Places([*files, None], [*heads, unlisted.head]), unlisted


def _rows(
    root: Path,
    places: Places,
    unlisted: Named,
    keys: Mapping[str, Numbers],
    heads: Mapping[str, BoundsHead],
) -> dict[str, Numbers]:
    """For each row of some files, by its key, how often files that are not covered name it. Raises DamagedError."""
    hours = {path: hours_of(units).tolist() for path, units in keys.items()}
    ids = {path: heads[path].covered if path in heads else NONE_COVERED for path in keys}
    wanted: dict[int, list[Numbers]] = {}
    for path, some in hours.items():
        for hour in some:
            wanted.setdefault(hour, []).append(places.naming(hour, ids[path]))
    found = slices(
        places,
        {hour: np.unique(np.concatenate(some)) for hour, some in wanted.items()},
        lambda file: unlisted if file is None else read(root, file),
    )
    counts = {}
    for path, units in keys.items():
        mine = [part for hour in hours[path] for part in found.get(hour, ()) if places.ids[part.file] not in ids[path]]
        counts[path] = np.where(units < 0, _NO_BOUND, summed(mine, units))
    return counts


def _keys(session: Session, lake: Lake, file: LiveFile) -> Numbers:
    """The key of each row of a file."""
    rows = session.table(f"SELECT file_row_number, rkey_tid FROM {READ_FILES}", {"files": lake.paths([file])})
    return keys_of(rows.sort_by("file_row_number")["rkey_tid"])


def _stretches(rows: Numbers) -> Rows:
    """Rows, in order, as stretches."""
    gaps = np.flatnonzero(np.diff(rows) > 1)
    firsts = np.concatenate((rows[:1], rows[gaps + 1])).tolist()
    ends = (np.concatenate((rows[gaps], rows[-1:])) + 1).tolist()
    return tuple(zip(firsts, ends, strict=True))

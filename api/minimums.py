"""Posts with minimum counts of likes, reposts or replies, found along a walk: counted are those only that the page needs.

The index of engagement rules out nearly all rows of a step; of the others as many as should fill the page are counted exactly,
all at once, because what names them is spread over the files of many hours.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import pyarrow as pa

from api.bounds import Bounds, bounds_of
from api.current import ENDING_KEYS
from api.cursors import Cursor
from api.engagement import ENGAGEMENT, KEYS, count_engagement, is_likely, likely, named_from, same_record
from api.engine import Session
from api.fetch import PLACE, fetch
from api.filters import PostFilters
from api.posts_query import Reader, Selection, are_many, selected, selects_many
from api.relation import ROW, Lake, Source
from api.snapshots import Scan, scan
from api.walk import First, behind, order_by, place_of

_SPARE: Final = 4
"""One more row is counted for so many that are needed, in case that some ended or were named by what ended."""
_FIRST_COUNTED: Final = 1_000
"""So many are counted first where nothing tells how many of them have the minimum."""
_MOST_COUNTED: Final = 400_000
_GROWTH: Final = 4
"""Times as many the next time."""
_FILES_AT_ONCE: Final = 16
"""Files of which some rows are read are branches of a statement, which holds to its end what it read of all of them."""
_MOST_PASSED: Final = 20_000_000
"""So many likes, reposts or posts are all read beforehand where there is no index, for which posts are named so often: a second."""

_NAMES: Final = tuple(dict.fromkeys((*PLACE, *KEYS.names, *ENDING_KEYS, *ROW)))


class _Part(NamedTuple):
    """Some selected rows of a step, those of them that have the counts, and whether the step has no more behind them."""

    rows: pa.Table
    having: pa.Table
    last: bool


@dataclass(frozen=True)
class Minimums:
    """Which posts of a plan that `source` selects have the counts that `filters` ask for; made by `minimums_of`."""

    lake: Lake
    plan: Scan
    filters: PostFilters
    source: Source
    bounds: Bounds | None

    def first(self, session: Session, columns: Sequence[str], *, newest_first: bool) -> First:
        """Who reads a step of a walk over the plan for a page with `columns` and PLACE."""
        names = list(dict.fromkeys((*columns, *PLACE)))

        def read(step: Scan, source: Source, count: int, until: float) -> tuple[pa.Table, Cursor | None]:
            found: list[pa.Table] = []
            position = None
            for part in self._parts(session, step, source, count, newest_first=newest_first):
                found.append(part.having.slice(0, count))
                count -= found[-1].num_rows
                if count and not part.last and time.monotonic() >= until:
                    position = place_of(part.rows)
                if not count or position is not None:
                    break
            places = pa.concat_tables(found) if found else pa.table({})
            return fetch(session, step.table, places, names), position

        return read

    def counted(self, session: Session, step: Scan, until: float) -> tuple[int, bool]:
        """How many posts of a step over the plan have the counts, and whether these are all: not when the time (of the monotonic
        clock) was over before."""
        found = 0
        for part in self._parts(session, step, self.source, _MOST_COUNTED, newest_first=True):
            found += part.having.num_rows
            if not part.last and time.monotonic() >= until:
                return found, False
        return found, True

    def _parts(
        self, session: Session, step: Scan, source: Source, count: int, *, newest_first: bool
    ) -> Iterator[_Part]:
        """The selected rows of a step, in order, in parts of which the first is expected to have `count` that have the counts."""
        if self.bounds is not None:
            step = replace(self.bounds, plan=step).at_least(self.filters.engagement)
        if not step.files:
            return
        asked = min(_MOST_COUNTED, count + -(-count // _SPARE) if self.bounds else max(_FIRST_COUNTED, count))
        while True:
            rows = self._selected(session, step, source, asked, newest_first=newest_first)
            if not rows.num_rows:
                return
            last = rows.num_rows < asked
            yield _Part(rows, self._that_have(session, rows), last)
            if last:
                return
            source = behind(source, place_of(rows), newest_first)
            asked = min(_GROWTH * asked, _MOST_COUNTED)

    def _selected(self, session: Session, step: Scan, source: Source, count: int, *, newest_first: bool) -> pa.Table:
        """The first rows of a step that are selected, in order, also those that ended."""
        columns = ", ".join(f"r.{name}" for name in _NAMES)
        at_once = _FILES_AT_ONCE if step.stretches else len(step.files)
        found: list[pa.Table] = []
        for files in step.steps(
            newest_first=newest_first, first_rows=at_once, largest_rows=at_once, rows_of=lambda _: 1
        ):
            reading, values = self.lake.reading(
                replace(step, files=files), f"{columns} {source.joins} {source.condition}"
            )
            rows = session.few(
                f"SELECT {columns} FROM {source.over(reading)} WHERE {source.condition}"
                f" ORDER BY {order_by(newest_first=newest_first)} LIMIT $count",
                {**source.bound.values, **values, "count": count},
            )
            found.append(rows)
            count -= rows.num_rows
            if not count:
                break
        return pa.concat_tables(found)

    def _that_have(self, session: Session, rows: pa.Table) -> pa.Table:
        """Those of some rows that did not end and have the counts, in their order."""
        if self.source.ends is not None:
            rows = rows.take(pa.array(self.source.ends.standing(session, rows), pa.int64()))
        for kind, least in self.filters.engagement.items():
            keys = rows.select(KEYS.names)
            session.register("enough", count_engagement(session, self.lake, self.plan, self.filters, keys, kind, least))
            session.register("counted", keys.append_column("number", pa.array(range(rows.num_rows), pa.int64())))
            kept = session.rows(
                f"SELECT r.number FROM counted AS r SEMI JOIN enough AS e ON {same_record('e', 'r')} ORDER BY r.number",
                {},
            )
            rows = rows.take(pa.array([number for (number,) in kept], pa.int64()))
        return rows


def minimums_of(session: Session, lake: Lake, plan: Scan, selection: Selection) -> Minimums:
    """The posts of `plan` that are selected and have the counts asked for. Blocks for the heads of the index of engagement; without
    it perhaps for a pass over what can name the posts."""
    filters = selection.filters
    source = selected(session, lake, plan, selection, Reader.FEW)
    bounds = None
    if are_many(plan):
        bounds = bounds_of(session, lake, plan, named_from(filters), list(filters.engagement))
        if bounds is None and selects_many(plan, selection):
            source = _of_likely(session, lake, plan, filters, source)
    return Minimums(lake, plan, filters, source, bounds)


def _of_likely(session: Session, lake: Lake, plan: Scan, filters: PostFilters, source: Source) -> Source:
    """The rows of a source that are named often enough by whatever names them, where it costs little to see that."""
    for kind, least in filters.engagement.items():
        if scan(plan.snapshot, ENGAGEMENT[kind][0], named_from(filters), None).rows <= _MOST_PASSED:
            session.register(f"likely_{kind}", likely(session, lake, plan, filters, [kind], least=least))
            source = source.also(is_likely(f"likely_{kind}"))
    return source

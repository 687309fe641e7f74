"""Reading one page along the hours, from one end, in growing steps, until it is full or its time is over.

A common word fills a page from the newest hour; a rare one reads further back. A walk whose time is over ends the page
early, and its cursor goes on where the walk stopped. A step reads what the filters and the order need, of the rows that can
match; then the other columns of what it found; then it leaves out what ended, which is little.

Where it is known how many rows of a file can match, because they are of some account, the first step is the files that fill the
page, and a step of few rows reads all columns at once: opening its file twice is half of what one row of an hour costs. Rows of
which it is known where they lie are read by themselves (`api.few_rows`).
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa

from api.current import ENDING_KEYS
from api.cursors import Cursor
from api.engine import Session
from api.fetch import PLACE, fetch
from api.few_rows import few_rows
from api.relation import ROW, Lake, Source, columns_in
from api.snapshots import Scan
from api.sql import Bound
from api.times import to_datetime, to_micros
from lake.convert import lake_schema
from lake.manifest import HOUR_US, LiveFile

_FIRST_ROWS: Final = 60_000
"""One closed hour."""
_LARGEST_ROWS: Final = 8_000_000
_AT_ONCE_ROWS: Final = 4
"""All columns are read at once of so many rows for each that a page needs; of more it costs less to open the files of those that
it needs again."""
_ENDED_ROWS: Final = 4
"""A step asks for one more row for so many that it needs, in case that some of them ended."""
_ROWS: Final = "few_rows"
_MAX_PARTITION: Final = 2**31 - 1
_MAX_OFFSET: Final = 2**63 - 1


@dataclass(frozen=True)
class Page:
    """Rows of a page as lake columns, where the next page starts, and whether the walk reached the page's end.

    `next` is None when everything that matches was returned. `complete` is False when time ran out before the page
    was full.
    """

    rows: pa.Table
    next: Cursor | None
    complete: bool
    files_read: int
    rows_scanned: int


First = Callable[[Scan, Source, int, float], tuple[pa.Table, Cursor | None]]
"""Gives the first so many rows of a step, in order, with the columns of the page; and, where the time (of the monotonic clock) was
over before it had as many, the place up to which it looked, else None."""


def joined(before: Page, after: Page) -> Page:
    """One page of two, the second of which began where the first ended."""
    # Without rows a page has the types of the lake instead of those of the reader.
    parts = [page.rows for page in (before, after) if page.rows.num_rows]
    return Page(
        pa.concat_tables(parts) if parts else after.rows,
        after.next,
        after.complete,
        before.files_read + after.files_read,
        before.rows_scanned + after.rows_scanned,
    )


def front(scan: Scan, cursor: Cursor | None, *, newest_first: bool) -> tuple[Scan, Cursor | None]:
    """What a walk reads first, and the cursor behind it; None when there is nothing else."""
    ahead = _ahead(scan, cursor, newest_first)
    steps = ahead.steps(newest_first=newest_first, first_rows=_FIRST_ROWS, largest_rows=_LARGEST_ROWS)
    if len(steps) < 2:
        return ahead, None
    return replace(scan, files=steps[0]), _edge(steps[0], newest_first)


def order_by(*, newest_first: bool) -> str:
    """The ORDER BY of a walk."""
    return ", ".join(f"{name} {'DESC' if newest_first else 'ASC'}" for name in PLACE)


def after(cursor: Cursor, bound: Bound, *, newest_first: bool) -> str:
    """That a row comes after the cursor: written out, because a row-value comparison does not prune Parquet."""
    micros, partition, offset = (int(part) for part in cursor.key[-3:])
    operator = "<" if newest_first else ">"
    t, p, o = bound.bind(to_datetime(micros)), bound.bind(partition), bound.bind(offset)
    return (
        f"time {operator}= {t} AND (time {operator} {t} OR kafka_partition {operator} {p}"
        f" OR (kafka_partition = {p} AND kafka_offset {operator} {o}))"
    )


def place_of(rows: pa.Table) -> Cursor:
    """The cursor behind the last of some rows."""
    last = rows.slice(rows.num_rows - 1)
    moment, partition, offset = (last[name][0].as_py() for name in PLACE)
    return Cursor((to_micros(moment), partition, offset))


def walk(
    session: Session,
    lake: Lake,
    scan: Scan,
    source: Source,
    columns: Sequence[str],
    *,
    newest_first: bool,
    limit: int,
    cursor: Cursor | None,
    seconds: float,
    spare: int = 0,
    first: First | None = None,
) -> Page:
    """One page of `source`, with at least the lake columns `columns` and PLACE. Blocks for about `seconds` at most when single
    steps are short; the runner's deadline holds in any case. spare: how many of the rows that the scan counts may have ended.
    first: who reads a step where not every row of `source` belongs on the page; None when each does that did not end."""
    until = time.monotonic() + seconds
    names = list(dict.fromkeys((*columns, *PLACE)))
    if cursor is not None:
        source = behind(source, cursor, newest_first)
    found = [lake_schema(scan.table).empty_table().select(names)]
    missing = limit + 1
    files_read = rows_scanned = 0
    complete = True
    position: Cursor | None = None
    steps = _steps(_ahead(scan, cursor, newest_first), cursor, newest_first, missing + spare)
    for number, step in enumerate(steps):
        some = replace(scan, files=step)
        if first is None:
            part = _first(session, lake, some, source, names, newest_first, missing)
        else:
            part, position = first(some, source, missing, until)
        files_read += len(step)
        rows_scanned += sum(scan.rows_to_read(file) for file in step)
        if part.num_rows:
            found.append(part)
        missing -= part.num_rows
        if missing <= 0:
            break
        if position is not None:
            complete = False
            break
        if time.monotonic() >= until and number + 1 < len(steps):
            complete, position = False, _edge(step, newest_first)
            break
    rows = pa.concat_tables(found[1:] or found)
    if rows.num_rows > limit:
        rows = rows.slice(0, limit)
        position = place_of(rows)
    return Page(rows, position, complete, files_read, rows_scanned)


def _steps(scan: Scan, cursor: Cursor | None, newest_first: bool, wanted: int) -> list[tuple[LiveFile, ...]]:
    """The files in steps; where it is known how many rows can match, the first one is expected to have as many as wanted."""
    counts = scan.counts
    if not counts:
        return scan.steps(newest_first=newest_first, first_rows=_FIRST_ROWS, largest_rows=_LARGEST_ROWS)
    begun = None if cursor is None else int(cursor.key[-3])

    def rows_of(file: LiveFile) -> int:
        count = counts.get(file.path)
        if count is None:
            # Small files have the newest rows, and few of one account; a file that the index does not know is a step.
            return 0 if file.kind == "small" else -(-file.rows * wanted // _FIRST_ROWS)
        # The pages before may have had all of it; an hour more costs less than a step more.
        spent = begun is not None and file.min_time_us <= begun <= file.max_time_us and count <= wanted
        return 0 if spent else count

    return scan.steps(newest_first=newest_first, first_rows=wanted, largest_rows=_LARGEST_ROWS, rows_of=rows_of)


def _at_once(scan: Scan, count: int) -> bool:
    """Whether the rows that can match are few for a page that needs `count`."""
    if not scan.counts or any(file.path not in scan.counts and file.kind != "small" for file in scan.files):
        return False
    return sum(scan.counts.get(file.path, 0) for file in scan.files) <= _AT_ONCE_ROWS * count


def _first(
    session: Session, lake: Lake, scan: Scan, source: Source, names: Sequence[str], newest_first: bool, count: int
) -> pa.Table:
    """The first `count` rows of all files of a scan, in order."""
    at_once = _at_once(scan, count)
    selected = ", ".join(f"r.{name}" for name in dict.fromkeys((*names, *ENDING_KEYS) if at_once else (*PLACE, *ROW)))
    used = f"{selected} {source.joins} {source.condition}"
    reading, values = _few(session, lake, scan, used) if at_once else lake.reading(scan, used)
    statement = (
        f"SELECT {selected} FROM {source.over(reading)} WHERE {source.condition}"
        f" ORDER BY {order_by(newest_first=newest_first)} LIMIT $count"
    )
    asked = count if source.ends is None else count + -(-count // _ENDED_ROWS)
    places = session.few(statement, {**source.bound.values, **values, "count": asked})
    if source.ends is None or not places.num_rows:
        return fetch(session, scan.table, places, names)
    found = fetch(session, scan.table, places, (*names, *ENDING_KEYS))
    kept = found.take(pa.array(source.ends.standing(session, found), pa.int64())).select(list(names)).slice(0, count)
    if kept.num_rows == count or places.num_rows < asked:
        return kept
    rest = behind(source.attached(session), place_of(places), newest_first)
    more = _first(session, lake, scan, rest, names, newest_first, count - kept.num_rows)
    # Without rows a table has the types of the lake instead of those of the reader.
    return pa.concat_tables([kept, more]) if more.num_rows else kept


def _few(session: Session, lake: Lake, scan: Scan, used: str) -> tuple[str, dict[str, Any]]:
    """As `Lake.reading`, with the rows that an account has in hours with few of it read by themselves."""
    columns = columns_in(scan.table, used)
    rows, rest = few_rows(session, lake, scan, columns)
    reading, values = lake.reading(rest, used)
    if rows is None:
        return reading, values
    session.register(_ROWS, rows)
    if not rest.files:
        return _ROWS, {}
    selected = ", ".join(columns)
    return f"(SELECT {selected} FROM {_ROWS} UNION ALL SELECT {selected} FROM {reading})", values


def behind(source: Source, cursor: Cursor, newest_first: bool) -> Source:
    """The rows of a source that come after the cursor."""
    bound = Bound()
    bound.values.update(source.bound.values)
    return replace(
        source, predicates=(*source.predicates, after(cursor, bound, newest_first=newest_first)), bound=bound
    )


def _ahead(scan: Scan, cursor: Cursor | None, newest_first: bool) -> Scan:
    """The scan without the files that lie before the cursor."""
    if cursor is None:
        return scan
    micros = int(cursor.key[-3])
    if newest_first:
        kept = [file for file in scan.files if file.min_time_us <= micros]
    else:
        kept = [file for file in scan.files if file.max_time_us >= micros]
    return replace(scan, files=tuple(kept))


def _edge(step: Sequence[LiveFile], newest_first: bool) -> Cursor:
    """The cursor between the last hour that was walked and the next."""
    if newest_first:
        return Cursor((min(file.hour_us for file in step), -1, -1))
    return Cursor((max(file.hour_us for file in step) + HOUR_US - 1, _MAX_PARTITION, _MAX_OFFSET))

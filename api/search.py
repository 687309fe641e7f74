"""Search: walks the hours of posts from one end, in growing steps, until a page is full.

Runs on a worker thread. A common word fills a page from the newest hour; a rare one reads further back, within the time
it has: an unfinished walk ends the page early and its cursor goes on where the walk stopped.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import pyarrow as pa

from api.columns import lake_columns
from api.cursors import Cursor
from api.engine import Session
from api.identifiers import POST
from api.posts_query import Lake, Selection, prepare
from api.snapshots import Scan
from api.sql import Bound, all_of
from api.times import to_datetime, to_micros
from lake.convert import lake_schema
from lake.manifest import HOUR_US, LiveFile

_FIRST_ROWS: Final = 250_000
_LARGEST_ROWS: Final = 8_000_000
_MAX_PARTITION: Final = 2**31 - 1
_MAX_OFFSET: Final = 2**63 - 1


class Sort(StrEnum):
    """Order of a search's results, by time of arrival."""

    NEWEST = "newest"
    OLDEST = "oldest"


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


_ORDER: Final = {
    Sort.NEWEST: "time DESC, kafka_partition DESC, kafka_offset DESC",
    Sort.OLDEST: "time ASC, kafka_partition ASC, kafka_offset ASC",
}


def after_predicate(cursor: Cursor, sort: Sort, bound: Bound) -> str:
    """That a row comes after the cursor: written out, because a row-value comparison does not prune Parquet."""
    micros, partition, offset = (int(part) for part in cursor.key)
    operator = "<" if sort is Sort.NEWEST else ">"
    t, p, o = bound.bind(to_datetime(micros)), bound.bind(partition), bound.bind(offset)
    return (
        f"time {operator}= {t} AND (time {operator} {t} OR kafka_partition {operator} {p}"
        f" OR (kafka_partition = {p} AND kafka_offset {operator} {o}))"
    )


@dataclass(frozen=True)
class SearchPlan:
    """Everything a worker needs to produce one page."""

    scan: Scan
    selection: Selection
    sort: Sort
    fields: tuple[str, ...]
    limit: int
    cursor: Cursor | None
    seconds: float


def run_search(session: Session, lake: Lake, plan: SearchPlan) -> Page:
    """Produce one page. Blocks for about `plan.seconds` at most when single steps are short; the runner's deadline holds in
    any case."""
    until = time.monotonic() + plan.seconds
    source = prepare(session, lake, plan.scan, plan.selection)
    bound = source.bound
    predicates = list(source.predicates)
    if plan.cursor is not None:
        predicates.append(after_predicate(plan.cursor, plan.sort, bound))
    columns = dict.fromkeys((*lake_columns(POST, plan.fields), "time", "kafka_partition", "kafka_offset"))
    statement = (
        f"SELECT {', '.join(columns)} FROM {source.relation}"
        f" WHERE {all_of(predicates)} ORDER BY {_ORDER[plan.sort]} LIMIT $count"
    )
    found: list[pa.Table] = []
    missing = plan.limit + 1
    files_read = rows_scanned = 0
    steps = _remaining(plan).steps(
        newest_first=plan.sort is Sort.NEWEST, first_rows=_FIRST_ROWS, largest_rows=_LARGEST_ROWS
    )
    for number, step in enumerate(steps):
        part = session.table(statement, {**bound.values, "files": lake.paths(step), "count": missing})
        files_read += len(step)
        rows_scanned += sum(file.rows for file in step)
        found.append(part)
        missing -= part.num_rows
        if missing <= 0:
            break
        if time.monotonic() >= until and number + 1 < len(steps):
            rows = pa.concat_tables(found)
            return Page(rows, _at_edge(step, plan.sort), False, files_read, rows_scanned)
    rows = pa.concat_tables(found) if found else lake_schema(POST).empty_table().select(list(columns))
    more = rows.num_rows > plan.limit
    rows = rows.slice(0, plan.limit)
    return Page(rows, _cursor_of(rows) if more else None, True, files_read, rows_scanned)


def _remaining(plan: SearchPlan) -> Scan:
    """The scan without the hours that lie before the cursor."""
    if plan.cursor is None:
        return plan.scan
    micros = int(plan.cursor.key[0])
    if plan.sort is Sort.NEWEST:
        kept = [file for file in plan.scan.files if file.min_time_us <= micros]
    else:
        kept = [file for file in plan.scan.files if file.max_time_us >= micros]
    return replace(plan.scan, files=tuple(kept))


def _cursor_of(rows: pa.Table) -> Cursor:
    last = rows.slice(rows.num_rows - 1)
    moment, partition, offset = (last[name][0].as_py() for name in ("time", "kafka_partition", "kafka_offset"))
    return Cursor((to_micros(moment), partition, offset))


def _at_edge(step: Sequence[LiveFile], sort: Sort) -> Cursor:
    """The cursor between the last hour that was walked and the next."""
    if sort is Sort.NEWEST:
        return Cursor((min(file.hour_us for file in step), -1, -1))
    return Cursor((max(file.hour_us for file in step) + HOUR_US - 1, _MAX_PARTITION, _MAX_OFFSET))

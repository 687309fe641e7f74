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
from api.engagement import candidates, count_engagement, same_record
from api.engine import Session
from api.identifiers import POST
from api.posts_query import Selection, prepare
from api.relation import Lake
from api.snapshots import Scan
from api.sql import Bound, all_of
from api.times import to_datetime, to_micros
from lake.convert import lake_schema
from lake.manifest import HOUR_US, LiveFile

_FIRST_ROWS: Final = 250_000
_LARGEST_ROWS: Final = 8_000_000
_MAX_PARTITION: Final = 2**31 - 1
_MAX_OFFSET: Final = 2**63 - 1
_POSITION: Final = ("time", "did", "rkey_tid", "rkey_text", "kafka_partition", "kafka_offset")
"""Columns that every page has: its order, and what extras are looked up by."""


class Sort(StrEnum):
    """Order of a search's results: by time of arrival, or by likes, reposts and replies together."""

    NEWEST = "newest"
    OLDEST = "oldest"
    ENGAGED = "engaged"


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
    Sort.ENGAGED: "score DESC, time DESC, kafka_partition DESC, kafka_offset DESC",
}


def after_predicate(cursor: Cursor, sort: Sort, bound: Bound) -> str:
    """That a row comes after the cursor: written out, because a row-value comparison does not prune Parquet."""
    *score, micros, partition, offset = (int(part) for part in cursor.key)
    operator = ">" if sort is Sort.OLDEST else "<"
    t, p, o = bound.bind(to_datetime(micros)), bound.bind(partition), bound.bind(offset)
    later = (
        f"time {operator}= {t} AND (time {operator} {t} OR kafka_partition {operator} {p}"
        f" OR (kafka_partition = {p} AND kafka_offset {operator} {o}))"
    )
    if not score:
        return later
    s = bound.bind(score[0])
    return f"score <= {s} AND (score < {s} OR ({later}))"


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
    sample_seed: str | None = None


def run_search(session: Session, lake: Lake, plan: SearchPlan) -> Page:
    """Produce one page. Blocks for about `plan.seconds` at most when single steps are short; the runner's deadline holds in
    any case. Handles in the selection must be resolved."""
    if not plan.scan.files:
        return Page(lake_schema(POST).empty_table().select(list(_columns(plan))), None, True, 0, 0)
    if plan.sample_seed is not None:
        return _sample(session, lake, plan)
    return _engaged(session, lake, plan) if plan.sort is Sort.ENGAGED else _walk(session, lake, plan)


def _columns(plan: SearchPlan) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*lake_columns(POST, plan.fields), *_POSITION)))


def _walk(session: Session, lake: Lake, plan: SearchPlan) -> Page:
    until = time.monotonic() + plan.seconds
    source = prepare(session, lake, plan.scan, plan.selection)
    bound = source.bound
    predicates = list(source.predicates)
    if plan.cursor is not None:
        predicates.append(after_predicate(plan.cursor, plan.sort, bound))
    statement = (
        f"SELECT {_select(plan)} FROM {source.relation}"
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
    rows = pa.concat_tables(found) if found else lake_schema(POST).empty_table().select(list(_columns(plan)))
    return _page(plan, rows, files_read, rows_scanned)


def _page(plan: SearchPlan, rows: pa.Table, files_read: int, rows_scanned: int) -> Page:
    more = rows.num_rows > plan.limit
    rows = rows.slice(0, plan.limit)
    return Page(rows, _cursor_of(rows) if more else None, True, files_read, rows_scanned)


def _select(plan: SearchPlan) -> str:
    return ", ".join(f"r.{name}" for name in _columns(plan))


def _engaged(session: Session, lake: Lake, plan: SearchPlan) -> Page:
    """All matches with their counts, the highest first: reads the whole range, and every like, repost and reply since."""
    source = prepare(session, lake, plan.scan, plan.selection)
    keys = candidates(session, lake, plan.scan, source)
    counts = [
        count_engagement(session, lake, plan.scan, plan.selection.filters, keys, kind)
        for kind in ("likes", "reposts", "replies")
    ]
    session.register("engagement", pa.concat_tables(counts))
    session.register(
        "scores", session.table("SELECT * EXCLUDE count, sum(count)::BIGINT AS score FROM engagement GROUP BY ALL", {})
    )
    after = "TRUE" if plan.cursor is None else after_predicate(plan.cursor, plan.sort, source.bound)
    statement = (
        f"WITH matching AS (SELECT {_select(plan)} FROM {source.relation} WHERE {source.condition}),"
        " scored AS (SELECT m.*, coalesce(e.score, 0) AS score FROM matching AS m"
        f" LEFT JOIN scores AS e ON {same_record('e', 'm')})"
        f" SELECT * FROM scored WHERE {after} ORDER BY {_ORDER[plan.sort]} LIMIT $count"
    )
    values = {**source.bound.values, "files": lake.paths(plan.scan.files), "count": plan.limit + 1}
    return _page(plan, session.table(statement, values), len(plan.scan.files), plan.scan.rows)


def _sample(session: Session, lake: Lake, plan: SearchPlan) -> Page:
    """Random matches: the ones whose keyed digest is smallest, so that a seed gives the same rows of a snapshot again."""
    source = prepare(session, lake, plan.scan, plan.selection)
    seed = source.bound.bind(plan.sample_seed)
    statement = (
        f"SELECT {_select(plan)} FROM {source.relation} WHERE {source.condition}"
        f" ORDER BY md5(concat_ws('/', {seed}, r.did, r.rkey_tid, r.rkey_text)) LIMIT $count"
    )
    values = {**source.bound.values, "files": lake.paths(plan.scan.files), "count": plan.limit}
    return Page(session.table(statement, values), None, True, len(plan.scan.files), plan.scan.rows)


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
    score = (int(last["score"][0].as_py()),) if "score" in rows.column_names else ()
    return Cursor((*score, to_micros(moment), partition, offset))


def _at_edge(step: Sequence[LiveFile], sort: Sort) -> Cursor:
    """The cursor between the last hour that was walked and the next."""
    if sort is Sort.NEWEST:
        return Cursor((min(file.hour_us for file in step), -1, -1))
    return Cursor((max(file.hour_us for file in step) + HOUR_US - 1, _MAX_PARTITION, _MAX_OFFSET))

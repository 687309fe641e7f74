"""Search: one page of the posts that a selection names, in one of three orders, or a random sample of them.

Runs on a worker thread.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import pyarrow as pa

from api.columns import lake_columns
from api.cursors import Cursor
from api.engagement import candidates, count_engagement, same_record
from api.engine import Session
from api.fetch import ROW, fetch
from api.identifiers import POST
from api.key_skip import narrow_by_keys
from api.posts_query import Reader, Selection, prepare
from api.relation import Lake
from api.snapshots import Scan
from api.walk import Page, after, order_by, place_of, walk
from lake.convert import lake_schema


class Sort(StrEnum):
    """Order of a search's results: by time of arrival, or by likes, reposts and replies together."""

    NEWEST = "newest"
    OLDEST = "oldest"
    ENGAGED = "engaged"


_KEYS: Final = ("time", "did", "rkey_tid", "rkey_text", "kafka_partition", "kafka_offset")
"""Columns that every page has: its order, and what extras are looked up by."""


@dataclass(frozen=True)
class SearchPlan:
    """Everything a worker needs to produce one page. `seconds`: after that a walk ends the page early."""

    scan: Scan
    selection: Selection
    sort: Sort
    fields: tuple[str, ...]
    limit: int
    cursor: Cursor | None
    seconds: float
    sample_seed: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The lake columns of the page's rows."""
        return tuple(dict.fromkeys((*lake_columns(POST, self.fields), *_KEYS)))


def run_search(session: Session, lake: Lake, plan: SearchPlan) -> Page:
    """Produce one page."""
    plan = replace(plan, scan=narrow_by_keys(lake, plan.scan, plan.selection.filters))
    if not plan.scan.files:
        return Page(lake_schema(POST).empty_table().select(list(plan.columns)), None, True, 0, 0)
    if plan.sample_seed is not None:
        return _sample(session, lake, plan)
    if plan.sort is Sort.ENGAGED:
        return _engaged(session, lake, plan)
    return walk(
        session,
        lake,
        plan.scan,
        prepare(session, lake, plan.scan, plan.selection, reader=Reader.FEW),
        plan.columns,
        newest_first=plan.sort is Sort.NEWEST,
        limit=plan.limit,
        cursor=plan.cursor,
        seconds=plan.seconds,
    )


_KEYS_OF_ROWS: Final = ", ".join(f"r.{name}" for name in (*_KEYS, *ROW))


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
    following = "TRUE"
    if plan.cursor is not None:
        score = source.bound.bind(int(plan.cursor.key[0]))
        later = after(plan.cursor, source.bound, newest_first=True)
        following = f"score <= {score} AND (score < {score} OR ({later}))"
    statement = (
        f"WITH matching AS (SELECT {_KEYS_OF_ROWS} FROM {source.relation} WHERE {source.condition}),"
        " scored AS (SELECT m.*, coalesce(e.score, 0) AS score FROM matching AS m"
        f" LEFT JOIN scores AS e ON {same_record('e', 'm')})"
        f" SELECT * FROM scored WHERE {following} ORDER BY score DESC, {order_by(newest_first=True)} LIMIT $count"
    )
    values = {**source.bound.values, "files": lake.paths(plan.scan.files), "count": plan.limit + 1}
    rows = session.table(statement, values)
    more = rows.num_rows > plan.limit
    rows = rows.slice(0, plan.limit)
    position = None
    if more:
        last = rows["score"][rows.num_rows - 1].as_py()
        position = Cursor((int(last), *place_of(rows).key))
    return Page(fetch(session, POST, rows, plan.columns), position, True, len(plan.scan.files), plan.scan.rows)


def _sample(session: Session, lake: Lake, plan: SearchPlan) -> Page:
    """Random matches: the ones whose keyed digest is smallest, so that a seed gives the same rows of a snapshot again."""
    source = prepare(session, lake, plan.scan, plan.selection)
    seed = source.bound.bind(plan.sample_seed)
    statement = (
        f"SELECT {_KEYS_OF_ROWS} FROM {source.relation} WHERE {source.condition}"
        f" ORDER BY md5(concat_ws('/', {seed}, r.did, r.rkey_tid, r.rkey_text)) LIMIT $count"
    )
    values = {**source.bound.values, "files": lake.paths(plan.scan.files), "count": plan.limit}
    rows = fetch(session, POST, session.table(statement, values), plan.columns)
    return Page(rows, None, True, len(plan.scan.files), plan.scan.rows)

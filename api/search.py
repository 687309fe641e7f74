"""Search: one page of the posts that a selection names, in one of three orders, or a random sample of them.

Runs on a worker thread.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

from api.columns import lake_columns
from api.cursors import Cursor
from api.engine import Session
from api.fetch import fetch
from api.identifiers import POST
from api.matches import matches
from api.minimums import minimums_of
from api.posts_query import Reader, Selection, prepare
from api.ranking import KEYS_OF_ROWS, PAGE_KEYS, Ranking, score_of
from api.relation import Lake
from api.snapshots import Scan
from api.walk import Page, place_of, walk
from lake.convert import lake_schema


class Sort(StrEnum):
    """Order of a search's results: by time of arrival, or by likes, reposts and replies together."""

    NEWEST = "newest"
    OLDEST = "oldest"
    ENGAGED = "engaged"


@dataclass(frozen=True)
class SearchPlan:
    """Everything a worker needs to produce one page. `scan`: the files that can hold a match, as far as keys and text tell;
    `seconds`: after that a walk ends the page early."""

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
        return tuple(dict.fromkeys((*lake_columns(POST, self.fields), *PAGE_KEYS)))


def run_search(session: Session, lake: Lake, plan: SearchPlan) -> Page:
    """Produce one page."""
    if not plan.scan.files:
        return _nothing(plan)
    if plan.sample_seed is not None:
        return _sample(session, lake, plan)
    if plan.sort is Sort.ENGAGED:
        return _engaged(session, lake, plan)
    newest_first = plan.sort is Sort.NEWEST
    first = None
    if plan.selection.filters.engagement:
        minimums = minimums_of(session, lake, plan.scan, plan.selection)
        source, first = minimums.source, minimums.first(session, plan.columns, newest_first=newest_first)
    else:
        source = prepare(session, lake, plan.scan, plan.selection, reader=Reader.FEW)
    spare = 0
    if plan.scan.counts is not None and source.ends is not None:
        authors = pa.array(plan.selection.filters.author, pa.string())
        if source.ends.hides(authors):
            return _nothing(plan)
        spare = source.ends.about(authors).records.num_rows
    return walk(
        session,
        lake,
        plan.scan,
        source,
        plan.columns,
        newest_first=newest_first,
        limit=plan.limit,
        cursor=plan.cursor,
        seconds=plan.seconds,
        spare=spare,
        first=first,
    )


def _nothing(plan: SearchPlan) -> Page:
    return Page(lake_schema(POST).empty_table().select(list(plan.columns)), None, True, 0, 0)


def _engaged(session: Session, lake: Lake, plan: SearchPlan) -> Page:
    """Matches with their counts, the highest first."""
    found = Ranking(session, lake, plan.scan, plan.selection, plan.limit, plan.cursor).first()
    position = None
    rows = found.slice(0, plan.limit)
    if found.num_rows > plan.limit:
        position = Cursor((score_of(rows), *place_of(rows).key))
    return Page(fetch(session, POST, rows, plan.columns), position, True, len(plan.scan.files), plan.scan.rows)


def _sample(session: Session, lake: Lake, plan: SearchPlan) -> Page:
    """Random matches: the ones whose keyed digest is smallest, so that a seed gives the same rows of a snapshot again."""
    source = prepare(session, lake, plan.scan, plan.selection)
    of = matches(session, lake, plan.scan, source, KEYS_OF_ROWS)
    seed = of.bound.bind(plan.sample_seed)
    statement = (
        f"SELECT {KEYS_OF_ROWS} FROM {of.relation} WHERE {of.condition}"
        f" ORDER BY md5(concat_ws('/', {seed}, r.did, r.rkey_tid, r.rkey_text)) LIMIT $count"
    )
    found = session.table(statement, {**of.bound.values, "count": plan.limit})
    rows = fetch(session, POST, found, plan.columns)
    return Page(rows, None, True, len(plan.scan.files), plan.scan.rows)

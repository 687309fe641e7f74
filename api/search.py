"""Search: one page of the posts that a selection names, in one of three orders, or a random sample of them.

Runs on a worker thread.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from api.bounds import HIGHEST, Bounds, bounds_of
from api.columns import lake_columns
from api.current import ENDING_KEYS
from api.cursors import Cursor
from api.engagement import KEYS, count_engagement, is_likely, likely, named_from, same_record
from api.engine import Session
from api.fetch import fetch
from api.identifiers import POST
from api.matches import matches
from api.minimums import minimums_of
from api.posts_query import Reader, Selection, prepare, selects_by_text, selects_many
from api.relation import ROW, Lake, Source
from api.snapshots import Scan
from api.sql import Bound
from api.walk import Page, after, order_by, place_of, walk
from lake.convert import lake_schema


class Sort(StrEnum):
    """Order of a search's results: by time of arrival, or by likes, reposts and replies together."""

    NEWEST = "newest"
    OLDEST = "oldest"
    ENGAGED = "engaged"


SCORED: Final = ("likes", "reposts", "replies")
"""The kinds of engagement whose sum is the score of Sort.ENGAGED."""

_LIKELY: Final = (20_000, 400_000)
"""How many of the posts that are named most often a ranking looks at, before it looks at all."""

_SURPLUS: Final = 1.5
"""Times as many posts as a page needs are looked at first, since bounds are not counts."""
_GROWTH: Final = 4
"""Times as many the next time."""
_MOST_LOOKED_AT: Final = 400_000
"""Where more posts would have to be looked at by themselves, all of the range are read."""
_MOST_MATCHES: Final = 1_000_000
"""More than that are not held in memory."""

_KEYS: Final = ("time", "did", "rkey_tid", "rkey_text", "kafka_partition", "kafka_offset")
"""Columns that every page has: its order, and what extras are looked up by."""


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
        return tuple(dict.fromkeys((*lake_columns(POST, self.fields), *_KEYS)))


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


_KEYS_OF_ROWS: Final = ", ".join(f"r.{name}" for name in (*_KEYS, *ROW))


def _engaged(session: Session, lake: Lake, plan: SearchPlan) -> Page:
    """Matches with their counts, the highest first: of the posts that can have most where that settles the page, else of all posts
    of the range, for which every like, repost and reply since is read."""
    found = None
    if selects_by_text(plan.scan, plan.selection) and not plan.selection.filters.engagement:
        bounds = bounds_of(session, lake, plan.scan, named_from(plan.selection.filters), SCORED)
        if bounds is not None:
            found = _of_highest(session, lake, plan, bounds)
        elif selects_many(plan.scan, plan.selection):
            found = _of_likely(session, lake, plan)
    if found is None:
        source = prepare(session, lake, plan.scan, plan.selection)
        of = matches(session, lake, plan.scan, source, _KEYS_OF_ROWS)
        matching = f"SELECT {_KEYS_OF_ROWS} FROM {of.relation} WHERE {of.condition}"
        keys = session.table(f"SELECT {', '.join(KEYS.names)} FROM ({matching})", of.bound.values)
        found = _ranked(session, lake, plan, keys, matching, of.bound)
    position = None
    rows = found.slice(0, plan.limit)
    if found.num_rows > plan.limit:
        position = Cursor((_score(rows), *place_of(rows).key))
    return Page(fetch(session, POST, rows, plan.columns), position, True, len(plan.scan.files), plan.scan.rows)


def _of_highest(session: Session, lake: Lake, plan: SearchPlan, bounds: Bounds) -> pa.Table | None:
    """The page's rows and one more, or None where too many posts would have to be looked at.

    Looks at the posts with the highest bounds first, until the last of the page has a score that no other post can have.
    """
    source = prepare(session, lake, plan.scan, plan.selection, reader=Reader.FEW)
    share = _share_that_matches(session, lake, plan, source)
    rows = sum(map(plan.scan.rows_to_read, plan.scan.files))
    before = 0 if plan.cursor is None else int(bounds.reaching[min(int(plan.cursor.key[0]), HIGHEST)])
    wanted = before + round(_SURPLUS * (plan.limit + 1) / share)
    while True:
        least = bounds.least_of(wanted)
        if bounds.reaching[least] > _MOST_LOOKED_AT:
            least = 0
        if not least and share * rows > _MOST_MATCHES:
            return None
        part = bounds.scoring(least) if least else plan.scan
        found, settled = _of_matches(session, lake, plan, bounds, _places(session, lake, part, source), source, least)
        if settled or not least:
            return found
        # As many may have this bound that a larger number alone would look at the same ones again.
        wanted = _GROWTH * int(bounds.reaching[least])
        if found.num_rows > plan.limit:
            wanted = max(wanted, int(bounds.reaching[min(_score(found), HIGHEST)]))


def _share_that_matches(session: Session, lake: Lake, plan: SearchPlan, source: Source) -> float:
    """How large a share of the plan's rows matches, by one of its files; never 0."""
    file = max(plan.scan.files, key=plan.scan.rows_to_read)
    reading, values = lake.reading(replace(plan.scan, files=(file,)), source.condition)
    found = session.rows(
        f"SELECT count(*) FROM {source.over(reading)} WHERE {source.condition}", {**source.bound.values, **values}
    )
    return max(1, int(found[0][0])) / max(1, plan.scan.rows_to_read(file))


def _places(session: Session, lake: Lake, part: Scan, source: Source) -> pa.Table:
    """Where the matches lie, also those that ended."""
    names = ", ".join(f"r.{name}" for name in ROW)
    of = matches(session, lake, part, source, names)
    return session.table(f"SELECT {names} FROM {of.relation} WHERE {of.condition}", of.bound.values)


def _of_matches(
    session: Session, lake: Lake, plan: SearchPlan, bounds: Bounds, places: pa.Table, source: Source, least: int
) -> tuple[pa.Table, bool]:
    """The first of the matches at some places by score, and whether they are those of the page: all other posts have a bound below
    `least`."""
    highest = bounds.of_rows(places)
    order = np.argsort(-highest, kind="stable")
    counted = _SURPLUS * (plan.limit + 1)
    if plan.cursor is not None:
        counted += np.count_nonzero(highest >= min(int(plan.cursor.key[0]), HIGHEST))
    while True:
        some = places.take(pa.array(order[: round(counted)]))
        rest = highest[order[some.num_rows]] if some.num_rows < places.num_rows else -1
        found = _ranked_rows(session, lake, plan, some, source)
        if found.num_rows > plan.limit and _score(found) > rest:
            return found, _score(found) >= least
        if rest < 0:
            return found, False
        counted *= _GROWTH


def _ranked_rows(session: Session, lake: Lake, plan: SearchPlan, places: pa.Table, source: Source) -> pa.Table:
    """The first rows of a page of the posts at some places that did not end, and one more, by score."""
    assert source.ends is not None
    rows = fetch(session, POST, places, (*_KEYS, *ENDING_KEYS))
    for name in ROW:
        rows = rows.append_column(name, places[name])
    rows = rows.take(pa.array(source.ends.standing(session, rows), pa.int64()))
    session.register("likely_posts", rows)
    of_likely = f"SELECT {_KEYS_OF_ROWS} FROM likely_posts AS r"
    return _ranked(session, lake, plan, rows.select(KEYS.names), of_likely, Bound())


def _of_likely(session: Session, lake: Lake, plan: SearchPlan) -> pa.Table | None:
    """The page's rows and one more, or None where posts that are named less often may belong before the last of them."""
    source = prepare(session, lake, plan.scan, plan.selection, reader=Reader.FEW).also(is_likely("likely"))
    assert source.ends is not None
    names = dict.fromkeys((*_KEYS, *ENDING_KEYS, *ROW))
    statement = f"SELECT {', '.join(f'r.{name}' for name in names)} FROM {source.relation} WHERE {source.condition}"
    for count in _LIKELY:
        most = likely(session, lake, plan.scan, plan.selection.filters, SCORED, count=count)
        session.register("likely", most)
        rows = session.table(statement, {**source.bound.values, "files": lake.paths(plan.scan.files)})
        rows = rows.take(pa.array(source.ends.standing(session, rows), pa.int64()))
        session.register("likely_posts", rows)
        keys = rows.select(KEYS.names)
        found = _ranked(session, lake, plan, keys, f"SELECT {_KEYS_OF_ROWS} FROM likely_posts AS r", Bound())
        others = 0 if most.num_rows < count else pc.min(most["most"]).as_py()
        if found.num_rows > plan.limit and _score(found) > others:
            return found
        if most.num_rows < count:
            break
    return None


def _ranked(session: Session, lake: Lake, plan: SearchPlan, keys: pa.Table, matching: str, bound: Bound) -> pa.Table:
    """The first rows of a page of some posts, and one more, by score; `keys` are the keys of the posts that `matching` selects."""
    counts = [count_engagement(session, lake, plan.scan, plan.selection.filters, keys, kind) for kind in SCORED]
    session.register("engagement", pa.concat_tables(counts))
    session.register(
        "scores", session.table("SELECT * EXCLUDE count, sum(count)::BIGINT AS score FROM engagement GROUP BY ALL", {})
    )
    following = "TRUE"
    if plan.cursor is not None:
        score = bound.bind(int(plan.cursor.key[0]))
        later = after(plan.cursor, bound, newest_first=True)
        following = f"score <= {score} AND (score < {score} OR ({later}))"
    statement = (
        f"WITH matching AS ({matching}),"
        " scored AS (SELECT m.*, coalesce(e.score, 0) AS score FROM matching AS m"
        f" LEFT JOIN scores AS e ON {same_record('e', 'm')})"
        f" SELECT * FROM scored WHERE {following} ORDER BY score DESC, {order_by(newest_first=True)} LIMIT $count"
    )
    return session.table(statement, {**bound.values, "count": plan.limit + 1})


def _score(rows: pa.Table) -> int:
    """The score of the last row."""
    return int(rows["score"][rows.num_rows - 1].as_py())


def _sample(session: Session, lake: Lake, plan: SearchPlan) -> Page:
    """Random matches: the ones whose keyed digest is smallest, so that a seed gives the same rows of a snapshot again."""
    source = prepare(session, lake, plan.scan, plan.selection)
    of = matches(session, lake, plan.scan, source, _KEYS_OF_ROWS)
    seed = of.bound.bind(plan.sample_seed)
    statement = (
        f"SELECT {_KEYS_OF_ROWS} FROM {of.relation} WHERE {of.condition}"
        f" ORDER BY md5(concat_ws('/', {seed}, r.did, r.rkey_tid, r.rkey_text)) LIMIT $count"
    )
    found = session.table(statement, {**of.bound.values, "count": plan.limit})
    rows = fetch(session, POST, found, plan.columns)
    return Page(rows, None, True, len(plan.scan.files), plan.scan.rows)

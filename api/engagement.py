"""Likes, reposts and replies of posts, counted from the records that the archive saw and that still stand."""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from typing import Final

import pyarrow as pa

from api.current import IS_RECORD
from api.engine import Session
from api.filters import Clock, PostFilters
from api.identifiers import POST
from api.key_skip import holding, naming
from api.relation import Lake, Source
from api.snapshots import Scan, as_of_predicate, scan
from api.sql import Bound
from lake.manifest import HOUR_US

ENGAGEMENT: Final = {
    "likes": ("app.bsky.feed.like", "subject"),
    "reposts": ("app.bsky.feed.repost", "subject"),
    "replies": (POST, "reply_parent"),
    "quotes": (POST, "quote"),
}
"""Kind of engagement → table of the records that make it, and the stem of the at-uri columns that name the post."""

_FEW_KEYS: Final = 200
"""More posts than this have something in nearly every file, so that looking for files without any costs more than it saves."""

KEYS: Final = pa.schema([("did", pa.string()), ("rkey_tid", pa.int64()), ("rkey_text", pa.string())])
"""What identifies a record inside its collection."""
COUNTED: Final = KEYS.append(pa.field("count", pa.int64()))


def same_record(left: str, right: str) -> str:
    """That two relations (by alias) name the same record of one collection."""
    return (
        f"{left}.did = {right}.did AND {left}.rkey_tid IS NOT DISTINCT FROM {right}.rkey_tid"
        f" AND {left}.rkey_text IS NOT DISTINCT FROM {right}.rkey_text"
    )


def subject_columns(stem: str) -> str:
    """The key of the record that an at-uri names, as columns did, rkey_tid, rkey_text."""
    uri = f"{stem}_uri_text"
    return (
        f"coalesce({stem}_did, string_split({uri}, '/')[3]) AS did, {stem}_rkey_tid AS rkey_tid,"
        f" CASE WHEN {stem}_did IS NULL THEN string_split({uri}, '/')[5] END AS rkey_text"
    )


def is_post_subject(stem: str) -> str:
    """That an at-uri names a post."""
    return f"coalesce({stem}_collection, string_split({stem}_uri_text, '/')[4]) = '{POST}'"


def candidates(session: Session, lake: Lake, plan: Scan, source: Source) -> pa.Table:
    """The keys of the posts of a source."""
    if not plan.files:
        return KEYS.empty_table()
    statement = f"SELECT r.did, r.rkey_tid, r.rkey_text FROM {source.relation} WHERE {source.condition}"
    return session.table(statement, {**source.bound.values, "files": lake.paths(plan.files)})


def count_engagement(
    session: Session, lake: Lake, plan: Scan, filters: PostFilters, keys: pa.Table, kind: str, least: int = 1
) -> pa.Table:
    """How many current records of a kind point at each of the posts `keys`; posts with fewer than `least` are left out.

    The files read are those from an hour before the range of `filters` on: a record cannot come before the post it names,
    but another host may deliver it a little earlier.
    """
    start = None if filters.start is None or filters.clock is Clock.CREATED else filters.start - HOUR_US
    return count_subjects(session, lake, plan, start, keys, kind, least)


def count_subjects(
    session: Session, lake: Lake, plan: Scan, start_us: int | None, keys: pa.Table, kind: str, least: int = 1
) -> pa.Table:
    """As `count_engagement`, for records that arrived from `start_us` on."""
    table, stem = ENGAGEMENT[kind]
    records = scan(plan.snapshot, table, start_us, None, plan.as_of)
    if keys.num_rows <= _FEW_KEYS:
        records = holding(lake, records, naming(stem, keys["rkey_tid"].to_pylist()))
    if not records.files or not keys.num_rows:
        return COUNTED.empty_table()
    joins = lake.current.ends(session, plan.snapshot, table, start_us).attach(session, f"ended_{kind}")
    session.register(f"posts_{kind}", keys)
    bound = Bound()
    visible = "TRUE" if plan.as_of is None else as_of_predicate(plan.as_of, table, bound)
    statement = (
        f"WITH subjects AS (SELECT {subject_columns(stem)} FROM read_parquet($files, hive_partitioning = false) AS r {joins}"
        f" WHERE {IS_RECORD} AND {is_post_subject(stem)} AND {visible})"
        " SELECT did, rkey_tid, rkey_text, count(*) AS count FROM subjects AS x"
        f" SEMI JOIN posts_{kind} AS c ON {same_record('c', 'x')} GROUP BY ALL HAVING count(*) >= {bound.bind(least)}"
    )
    return session.table(statement, {**bound.values, "files": lake.paths(records.files)})

"""Likes, reposts and replies of posts, counted from the records that the archive saw and that still stand."""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pyarrow as pa

from api.current import ENDING_KEYS, IS_RECORD
from api.engine import Session
from api.filters import Clock, PostFilters
from api.identifiers import POST
from api.key_skip import holding, naming
from api.matches import matches
from api.relation import READ_FILES, Lake, Source, columns_in
from api.snapshots import Scan, as_of_predicate, scan
from api.sql import Bound
from lake.manifest import HOUR_US
from lake.named_keys import NAMING, may_name

ENGAGEMENT: Final = {
    "likes": ("app.bsky.feed.like", "subject"),
    "reposts": ("app.bsky.feed.repost", "subject"),
    "replies": (POST, "reply_parent"),
    "quotes": (POST, "quote"),
}
"""Kind of engagement → table of the records that make it, and the stem of the at-uri columns that name the post."""

_REST_OF_URI: Final = ("did", "collection", "uri_text")
"""The columns of an at-uri beside the number of its record key."""

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
    selected = ", ".join(f"r.{name}" for name in KEYS.names)
    of = matches(session, lake, plan, source, selected)
    return session.table(f"SELECT {selected} FROM {of.relation} WHERE {of.condition}", of.bound.values)


def count_engagement(
    session: Session, lake: Lake, plan: Scan, filters: PostFilters, keys: pa.Table, kind: str, least: int = 1
) -> pa.Table:
    """How many current records of a kind point at each of the posts `keys`; posts with fewer than `least` are left out."""
    return count_subjects(session, lake, plan, named_from(filters), keys, kind, least)


def count_subjects(
    session: Session, lake: Lake, plan: Scan, start_us: int | None, keys: pa.Table, kind: str, least: int = 1
) -> pa.Table:
    """As `count_engagement`, for records that arrived from `start_us` on."""
    table, stem = ENGAGEMENT[kind]
    records = scan(plan.snapshot, table, start_us, None, plan.as_of)
    if not keys["rkey_tid"].null_count and table in NAMING and NAMING[table] == f"{stem}_rkey_tid":
        kept = may_name(lake.root, records.files, np.asarray(keys["rkey_tid"], np.int64))
        records = replace(records, files=tuple(kept))
    if keys.num_rows <= _FEW_KEYS:
        records = holding(lake, records, naming(stem, keys["rkey_tid"].to_pylist()))
    if not records.files or not keys.num_rows:
        return COUNTED.empty_table()
    joins = lake.current.ends(session, plan.snapshot, table, start_us).attach(session, f"ended_{kind}")
    session.register(f"posts_{kind}", keys)
    bound = Bound()
    visible = "TRUE" if plan.as_of is None else as_of_predicate(plan.as_of, table, bound)
    key = f"{stem}_rkey_tid"
    # The account of a like is half the work of reading it, and what ended may not ask for it.
    ending = [name for name in columns_in(table, joins) if name in ENDING_KEYS]
    columns = ", ".join(f"r.{name}" for name in (*ending, key, *(f"{stem}_{part}" for part in _REST_OF_URI)))
    rows = f"SELECT {columns} FROM {READ_FILES} AS r"
    # One number tells most rows apart; what ended is searched for those only that it leaves.
    named = [f"{rows} SEMI JOIN posts_{kind} AS c ON c.rkey_tid = r.{key} WHERE {IS_RECORD} AND {visible}"]
    if keys["rkey_tid"].null_count:
        named.append(f"{rows} WHERE {IS_RECORD} AND {visible} AND r.{key} IS NULL AND r.{stem}_uri_text IS NOT NULL")
    statement = (
        f"WITH named AS MATERIALIZED ({' UNION ALL '.join(named)}),"
        f" subjects AS (SELECT {subject_columns(stem)} FROM named AS r {joins} WHERE {is_post_subject(stem)})"
        " SELECT did, rkey_tid, rkey_text, count(*) AS count FROM subjects AS x"
        f" SEMI JOIN posts_{kind} AS c ON {same_record('c', 'x')} GROUP BY ALL HAVING count(*) >= {bound.bind(least)}"
    )
    return session.table(statement, {**bound.values, "files": lake.paths(records.files)})


def likely(
    session: Session,
    lake: Lake,
    plan: Scan,
    filters: PostFilters,
    kinds: Sequence[str],
    *,
    least: int = 1,
    count: int | None = None,
) -> pa.Table:
    """Record keys of posts that may have the most engagement of some kinds together: `tid`, and in `most` an upper bound of it.

    From all records that name a key, whether they stand or not, and whoever's post it is: one pass over one column. Those with at
    least `least`, or `count` of them with the highest bounds. Posts whose key is no TID are not among them.
    """
    start = named_from(filters)
    named, values = [], {}
    for kind in kinds:
        table, stem = ENGAGEMENT[kind]
        files = scan(plan.snapshot, table, start, None).files
        if files:
            values[kind] = lake.paths(files)
            named.append(
                f"SELECT {stem}_rkey_tid AS tid FROM read_parquet(${kind}, hive_partitioning = false)"
                f" WHERE {stem}_rkey_tid IS NOT NULL"
            )
    if not named:
        return pa.schema([("tid", pa.int64()), ("most", pa.int64())]).empty_table()
    statement = (
        f"SELECT tid, count(*) AS most FROM ({' UNION ALL '.join(named)}) GROUP BY tid HAVING count(*) >= $least"
        f"{'' if count is None else ' ORDER BY most DESC LIMIT $count'}"
    )
    return session.table(statement, {**values, "least": least} | ({} if count is None else {"count": count}))


def is_likely(name: str) -> str:
    """That a post (alias r) is among `likely` ones, registered under `name`, or cannot be."""
    return f"(r.rkey_tid IS NULL OR r.rkey_tid IN (SELECT tid FROM {name}))"


def named_from(filters: PostFilters) -> int | None:
    """From when on records can point at the posts that filters select: a record cannot come before the post it names, but
    another host may deliver it an hour earlier."""
    return None if filters.start is None or filters.clock is Clock.CREATED else filters.start - HOUR_US

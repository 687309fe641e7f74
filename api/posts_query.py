"""Posts as a relation: the current rows that a filter selects, ready to be paged, counted, grouped or exported.

`prepare` does, in a session, what a statement alone cannot: it attaches what ended rows, resolves minimum counts of likes,
reposts and replies into a set of posts, and binds every value.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from api.current import IS_RECORD, CurrentState
from api.engine import Session
from api.filters import Clock, PostFilters
from api.identifiers import POST
from api.labels.sql import LabelCondition, label_predicates
from api.snapshots import Scan, as_of_predicate, scan
from api.sql import Bound, all_of, post_predicates
from lake.manifest import HOUR_US, LiveFile

READ_FILES: Final = "read_parquet($files, hive_partitioning = false)"


@dataclass(frozen=True)
class Lake:
    """Where a query finds files and what has ended."""

    root: Path
    current: CurrentState

    def paths(self, files: Sequence[LiveFile]) -> list[str]:
        """The absolute paths of files, for a bound value."""
        return [str(self.root / file.path) for file in files]


@dataclass(frozen=True)
class Source:
    """A relation of rows with alias r: `FROM {relation} WHERE {condition}`, with `bound.values` and `$files`."""

    relation: str
    predicates: tuple[str, ...]
    bound: Bound

    @property
    def condition(self) -> str:
        """The conjunction of all predicates."""
        return all_of(self.predicates)


@dataclass(frozen=True)
class Selection:
    """What selects posts: filters whose handles are resolved, and conditions on label tables."""

    filters: PostFilters
    labels: tuple[LabelCondition, ...] = ()
    not_labels: tuple[LabelCondition, ...] = ()


def prepare(session: Session, lake: Lake, plan: Scan, selection: Selection) -> Source:
    """The posts of `plan` that are selected and current. Blocks for the reads it needs."""
    filters = selection.filters
    source = _without_counts(session, lake, plan, selection)
    if not filters.engagement:
        return source
    predicates = list(source.predicates)
    for kind, least in filters.engagement.items():
        session.register(f"engaged_{kind}", _engaged(session, lake, plan, filters, source, kind, least))
        predicates.append(
            f"EXISTS (FROM engaged_{kind} AS e WHERE e.did = r.did AND e.rkey_tid IS NOT DISTINCT FROM r.rkey_tid"
            " AND e.rkey_text IS NOT DISTINCT FROM r.rkey_text)"
        )
    return Source(source.relation, tuple(predicates), source.bound)


def _without_counts(session: Session, lake: Lake, plan: Scan, selection: Selection) -> Source:
    filters = selection.filters
    joins = lake.current.ends(session, plan.snapshot, POST, filters.start).attach(session)
    bound = Bound()
    predicates = [IS_RECORD, *post_predicates(filters, bound)]
    predicates += label_predicates(selection.labels, selection.not_labels, bound)
    if plan.as_of is not None:
        predicates.append(as_of_predicate(plan.as_of, POST, bound))
    return Source(f"{READ_FILES} AS r {joins}", tuple(predicates), bound)


ENGAGEMENT: Final = {
    "likes": ("app.bsky.feed.like", "subject"),
    "reposts": ("app.bsky.feed.repost", "subject"),
    "replies": (POST, "reply_parent"),
}
"""Kind of engagement → table of the records that make it, and the stem of the at-uri columns that name the post."""


def subject_columns(stem: str) -> str:
    """The key of the post that an at-uri names, as columns did, rkey_tid, rkey_text."""
    uri = f"{stem}_uri_text"
    return (
        f"coalesce({stem}_did, split_part({uri}, '/', 3)) AS did, {stem}_rkey_tid AS rkey_tid,"
        f" CASE WHEN {stem}_did IS NULL THEN split_part({uri}, '/', 5) END AS rkey_text"
    )


def is_post_subject(stem: str) -> str:
    """That an at-uri names a post."""
    return f"coalesce({stem}_collection, split_part({stem}_uri_text, '/', 4)) = '{POST}'"


def _engaged(
    session: Session, lake: Lake, plan: Scan, filters: PostFilters, source: Source, kind: str, least: int
) -> pa.Table:
    """Keys of the posts among `source` that at least `least` current records point at."""
    table, stem = ENGAGEMENT[kind]
    # A record cannot come before the post it names, but another host may deliver it a little earlier.
    start = None if filters.start is None or filters.clock is Clock.CREATED else filters.start - HOUR_US
    records = scan(plan.snapshot, table, start, None, plan.as_of)
    empty = pa.schema([("did", pa.string()), ("rkey_tid", pa.int64()), ("rkey_text", pa.string())]).empty_table()
    if not records.files or not plan.files:
        return empty
    joins = lake.current.ends(session, plan.snapshot, table, start).attach(session, f"ended_{kind}")
    bound = Bound()
    bound.values = dict(source.bound.values)
    as_of = "TRUE" if plan.as_of is None else as_of_predicate(plan.as_of, table, bound)
    count = bound.bind(least)
    statement = (
        f"WITH candidates AS MATERIALIZED (SELECT r.did, rkey_tid, rkey_text FROM {source.relation}"
        f" WHERE {source.condition}),"
        f" subjects AS (SELECT {subject_columns(stem)} FROM read_parquet($records, hive_partitioning = false) AS r {joins}"
        f" WHERE {IS_RECORD} AND {is_post_subject(stem)} AND {as_of})"
        " SELECT did, rkey_tid, rkey_text FROM subjects AS x SEMI JOIN candidates AS c ON c.did = x.did"
        " AND c.rkey_tid IS NOT DISTINCT FROM x.rkey_tid AND c.rkey_text IS NOT DISTINCT FROM x.rkey_text"
        f" GROUP BY ALL HAVING count(*) >= {count}"
    )
    values = {**bound.values, "files": lake.paths(plan.files), "records": lake.paths(records.files)}
    return session.table(statement, values)

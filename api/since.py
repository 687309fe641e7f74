"""How much of an older snapshot is not there any more: numbers that make an answer about it comparable, without content.

What was removed has no content left to match, so the numbers are about all records of the range and the authors asked for.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from api.engagement import same_record
from api.engine import Session
from api.filters import Clock, PostFilters
from api.relation import READ_FILES, Lake
from api.snapshots import Scan, as_of_predicate
from api.sql import Bound, all_of, one_of, range_predicates
from lake.fold import ENDING_SQL, NEWER_SQL

_NEWER: Final = NEWER_SQL.replace("t.", "r.")
BASIS: Final = "all {collection} records of the range and authors asked for, whatever they say"


@dataclass(frozen=True)
class Since:
    """Records that stood in the older snapshot: how many, and how many of them were removed or edited since."""

    collection: str
    stood: int = 0
    removed: int = 0
    edited: int = 0

    def json(self) -> dict[str, Any]:
        """The member `since` of an answer."""
        return {
            "stood_then": self.stood,
            "removed_since": self.removed,
            "edited_since": self.edited,
            "basis": BASIS.replace("{collection}", self.collection),
        }


def posts_since(session: Session, lake: Lake, plan: Scan, filters: PostFilters) -> Since:
    """`run_since` for the posts that filters may select; handles in `filters` must be resolved."""
    arrival = filters.clock is Clock.ARRIVAL
    start, end = (filters.start, filters.end) if arrival else (None, None)
    return run_since(session, lake, plan, plan.table, start, end, filters.author)


def run_since(
    session: Session,
    lake: Lake,
    plan: Scan,
    collection: str,
    start_us: int | None,
    end_us: int | None,
    authors: Sequence[str] = (),
) -> Since:
    """Count what ended between `plan.as_of` (which must be set) and now, of the records of a collection that arrived in a range
    and are by `authors` (DIDs; none = any)."""
    assert plan.as_of is not None
    if not plan.files:
        return Since(collection)
    table = plan.table
    bound = Bound()
    predicates = ["operation IN ('create', 'update')", as_of_predicate(plan.as_of, table, bound)]
    predicates += range_predicates(start_us, end_us, "time", bound)
    predicates.append(f"collection = {bound.bind(collection)}")
    if authors:
        predicates.append(one_of("did", authors, bound))
    visible = as_of_predicate(plan.as_of, table, bound)
    now = lake.current.accounts(session, plan.snapshot)
    then = lake.current.accounts(session, plan.snapshot, plan.as_of)
    session.register("accounts_now", now)
    session.register("accounts_then", then)
    session.register("syncs_now", lake.current.syncs(session, plan.snapshot))
    session.register("syncs_then", lake.current.syncs(session, plan.snapshot, plan.as_of))
    columns = "did, collection, rkey_tid, rkey_text, rev_tid, time, kafka_partition, kafka_offset"
    statement = (
        f"WITH rows AS (SELECT {columns} FROM {READ_FILES} WHERE {all_of(predicates)}),"
        f" endings AS (SELECT {columns}, operation, {visible} AS before"
        f" FROM read_parquet($endings, hive_partitioning = false) WHERE {ENDING_SQL}),"
        " records AS (SELECT r.kafka_partition, r.kafka_offset, bool_or(s.before) AS before,"
        " arg_max(s.operation, (s.rev_tid, s.time)) AS operation"
        f" FROM rows AS r JOIN endings AS s ON {same_record('s', 'r')} AND s.collection = r.collection AND {_NEWER}"
        " GROUP BY ALL),"
        " judged AS (SELECT coalesce(e.before, FALSE)"
        "   OR EXISTS (FROM accounts_then AS a WHERE a.did = r.did AND r.time <= a.until)"
        f"  OR EXISTS (FROM syncs_then AS s WHERE s.did = r.did AND {_NEWER}) AS gone_then,"
        " e.operation IS NOT NULL AND e.operation <> 'delete' AS edited,"
        " e.operation IS NOT NULL"
        "   OR EXISTS (FROM accounts_now AS a WHERE a.did = r.did AND r.time <= a.until)"
        f"  OR EXISTS (FROM syncs_now AS s WHERE s.did = r.did AND {_NEWER}) AS gone_now"
        " FROM rows AS r LEFT JOIN records AS e ON e.kafka_partition = r.kafka_partition AND e.kafka_offset = r.kafka_offset)"
        " SELECT count(*) FILTER (NOT gone_then),"
        " count(*) FILTER (NOT gone_then AND gone_now AND NOT edited), count(*) FILTER (NOT gone_then AND edited) FROM judged"
    )
    values = {**bound.values, "files": lake.paths(plan.files)}
    values["endings"] = lake.paths(plan.snapshot.files(table, start_us))
    stood, removed, edited = session.rows(statement, values)[0]
    return Since(collection, stood, removed, edited)

"""Records of any collection: current ones, or the log of every operation, with the JSON that the network had.

The log keeps what happened and forgets what was said: an operation whose record was removed, replaced or hidden since has
identity, times and a `standing`, and no content.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import msgspec
import pyarrow as pa

from api.current import IS_RECORD
from api.cursors import Cursor
from api.engine import Session
from api.key_skip import counted, holding
from api.relation import READ_FILES, Lake, Source
from api.snapshots import Scan, as_of_predicate
from api.sql import Bound, all_of, one_of, range_predicates
from api.times import format_time
from api.walk import Page, walk
from lake.account_index import Activity
from lake.convert import ERASED, from_lake, lake_schema
from lake.fold import content_columns
from schemas.errors import BadRecord
from schemas.rebuild import record_json, record_text
from schemas.tables import TABLES


class View(StrEnum):
    """Which rows: the records that stand, or every operation."""

    CURRENT = "current"
    LOG = "log"


@dataclass(frozen=True)
class RecordPlan:
    """What a worker needs for one page of records of a collection; `authors` are DIDs, `rkey_value` the key's number."""

    scan: Scan
    collection: str
    view: View
    authors: tuple[str, ...]
    rkey: str | None
    rkey_value: int | None
    operations: tuple[str, ...]
    start_us: int | None
    end_us: int | None
    newest_first: bool
    limit: int
    cursor: Cursor | None
    seconds: float


def table_of(collection: str) -> str:
    """The lake table that holds a collection."""
    return collection if collection in TABLES else "other"


def record_source(session: Session, lake: Lake, plan: RecordPlan) -> Source:
    """The rows of a plan: current ones, or all operations with their content still in place."""
    table = plan.scan.table
    bound = Bound()
    predicates = range_predicates(plan.start_us, plan.end_us, "time", bound)
    predicates.append(f"collection = {bound.bind(plan.collection)}")
    if plan.authors:
        predicates.append(one_of("r.did", plan.authors, bound))
    if plan.rkey is not None:
        column, value = ("rkey_text", plan.rkey) if plan.rkey_value is None else ("rkey_tid", plan.rkey_value)
        predicates.append(f"r.{column} = {bound.bind(value)}")
    if plan.operations:
        predicates.append(one_of("operation", plan.operations, bound))
    if plan.scan.as_of is not None:
        predicates.append(as_of_predicate(plan.scan.as_of, table, bound))
    ends = None
    if plan.view is View.CURRENT:
        ends = lake.current.ends(session, plan.scan.snapshot, table, plan.start_us)
        predicates.append(IS_RECORD)
    return Source("", tuple(predicates), bound, ends)


def run_records(session: Session, lake: Lake, plan: RecordPlan) -> tuple[Page, list[dict[str, Any]]]:
    """One page of records, and its rows as JSON values."""
    table = plan.scan.table
    plan = replace(plan, scan=_holders(lake, plan))
    page = walk(
        session,
        lake,
        plan.scan,
        record_source(session, lake, plan),
        lake_schema(table).names,
        newest_first=plan.newest_first,
        limit=plan.limit,
        cursor=plan.cursor,
        seconds=plan.seconds,
    )
    standing = ["current"] * page.rows.num_rows
    if plan.view is View.LOG and page.rows.num_rows:
        standing = standings(session, lake, plan.scan, page.rows)
    return page, [
        record_row(row, state) for row, state in zip(decoded(table, page.rows, standing), standing, strict=True)
    ]


def _holders(lake: Lake, plan: RecordPlan) -> Scan:
    """The files that can hold a row of the plan."""
    found = plan.scan
    if plan.rkey_value is not None:
        accounts = {"did": plan.authors} if plan.authors else {}
        found = holding(lake, found, accounts | {"rkey_tid": [plan.rkey_value]})
    if not plan.authors:
        return found

    def rows(part: Activity) -> int:
        if part.collection != plan.collection:
            return 0
        return part.standing if plan.view is View.CURRENT else part.creates + part.updates + part.deletes

    return counted(lake, found, plan.authors, rows)


def standings(session: Session, lake: Lake, scan: Scan, rows: pa.Table) -> list[str]:
    """For each row of a table: `current`, `delete` for a deletion itself, or why its content is not shown: `removed`."""
    current = set(lake.current.ends(session, scan.snapshot, scan.table, None).standing(session, rows))
    operations, erased = rows["operation"].to_pylist(), rows[ERASED].to_pylist()
    return [
        "delete" if operation == "delete" else "current" if number in current and reason is None else "removed"
        for number, (operation, reason) in enumerate(zip(operations, erased, strict=True))
    ]


def decoded(table: str, rows: pa.Table, standing: list[str]) -> list[dict[str, Any]]:
    """The rows as decoded events; those that do not stand come without content."""
    blank = pa.array([state != "current" for state in standing])
    columns = {
        name: rows[name] if name not in _content(table) else _emptied(rows[name], blank) for name in rows.column_names
    }
    return from_lake(table, pa.table(columns))


def _content(table: str) -> set[str]:
    return set(content_columns(table))


def _emptied(column: pa.ChunkedArray, blank: pa.Array) -> pa.ChunkedArray:
    values = [None if gone else value for gone, value in zip(blank.to_pylist(), column.to_pylist(), strict=True)]
    return pa.chunked_array([pa.array(values, column.type)])


def record_members(row: Mapping[str, Any]) -> dict[str, Any]:
    """The member `record`, as the network had it; for one that JSON readers cannot hold (nested too deep, a number beyond any
    range) it is None, and `record_text` has the text."""
    text = record_text(row)
    if text is None:
        return {"record": None}
    try:
        record_json(row)
    except BadRecord:
        return {"record": None, "record_text": text}
    return {"record": msgspec.Raw(text.encode())}


def record_row(row: dict[str, Any], standing: str) -> dict[str, Any]:
    """One row of an answer."""
    return {
        "uri": f"at://{row['did']}/{row['collection']}/{row['rkey']}",
        "cid": row["cid"],
        "did": row["did"],
        "collection": row["collection"],
        "rkey": row["rkey"],
        "rev": row["rev"],
        "operation": row["operation"],
        "time": format_time(row["time_us"]),
        "received": format_time(row["received_us"]),
        "resync": row["resync"],
        "standing": standing,
        **(record_members(row) if standing == "current" else {"record": None}),
        "provenance": {
            "source_host": row["source_host"],
            "protocol": row["protocol"],
            "seq": row["seq"],
            "replayed": row["replayed"],
            "partition": row["kafka_partition"],
            "offset": row["kafka_offset"],
        },
    }


def collections_of(
    session: Session, lake: Lake, scans: Sequence[Scan], start_us: int | None, end_us: int | None
) -> list[dict[str, Any]]:
    """Operations of each collection in a range, the most frequent collection first."""
    found = []
    for scan in scans:
        if not scan.files:
            continue
        bound = Bound()
        condition = all_of(range_predicates(start_us, end_us, "time", bound))
        statement = (
            "SELECT collection, count(*) FILTER (operation = 'create'), count(*) FILTER (operation = 'update'),"
            f" count(*) FILTER (operation = 'delete'), count(DISTINCT did) FROM {READ_FILES} WHERE {condition} GROUP BY ALL"
        )
        for collection, creates, updates, deletes, accounts in session.rows(
            statement, {**bound.values, "files": lake.paths(scan.files)}
        ):
            found.append(
                {
                    "collection": collection or "",
                    "known": scan.table != "other",
                    "creates": creates,
                    "updates": updates,
                    "deletes": deletes,
                    "accounts": accounts,
                }
            )
    return sorted(found, key=lambda row: (-row["creates"] - row["updates"] - row["deletes"], row["collection"]))

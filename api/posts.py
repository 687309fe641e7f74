"""One post: its standing, its versions, who reacted to it and when; and the thread it is part of."""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import pyarrow as pa

from api.aggregates import Interval
from api.columns import publish, to_json
from api.current import IS_RECORD
from api.engagement import ENGAGEMENT, KEYS
from api.engine import Session
from api.identifiers import POST, RecordUri, tid_value
from api.key_skip import holding, key_of, naming
from api.records import record_row, standings
from api.relation import READ_FILES, Lake
from api.snapshots import Scan, scan
from api.sql import Bound, key_predicate, record_predicate
from api.times import format_time, to_micros
from lake.convert import ERASED, from_lake, lake_schema
from lake.manifest import HOUR_US, Snapshot

_VERSION_FIELDS: Final = ("operation", "time", "rev", "cid", "standing", "resync")


@dataclass(frozen=True)
class FoundPost:
    """What is known about a post; `row` holds its current content (public columns), or is None."""

    standing: str
    row: dict[str, Any] | None
    record: Any
    versions: list[dict[str, Any]]
    first_us: int


def find_post(session: Session, lake: Lake, posts: Scan, uri: RecordUri, fields: tuple[str, ...]) -> FoundPost | None:
    """The post, or None when no event about it was ever seen. `posts` has to hold all files that can have it."""
    bound = Bound()
    columns = ", ".join(lake_schema(POST).names)
    statement = (
        f"SELECT {columns} FROM {READ_FILES} WHERE {key_predicate(uri, bound)}"
        " ORDER BY rev_tid, time, kafka_partition, kafka_offset"
    )
    holders = holding(lake, posts, key_of(uri)).files
    if not holders:
        return None
    rows = session.table(statement, {**bound.values, "files": lake.paths(holders)})
    if not rows.num_rows:
        return None
    states = standings(session, lake, posts, rows)
    versions = []
    for row, state in zip(from_lake(POST, rows), states, strict=True):
        version = {name: value for name, value in record_row(row, state).items() if name in _VERSION_FIELDS}
        versions.append(version | ({} if state == "current" else {"cid": None}))
    first = to_micros(rows["time"][0].as_py())
    if "current" in states:
        position = states.index("current")
        current = rows.slice(position, 1)
        record = record_row(from_lake(POST, current)[0], "current")["record"]
        return FoundPost("current", to_json(publish(POST, current, fields))[0], record, versions, first)
    return FoundPost(_why_gone(session, lake, posts, uri, rows), None, None, versions, first)


def _why_gone(session: Session, lake: Lake, posts: Scan, uri: RecordUri, rows: pa.Table) -> str:
    """`hidden` while the account is inactive, `account_deleted`, `deleted` by its author, or `removed` by a re-download."""
    ends = lake.current.ends(session, posts.snapshot, POST, None)
    session.register("post_account", ends.accounts)
    found = session.rows("SELECT hidden FROM post_account WHERE did = $did", {"did": uri.authority})
    newest = rows["operation"][rows.num_rows - 1].as_py()
    if newest == "delete":
        return "deleted"
    if found and found[0][0]:
        return "hidden"
    return "account_deleted" if found or "account" in rows[ERASED].to_pylist() else "removed"


def engagement_series(
    session: Session, lake: Lake, snapshot: Snapshot, uri: RecordUri, start_us: int, interval: Interval
) -> dict[str, list[dict[str, Any]]]:
    """Likes, reposts, replies and quotes of a post by interval, from its arrival on; stretches without any are left out."""
    series: dict[str, list[dict[str, Any]]] = {}
    for kind, (table, stem) in ENGAGEMENT.items():
        records = scan(snapshot, table, start_us - HOUR_US, None)
        records = holding(lake, records, naming(stem, [tid_value(uri.rkey)]))
        series[kind] = []
        if not records.files:
            continue
        joins = lake.current.ends(session, snapshot, table, start_us - HOUR_US).attach(session, f"ended_{kind}")
        bound = Bound()
        statement = (
            f"SELECT date_trunc('{interval}', r.time) AS bucket, count(*) FROM {READ_FILES} AS r {joins}"
            f" WHERE {IS_RECORD} AND {record_predicate(stem, uri, bound)} GROUP BY ALL ORDER BY bucket"
        )
        for bucket, count in session.rows(statement, {**bound.values, "files": lake.paths(records.files)}):
            moment = bucket if isinstance(bucket, datetime) else datetime(bucket.year, bucket.month, bucket.day)  # noqa: DTZ001
            series[kind].append({"start": format_time(to_micros(moment)), "count": count})
    return series


def thread_depths(posts: Iterable[Mapping[str, Any]], root: str) -> dict[str, int | None]:
    """How many replies lie between the root (0) and each post of a thread; None where a post between is not among `posts`, and
    for posts that name each other in a circle. `posts` have `uri` and `reply_parent_uri`."""
    parents = {post["uri"]: post["reply_parent_uri"] for post in posts}
    depths: dict[str, int | None] = {root: 0}
    for post in parents:
        trail: dict[str, None] = {}
        uri: str | None = post
        while uri is not None and uri not in depths and uri in parents and uri not in trail:
            trail[uri] = None
            uri = parents[uri]
        known = depths.get(uri) if uri is not None else None
        for step in reversed(trail):
            known = None if known is None else known + 1
            depths[step] = known
    return depths


def key_table(uri: RecordUri) -> pa.Table:
    """One record's key as the relation that engagement is counted for."""
    value = tid_value(uri.rkey)
    return pa.table(
        {"did": [uri.authority], "rkey_tid": [value], "rkey_text": [uri.rkey if value is None else None]}, schema=KEYS
    )

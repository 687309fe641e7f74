"""One account: what it did, the handles and states it had, and its profile over time."""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from api.current import IS_RECORD
from api.engine import Session
from api.key_skip import holding
from api.records import RecordPlan, View, run_records
from api.relation import READ_FILES, Lake
from api.snapshots import Scan, scan
from api.sql import Bound, all_of, range_predicates
from api.times import format_time, to_micros
from lake.manifest import Snapshot

PROFILE: Final = "app.bsky.actor.profile"
_HISTORY: Final = 1000
"""Most entries of a history."""


@dataclass(frozen=True)
class AuthorPlan:
    """Whom to describe, over which stretch of time, from which scans of tables of records."""

    snapshot: Snapshot
    did: str
    scans: Sequence[Scan]
    start_us: int | None
    end_us: int | None
    daily: bool


def run_author(session: Session, lake: Lake, plan: AuthorPlan) -> dict[str, Any] | None:
    """The description, or None when no event of the account was ever seen in the range."""
    state = _states(session, lake, plan)
    activity = _activity(session, lake, plan)
    handles = _handles(session, lake, plan)
    if not (state or activity or handles):
        return None
    last = state[-1] if state else None
    hidden = last is not None and not last["active"] and last["status"] not in ("desynchronized", "throttled")
    answer: dict[str, Any] = {
        "did": plan.did,
        "handle": handles[-1]["handle"] if handles and not hidden else None,
        "active": not hidden,
        "status": last["status"] if last else None,
        "handles": [] if hidden else handles,
        "states": state,
        "activity": activity,
        "profile": None,
        "profile_history": [],
    }
    profiles = scan(plan.snapshot, PROFILE, None, None)
    if profiles.files:
        _, rows = run_records(session, lake, _profile_plan(profiles, plan.did))
        current = [row for row in rows if row["standing"] == "current"]
        answer["profile"] = current[0]["record"] if current else None
        answer["profile_history"] = [
            {name: row[name] for name in ("operation", "time", "rev", "standing")} for row in reversed(rows)
        ]
    if plan.daily:
        answer["daily"] = _daily(session, lake, plan)
    return answer


def _profile_plan(profiles: Scan, did: str) -> RecordPlan:
    return RecordPlan(
        scan=profiles,
        collection=PROFILE,
        view=View.LOG,
        authors=(did,),
        rkey=None,
        rkey_value=None,
        operations=(),
        start_us=None,
        end_us=None,
        newest_first=True,
        limit=_HISTORY,
        cursor=None,
        seconds=3600,
    )


def _states(session: Session, lake: Lake, plan: AuthorPlan) -> list[dict[str, Any]]:
    files = plan.snapshot.files("account")
    if not files:
        return []
    statement = f"SELECT time, active, status FROM {READ_FILES} WHERE did = $did ORDER BY time, relay_seq LIMIT $count"
    rows = session.rows(statement, {"files": lake.paths(files), "did": plan.did, "count": _HISTORY})
    return [
        {"time": format_time(to_micros(moment)), "active": bool(active), "status": status}
        for moment, active, status in rows
    ]


def _handles(session: Session, lake: Lake, plan: AuthorPlan) -> list[dict[str, Any]]:
    files = plan.snapshot.files("identity")
    if not files:
        return []
    statement = (
        f"SELECT handle, min(time) AS first, max(time) AS last FROM {READ_FILES}"
        " WHERE did = $did AND handle IS NOT NULL GROUP BY ALL ORDER BY last, first LIMIT $count"
    )
    rows = session.rows(statement, {"files": lake.paths(files), "did": plan.did, "count": _HISTORY})
    return [
        {"handle": handle, "first_seen": format_time(to_micros(first)), "last_seen": format_time(to_micros(last))}
        for handle, first, last in rows
    ]


def _activity(session: Session, lake: Lake, plan: AuthorPlan) -> list[dict[str, Any]]:
    """Operations by collection as they arrived, and how many records of them stand."""
    found = []
    for one in plan.scans:
        one = holding(lake, one, {"did": [plan.did]})
        if not one.files:
            continue
        bound = Bound()
        condition = _condition(plan, bound)
        statement = (
            "SELECT collection, count(*) FILTER (operation = 'create'), count(*) FILTER (operation = 'update'),"
            f" count(*) FILTER (operation = 'delete'), min(time), max(time), count(*) FILTER ({IS_RECORD})"
            f" FROM {READ_FILES} AS r WHERE {condition} GROUP BY ALL ORDER BY collection"
        )
        values = {**bound.values, "files": lake.paths(one.files)}
        counted = session.rows(statement, values)
        if not counted:
            continue
        ends = lake.current.ends(session, plan.snapshot, one.table, plan.start_us)
        joins = ends.about(pa.array([plan.did])).attach(session)
        standing = {row[0]: row[-1] for row in counted}
        if joins:
            query = f"SELECT r.collection, count(*) FROM {READ_FILES} AS r {joins} WHERE {condition} AND {IS_RECORD} GROUP BY ALL"
            standing = dict(session.rows(query, values))
        for collection, creates, updates, deletes, first, last, _ in counted:
            found.append(
                {
                    "collection": collection,
                    "creates": creates,
                    "updates": updates,
                    "deletes": deletes,
                    "current": standing.get(collection, 0),
                    "first": format_time(to_micros(first)),
                    "last": format_time(to_micros(last)),
                }
            )
    return found


def _condition(plan: AuthorPlan, bound: Bound) -> str:
    return all_of([f"r.did = {bound.bind(plan.did)}", *range_predicates(plan.start_us, plan.end_us, "r.time", bound)])


def _daily(session: Session, lake: Lake, plan: AuthorPlan) -> list[dict[str, Any]]:
    days: dict[str, dict[str, int]] = {}
    for one in plan.scans:
        one = holding(lake, one, {"did": [plan.did]})
        if not one.files:
            continue
        bound = Bound()
        statement = (
            f"SELECT strftime(r.time, '%Y-%m-%d') AS day, collection, count(*) FROM {READ_FILES} AS r"
            f" WHERE {_condition(plan, bound)} AND operation = 'create' GROUP BY ALL"
        )
        for day, collection, count in session.rows(statement, {**bound.values, "files": lake.paths(one.files)}):
            days.setdefault(day, {})[collection] = count
    return [{"day": day, "creates": dict(sorted(days[day].items()))} for day in sorted(days)]

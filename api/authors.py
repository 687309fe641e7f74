"""One account: what it did, the handles and states it had, and its profile over time."""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from api.activity import Actor, Share, activity, daily
from api.engine import Session
from api.key_skip import holding
from api.records import RecordPlan, View, run_records
from api.relation import READ_FILES, Lake
from api.snapshots import Scan, scan
from api.times import format_time, to_micros
from lake.manifest import LiveFile, Snapshot

PROFILE: Final = "app.bsky.actor.profile"
_HISTORY: Final = 1000
"""Most entries of a history."""


@dataclass(frozen=True)
class AuthorPlan:
    """Whom to describe, over which stretch of time, from what of each table of records."""

    snapshot: Snapshot
    actor: Actor
    shares: Sequence[Share]
    daily: bool


def run_author(session: Session, lake: Lake, plan: AuthorPlan) -> dict[str, Any] | None:
    """The description, or None when no event of the account was ever seen in the range."""
    state = _states(session, lake, plan)
    did = activity(session, lake, plan.shares, plan.actor)
    handles = _handles(session, lake, plan)
    if not (state or did or handles):
        return None
    last = state[-1] if state else None
    hidden = last is not None and not last["active"] and last["status"] not in ("desynchronized", "throttled")
    answer: dict[str, Any] = {
        "did": plan.actor.did,
        "handle": handles[-1]["handle"] if handles and not hidden else None,
        "active": not hidden,
        "status": last["status"] if last else None,
        "handles": [] if hidden else handles,
        "states": state,
        "activity": did,
        "profile": None,
        "profile_history": [],
    }
    profiles = scan(plan.snapshot, PROFILE, None, None)
    if profiles.files:
        _, rows = run_records(session, lake, _profile_plan(profiles, plan.actor.did))
        current = [row for row in rows if row["standing"] == "current"]
        answer["profile"] = current[0]["record"] if current else None
        answer["profile_history"] = [
            {name: row[name] for name in ("operation", "time", "rev", "standing")} for row in reversed(rows)
        ]
    if plan.daily:
        answer["daily"] = daily(session, lake, plan.shares, plan.actor)
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


def _files(lake: Lake, plan: AuthorPlan, table: str) -> Sequence[LiveFile]:
    return holding(lake, scan(plan.snapshot, table, None, None), {"did": [plan.actor.did]}).files


def _states(session: Session, lake: Lake, plan: AuthorPlan) -> list[dict[str, Any]]:
    files = _files(lake, plan, "account")
    if not files:
        return []
    statement = f"SELECT time, active, status FROM {READ_FILES} WHERE did = $did ORDER BY time, relay_seq LIMIT $count"
    rows = session.rows(statement, {"files": lake.paths(files), "did": plan.actor.did, "count": _HISTORY})
    return [
        {"time": format_time(to_micros(moment)), "active": bool(active), "status": status}
        for moment, active, status in rows
    ]


def _handles(session: Session, lake: Lake, plan: AuthorPlan) -> list[dict[str, Any]]:
    files = _files(lake, plan, "identity")
    if not files:
        return []
    statement = (
        f"SELECT handle, min(time) AS first, max(time) AS last FROM {READ_FILES}"
        " WHERE did = $did AND handle IS NOT NULL GROUP BY ALL ORDER BY last, first LIMIT $count"
    )
    rows = session.rows(statement, {"files": lake.paths(files), "did": plan.actor.did, "count": _HISTORY})
    return [
        {"handle": handle, "first_seen": format_time(to_micros(first)), "last_seen": format_time(to_micros(last))}
        for handle, first, last in rows
    ]

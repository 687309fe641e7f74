"""GET /v1/authors/{actor}: one account's activity, handles, states and profile."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from api.access import charge_bytes
from api.activity import Actor, share_of
from api.answers import QUERY_PROBLEMS, Answer, Coverage, SnapshotInfo, json_answer, problem_answers
from api.authors import AuthorPlan, run_author
from api.engine import Session
from api.errors import ApiError, FieldError, Problem
from api.filters import ArrivalRange
from api.handles import resolve
from api.identifiers import is_did, parse_actor
from api.parameters import known_parameters
from api.routes.common import snapshot_of
from api.services import Services, services
from api.snapshots import Scan, coverage_json, scan, snapshot_json
from lake.manifest import Snapshot

router = APIRouter(tags=["authors"], dependencies=[Depends(known_parameters)])


class AuthorQuery(ArrivalRange):
    """Over which stretch of time to count; histories are always whole."""

    daily: bool = Field(False, description="Also count creates by day and collection.")


class Handle(Answer):
    """A handle and when identity events named it."""

    handle: str
    first_seen: str
    last_seen: str


class State(Answer):
    """An account event."""

    time: str
    active: bool
    status: str | None


class Activity(Answer):
    """Operations in one collection."""

    collection: str
    creates: int
    updates: int
    deletes: int
    current: int = Field(description="Records of these that still stand.")
    first: str
    last: str


class ProfileVersion(Answer):
    """One write of the profile, without content unless it is the current one, which is `profile`."""

    operation: str
    time: str
    rev: str | None
    standing: str


class Day(Answer):
    """One day, UTC."""

    day: str
    creates: dict[str, int]


class Author(Answer):
    """One account. While it is inactive, handles and profile are not told."""

    did: str
    handle: str | None
    active: bool
    status: str | None
    handles: list[Handle]
    states: list[State]
    activity: list[Activity]
    profile: Any
    profile_history: list[ProfileVersion]
    daily: list[Day] | None = None
    seconds: float
    snapshot: SnapshotInfo
    coverage: Coverage


@router.get(
    "/authors/{actor}",
    operation_id="author",
    summary="One account",
    response_model=Author,
    responses=QUERY_PROBLEMS | problem_answers(Problem.NOT_FOUND, Problem.UNKNOWN_HANDLE),
)
async def author(
    request: Request,
    actor: Annotated[str, Path(description="DID or handle.", examples=["did:plc:ewvi7nxzyoun6zhxrhs64oiz"])],
    query: Annotated[AuthorQuery, Query()],
    here: Annotated[Services, Depends(services)],
) -> Response:
    """What an account did in a range, by collection, and the handles, states and profile it had."""
    started = time.monotonic()
    try:
        wanted = parse_actor(actor)
    except ValueError as error:
        raise ApiError(
            Problem.INVALID_PARAMETER, f"actor: {error}", errors=[FieldError("actor", str(error), "path")]
        ) from None
    snapshot, _ = await snapshot_of(here, None)

    def plan() -> list[Scan]:
        tables = [table for table in snapshot.tables() if table not in ("identity", "account", "sync")]
        return [scan(snapshot, table, query.start, query.end) for table in tables]

    scans = await asyncio.to_thread(plan)
    did = wanted if is_did(wanted) else await _did_of(request, here, snapshot, wanted)

    def described() -> AuthorPlan:
        actor = Actor(did, query.start, query.end)
        return AuthorPlan(snapshot, actor, [share_of(here.lake, one, actor) for one in scans], query.daily)

    known = await asyncio.to_thread(described)
    to_read = sum(share.bytes_to_read for share in known.shares)
    charge_bytes(request, to_read)
    found = await here.query(
        request,
        lambda session: run_author(session, here.lake, known),
        heavy=to_read > here.settings.heavy_bytes,
    )
    if found is None:
        detail = f"no event of this archive is about {wanted}"
        raise ApiError(Problem.NOT_FOUND, detail, errors=[FieldError("actor", detail, "path")])
    found |= {
        "seconds": round(time.monotonic() - started, 4),
        "snapshot": snapshot_json(snapshot),
        "coverage": await asyncio.to_thread(
            coverage_json, snapshot, [one.table for one in scans], query.start, query.end
        ),
    }
    return json_answer(found)


async def _did_of(request: Request, here: Services, snapshot: Snapshot, handle: str) -> str:
    """Whom a handle names: a query of its own, because only then it is known how much there is to read."""
    identities = await asyncio.to_thread(scan, snapshot, "identity", None, None)

    def work(session: Session) -> dict[str, str]:
        return resolve(session, here.lake.root, snapshot, {handle})

    found = await here.query(request, work, heavy=identities.bytes > here.settings.heavy_bytes)
    return found[handle]

"""POST /v1/compliance: what became of records that somebody has a copy of, without telling what they said."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request
from pydantic import Field
from starlette.responses import Response

from api.access import principal
from api.answers import QUERY_PROBLEMS, Answer, Coverage, SnapshotInfo, json_answer, problem_answers
from api.compliance import Fate, fates, summary
from api.engine import Session
from api.errors import ApiError, FieldError, Problem
from api.exports.model import Job
from api.exports.service import Exports
from api.handles import resolve
from api.identifiers import POST, AnyUri, RecordUri, is_did
from api.parameters import known_parameters
from api.records import table_of
from api.routes.common import snapshot_of
from api.routes.exports import HereExports, done, own_job
from api.services import Services, services
from api.snapshots import coverage_json, snapshot_json

router = APIRouter(tags=["compliance"], dependencies=[Depends(known_parameters)])


class CheckedRecord(Answer):
    """A record to check; with its cid, an edit since is noticed."""

    uri: AnyUri
    cid: str | None = Field(None, max_length=200)


class ComplianceRequest(Answer):
    """What to check: a list of records, or an export of the caller."""

    uris: list[AnyUri] = Field(default=[], max_length=10_000, description="at-uris of records of any collection.")
    records: list[CheckedRecord] = Field(default=[], max_length=10_000, description="at-uris with cids.")
    export: str | None = Field(
        None, max_length=64, description="Id of an export: checks what it held when it was made."
    )


class CheckedFate(Answer):
    """What became of a record. `as_of` is the time of its last operation, when one was seen."""

    uri: str
    fate: Fate
    as_of: str | None


class ComplianceAnswer(Answer):
    """What became of a copy. Unchanged records are counted and not listed when an export was checked."""

    results: list[CheckedFate]
    summary: dict[str, int]
    seconds: float
    snapshot: SnapshotInfo
    coverage: Coverage


@router.post(
    "/compliance",
    operation_id="compliance",
    summary="What became of records that you have a copy of",
    response_model=ComplianceAnswer,
    responses=QUERY_PROBLEMS | problem_answers(Problem.NOT_FOUND, Problem.INVALID_BODY, Problem.CONFLICT, Problem.GONE),
)
async def compliance(
    request: Request,
    body: Annotated[ComplianceRequest, Body()],
    here: Annotated[Services, Depends(services)],
    exports: HereExports,
) -> Response:
    """For each record: `current`, `edited`, `deleted` (by its author, or with its account), `hidden` (its account is inactive), or
    `unknown` (never seen by this archive). No content is told."""
    started = time.monotonic()
    asked = [(uri, None) for uri in body.uris] + [(record.uri, record.cid) for record in body.records]
    if (body.export is None) == (not asked):
        detail = "give either `uris` and `records`, or `export`"
        raise ApiError(Problem.INVALID_PARAMETER, detail, errors=[FieldError("uris", detail, "body", "/uris")])
    snapshot, _ = await snapshot_of(here, None)
    if body.export is not None:
        tables = {POST}
        job = done(own_job(exports, principal(request), body.export, "export", "body"))
        results, counts = await here.query(request, lambda session: _of_export(session, exports, job), heavy=True)
    else:
        tables = {table_of(uri.collection) for uri, _ in asked}
        found = await here.query(request, lambda session: _of_uris(session, here, asked), heavy=True)
        results = [{"uri": str(uri), "fate": fate, "as_of": moment} for uri, (fate, moment) in found]
        counts = summary([fate for _, fate in found])
    body_out = {
        "results": results,
        "summary": counts,
        "seconds": round(time.monotonic() - started, 4),
        "snapshot": snapshot_json(snapshot),
        "coverage": await asyncio.to_thread(coverage_json, snapshot, [*tables], None, None),
    }
    return json_answer(body_out)


def _of_uris(
    session: Session, here: Services, asked: list[tuple[RecordUri, str | None]]
) -> list[tuple[RecordUri, tuple[Fate, str | None]]]:
    snapshot = here.snapshots.newest()
    dids = resolve(session, here.lake.root, snapshot, {uri.authority for uri, _ in asked if not is_did(uri.authority)})
    uris = [RecordUri(dids.get(uri.authority, uri.authority), uri.collection, uri.rkey) for uri, _ in asked]
    found = fates(session, here.lake, snapshot, uris, [cid for _, cid in asked])
    return list(zip(uris, found, strict=True))


def _of_export(session: Session, exports: Exports, job: Job) -> tuple[list[dict[str, Any]], dict[str, int]]:
    changes = exports.changes(session, job)
    counts = summary([(fate, None) for _, fate in changes])
    counts[str(Fate.CURRENT)] = (job.rows or 0) + job.removed_since - len(changes)
    return [{"uri": uri, "fate": fate, "as_of": None} for uri, fate in changes], counts

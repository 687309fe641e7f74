"""GET /v1/records and /v1/collections: any collection as the network wrote it, and what collections there are."""

from __future__ import annotations

import asyncio
import time
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field, model_validator
from starlette.responses import Response

from api.access import charge_bytes
from api.answers import QUERY_PROBLEMS, Answer, Coverage, Page, SnapshotInfo, json_answer
from api.cursors import MAX_CHARACTERS, query_digest
from api.engine import Session
from api.filters import MAX_VALUES, ArrivalRange
from api.handles import resolve
from api.identifiers import Actor, Collection, is_did, tid_value
from api.parameters import known_parameters
from api.records import RecordPlan, View, collections_of, run_records, table_of
from api.routes.common import decode_cursor, next_link, page_meta, snapshot_of
from api.services import Services, services
from api.since import Since, run_since
from api.snapshots import coverage_json, scan, snapshot_json
from api.walk import Page as FoundPage

router = APIRouter(tags=["records"], dependencies=[Depends(known_parameters)])


class LoggedOperation(StrEnum):
    """What an operation did to a record."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


class TimeOrder(StrEnum):
    """Order by arrival."""

    NEWEST = "newest"
    OLDEST = "oldest"


class RecordsQuery(ArrivalRange):
    """Which records."""

    collection: Collection = Field(description="The collection, known or of any third party.")
    view: View = Field(
        View.CURRENT,
        description="`current`: records that stand. `log`: every create, update and delete; what was removed, replaced or "
        "hidden since has no content.",
    )
    author: tuple[Actor, ...] = Field((), max_length=MAX_VALUES, description="Accounts: DIDs or handles.")
    rkey: str | None = Field(None, min_length=1, max_length=512, description="Record key.")
    operation: tuple[LoggedOperation, ...] = Field((), max_length=3, description="Only these operations.")
    sort: TimeOrder = Field(TimeOrder.NEWEST, description="Order by arrival.")
    limit: int | None = Field(
        None, ge=1, le=1000, description="Rows of the page; 50 unless the service is set otherwise."
    )
    cursor: str | None = Field(None, max_length=MAX_CHARACTERS, description="`next_cursor` of the page before.")
    as_of: int | None = Field(None, ge=1, description="An older snapshot: what arrived since is left out.")

    @model_validator(mode="after")
    def _deletions_are_logged(self) -> RecordsQuery:
        if self.view is View.CURRENT and LoggedOperation.DELETE in self.operation:
            raise ValueError("operation delete is in the log only: add view=log")
        return self

    def meaning(self) -> dict[str, Any]:
        """What a cursor is bound to."""
        return self.model_dump(mode="json", exclude={"limit", "cursor"})


@router.get(
    "/records",
    operation_id="records",
    summary="Records of any collection",
    response_model=Page,
    responses=QUERY_PROBLEMS,
)
async def records(
    request: Request, query: Annotated[RecordsQuery, Query()], here: Annotated[Services, Depends(services)]
) -> Response:
    """Records with their JSON exactly as the network had it, and where each row came from (host, partition, offset)."""
    started = time.monotonic()
    digest = query_digest({"records": query.meaning()})
    cursor = decode_cursor(here, query.cursor, digest)
    snapshot, older = await snapshot_of(here, query.as_of)
    table = table_of(query.collection)
    planned = await asyncio.to_thread(scan, snapshot, table, query.start, query.end, older)
    charge_bytes(request, planned.bytes)

    since: Since | None = None

    def work(session: Session) -> tuple[FoundPage, list[dict[str, Any]]]:
        nonlocal since
        dids = resolve(session, here.lake.root, snapshot, {actor for actor in query.author if not is_did(actor)})
        authors = tuple(dids.get(actor, actor) for actor in query.author)
        if older is not None and cursor is None:
            since = run_since(session, here.lake, planned, query.collection, query.start, query.end, authors)
        plan = RecordPlan(
            planned,
            query.collection,
            query.view,
            authors,
            query.rkey,
            None if query.rkey is None else tid_value(query.rkey),
            tuple(query.operation),
            query.start,
            query.end,
            query.sort is TimeOrder.NEWEST,
            min(query.limit or here.settings.page_default, here.settings.page_max),
            cursor,
            here.settings.page_seconds,
        )
        return run_records(session, here.lake, plan)

    page, rows = await here.query(request, work, heavy=planned.bytes > here.settings.heavy_bytes)
    following = here.cursors.encode(page.next, digest) if page.next is not None else None
    link = next_link(request, following)
    body = {
        "results": rows,
        "meta": page_meta(len(rows), page, following, link, started),
        "snapshot": snapshot_json(snapshot, older),
        "coverage": await asyncio.to_thread(coverage_json, snapshot, [table], query.start, query.end),
    }
    if since is not None:
        body["since"] = since.json()
    return json_answer(body, headers={"Link": f'<{link}>; rel="next"'} if link else None)


class CollectionsQuery(ArrivalRange):
    """Which stretch of time."""


class CollectionInfo(Answer):
    """One collection."""

    collection: str
    known: bool = Field(description="Whether its members are typed columns; otherwise its records are JSON only.")
    creates: int
    updates: int
    deletes: int
    accounts: int = Field(description="Distinct accounts with an operation.")


class Collections(Answer):
    """Every collection with an operation in the range, the most frequent first."""

    collections: list[CollectionInfo]
    seconds: float
    snapshot: SnapshotInfo
    coverage: Coverage


@router.get(
    "/collections",
    operation_id="collections",
    summary="Collections",
    response_model=Collections,
    responses=QUERY_PROBLEMS,
)
async def collections(
    request: Request, query: Annotated[CollectionsQuery, Query()], here: Annotated[Services, Depends(services)]
) -> Response:
    """Operations by collection, as they arrived: events are counted, also those of records that were removed since."""
    started = time.monotonic()
    snapshot, _ = await snapshot_of(here, None)

    def plan() -> list[Any]:
        tables = [table for table in snapshot.tables() if table not in ("identity", "account", "sync")]
        return [scan(snapshot, table, query.start, query.end) for table in tables]

    scans = await asyncio.to_thread(plan)
    size = sum(one.bytes for one in scans)
    charge_bytes(request, size)
    found = await here.query(
        request,
        lambda session: collections_of(session, here.lake, scans, query.start, query.end),
        heavy=size > here.settings.heavy_bytes,
    )
    body = {
        "collections": found,
        "seconds": round(time.monotonic() - started, 4),
        "snapshot": snapshot_json(snapshot),
        "coverage": await asyncio.to_thread(
            coverage_json, snapshot, [one.table for one in scans], query.start, query.end
        ),
    }
    return json_answer(body)

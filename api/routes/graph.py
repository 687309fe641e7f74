"""GET /v1/graph/edges and /v1/trends: who is connected to whom, and what rises."""

from __future__ import annotations

import asyncio
import time
from enum import StrEnum
from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field, field_validator
from starlette.responses import Response

from api.access import charge_bytes
from api.answers import QUERY_PROBLEMS, Answer, Coverage, SinceInfo, SnapshotInfo, json_answer
from api.columns import to_json
from api.engine import Session
from api.errors import bad_parameter
from api.filters import MAX_VALUES, ArrivalRange, PostQuery
from api.graph import EdgeKind, EdgePlan, run_edges, table_of_edges, to_gexf
from api.handles import resolve
from api.identifiers import POST, Actor, is_did
from api.parameters import known_parameters
from api.posts_query import Selection
from api.routes.common import coverage_of, plan_posts, run_posts, snapshot_of
from api.services import Services, services
from api.since import Since, posts_since, run_since
from api.snapshots import coverage_json, scan, snapshot_json
from api.tabular import MEDIA_TYPES, TableFormat, table_bytes
from api.times import format_time
from api.trends import TrendKey, TrendPlan, run_trends

router = APIRouter(tags=["graph"], dependencies=[Depends(known_parameters)])


class EdgeFormat(StrEnum):
    """How edges are written."""

    JSON = "json"
    CSV = "csv"
    NDJSON = "ndjson"
    PARQUET = "parquet"
    GEXF = "gexf"


class EdgesQuery(ArrivalRange):
    """Which edges."""

    kind: EdgeKind = Field(description="What connects the accounts.")
    source: tuple[Actor, ...] = Field((), max_length=MAX_VALUES, description="Accounts the edges come from.")
    target: tuple[Actor, ...] = Field((), max_length=MAX_VALUES, description="Accounts they point at.")
    weighted: bool = Field(False, description="One row for each pair of accounts, with the number of edges.")
    limit: int = Field(1000, ge=1, le=1_000_000, description="Most rows; more than 10,000 not as JSON.")
    format: EdgeFormat = Field(EdgeFormat.JSON, description="How the edges are written.")
    as_of: int | None = Field(None, ge=1, description="An older snapshot: edges that arrived since are left out.")


class Edges(Answer):
    """Edges between accounts."""

    edges: list[dict[str, Any]]
    truncated: bool = Field(description="Whether there are more than the limit.")
    seconds: float
    snapshot: SnapshotInfo
    coverage: Coverage
    since: SinceInfo | None = Field(None, description="With `as_of`, about the records that make such edges.")


_FILES: dict[str, dict[str, Any]] = {media: {} for media in (*MEDIA_TYPES.values(), "application/gexf+xml")}


@router.get(
    "/graph/edges",
    operation_id="edges",
    summary="Edges between accounts",
    response_model=Edges,
    responses=QUERY_PROBLEMS | {200: {"content": _FILES}},
)
async def edges(
    request: Request, query: Annotated[EdgesQuery, Query()], here: Annotated[Services, Depends(services)]
) -> Response:
    """Current follows, blocks, likes, reposts, replies, mentions or quotes as pairs of accounts; JSON, CSV, NDJSON, Parquet or
    GEXF. Files say in the headers X-Truncated and X-Snapshot what JSON says in its members."""
    started = time.monotonic()
    if query.format is EdgeFormat.JSON and query.limit > 10_000:
        raise bad_parameter(
            "limit", "more than 10,000 edges do not come as JSON: choose format csv, ndjson, parquet or gexf"
        )
    snapshot, older = await snapshot_of(here, query.as_of)
    table = table_of_edges(query.kind)
    planned = await asyncio.to_thread(scan, snapshot, table, query.start, query.end, older)
    charge_bytes(request, planned.bytes)

    since: Since | None = None

    def work(session: Session) -> tuple[pa.Table, bool]:
        nonlocal since
        handles = {actor for actor in (*query.source, *query.target) if not is_did(actor)}
        dids = resolve(session, here.lake.root, snapshot, handles)
        sources = tuple(dids.get(actor, actor) for actor in query.source)
        if older is not None:
            since = run_since(session, here.lake, planned, table, query.start, query.end, sources)
        plan = EdgePlan(
            planned,
            query.kind,
            sources,
            tuple(dids.get(actor, actor) for actor in query.target),
            query.start,
            query.end,
            query.weighted,
            query.limit,
        )
        return run_edges(session, here.lake, plan)

    found, truncated = await here.query(request, work, heavy=planned.bytes > here.settings.heavy_bytes)
    if query.format is not EdgeFormat.JSON:
        headers = {
            "X-Truncated": str(truncated).lower(),
            "X-Snapshot": str((older or snapshot).version),
            "Content-Disposition": f'attachment; filename="edges_{query.kind}.{query.format}"',
        }
        if query.format is EdgeFormat.GEXF:
            date = format_time(snapshot.created_us)[:10]
            text = await asyncio.to_thread(to_gexf, found, query.kind, date)
            return Response(text, media_type="application/gexf+xml", headers=headers)
        form = TableFormat(query.format)
        content = await asyncio.to_thread(table_bytes, found, form, {"snapshot": str((older or snapshot).version)})
        return Response(content, media_type=MEDIA_TYPES[form], headers=headers)
    body = {
        "edges": to_json(found),
        "truncated": truncated,
        "seconds": round(time.monotonic() - started, 4),
        "snapshot": snapshot_json(snapshot, older),
        "coverage": await asyncio.to_thread(coverage_json, snapshot, [table], query.start, query.end),
    }
    if since is not None:
        body["since"] = since.json()
    return json_answer(body)


class TrendsQuery(PostQuery):
    """What may trend, and over which stretch. `start` and `end` are not given: the windows say them."""

    by: TrendKey = Field(TrendKey.HASHTAG, description="What may trend.")
    window_minutes: int = Field(60, ge=1, le=43_200, description="Length of the recent stretch, up to the newest post.")
    baseline_minutes: int = Field(
        1440, ge=1, le=259_200, description="Length of the stretch before it to compare with."
    )
    limit: int = Field(20, ge=1, le=1000, description="Keys to return.")
    min_count: int = Field(3, ge=1, le=1_000_000, description="Fewest posts in the recent stretch.")
    resync: bool | None = Field(False, description="As for counts.")

    @field_validator("start", "clock", check_fields=False)
    @classmethod
    def _no_range(cls, value: Any) -> Any:
        if value is not None and value != "arrival":
            raise ValueError(
                "leave it out: window_minutes and baseline_minutes say which posts are compared, `end` until when"
            )
        return value


class Trend(Answer):
    """A key that is more frequent than before."""

    key: str
    count: int
    authors: int
    baseline_count: int
    growth: float | None = Field(description="Share of posts now by share before; null when there were none before.")
    score: float = Field(
        description="Log-likelihood ratio (G²): 10.8 means that chance alone does so once in a thousand."
    )


class Trends(Answer):
    """What rises, the most surprising first."""

    trends: list[Trend]
    by: TrendKey
    posts: int
    baseline_posts: int
    start: str
    split: str
    end: str
    seconds: float
    snapshot: SnapshotInfo
    coverage: Coverage
    since: SinceInfo | None = Field(None, description="With `as_of`, about both stretches.")


@router.get("/trends", operation_id="trends", summary="What rises", response_model=Trends, responses=QUERY_PROBLEMS)
async def trends(
    request: Request, query: Annotated[TrendsQuery, Query()], here: Annotated[Services, Depends(services)]
) -> Response:
    """Hashtags, domains, mentioned accounts or languages whose share of the selected posts grew most.

    The recent stretch ends at `end`, or at the newest post; the baseline is the stretch right before it.
    """
    started = time.monotonic()
    snapshot, _ = await snapshot_of(here, query.as_of)
    newest = (await asyncio.to_thread(snapshot.totals, POST)).max_time_us
    end = query.end if query.end is not None else (newest or 0) + 1
    split = end - query.window_minutes * 60_000_000
    start = split - query.baseline_minutes * 60_000_000
    ranged = query.model_copy(update={"start": start, "end": end})
    planned = await plan_posts(request, here, ranged)

    since: Since | None = None

    def work(session: Session, selection: Selection) -> tuple[list[dict[str, Any]], dict[str, int]]:
        nonlocal since
        if planned.as_of is not None:
            since = posts_since(session, here.lake, planned.whole, selection.filters)
        plan = TrendPlan(planned.scan, selection, query.by, start, split, end, query.limit, query.min_count)
        return run_trends(session, here.lake, plan)

    found, totals = await run_posts(request, here, planned, work)
    body = {
        "trends": found,
        "by": query.by,
        **totals,
        "start": format_time(start),
        "split": format_time(split),
        "end": format_time(end),
        "seconds": round(time.monotonic() - started, 4),
        "snapshot": planned.about(),
        "coverage": await coverage_of(planned, [POST], start, end),
    }
    if since is not None:
        body["since"] = since.json()
    return json_answer(body)

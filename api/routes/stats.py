"""GET /v1/stats: what the lake holds and how busy the service is."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.responses import Response

from api.answers import QUERY_PROBLEMS, Answer, Coverage, SnapshotInfo, json_answer
from api.parameters import known_parameters
from api.services import Services, services
from api.snapshots import coverage_json, snapshot_json
from api.times import format_time
from lake.manifest import Snapshot

router = APIRouter(tags=["stats"], dependencies=[Depends(known_parameters)])


class TableStats(Answer):
    """One table of the lake; a collection has one of its own or is part of `other`."""

    table: str
    rows: int = Field(description="Rows in live files: creates, updates, deletes and tombstones.")
    bytes: int
    files: int
    bytes_per_row: float | None
    oldest_event: str | None
    newest_event: str | None


class LaneStats(Answer):
    """Queries of one kind."""

    running: int
    waiting: int
    finished: int
    refused: int
    cancelled: int


class Stats(Answer):
    """The lake as a whole."""

    rows: int
    bytes: int
    files: int
    bytes_per_row: float | None
    oldest_event: str | None
    newest_event: str | None
    lag_seconds: float | None = Field(description="Age of the newest event.")
    tables: list[TableStats]
    snapshot: SnapshotInfo
    coverage: Coverage = Field(description="Of all tables, over all time.")
    lanes: dict[str, LaneStats]
    requests: int
    uptime_seconds: float


def _ratio(size: int, rows: int) -> float | None:
    return round(size / rows, 2) if rows else None


def _moment(micros: int | None) -> str | None:
    return None if micros is None else format_time(micros)


def lake_stats(snapshot: Snapshot) -> dict[str, Any]:
    """The numbers of a snapshot, from the manifest alone."""
    tables = [(table, snapshot.totals(table)) for table in snapshot.tables()]
    rows = sum(totals.rows for _, totals in tables)
    size = sum(totals.bytes for _, totals in tables)
    oldest = min((totals.min_time_us for _, totals in tables if totals.min_time_us is not None), default=None)
    newest = max((totals.max_time_us for _, totals in tables if totals.max_time_us is not None), default=None)
    return {
        "rows": rows,
        "bytes": size,
        "files": sum(totals.files for _, totals in tables),
        "bytes_per_row": _ratio(size, rows),
        "oldest_event": _moment(oldest),
        "newest_event": _moment(newest),
        "lag_seconds": None if newest is None else round(time.time() - newest / 1e6, 3),
        "tables": [
            {
                "table": table,
                "rows": totals.rows,
                "bytes": totals.bytes,
                "files": totals.files,
                "bytes_per_row": _ratio(totals.bytes, totals.rows),
                "oldest_event": _moment(totals.min_time_us),
                "newest_event": _moment(totals.max_time_us),
            }
            for table, totals in tables
        ],
        "snapshot": snapshot_json(snapshot),
        "coverage": coverage_json(snapshot, [table for table, _ in tables], None, None),
    }


@router.get(
    "/stats", operation_id="stats", summary="What the lake holds", response_model=Stats, responses=QUERY_PROBLEMS
)
async def stats(here: Annotated[Services, Depends(services)]) -> Response:
    """Rows, bytes and times by table, from the manifest; no file is read."""
    snapshot = await asyncio.to_thread(here.snapshots.newest)
    body = await asyncio.to_thread(lake_stats, snapshot)
    lanes = {
        name: {
            "running": lane.status.running,
            "waiting": lane.status.waiting,
            "finished": lane.status.finished,
            "refused": lane.status.refused,
            "cancelled": lane.status.cancelled,
        }
        for name, lane in here.runner.lanes.items()
    }
    body |= {"lanes": lanes, "requests": here.counts.requests, "uptime_seconds": round(time.time() - here.started, 1)}
    return json_answer(body)

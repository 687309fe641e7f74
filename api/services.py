"""What a request handler works with: one object, made by the application factory, found on the application's state."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Request

from api.access import principal
from api.admission import Lane, QueryRunner
from api.config import ApiSettings
from api.cursors import CursorCodec
from api.engine import Engine, Session
from api.middleware import RequestCounts
from api.relation import Lake
from api.rollups import Rollups
from api.snapshots import SnapshotSource
from api.throughput import Throughput

T = TypeVar("T")
_WEEK_SECONDS = 604_800.0


@dataclass
class Services:
    """The parts of the running service."""

    settings: ApiSettings
    lake: Lake
    snapshots: SnapshotSource
    engine: Engine
    runner: QueryRunner
    cursors: CursorCodec
    counts: RequestCounts
    throughput: Throughput
    rollups: Rollups
    started: float = field(default_factory=time.time)

    async def query(
        self, request: Request, work: Callable[[Session], T], *, heavy: bool = False, seconds: float | None = None
    ) -> T:
        """Run work for a request: in its lane, within its time, cancelled when the client goes away."""
        return await self.runner.run(
            work,
            client=client_of(request),
            disconnected=request.is_disconnected,
            lane="heavy" if heavy else "light",
            seconds=seconds,
        )

    def close(self) -> None:
        """Cancel what runs, wait for the workers, free the database and the manifest. Blocks for milliseconds."""
        self.runner.close()
        self.engine.close()
        self.rollups.close()
        self.snapshots.close()


def services(request: Request) -> Services:
    """The dependency every route takes."""
    found: Services = request.app.state.services
    return found


def client_of(request: Request) -> str:
    """Who a limit counts against: the key when there is one, else the address."""
    return principal(request).client


def make_lanes(settings: ApiSettings) -> tuple[Lane, Lane]:
    """The light and the heavy lane."""
    light = Lane(
        "light",
        slots=settings.light_slots,
        queue_length=settings.queue_length,
        queue_seconds=settings.queue_seconds,
        per_client=settings.queries_per_client,
    )
    heavy = Lane(
        "heavy",
        slots=settings.heavy_slots,
        queue_length=settings.queue_length,
        queue_seconds=settings.queue_seconds,
        per_client=settings.queries_per_client,
    )
    return light, heavy


def make_export_lane(settings: ApiSettings) -> Lane:
    """The lane of export jobs, which wait as long as it takes."""
    return Lane(
        "export",
        slots=settings.export_slots,
        queue_length=settings.export_queue,
        queue_seconds=_WEEK_SECONDS,
        per_client=settings.exports_per_owner,
    )

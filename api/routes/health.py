"""GET /health/live and /health/ready: whether the process runs, and whether it can answer."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from api.answers import Answer, json_answer
from api.parameters import known_parameters
from api.services import Services, services
from lake.errors import LakeError

router = APIRouter(prefix="/health", tags=["health"], dependencies=[Depends(known_parameters)])


class Live(Answer):
    """The process runs."""

    status: str


class Ready(Answer):
    """Whether queries can be answered, and if not, why."""

    status: str
    version: int | None
    reason: str | None


@router.get("/live", operation_id="live", summary="Does the process run?", response_model=Live)
async def live() -> Response:
    """Always 200 while the process answers."""
    return json_answer({"status": "ok"})


@router.get(
    "/ready", operation_id="ready", summary="Can it answer?", response_model=Ready, responses={503: {"model": Ready}}
)
async def ready(here: Annotated[Services, Depends(services)]) -> Response:
    """200 when the manifest and the query engine answer, else 503 with the reason."""
    started = time.monotonic()
    try:
        snapshot = await asyncio.to_thread(here.snapshots.newest)
        await asyncio.to_thread(_probe, here)
    except (LakeError, OSError) as error:
        reason = error.message if isinstance(error, LakeError) else str(error)
        return json_answer({"status": "unavailable", "version": None, "reason": reason}, status=503)
    seconds = time.monotonic() - started
    return json_answer(
        {"status": "ok", "version": snapshot.version, "reason": None},
        headers={"Server-Timing": f"ready;dur={seconds * 1000:.1f}"},
    )


def _probe(here: Services) -> None:
    with here.engine.session() as session:
        session.rows("SELECT 1", {})

"""Counts closed hours before anyone asks: the first count over months is as quick as the next. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from api.admission import stays
from api.engine import QueryCancelled
from api.errors import ApiError
from api.filters import PostFilters
from api.identifiers import POST
from api.services import Services
from api.snapshots import scan
from lake.errors import LakeError

LOGGER = logging.getLogger("explorer.api")
_CLIENT: Final = "rollups"
_ALL: Final = PostFilters(resync=False)


class RollupUpkeep:
    """One task that looks for rolled files without kept counts every `EXPLORER_API_ROLLUP_SECONDS`."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; call it on the event loop. Does nothing where the setting is 0."""
        if self._services.settings.rollup_seconds:
            self._task = asyncio.create_task(self._forever())

    async def stop(self) -> None:
        """End the task; what it counts at the moment is counted again later."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _forever(self) -> None:
        while True:
            try:
                await self._once()
            except (ApiError, LakeError, QueryCancelled) as error:
                # The lake may not be there yet, or the machine be busy; a request counts what it needs itself.
                LOGGER.info("hours are not counted beforehand this time", extra={"cause": str(error)})
            except Exception:
                LOGGER.exception("hours are not counted beforehand")
            await asyncio.sleep(self._services.settings.rollup_seconds)

    async def _once(self) -> None:
        here = self._services
        snapshot = await asyncio.to_thread(here.snapshots.newest)
        plan = await asyncio.to_thread(scan, snapshot, POST, None, None)
        if not await asyncio.to_thread(here.rollups.missing, plan, _ALL):
            return

        await here.runner.run(
            lambda session: here.rollups.prepare(session, here.lake, plan, _ALL),
            client=_CLIENT,
            disconnected=stays,
            lane="export",
            seconds=here.settings.export_seconds,
        )

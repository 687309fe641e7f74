"""Gathers what one refresh of the display shows: the processes' reports, the lake's totals, the rate of commits."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from lake.errors import LakeError
from lake.manifest import Manifest
from pipeline.display import LakeView, ProcessView, View
from pipeline.supervisor import Supervisor

# Longer than the time between two commits, so that the rate does not jump between nothing and too much.
_RATE_SECONDS = 15.0


class Overview:
    """Of one run, from the moment it is made. `manifest`, `status` and `urls` are asked at every refresh.

    `duration` in seconds is how long the run shall last, None without an end.
    """

    def __init__(
        self,
        profile: str,
        supervisor: Supervisor,
        manifest: Callable[[], Manifest | None],
        status: Callable[[str], Mapping[str, Any]],
        urls: Callable[[], Mapping[str, str]],
        duration: float | None,
    ) -> None:
        self._profile = profile
        self._supervisor = supervisor
        self._manifest = manifest
        self._status = status
        self._urls = urls
        self._duration = duration
        self._started = time.monotonic()
        self._committed: deque[tuple[float, int]] = deque()

    def view(self) -> View:
        """Everything one refresh of the display shows. Reads small files and the manifest."""
        now = time.monotonic()
        elapsed = now - self._started
        lake = self._lake()
        return View(
            title=f"post-explorer ({self._profile})",
            now=time.time(),
            elapsed=elapsed,
            remaining=None if self._duration is None else max(self._duration - elapsed, 0.0),
            processes=[
                ProcessView(name, self._supervisor.pid(name), self._supervisor.restarts(name), self._status(name))
                for name in self._supervisor.names()
            ],
            lake=lake,
            committed_per_second=self._rate(now, lake),
            urls=self._urls(),
        )

    def _rate(self, now: float, lake: LakeView | None) -> float | None:
        """Rows a second over the last moments; None before there are two looks to compare."""
        if lake is not None:
            self._committed.append((now, lake.rows))
        while len(self._committed) > 2 and self._committed[-1][0] - self._committed[1][0] > _RATE_SECONDS:
            self._committed.popleft()
        if len(self._committed) < 2:
            return None
        (first, rows), (last, more) = self._committed[0], self._committed[-1]
        return max(more - rows, 0) / max(last - first, 1e-9)

    def _lake(self) -> LakeView | None:
        manifest = self._manifest()
        if manifest is None:
            return None
        try:
            snapshot = manifest.snapshot()
            totals = [snapshot.totals(table) for table in snapshot.tables()]
        except LakeError:
            return None
        return LakeView(
            snapshot.version,
            sum(total.rows for total in totals),
            sum(total.bytes for total in totals),
            sum(total.files for total in totals),
            len(totals),
        )

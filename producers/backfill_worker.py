"""Fills gaps in the background of a producer: those left open by earlier runs, then each one as it is noticed."""

from __future__ import annotations

import logging
import queue
import threading

from producers.archive import ArchiveError, StoppedError
from producers.backfill import BACKFILLED, Backfill
from schemas.bodies import Gap
from schemas.errors import BadRecord, ExplorerError

logger = logging.getLogger("explorer.producers")

_RETRY_SECONDS = 900.0
_WAIT_SECONDS = 0.5
_MAX_WAITING = 1_000


class BackfillWorker:
    """One thread; a gap that cannot be filled now is tried again later, for as long as the producer runs."""

    def __init__(self, backfill: Backfill, retry_seconds: float = _RETRY_SECONDS) -> None:
        self._backfill = backfill
        self._retry_seconds = retry_seconds
        self._waiting: queue.Queue[Gap] = queue.Queue(_MAX_WAITING)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backfill", daemon=True)

    def start(self) -> None:
        """Begin, with the gaps that the topic calls open."""
        self._thread.start()

    def add(self, gap: Gap) -> None:
        """Fill `gap` when its turn comes. Never blocks; with too many waiting it is left to the next start."""
        try:
            self._waiting.put_nowait(gap)
        except queue.Full:
            logger.warning("too many gaps are waiting to be filled; this one is left to the next start")

    def stop(self, timeout: float) -> None:
        """Interrupt what is going on; progress is kept. Waits up to `timeout` seconds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            for gap in self._backfill.open_gaps():
                self.add(gap)
        except (ExplorerError, BadRecord) as error:
            logger.warning("open gaps cannot be looked up: %s", error)
        while not self._stop.is_set():
            try:
                gap = self._waiting.get(timeout=_WAIT_SECONDS)
            except queue.Empty:
                continue
            self._fill(gap)

    def _fill(self, gap: Gap) -> None:
        if gap.reason == BACKFILLED:
            return
        where = {"host": gap.host, "from_us": gap.from_us, "to_us": gap.to_us}
        try:
            filled = self._backfill.fill(gap, self._stop)
        except StoppedError:
            return
        except (ArchiveError, ExplorerError, BufferError) as error:
            logger.warning("a gap of %s is not filled yet: %s", gap.host, error, extra=where)
        else:
            logger.info("%d rows of the archive for a gap of %s", filled.events, gap.host, extra=where)
            if filled.complete:
                return
        timer = threading.Timer(self._retry_seconds, self.add, (gap,))
        timer.daemon = True
        timer.start()

"""Admission control: how many queries run, how many wait, how long; and running one on a worker thread with a deadline.

Throughput does not grow with parallel queries, so each lane has a few slots and a bounded queue. Light queries have a
lane of their own: heavy ones cannot starve them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from api.engine import CancelReason, Engine, FileDamaged, FileGone, QueryCancelled, QueryOutOfMemory, Session
from api.errors import ApiError, Problem, over_capacity

LOGGER = logging.getLogger("explorer.api")
T = TypeVar("T")
_INTERRUPT_SECONDS: Final = 0.05
_RETRY_SECONDS: Final = 5

Disconnected = Callable[[], Awaitable[bool]]


async def stays() -> bool:
    """The Disconnected of work that no client can go away from."""
    return False


@dataclass
class LaneStatus:
    """What a lane does now, and since the start."""

    running: int = 0
    waiting: int = 0
    finished: int = 0
    refused: int = 0
    cancelled: int = 0
    busy_seconds: float = 0.0


class Lane:
    """Slots with a bounded queue, first come first served; belongs to one event loop."""

    def __init__(self, name: str, *, slots: int, queue_length: int, queue_seconds: float, per_client: int) -> None:
        self.name = name
        self.slots = slots
        self.status = LaneStatus()
        self._queue_length = queue_length
        self._queue_seconds = queue_seconds
        self._per_client = per_client
        self._clients: Counter[str] = Counter()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.executor = ThreadPoolExecutor(slots, thread_name_prefix=f"query-{name}")

    async def acquire(self, client: str, disconnected: Disconnected) -> None:
        """Wait for a slot. ApiError 503 when the queue is full or the wait too long, 429 when the client has too many."""
        if self._clients[client] >= self._per_client:
            self.status.refused += 1
            raise ApiError(
                Problem.RATE_LIMITED,
                f"{self._per_client} {self.name} queries of yours run or wait already: wait for their answers",
                extension={"retry_after": _RETRY_SECONDS, "limit": self._per_client},
                headers={"Retry-After": str(_RETRY_SECONDS)},
            )
        if self.status.running >= self.slots and len(self._waiters) >= self._queue_length:
            self.status.refused += 1
            raise over_capacity(
                f"{len(self._waiters)} {self.name} queries wait already: try again later", self._retry_after()
            )
        self._clients[client] += 1
        try:
            if self.status.running >= self.slots:
                await self._wait(disconnected)
            else:
                self.status.running += 1
        except BaseException:
            self._forget(client)
            raise

    async def _wait(self, disconnected: Disconnected) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.status.waiting = len(self._waiters)
        until = time.monotonic() + self._queue_seconds
        try:
            while not waiter.done():
                left = until - time.monotonic()
                if left <= 0:
                    self.status.refused += 1
                    raise over_capacity(
                        f"no slot for a {self.name} query became free in {self._queue_seconds:g} s: try again later",
                        self._retry_after(),
                    )
                await asyncio.wait({waiter}, timeout=min(left, 0.25))
                if not waiter.done() and await disconnected():
                    raise QueryCancelled(CancelReason.DISCONNECTED)
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self._free_slot()
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            self.status.waiting = len(self._waiters)

    def release(self, client: str) -> None:
        """Give the slot to the next in the queue."""
        self._forget(client)
        self._free_slot()

    def _free_slot(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.status.running -= 1

    def _forget(self, client: str) -> None:
        self._clients[client] -= 1
        if self._clients[client] <= 0:
            del self._clients[client]

    def _retry_after(self) -> int:
        mean = self.status.busy_seconds / max(1, self.status.finished)
        return max(1, min(120, math.ceil(mean * (len(self._waiters) + 1) / self.slots)))


def _unreadable(how: str, error: Exception) -> ApiError:
    LOGGER.error("a file of the lake is %s: run `post-explorer lake verify`", how, extra={"error": str(error)})
    return ApiError(
        Problem.UNAVAILABLE,
        f"a file that the query needs is {how}; the operator has to restore it: try another time range",
    )


class QueryRunner:
    """Runs work that queries on the lane's threads, within its time, until done or no longer wanted."""

    def __init__(self, engine: Engine, lanes: Sequence[Lane], seconds: float, is_live: Callable[[str], bool]) -> None:
        """`lanes` has to hold one named light and one named heavy; `seconds` is the time limit unless a caller sets one;
        `is_live` tells of a file that is not there whether the lake should have it (it may block for the manifest)."""
        self.engine = engine
        self.lanes = {lane.name: lane for lane in lanes}
        self._seconds = seconds
        self._is_live = is_live
        self._running: set[Session] = set()
        self._stopping = False

    async def run(
        self,
        work: Callable[[Session], T],
        *,
        client: str,
        disconnected: Disconnected,
        lane: str = "light",
        seconds: float | None = None,
    ) -> T:
        """The result of `work(session)`, run on a worker thread.

        seconds: time limit from the start of execution (None = the setting). Raises ApiError for a full queue (503), a
        passed time limit (504), a lack of memory (503); QueryCancelled when the client is gone.
        """
        chosen = self.lanes[lane]
        if self._stopping:
            raise over_capacity("the service is stopping: try again in a moment", 1)
        await chosen.acquire(client, disconnected)
        limit = seconds if seconds is not None else self._seconds
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        try:
            session_scope = self.engine.session()
            session = session_scope.__enter__()
        except BaseException:
            chosen.release(client)
            raise

        def job() -> T:
            try:
                return work(session)
            finally:
                session_scope.__exit__(None, None, None)

        def done(_: object) -> None:
            self._running.discard(session)
            chosen.status.finished += 1
            chosen.status.busy_seconds += time.monotonic() - started
            chosen.release(client)

        self._running.add(session)
        future = loop.run_in_executor(chosen.executor, job)
        future.add_done_callback(done)
        try:
            return await self._watch(future, session, disconnected, started + limit, limit)
        except QueryCancelled:
            chosen.status.cancelled += 1
            raise

    async def _watch(
        self, future: asyncio.Future[T], session: Session, disconnected: Disconnected, until: float, limit: float
    ) -> T:
        reason: CancelReason | None = None
        try:
            while True:
                finished, _ = await asyncio.wait({future}, timeout=_INTERRUPT_SECONDS)
                if finished:
                    break
                if reason is None:
                    if time.monotonic() >= until:
                        reason = CancelReason.TIMEOUT
                    elif self._stopping:
                        reason = CancelReason.STOPPING
                    elif await disconnected():
                        reason = CancelReason.DISCONNECTED
                if reason is not None:
                    session.cancel(reason)
        except asyncio.CancelledError:
            # The request's task is being torn down: the worker must still be stopped, by a task that outlives this one.
            _keep(asyncio.ensure_future(_interrupt_until_done(future, session)))
            raise
        try:
            return future.result()
        except QueryCancelled as error:
            if error.reason is CancelReason.TIMEOUT:
                raise ApiError(
                    Problem.QUERY_TIMEOUT,
                    f"the query ran longer than {limit:g} s: narrow the time range or the filters, or make it an export",
                    extension={"limit": limit},
                ) from None
            if error.reason is CancelReason.STOPPING:
                raise over_capacity("the service is stopping: try again in a moment", 1) from None
            raise
        except QueryOutOfMemory:
            raise over_capacity(
                "the query needs more memory than is free: narrow it, or try again later", _RETRY_SECONDS
            ) from None
        except FileGone as error:
            if error.path is not None and await asyncio.to_thread(self._is_live, error.path):
                raise _unreadable("missing", error) from error
            raise ApiError(
                Problem.SNAPSHOT_GONE, "a file of this snapshot was replaced while the query ran: repeat the request"
            ) from error
        except FileDamaged as error:
            raise _unreadable("damaged", error) from error

    @property
    def stopping(self) -> bool:
        """Whether new work is refused."""
        return self._stopping

    def stop(self) -> None:
        """Refuse new work and cancel what runs."""
        self._stopping = True

    def close(self) -> None:
        """Cancel what still runs, wait for the worker threads and free them."""
        self._stopping = True
        for lane in self.lanes.values():
            lane.executor.shutdown(wait=False, cancel_futures=True)
        while running := list(self._running):
            for session in running:
                session.cancel(CancelReason.STOPPING)
            time.sleep(_INTERRUPT_SECONDS)
            self._running -= {session for session in running if session.closed}
        for lane in self.lanes.values():
            lane.executor.shutdown(wait=True)


_background: set[asyncio.Future[None]] = set()


def _keep(task: asyncio.Future[None]) -> None:
    _background.add(task)
    task.add_done_callback(_background.discard)


async def _interrupt_until_done(future: asyncio.Future[T], session: Session) -> None:
    while not future.done():
        session.cancel(CancelReason.DISCONNECTED)
        await asyncio.wait({future}, timeout=_INTERRUPT_SECONDS)
    if not future.cancelled():
        future.exception()

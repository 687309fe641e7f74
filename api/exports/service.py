"""Runs export jobs, keeps their files free of what was removed, and expires them. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from api.admission import QueryRunner, stays
from api.compliance import Fate
from api.config import ApiSettings
from api.engine import QueryCancelled, Session
from api.errors import ApiError, Problem, over_capacity
from api.exports.model import DAY_US, FINAL, ExportRequest, Job, State, file_name
from api.exports.store import ExportStore
from api.exports.work import ExportFiles
from api.labels.service import Labels
from api.relation import Lake
from api.snapshots import SnapshotSource
from lake.errors import LakeError

LOGGER = logging.getLogger("explorer.api")
_SWEEP_SECONDS: Final = 30.0
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Exports:
    """All export jobs of a service."""

    def __init__(
        self,
        settings: ApiSettings,
        folder: Path,
        runner: QueryRunner,
        snapshots: SnapshotSource,
        lake: Lake,
        labels: Labels,
    ) -> None:
        self.store = ExportStore(folder)
        self._settings = settings
        self._runner = runner
        self._snapshots = snapshots
        self._files = ExportFiles(settings, self.store, snapshots, lake, labels)
        self._tasks: set[asyncio.Task[None]] = set()
        self._cancelled: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        # Old files that a client may still be resuming: (job, generation) → until when (monotonic).
        self._resumable: dict[tuple[str, int], float] = {}

    # --- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up what a stop interrupted; call it on the event loop."""
        for job in self.store.unfinished():
            self._launch(job)
        self._keep(asyncio.create_task(self._sweep_forever()))

    async def stop(self) -> None:
        """End the background tasks; jobs that run stay queued for the next start."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.to_thread(self.sweep, time.time_ns() // 1000)
            await asyncio.sleep(_SWEEP_SECONDS)

    def sweep(self, now_us: int) -> None:
        """Remove the files of expired exports, the memory of long expired ones, and old generations of files."""
        for job in self.store.all():
            if job.state is State.DONE and job.expires_us is not None and job.expires_us <= now_us:
                self.store.drop_files(job)
                self.store.save(job.model_copy(update={"state": State.EXPIRED}))
            elif job.state in FINAL and job.created_us < now_us - 60 * DAY_US - round(
                self._settings.export_days * DAY_US
            ):
                self.store.remove(job.id)
        now = time.monotonic()
        for (job_id, generation), until in list(self._resumable.items()):
            if until <= now:
                del self._resumable[job_id, generation]
                (self.store.folder_of(job_id) / f"data.{generation}").unlink(missing_ok=True)

    # --- jobs ----------------------------------------------------------------------------------------------------------

    def create(self, request: ExportRequest, meaning: dict[str, Any], owner: str, idempotency_key: str | None) -> Job:
        """Queue an export, or give the one that the same owner made with the same key. ApiError 409, 429 or 503."""
        body = request.model_dump(mode="json", exclude_defaults=True)
        if idempotency_key is not None and (known := self.store.repeated(owner, idempotency_key)) is not None:
            if known.request != body:
                raise ApiError(Problem.CONFLICT, "this Idempotency-Key belongs to another export: send a new one")
            return known
        if self.store.active(owner) >= self._settings.exports_per_owner:
            raise ApiError(
                Problem.RATE_LIMITED,
                f"{self._settings.exports_per_owner} exports of yours wait or run already: wait for one to end",
                headers={"Retry-After": "30"},
            )
        waiting = sum(job.state is State.QUEUED for job in self.store.all())
        if waiting >= self._settings.export_queue + self._settings.export_slots:
            raise over_capacity(f"{waiting} exports wait already: try again later", 60)
        if self.store.bytes() > self._settings.export_total_mb * 2**20:
            raise over_capacity(
                "the disk for exports is full: delete exports you do not need, or try again tomorrow", 3600
            )
        now = datetime.now(UTC)
        job = Job(
            id=secrets.token_hex(16),
            owner=owner,
            idempotency_key=idempotency_key,
            request=body,
            meaning=meaning,
            created_us=time.time_ns() // 1000,
            file_name=file_name(request, now.strftime("%Y%m%dT%H%M%SZ")),
        )
        self.store.save(job)
        return job

    def launch(self, job: Job) -> None:
        """Run a job that was created; call it on the event loop."""
        if job.state is State.QUEUED:
            self._launch(job)

    def _launch(self, job: Job) -> None:
        self._keep(asyncio.create_task(self._run(job.id)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def cancel(self, job: Job) -> None:
        """Stop a job that waits or runs, and remove its files."""
        self._cancelled.add(job.id)
        if job.state not in FINAL:
            self.store.change(job.id, state=State.CANCELLED, finished_us=time.time_ns() // 1000)
        await asyncio.to_thread(self.store.drop_files, job)

    async def _run(self, job_id: str) -> None:
        job = self.store.find(job_id)
        if job is None or job.state in FINAL:
            return

        async def unwanted() -> bool:
            return job_id in self._cancelled

        try:
            await self._runner.run(
                lambda session: self._files.make(session, job_id),
                client=job.owner,
                disconnected=unwanted,
                lane="export",
                seconds=self._settings.export_seconds,
            )
        except QueryCancelled:
            return
        except ApiError as error:
            if self._runner.stopping:
                self.store.change(job_id, state=State.QUEUED, progress=None)
                return
            body = {"type": f"/problems/{error.problem.slug}", "status": error.problem.status, "detail": error.detail}
            self._fail(job_id, body)
        except LakeError as error:
            self._fail(job_id, {"type": "/problems/snapshot-gone", "status": 410, "detail": error.message})
        except Exception as error:
            LOGGER.exception("export failed", extra={"export": job_id})
            if isinstance(error, OSError) and error.errno in _FULL:
                detail = "the disk for exports is full: delete exports you do not need, or try again later"
                self._fail(job_id, {"type": "/problems/over-capacity", "status": 503, "detail": detail})
                return
            self._fail(
                job_id, {"type": "/problems/internal", "status": 500, "detail": "the cause is in the service's log"}
            )

    def _fail(self, job_id: str, body: dict[str, Any]) -> None:
        if job_id in self._cancelled:
            return
        job = self.store.find(job_id)
        if job is not None:
            # First, because a full disk has no room for the state either.
            self.store.drop_files(job)
            self.store.change(job_id, state=State.FAILED, error=body, finished_us=time.time_ns() // 1000)

    # --- files ---------------------------------------------------------------------------------------------------------

    async def current_file(self, job: Job, resumed: int | None) -> tuple[Job, Path]:
        """The file to send. `resumed` is the generation that a client continues to load; any other download begins with a
        file from which everything is missing that was removed before it began."""
        folder = self.store.folder_of(job.id)
        if resumed is not None and (resumed == job.generation or (job.id, resumed) in self._resumable):
            path = folder / f"data.{resumed}"
            if path.exists():
                return job, path
        async with self._locks.setdefault(job.id, asyncio.Lock()):
            job = self.store.find(job.id) or job
            snapshot = await asyncio.to_thread(self._snapshots.newest)
            if snapshot.version != job.checked_version:
                job = await self._runner.run(
                    lambda session: self._refresh(session, job), client=job.owner, disconnected=stays, lane="heavy"
                )
        return job, folder / f"data.{job.generation}"

    def _refresh(self, session: Session, job: Job) -> Job:
        changed = self._files.refresh(session, job)
        if changed.generation != job.generation:
            self._resumable[job.id, job.generation] = time.monotonic() + self._settings.resume_seconds
        return changed

    def changes(self, session: Session, job: Job) -> list[tuple[str, Fate]]:
        """Which posts of the file as it was first made are not as they were: at-uri and fate, in the order of the file."""
        return self._files.changes(session, job)

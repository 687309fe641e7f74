"""Runs export jobs, keeps their files free of what was removed, and expires them. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from api.access import Principal
from api.access.principals import ANONYMOUS_OWNER
from api.access.scopes import ANONYMOUS
from api.admission import QueryRunner, stays
from api.citations import AsOf
from api.columns import publish
from api.compliance import Fate, changes_since
from api.config import ApiSettings
from api.engine import QueryCancelled, Session
from api.errors import ApiError, Problem, over_capacity
from api.exports.model import FINAL, Compression, ExportRequest, Job, State, file_name
from api.exports.produce import ExportPlan, Targets, produce
from api.exports.render import Output, render, rows_of, without
from api.exports.store import ExportStore
from api.filters import Clock
from api.handles import handles_of, resolve, with_dids
from api.identifiers import POST
from api.labels.service import Labels
from api.labels.sql import LabelColumn
from api.posts_query import Selection, narrow
from api.relation import Lake
from api.since import posts_since
from api.snapshots import Scan, SnapshotSource, coverage_json, scan
from api.tabular import TableFormat
from api.times import format_time
from lake.errors import LakeError
from lake.manifest import TopicPartition

LOGGER = logging.getLogger("explorer.api")
_SWEEP_SECONDS: Final = 30.0
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_DAY_US: Final = 86_400_000_000
SOFTWARE: Final = "bluesky-post-explorer"


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
        self._lake = lake
        self._labels = labels
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
            elif job.state in FINAL and job.created_us < now_us - 60 * _DAY_US - round(
                self._settings.export_days * _DAY_US
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
            self._change(job.id, state=State.CANCELLED, finished_us=time.time_ns() // 1000)
        await asyncio.to_thread(self.store.drop_files, job)

    def _change(self, job_id: str, **values: Any) -> Job | None:
        job = self.store.find(job_id)
        if job is None:
            return None
        changed = job.model_copy(update=values)
        self.store.save(changed)
        return changed

    async def _run(self, job_id: str) -> None:
        job = self.store.find(job_id)
        if job is None or job.state in FINAL:
            return

        async def unwanted() -> bool:
            return job_id in self._cancelled

        try:
            await self._runner.run(
                lambda session: self._produce(session, job_id),
                client=job.owner,
                disconnected=unwanted,
                lane="export",
                seconds=self._settings.export_seconds,
            )
        except QueryCancelled:
            return
        except ApiError as error:
            if self._runner.stopping:
                self._change(job_id, state=State.QUEUED, progress=None)
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
            self._change(job_id, state=State.FAILED, error=body, finished_us=time.time_ns() // 1000)

    def _produce(self, session: Session, job_id: str) -> None:
        """On a worker thread: write rows, keys and the file."""
        job = self._change(job_id, state=State.RUNNING, progress=0.0)
        if job is None:
            return
        request = ExportRequest.model_validate(job.request)
        snapshot, then = self._snapshots.cited()
        if request.as_of is not None:
            then = self._snapshots.as_of(request.as_of)
        plan, whole = self._plan(session, job, request, then)
        folder = self.store.folder_of(job_id)
        temporary = folder / "data.0.new"
        rows_copy = None if request.format is TableFormat.PARQUET else folder / "rows.0"
        last = 0.0

        def report(share: float) -> None:
            nonlocal last
            session.check()
            # More than a few writes of the state a second help nobody.
            if time.monotonic() - last > 0.5:
                last = time.monotonic()
                self._change(job_id, progress=round(min(0.99, share), 3))

        since = None
        if request.as_of is not None:
            since = posts_since(session, self._lake, whole, plan.selection.filters).json()
        with self._output(request, temporary) as output:
            targets = Targets(output, rows_copy, folder / "keys.0")
            rows, columns = produce(session, self._lake, plan, targets, report)
            session.check()
            now = time.time_ns() // 1000
            arrival = request.clock is Clock.ARRIVAL
            finished = job.model_copy(
                update={
                    "rows": rows,
                    "columns": columns,
                    "snapshot_version": then.version,
                    "snapshot_created_us": then.created_us,
                    "positions": [(topic, number, offset) for (topic, number), offset in then.positions.items()],
                    "checked_version": snapshot.version,
                    "since": since,
                    "coverage": coverage_json(
                        snapshot, [POST], request.start if arrival else None, request.end if arrival else None
                    ),
                    "finished_us": now,
                    "expires_us": now + round(self._settings.export_days * _DAY_US),
                }
            )
            size, digest = output.finish(_metadata(finished))
        temporary.replace(folder / "data.0")
        session.check()
        self.store.save(
            finished.model_copy(update={"state": State.DONE, "bytes": size, "sha256": digest, "progress": 1.0})
        )

    @staticmethod
    def _output(request: ExportRequest, path: Path) -> Output:
        safe = request.spreadsheet_safe and request.format is TableFormat.CSV
        return Output(path, request.format, request.compression, spreadsheet_safe=safe)

    def _plan(self, session: Session, job: Job, request: ExportRequest, then: AsOf) -> tuple[ExportPlan, Scan]:
        """What to write, and the scan of the whole range, also of files in which the text cannot occur."""
        snapshot = self._snapshots.newest()
        dids = resolve(session, self._lake.root, snapshot, handles_of(request))
        who = Principal(None if job.owner == ANONYMOUS_OWNER else job.owner, ANONYMOUS, job.owner)
        selection = Selection(
            with_dids(request, dids),
            tuple(self._labels.conditions(job.meaning.get("label", ()), who)),
            tuple(self._labels.conditions(job.meaning.get("not_label", ()), who, "not_label")),
        )
        arrival = request.clock is Clock.ARRIVAL
        whole = scan(snapshot, POST, request.start if arrival else None, request.end if arrival else None, then)
        columns = tuple(job.meaning["fields"])
        labels: dict[str, LabelColumn] = {
            name: self._labels.column(pinned, who, "fields")
            for name, pinned in job.meaning.get("label_columns", {}).items()
        }
        limit = min(request.limit or self._settings.export_rows, self._settings.export_rows)
        return ExportPlan(narrow(self._lake, whole, selection.filters), selection, columns, labels, limit), whole

    def _render(self, job: Job, request: ExportRequest, folder: Path, generation: int) -> tuple[int, str]:
        temporary = folder / f"data.{generation}.new"
        with self._output(request, temporary) as output:
            size, digest = render(rows_of(folder, generation), output, _metadata(job))
        temporary.replace(folder / f"data.{generation}")
        return size, digest

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
        snapshot = self._snapshots.newest()
        folder = self.store.folder_of(job.id)
        old = job.generation
        found = changes_since(session, self._lake, snapshot, POST, made_at(job), str(folder / f"keys.{old}"))
        gone = [change.position for change in found]
        if not gone:
            checked = job.model_copy(update={"checked_version": snapshot.version})
            self.store.save(checked)
            return checked
        new = old + 1
        rows = without(
            (rows_of(folder, old), folder / f"keys.{old}"), gone, (folder / f"rows.{new}", folder / f"keys.{new}")
        )
        changed = job.model_copy(
            update={
                "generation": new,
                "rows": rows,
                "removed_since": job.removed_since + len(gone),
                "checked_version": snapshot.version,
            }
        )
        size, digest = self._render(changed, ExportRequest.model_validate(job.request), folder, new)
        changed = changed.model_copy(update={"bytes": size, "sha256": digest})
        self.store.save(changed)
        self._resumable[job.id, old] = time.monotonic() + self._settings.resume_seconds
        (folder / f"rows.{old}").unlink(missing_ok=True)
        if old:
            # The first keys stay: they tell what copies of the first file hold.
            (folder / f"keys.{old}").unlink(missing_ok=True)
        return changed

    def changes(self, session: Session, job: Job) -> list[tuple[str, Fate]]:
        """Which posts of the file as it was first made are not as they were: at-uri and fate, in the order of the file."""
        snapshot = self._snapshots.newest()
        keys = self.store.folder_of(job.id) / "keys.0"
        found = changes_since(session, self._lake, snapshot, POST, made_at(job), str(keys))
        rows = pq.read_table(keys).take(pa.array([change.position for change in found], pa.int64()))
        uris = publish(POST, rows, ("uri",))["uri"].to_pylist()
        return [(uri, change.fate) for uri, change in zip(uris, found, strict=True)]


def _metadata(job: Job) -> dict[str, str]:
    return {"provenance": json.dumps(provenance(job, None), ensure_ascii=False)}


def made_at(job: Job) -> AsOf:
    """The snapshot that the rows of an export are from."""
    positions = {TopicPartition(topic, number): offset for topic, number, offset in job.positions}
    return AsOf(job.snapshot_version or 0, job.snapshot_created_us or 0, positions)


def query_digest_of(job: Job) -> str:
    """A short digest of what was asked, for citations."""
    text = json.dumps({"meaning": job.meaning, "as_of": job.snapshot_version}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def provenance(job: Job, digest: str | None) -> dict[str, Any]:
    """What belongs to the file of an export: where its rows came from and how to say so. `digest` None inside the file."""
    version = job.snapshot_version or 0
    created = format_time(job.snapshot_created_us or 0)
    finished = format_time(job.finished_us or job.created_us)
    about = f"snapshot {version} of {created}, query {query_digest_of(job)}"
    citation = f"Bluesky Post Explorer, {about}: {job.rows} posts, exported {finished}."
    found: dict[str, Any] = {
        "export": job.id,
        "query": {name: value for name, value in job.meaning.items() if name != "fields"},
        "as_of": job.request.get("as_of"),
        "limit": job.request.get("limit"),
        "snapshot": {"version": version, "created": created},
        "since": job.since,
        "removed_since": job.removed_since,
        "removals_honoured_up_to_version": job.checked_version,
        "coverage": job.coverage,
        "columns": [{"name": name, "type": kind} for name, kind in job.columns],
        "order": "arrival, oldest first",
        "rows": job.rows,
        "format": job.request.get("format", TableFormat.CSV),
        "compression": job.request.get("compression", Compression.NONE),
        "file_name": job.file_name,
        "created": format_time(job.created_us),
        "finished": finished,
        "software": SOFTWARE,
        "citation": citation,
        "note": "Posts that their authors delete later have to be removed from copies too: POST /v1/compliance tells which.",
    }
    if digest is not None:
        found |= {"bytes": job.bytes, "sha256": digest, "citation": f"{citation} SHA-256 {digest}."}
    return found

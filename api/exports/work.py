"""What worker threads do for an export: write its file, take out of it what ended since, and tell what that was."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from api.access import Principal
from api.access.principals import ANONYMOUS_OWNER
from api.access.scopes import ANONYMOUS
from api.citations import AsOf
from api.columns import publish
from api.compliance import Fate, changes_since
from api.config import ApiSettings
from api.engine import Session
from api.exports.model import DAY_US, ExportRequest, Job, State
from api.exports.produce import ExportPlan, Targets, produce
from api.exports.provenance import made_at, metadata
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


class ExportFiles:
    """Makes the files of jobs and keeps them free of what was removed. Every function blocks, and belongs on a worker thread."""

    def __init__(
        self, settings: ApiSettings, store: ExportStore, snapshots: SnapshotSource, lake: Lake, labels: Labels
    ) -> None:
        self._settings = settings
        self._store = store
        self._snapshots = snapshots
        self._lake = lake
        self._labels = labels

    def make(self, session: Session, job_id: str) -> None:
        """Write rows, keys and the file of a job, which is done then. Raises ApiError, LakeError, OSError, QueryCancelled."""
        job = self._store.change(job_id, state=State.RUNNING, progress=0.0)
        if job is None:
            return
        request = ExportRequest.model_validate(job.request)
        snapshot, then = self._snapshots.cited()
        if request.as_of is not None:
            then = self._snapshots.as_of(request.as_of)
        plan, whole = self._plan(session, job, request, then)
        folder = self._store.folder_of(job_id)
        temporary = folder / "data.0.new"
        rows_copy = None if request.format is TableFormat.PARQUET else folder / "rows.0"
        last = 0.0

        def report(share: float) -> None:
            nonlocal last
            session.check()
            # More than a few writes of the state a second help nobody.
            if time.monotonic() - last > 0.5:
                last = time.monotonic()
                self._store.change(job_id, progress=round(min(0.99, share), 3))

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
                    "expires_us": now + round(self._settings.export_days * DAY_US),
                }
            )
            size, digest = output.finish(metadata(finished))
        temporary.replace(folder / "data.0")
        session.check()
        self._store.save(
            finished.model_copy(update={"state": State.DONE, "bytes": size, "sha256": digest, "progress": 1.0})
        )

    def refresh(self, session: Session, job: Job) -> Job:
        """The job with a file from which everything is missing that was removed since: a new generation, unless nothing was. The
        old file stays for clients that resume it."""
        snapshot = self._snapshots.newest()
        folder = self._store.folder_of(job.id)
        old = job.generation
        found = changes_since(session, self._lake, snapshot, POST, made_at(job), str(folder / f"keys.{old}"))
        gone = [change.position for change in found]
        if not gone:
            checked = job.model_copy(update={"checked_version": snapshot.version})
            self._store.save(checked)
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
        self._store.save(changed)
        (folder / f"rows.{old}").unlink(missing_ok=True)
        if old:
            # The first keys stay: they tell what copies of the first file hold.
            (folder / f"keys.{old}").unlink(missing_ok=True)
        return changed

    def changes(self, session: Session, job: Job) -> list[tuple[str, Fate]]:
        """Which posts of the file as it was first made are not as they were: at-uri and fate, in the order of the file."""
        snapshot = self._snapshots.newest()
        keys = self._store.folder_of(job.id) / "keys.0"
        found = changes_since(session, self._lake, snapshot, POST, made_at(job), str(keys))
        rows = pq.read_table(keys).take(pa.array([change.position for change in found], pa.int64()))
        uris = publish(POST, rows, ("uri",))["uri"].to_pylist()
        return [(uri, change.fate) for uri, change in zip(uris, found, strict=True)]

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
            size, digest = render(rows_of(folder, generation), output, metadata(job))
        temporary.replace(folder / f"data.{generation}")
        return size, digest

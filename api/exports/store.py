"""The folder of exports: one folder per job with its state and files, each file written under another name and renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any, Final

from api.exports.model import FINAL, Job, State

_ID: Final = re.compile(r"[0-9a-f]{32}")
_STATE: Final = "job.json"


class ExportStore:
    """Jobs by id. Thread-safe; every method may block for the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            try:
                job = Job.model_validate(json.loads((path / _STATE).read_bytes()))
            except (OSError, ValueError):
                # A crash between making the folder and its state leaves nothing that anybody was promised.
                shutil.rmtree(path, ignore_errors=True)
                continue
            self._jobs[job.id] = job

    def folder_of(self, job_id: str) -> Path:
        """The folder of a job."""
        assert _ID.fullmatch(job_id)
        return self._folder / job_id

    def all(self) -> list[Job]:
        """Every job, the newest first."""
        with self._lock:
            return sorted(self._jobs.values(), key=lambda job: (-job.created_us, job.id))

    def find(self, job_id: str) -> Job | None:
        """The job of an id, or None."""
        with self._lock:
            return self._jobs.get(job_id)

    def repeated(self, owner: str, key: str) -> Job | None:
        """The job that an owner started with an idempotency key."""
        return next((job for job in self.all() if job.owner == owner and job.idempotency_key == key), None)

    def save(self, job: Job) -> None:
        """Store a new or changed job durably."""
        folder = self.folder_of(job.id)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{_STATE}.new"
        with self._lock:
            self._jobs[job.id] = job
            with temporary.open("wb") as file:
                file.write(job.model_dump_json().encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(folder / _STATE)

    def change(self, job_id: str, **values: Any) -> Job | None:
        """Store a job with other values; None when there is none of this id any more."""
        job = self.find(job_id)
        if job is None:
            return None
        changed = job.model_copy(update=values)
        self.save(changed)
        return changed

    def remove(self, job_id: str) -> None:
        """Forget a job and its files."""
        with self._lock:
            self._jobs.pop(job_id, None)
            shutil.rmtree(self.folder_of(job_id), ignore_errors=True)

    def drop_files(self, job: Job) -> None:
        """Remove the files of a job and keep its state."""
        for path in self.folder_of(job.id).iterdir():
            if path.name != _STATE:
                path.unlink(missing_ok=True)

    def bytes(self) -> int:
        """Disk used by all exports."""
        return sum(path.stat().st_size for path in self._folder.glob("*/*") if path.is_file())

    def active(self, owner: str) -> int:
        """Jobs of an owner that wait or run."""
        return sum(job.owner == owner and job.state not in FINAL for job in self.all())

    def unfinished(self) -> list[Job]:
        """Jobs that a stop of the service interrupted, the oldest first."""
        return [job for job in reversed(self.all()) if job.state in (State.QUEUED, State.RUNNING)]

"""Report files: what each process says about itself, once a second, for `up`, `doctor` and people.

One JSON object per process in `<state>/status/<process>.json`, replaced as a whole, so that a reader never sees half.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil


class StatusWriter:
    """Writes the report of one process. Thread-safe; a failed write is never worth stopping a service for."""

    def __init__(self, folder: Path, process: str, min_interval: float = 0.5) -> None:
        self._path = folder / f"{process}.json"
        self._process = process
        self._min_interval = min_interval
        self._facts: dict[str, object] = {}
        self._state = "starting"
        self._started = time.time()
        self._written = 0.0
        self._lock = threading.Lock()
        self._self = psutil.Process()
        folder.mkdir(parents=True, exist_ok=True)
        self._write(force=True)

    def report(self, facts: Mapping[str, object]) -> None:
        """Takes the service's numbers; handed to services as their `report`. Returns at once."""
        with self._lock:
            self._facts.update(facts)
            if self._state == "starting":
                self._state = "running"
            self._write(force=False)

    def state(self, state: str, **facts: object) -> None:
        """Marks a change of life: running, draining, stopped, failed (with `error` and `remedy`)."""
        with self._lock:
            self._state = state
            self._facts.update(facts)
            self._write(force=True)

    def _write(self, *, force: bool) -> None:
        now = time.time()
        if not force and now - self._written < self._min_interval:
            return
        self._written = now
        document = {
            **self._facts,
            "process": self._process,
            "state": self._state,
            "pid": os.getpid(),
            "started": self._started,
            "time": now,
            "rss": self._self.memory_info().rss,
        }
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(document, default=str), encoding="utf-8")
            temporary.replace(self._path)
        except OSError:
            # A full disk stops the writer by its own checks; losing a report must not stop anything.
            temporary.unlink(missing_ok=True)


def read_status(folder: Path, process: str) -> dict[str, Any] | None:
    """The latest report of `process`, or None when there is none or it is not JSON."""
    try:
        found = json.loads((folder / f"{process}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None

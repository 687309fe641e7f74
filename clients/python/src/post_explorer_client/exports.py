"""Exports: jobs that write any number of rows to a file on the service, fetched with resume and checked by digest."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import httpx

from .errors import DownloadError, ExportError
from .http import Http, is_temporary
from .results import Row

_CHUNK = 2**20
_POLL_SECONDS = (0.2, 5.0)
_ENDED = frozenset({"done", "failed", "cancelled", "expired"})


@dataclass(frozen=True)
class Progress:
    """How far an export or its download is: `share` from 0 to 1, None while unknown."""

    step: str
    share: float | None
    rows: int | None
    bytes: int | None


Report = Callable[[Progress], None]


def show_progress(stream: TextIO | None = None) -> Report:
    """A report that keeps one line on standard error (or `stream`) up to date."""
    out = stream if stream is not None else sys.stderr

    def report(progress: Progress) -> None:
        share = f"{progress.share:4.0%}" if progress.share is not None else "    "
        rows = f" {progress.rows:,} rows" if progress.rows is not None else ""
        size = f" {progress.bytes / 1e6:,.1f} MB" if progress.bytes is not None else ""
        out.write(f"\r{progress.step:9} {share}{rows}{size}\x1b[K")
        if progress.share == 1.0:
            out.write("\n")
        out.flush()

    return report


class Export:
    """One export job of the service."""

    def __init__(self, http: Http, body: Row, sleep: Callable[[float], None] = time.sleep) -> None:
        self._http = http
        self._sleep = sleep
        self.body = body

    def __repr__(self) -> str:
        return f"<export {self.id}: {self.state}>"

    @property
    def id(self) -> str:
        """The job's id; `explorer.export_of(id)` finds it again, also from another program."""
        return str(self.body["id"])

    @property
    def state(self) -> str:
        """`queued`, `running`, `done`, `failed`, `cancelled` or `expired`, as last seen."""
        return str(self.body["state"])

    @property
    def rows(self) -> int | None:
        """Rows written, as last seen."""
        return self.body.get("rows")

    def refresh(self) -> Export:
        """Ask the service for the state now."""
        self.body = self._http.json("GET", f"/v1/exports/{self.id}")
        return self

    def cancel(self) -> None:
        """Stop the job and delete its file."""
        self._http.request("DELETE", f"/v1/exports/{self.id}")

    def wait(self, timeout: float = 3600.0, report: Report | None = None) -> Export:
        """Wait until the job is done. ExportError when it failed, was cancelled, or takes longer than `timeout` seconds."""
        until = time.monotonic() + timeout
        pause = _POLL_SECONDS[0]
        while self.state not in _ENDED:
            if time.monotonic() >= until:
                raise ExportError(
                    f"export {self.id} is still {self.state} after {timeout:g} s: wait again, or narrow the query"
                )
            self._sleep(pause)
            pause = min(pause * 1.5, _POLL_SECONDS[1])
            self.refresh()
            if report is not None:
                report(Progress("exporting", self.body.get("progress"), self.rows, self.body.get("bytes")))
        if self.state != "done":
            error = self.body.get("error") or {}
            reason = error.get("detail", "") if isinstance(error, dict) else str(error)
            raise ExportError(f"export {self.id} {self.state}{': ' + reason if reason else ''}")
        return self

    def download(self, target: str | Path | None = None, report: Report | None = None) -> Path:
        """Fetch the file; the path it was written to, by default the service's file name in the current folder.

        A download that broke off is continued, also by a later call: `<name>.part` holds what has arrived. The file gets its
        name only when its SHA-256 is the announced one; DownloadError otherwise.
        """
        if self.state not in _ENDED:
            self.wait(report=report)
        if self.state != "done":
            raise ExportError(f"export {self.id} has no file: it is {self.state}")
        path = Path(target) if target is not None else Path(_plain_name(str(self.body["file_name"])))
        if path.is_dir():
            path = path / _plain_name(str(self.body["file_name"]))
        part = path.with_name(path.name + ".part")
        size, sha256 = int(self.body["bytes"]), str(self.body["sha256"])
        again = self._http.attempts()
        if size == 0:
            part.touch()
        while (have := part.stat().st_size if part.exists() else 0) < size:
            try:
                self._fetch(part, have, size, sha256, report)
            except (httpx.TransportError, DownloadError) as error:
                again(DownloadError(f"{path}: the download broke off, repeat it to go on: {error}"), None)
            except Exception as error:
                if not is_temporary(error):
                    raise
                again(error, getattr(error, "retry_after", None))
        if part.stat().st_size != size or _sha256(part) != sha256:
            part.unlink()
            raise DownloadError(f"{path}: what arrived is not what the service announced: download it again")
        part.replace(path)
        if report is not None:
            report(Progress("download", 1.0, self.rows, size))
        return path

    def provenance(self) -> Row:
        """Query, snapshot, coverage, schema and citation text of the file."""
        found: Row = self._http.json("GET", str(self.body["provenance"]))
        return found

    def _fetch(self, part: Path, have: int, size: int, sha256: str, report: Report | None) -> None:
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": f'"{sha256}"'}
        with self._http.stream(str(self.body["download"]), headers=headers) as response:
            mode = "ab" if response.status_code == 206 else "wb"
            done = have if mode == "ab" else 0
            with part.open(mode) as file:
                for chunk in response.iter_bytes(_CHUNK):
                    file.write(chunk)
                    done += len(chunk)
                    if report is not None:
                        report(Progress("download", min(done / size, 0.999) if size else None, self.rows, done))
        if done < size:
            raise DownloadError(f"{done} of {size} bytes arrived")


def _plain_name(name: str) -> str:
    """The service's file name without any folder."""
    return name.replace("\\", "/").rpartition("/")[2] or "export"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

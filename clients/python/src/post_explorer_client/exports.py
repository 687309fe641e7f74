"""Exports: jobs that write any number of rows to a file on the service, fetched with resume and checked by digest."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import httpx

from .errors import DownloadError, ExportError, ProblemError
from .http import Http, is_temporary
from .results import Row

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

        A download that broke off is continued, also by a later call: `<name>.part` holds what has arrived, `<name>.part.json`
        of what. The file gets its name only when its SHA-256 is the one the service announced; DownloadError otherwise.
        Rows that were removed from the network before the download began are not in it.
        """
        if self.state not in _ENDED:
            self.wait(report=report)
        if self.state != "done":
            raise ExportError(f"export {self.id} has no file: it is {self.state}")
        path = Path(target) if target is not None else Path(_plain_name(str(self.body["file_name"])))
        if path.is_dir():
            path = path / _plain_name(str(self.body["file_name"]))
        part, about = (path.with_name(path.name + suffix) for suffix in (".part", ".part.json"))
        file = _Announced.read(about) if part.exists() else None
        again = self._http.attempts()
        while file is None or part.stat().st_size < file.size:
            try:
                file = self._fetch(part, about, file, report)
            except httpx.TransportError as error:
                again(DownloadError(f"{path}: the download broke off, repeat it to go on: {error}"), None)
            except ProblemError as error:
                if not is_temporary(error):
                    raise
                again(error, error.retry_after)
            file = _Announced.read(about)
        about.unlink()
        if part.stat().st_size != file.size or _sha256(part) != file.sha256:
            part.unlink()
            raise DownloadError(f"{path}: what arrived is not what the service announced: download it again")
        part.replace(path)
        if report is not None:
            report(Progress("download", 1.0, self.rows, file.size))
        return path

    def provenance(self) -> Row:
        """Query, snapshot, coverage, schema and citation text of the file."""
        found: Row = self._http.json("GET", str(self.body["provenance"]))
        return found

    def _fetch(self, part: Path, about: Path, known: _Announced | None, report: Report | None) -> _Announced:
        """Read on from where `part` ends while the service still has that file, else from the start."""
        headers = {"Accept-Encoding": "identity"}
        have = part.stat().st_size if known is not None and part.exists() else 0
        if known is not None and have:
            headers |= {"Range": f"bytes={have}-", "If-Range": known.etag}
        with self._http.stream(str(self.body["download"]), headers=headers) as response:
            file = _Announced.of(response)
            resumed = response.status_code == 206
            if not resumed:
                part.write_bytes(b"")
                about.write_text(json.dumps(asdict(file)))
            done = have if resumed else 0
            with part.open("ab") as target:
                # As the pieces come: a larger buffer would be lost when the connection breaks.
                for chunk in response.iter_raw():
                    target.write(chunk)
                    done += len(chunk)
                    if report is not None and done < file.size:
                        report(Progress("download", done / file.size, self.rows, done))
        return file


@dataclass(frozen=True)
class _Announced:
    """What the service says about the file that it sends."""

    etag: str
    sha256: str
    size: int

    @staticmethod
    def of(response: httpx.Response) -> _Announced:
        """From the headers of a whole or partial answer; DownloadError when they do not say it."""
        digest = re.search(r"sha-256=:([A-Za-z0-9+/=]+):", response.headers.get("repr-digest", ""))
        size = response.headers.get("content-range", "").rpartition("/")[2] or response.headers.get(
            "content-length", ""
        )
        if digest is None or not size.isdigit():
            raise DownloadError("the service does not announce the file's size and digest: is it a Post Explorer?")
        return _Announced(response.headers.get("etag", ""), base64.b64decode(digest[1]).hex(), int(size))

    @staticmethod
    def read(path: Path) -> _Announced | None:
        """What an earlier attempt noted; None when there is nothing usable."""
        try:
            found = json.loads(path.read_text())
            return _Announced(str(found["etag"]), str(found["sha256"]), int(found["size"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _plain_name(name: str) -> str:
    """The service's file name without any folder."""
    return name.replace("\\", "/").rpartition("/")[2] or "export"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Exports through the Python client: jobs of the real service, and downloads that break off."""

from __future__ import annotations

import base64
import csv
import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx
import polars as pl
import pytest
from post_explorer_client import (
    DownloadError,
    Explorer,
    Export,
    ExportError,
    InvalidRequest,
    NotFound,
    Progress,
    Retry,
    show_progress,
)

from tests.api.lake_builder import LakeBuilder
from tests.clients.conftest import MakeExplorer
from tests.clients.test_client import EXPECTED


def test_an_export_is_made_fetched_and_described(explorer: Explorer, tmp_path: Path) -> None:
    seen: list[Progress] = []
    export = explorer.export(format="parquet", fields=["uri", "time", "text"], lang=["en", "de"], name="mine")
    path = export.wait(report=seen.append).download(tmp_path, report=seen.append)
    assert path.parent == tmp_path
    assert path.name.startswith("mine_")
    assert path.suffix == ".parquet"
    frame = pl.read_parquet(path)
    assert frame["text"].to_list() == EXPECTED[::-1]
    assert seen[-1] == Progress("download", 1.0, 57, path.stat().st_size)
    assert export.rows == 57
    found = export.provenance()
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [item.id for item in explorer.exports()] == [export.id] == [explorer.export_of(export.id).id]
    export.cancel()
    with pytest.raises(NotFound):
        export.refresh()
    assert not list(tmp_path.glob("*.part*"))


def test_filters_limit_and_format_reach_the_file(explorer: Explorer, tmp_path: Path) -> None:
    export = explorer.export(format="csv", fields="text,langs", limit=5, lang="de", start="2026-03-01", text="post")
    path = export.download(tmp_path / "five.csv")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == [text for text in EXPECTED[::-1] if int(text[5:]) % 2 == 0][:5]
    nothing = explorer.export(format="ndjson", text="nowhere").download(tmp_path / "none.ndjson")
    assert nothing.exists()
    with pytest.raises(InvalidRequest, match="no field 'txt'"):
        explorer.export(fields=["txt"])


def test_a_row_deleted_after_the_export_is_not_in_the_download(
    explorer: Explorer, posts: LakeBuilder, tmp_path: Path
) -> None:
    export = explorer.export(fields=["uri", "text"]).wait()
    gone = explorer.search(max_rows=1).all()[0]
    posts.delete(gone["uri"])
    posts.commit()
    path = export.download(tmp_path)
    assert gone["uri"] not in pl.read_parquet(path)["uri"].to_list()
    summary = explorer.compliance(export=export.id)["summary"]
    assert summary["deleted"] == 1
    assert explorer.compliance([gone["uri"]])["results"][0]["fate"] == "deleted"


def test_a_job_that_does_not_finish_in_time_is_said(posts: LakeBuilder, make_explorer: MakeExplorer) -> None:
    explorer = make_explorer()
    export = explorer.export()
    export.body["state"] = "running"
    with pytest.raises(ExportError, match="still running"):
        export.wait(timeout=0)
    export.body |= {"state": "failed", "error": {"detail": "the disk is full"}}
    with pytest.raises(ExportError, match="failed: the disk is full"):
        export.wait()
    with pytest.raises(ExportError, match="no file"):
        export.download()


CONTENT = bytes(range(256)) * 40_000


class Files:
    """A service that sends one file and breaks off as told; `ends` holds how many bytes each answer sends."""

    def __init__(self, *ends: int, content: bytes = CONTENT) -> None:
        self.ends = list(ends)
        self.content = content
        self.ranges: list[str | None] = []
        self.lie = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        given = request.headers.get("range")
        self.ranges.append(given)
        etag = f'"{hashlib.sha256(self.content).hexdigest()}"'
        start = int(given[6:-1]) if given and request.headers.get("if-range") == etag else 0
        digest = base64.b64encode(hashlib.sha256(b"other" if self.lie else self.content).digest()).decode()
        headers = {"etag": etag, "repr-digest": f"sha-256=:{digest}:", "content-length": str(len(self.content) - start)}
        if start:
            headers["content-range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        end = self.ends.pop(0) if self.ends else len(self.content)
        return httpx.Response(206 if start else 200, headers=headers, stream=Broken(self.content[start:], end))

    def export(self, retry: Retry | None = None) -> Export:
        explorer = Explorer(
            "http://service.example", transport=httpx.MockTransport(self), retry=retry or Retry(first_pause=0)
        )
        body = {"id": "1", "state": "done", "file_name": "../../evil/posts.bin", "download": "/data", "rows": 1}
        return Export(explorer._http, body)


class Broken(httpx.SyncByteStream):
    """Sends the first `end` bytes, then breaks unless that was all."""

    def __init__(self, data: bytes, end: int) -> None:
        self.data, self.end = data, end

    def __iter__(self):  # type: ignore[no-untyped-def]
        for start in range(0, min(self.end, len(self.data)), 65_536):
            yield self.data[start : min(start + 65_536, self.end)]
        if self.end < len(self.data):
            raise httpx.ReadError("reset")


def test_a_download_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    files = Files(1_000_000, 3_000_000)
    path = files.export().download(tmp_path / "posts.bin")
    assert path.read_bytes() == CONTENT
    assert files.ranges == [None, "bytes=1000000-", "bytes=4000000-"]


def test_a_later_program_goes_on_too(tmp_path: Path) -> None:
    files = Files(2_000_000)
    with pytest.raises(DownloadError, match="repeat it to go on"):
        files.export(Retry(attempts=1)).download(tmp_path / "posts.bin")
    assert (tmp_path / "posts.bin.part").stat().st_size == 2_000_000
    assert not (tmp_path / "posts.bin").exists()
    assert files.export().download(tmp_path / "posts.bin").read_bytes() == CONTENT
    assert files.ranges == [None, "bytes=2000000-"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(tmp_path: Path) -> None:
    files = Files(2_000_000)
    with pytest.raises(DownloadError):
        files.export(Retry(attempts=1)).download(tmp_path / "posts.bin")
    files.content = CONTENT[:5_000_000][::-1]
    assert files.export().download(tmp_path / "posts.bin").read_bytes() == files.content


def test_a_damaged_file_never_gets_its_name(tmp_path: Path) -> None:
    files = Files()
    files.lie = True
    with pytest.raises(DownloadError, match="not what the service announced"):
        files.export().download(tmp_path / "posts.bin")
    assert list(tmp_path.iterdir()) == []


def test_the_service_cannot_choose_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Files().export().download() == Path("posts.bin")
    assert Files().export().download(tmp_path) == tmp_path / "posts.bin"


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    assert Files(content=b"").export().download(tmp_path / "none").read_bytes() == b""


def test_progress_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    report: Callable[[Progress], None] = show_progress()
    report(Progress("exporting", None, None, None))
    report(Progress("download", 0.5, 1000, 2_000_000))
    report(Progress("download", 1.0, 1000, 4_000_000))
    lines = capsys.readouterr().err.split("\r")
    assert "50% 1,000 rows 2.0 MB" in lines[2]
    assert lines[-1].endswith("\n")

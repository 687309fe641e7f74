"""Exports: the file holds what a search finds, forgets what is removed, can be resumed, and says where it came from."""

from __future__ import annotations

import base64
import csv
import errno
import gzip
import hashlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import zstandard

from api.exports import render
from tests.api.conftest import MakeClient
from tests.api.lake_builder import POST, LakeBuilder, did

LIKE = "app.bsky.feed.like"


def finished(client: httpx.Client, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = client.post("/v1/exports", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    return wait(client, answer.headers["location"])


def wait(client: httpx.Client, location: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        info: dict[str, Any] = client.get(location).json()
        if info["state"] not in ("queued", "running"):
            return info
        time.sleep(0.05)
    raise AssertionError(info)


def fill(builder: LakeBuilder) -> list[dict[str, Any]]:
    posts = []
    for number in range(40):
        text = f'=SUM("{number}")\nline two, täg 猫' if number % 2 else f"plain {number}"
        posts.append(builder.post(did(number % 3), text, langs=["en", "pt"] if number % 5 else None))
        builder.tick(500)
    builder.record(LIKE, did(9), subject_uri=posts[3]["uri"])
    builder.identity(did(1), "one.example.com")
    builder.commit()
    return posts


def rows_of(info: dict[str, Any], raw: bytes) -> list[dict[str, Any]]:
    if info["format"] == "parquet":
        return list(pq.read_table(io.BytesIO(raw)).to_pylist())
    if info["compression"] == "zstd":
        raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    if info["compression"] == "gzip":
        raw = gzip.decompress(raw)
    if info["format"] == "ndjson":
        return [json.loads(line) for line in raw.decode().splitlines()]
    return list(csv.DictReader(io.StringIO(raw.decode(), newline="")))


@pytest.mark.parametrize("compression", ["none", "zstd", "gzip"])
@pytest.mark.parametrize("form", ["csv", "ndjson", "parquet"])
def test_every_format_holds_the_same_posts(
    builder: LakeBuilder, client: httpx.Client, form: str, compression: str
) -> None:
    posts = fill(builder)
    fields = ["uri", "time", "text", "langs", "likes", "handle"]
    unused = {
        "not_hashtag": ["none"],
        "start": "2026-01-01",
        "end": "2027-01-01T00:00:00Z",
        "hour_of_day": list(range(24)),
    }
    body = {"author": [did(0), did(1)], "format": form, "compression": compression, "fields": fields, **unused}
    info = finished(client, body)
    assert info["state"] == "done", info
    answer = client.get(info["download"])
    assert hashlib.sha256(answer.content).hexdigest() == info["sha256"]
    assert base64.b64decode(answer.headers["repr-digest"].split(":")[1]).hex() == info["sha256"]
    assert len(answer.content) == info["bytes"]
    rows = rows_of(info, answer.content)
    expected = [post for post in posts if post["did"] in (did(0), did(1))]
    assert list(rows[0]) == fields
    assert [row["uri"] for row in rows] == [post["uri"] for post in expected]
    assert [row["text"] for row in rows] == [post["text"] for post in expected]
    assert [int(row["likes"]) for row in rows] == [int(post is posts[3]) for post in expected]
    assert {row["handle"] for row in rows if row["uri"].split("/")[2] == did(1)} == {"one.example.com"}
    langs = [json.loads(row["langs"]) if form == "csv" and row["langs"] else row["langs"] or None for row in rows]
    assert langs == [post["langs"] for post in expected]
    assert info["file_name"].endswith(
        form if form == "parquet" else form + {"none": "", "zstd": ".zst", "gzip": ".gz"}[compression]
    )


def test_provenance_names_query_snapshot_and_digest(builder: LakeBuilder, client: httpx.Client) -> None:
    fill(builder)
    info = finished(client, {"text": "plain", "format": "parquet", "limit": 7})
    body = client.get(info["provenance"]).json()
    assert body["query"] == {"text": "plain"}
    assert body["rows"] == info["rows"] == 7
    assert body["sha256"] == info["sha256"]
    assert body["sha256"] in body["citation"]
    assert body["snapshot"]["version"] == 1
    assert body["coverage"]["gaps"] == []
    table = pq.read_table(io.BytesIO(client.get(info["download"]).content))
    inside = json.loads(table.schema.metadata[b"provenance"])
    assert inside["query"] == {"text": "plain"}
    assert [column["name"] for column in body["columns"]] == table.column_names


@pytest.mark.parametrize("upkeep", [False, True], ids=["pending", "erased"])
def test_a_download_is_free_of_what_was_removed_before_it(
    builder: LakeBuilder, client: httpx.Client, upkeep: bool
) -> None:
    posts = fill(builder)
    info = finished(client, {"format": "csv"})
    nothing = client.post("/v1/compliance", json={"export": info["id"]}).json()
    assert (nothing["results"], nothing["summary"]["current"]) == ([], len(posts))
    first = client.get(info["download"])
    etag = first.headers["etag"]
    builder.tick()
    builder.delete(posts[5]["uri"])
    builder.post(did(0), "now edited", operation="update", rkey=posts[6]["rkey"])
    builder.account(did(2), active=False, status="deleted")
    builder.commit()
    if upkeep:
        builder.maintain()
    gone = {posts[5]["uri"], posts[6]["uri"]} | {post["uri"] for post in posts if post["did"] == did(2)}

    resumed = client.get(info["download"], headers={"Range": "bytes=100-", "If-Range": etag})
    assert resumed.status_code == 206
    assert resumed.content == first.content[100:]
    assert resumed.headers["etag"] == etag

    second = client.get(info["download"])
    assert second.headers["etag"] != etag
    uris = {row["uri"] for row in rows_of(info, second.content)}
    assert uris == {post["uri"] for post in posts} - gone
    told = client.get(f"/v1/exports/{info['id']}").json()
    assert told["removed_since"] == len(gone)
    assert told["rows"] == len(uris)
    assert told["sha256"] == hashlib.sha256(second.content).hexdigest()
    assert posts[5]["text"] not in second.text

    report = client.post("/v1/compliance", json={"export": info["id"]}).json()
    fates = {row["uri"]: row["fate"] for row in report["results"]}
    assert set(fates) == gone
    assert fates[posts[5]["uri"]] == "deleted"
    assert fates[posts[6]["uri"]] == "edited"
    assert report["summary"]["current"] == len(uris)


def test_ranges_and_conditions(builder: LakeBuilder, client: httpx.Client) -> None:
    fill(builder)
    info = finished(client, {"format": "ndjson"})
    whole = client.get(info["download"])
    size, etag = len(whole.content), whole.headers["etag"]
    parts = b""
    for start in range(0, size, 1000):
        part = client.get(
            info["download"], headers={"Range": f"bytes={start}-{min(start + 999, size - 1)}", "If-Range": etag}
        )
        assert part.status_code == 206
        parts += part.content
    assert parts == whole.content
    assert client.get(info["download"], headers={"Range": "bytes=-10"}).content == whole.content[-10:]
    for text, status in (("bytes=99999999-", 416), ("bytes=5-2", 200), ("lines=1-2", 200), ("bytes=a-", 200)):
        answer = client.get(info["download"], headers={"Range": text})
        assert answer.status_code == status, text
        if status == 416:
            assert answer.headers["content-range"] == f"bytes */{size}"
            assert answer.headers["content-type"] == "application/problem+json"
    assert client.get(info["download"], headers={"If-None-Match": etag}).status_code == 304
    head = client.head(info["download"])
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(size), b"")


def test_spreadsheet_safe_csv(builder: LakeBuilder, client: httpx.Client) -> None:
    fill(builder)
    info = finished(client, {"spreadsheet_safe": True, "fields": "text"})
    rows = rows_of(info, client.get(info["download"]).content)
    assert {row["text"][0] for row in rows} == {"'", "p"}
    plain = finished(client, {"fields": "text"})
    assert {row["text"][0] for row in rows_of(plain, client.get(plain["download"]).content)} == {"=", "p"}


def test_an_empty_export_has_a_header(builder: LakeBuilder, client: httpx.Client) -> None:
    fill(builder)
    for form in ("csv", "ndjson", "parquet"):
        info = finished(client, {"text": "nowhere", "format": form, "fields": ["uri", "langs", "likes", "handle"]})
        assert (info["state"], info["rows"]) == ("done", 0)
        content = client.get(info["download"]).content
        if form == "csv":
            assert content.decode().strip() == '"uri","langs","likes","handle"'
        if form == "parquet":
            assert pq.read_table(io.BytesIO(content)).column_names == ["uri", "langs", "likes", "handle"]


def test_idempotency_listing_and_deletion(builder: LakeBuilder, client: httpx.Client) -> None:
    fill(builder)
    one = finished(client, {"text": "plain"}, **{"Idempotency-Key": "abc"})
    again = client.post("/v1/exports", json={"text": "plain"}, headers={"Idempotency-Key": "abc"})
    assert again.json()["id"] == one["id"]
    other = client.post("/v1/exports", json={"text": "täg"}, headers={"Idempotency-Key": "abc"})
    assert other.status_code == 409
    assert [job["id"] for job in client.get("/v1/exports").json()["exports"]] == [one["id"]]
    assert client.delete(f"/v1/exports/{one['id']}").status_code == 204
    assert client.get(f"/v1/exports/{one['id']}").status_code == 404
    assert client.get("/v1/exports").json()["exports"] == []


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"text": '"open'}, 422, "text"),
        ({"format": "xlsx"}, 422, "format"),
        ({"fields": ["uri", "nope"]}, 422, "fields"),
        ({"fields": ["uri,nope"]}, 422, "'nope'"),
        ({"fields": []}, 422, "fields"),
        ({"colour": "red"}, 400, "colour"),
        ({"limit": 0}, 422, "limit"),
        ({"name": "../../etc/passwd"}, 422, "name"),
        ({"label": ["nope:1"]}, 404, "nope"),
        ([], 422, "body"),
        ({"text": "a\ud800"}, 422, "text"),
    ],
)
def test_bad_requests_are_named(client: httpx.Client, body: Any, status: int, named: str) -> None:
    raw = json.dumps(body).encode()
    answer = client.post("/v1/exports", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert named in answer.text


def test_a_restart_takes_up_unfinished_jobs_and_keeps_finished_ones(
    builder: LakeBuilder, make_client: MakeClient
) -> None:
    fill(builder)
    client = make_client()
    info = finished(client, {"text": "plain"})
    content = client.get(info["download"]).content
    client.stop()
    folder = builder.root.parent / "state" / "exports" / info["id"]
    state = json.loads((folder / "job.json").read_bytes())
    (folder / "job.json").write_text(json.dumps(state | {"state": "running", "sha256": None}))
    again = make_client()
    done = wait(again, f"/v1/exports/{info['id']}")
    assert done["state"] == "done"
    assert again.get(done["download"]).content == content


@pytest.mark.parametrize("upkeep", [False, True], ids=["pending", "erased"])
def test_compliance_of_uris(builder: LakeBuilder, client: httpx.Client, upkeep: bool) -> None:
    kept, edited, deleted = (builder.post(did(1), f"t{number}") for number in range(3))
    hidden, lost = builder.post(did(2), "h"), builder.post(did(3), "l")
    like = builder.record(LIKE, did(1), subject_uri=kept["uri"])
    builder.tick()
    after = builder.post(did(1), "new", operation="update", rkey=edited["rkey"])
    builder.delete(deleted["uri"])
    builder.account(did(2), active=False, status="suspended")
    builder.account(did(3), active=False, status="deleted")
    builder.identity(did(1), "one.example.com")
    builder.commit()
    if upkeep:
        builder.maintain()
    unknown = f"at://{did(1)}/{POST}/3zzzzzzzzzzzz"
    uris = [kept["uri"], deleted["uri"], hidden["uri"], lost["uri"], unknown, like["uri"]]
    uris += [kept["uri"].replace(did(1), "one.example.com")]
    records = [{"uri": edited["uri"], "cid": edited["cid"]}, {"uri": edited["uri"], "cid": after["cid"]}]
    body = client.post("/v1/compliance", json={"uris": uris, "records": records}).json()
    assert [row["fate"] for row in body["results"]] == [
        "current", "deleted", "hidden", "deleted", "unknown", "current", "current", "edited", "current",
    ]  # fmt: skip
    assert body["summary"] == {"current": 4, "edited": 1, "deleted": 2, "hidden": 1, "unknown": 1}
    assert client.post("/v1/compliance", json={}).status_code == 422
    assert client.post("/v1/compliance", json={"uris": ["nonsense"]}).status_code == 422


def test_every_filter_survives_being_stored(builder: LakeBuilder, client: httpx.Client) -> None:
    posts = fill(builder)
    reply = builder.post(did(1), "re", reply_parent_uri=posts[0]["uri"], reply_root_uri=posts[0]["uri"])
    builder.commit()
    for name in ("reply_to", "thread"):
        info = finished(client, {name: posts[0]["uri"].replace(did(0), did(0)), "reply": True, "fields": "uri"})
        assert info["state"] == "done", info
        assert client.get(info["download"]).text.splitlines()[1:] == [f'"{reply["uri"]}"']


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_full_disk_is_named_and_leaves_nothing(
    builder: LakeBuilder, make_client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    builder.post(did(1), "x")
    builder.commit()
    real = render._Digesting.write

    def full(self: Any, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(render._Digesting, "write", full)
    client = make_client()
    made = client.post("/v1/exports", json={"format": form}).json()["id"]
    deadline = time.monotonic() + 60
    while (state := client.get(f"/v1/exports/{made}").json())["state"] in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert state["state"] == "failed"
    assert state["error"]["status"] == 503
    assert "the disk for exports is full" in state["error"]["detail"]
    assert [path.name for path in (tmp_path / "state" / "exports" / made).iterdir()] == ["job.json"]
    monkeypatch.setattr(render._Digesting, "write", real)
    assert finished(client, {"format": form})["rows"] == 1


def test_files_close_only_after_the_threads_that_write_to_them(
    builder: LakeBuilder, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Closing one under a thread that writes to it ended the whole service.
    fill(builder)
    events: list[str] = []

    class SlowKeys(pq.ParquetWriter):
        def write_table(self, *args: Any, **options: Any) -> None:
            events.append("write")
            time.sleep(0.5)
            super().write_table(*args, **options)
            events.append("written")

        def close(self) -> None:
            events.append("close")
            super().close()

    def full(self: Any, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq, "ParquetWriter", SlowKeys)
    monkeypatch.setattr(render._Digesting, "write", full)
    client = make_client()
    assert finished(client, {"format": "csv"})["state"] == "failed"
    begun = [number for number, event in enumerate(events) if event == "write"]
    ended = [number for number, event in enumerate(events) if event == "written"]
    assert begun, events
    assert len(begun) == len(ended), events
    assert max(ended) < events.index("close"), events

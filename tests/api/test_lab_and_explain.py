"""The lab's own contract, formats by the Accept header, and what is told before a query runs."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from tests.api.conftest import MakeClient
from tests.api.lake_builder import POST, LakeBuilder, did


def fill(builder: LakeBuilder, count: int = 130) -> None:
    for number in range(count):
        builder.post(did(number % 2), f"Climate post {number}", langs=["en" if number % 3 else "pt"])
        builder.tick(1200)
    builder.identity(did(0), "zero.example.com")
    builder.commit()


def test_the_lab_contract(builder: LakeBuilder, client: httpx.Client) -> None:
    fill(builder)
    body = client.get("/search", params={"text": "clim%post"}).json()
    assert body["meta"]["count"] == 0
    body = client.get("/search", params={"text": "climate"}).json()
    assert body["meta"]["count"] == len(body["results"]) == 50
    assert {row["username"] for row in body["results"]} == {"zero.example.com", did(1)}
    assert body["results"][0]["text"] == "Climate post 129"
    assert body["results"][0]["timestamp"].endswith("Z")
    seen = list(body["results"])
    while body["meta"]["next"]:
        body = client.get(body["meta"]["next"]).json()
        seen += body["results"]
    assert [row["text"] for row in seen] == [f"Climate post {number}" for number in range(129, -1, -1)]

    one_day = client.get("/search", params={"start": "2026-03-01", "end": "2026-03-01", "limit": 1000}).json()
    assert {row["timestamp"][:10] for row in one_day["results"]} == {"2026-03-01"}
    filters = json.dumps({"lang": ["pt"], "reply": False})
    own = client.get(
        "/search", params={"username": "zero.example.com", "feature_filters": filters, "limit": 1000}
    ).json()
    assert own["meta"]["count"] == len([n for n in range(130) if n % 2 == 0 and n % 3 == 0])
    assert client.get("/search", params={"text": "clim", "exact": "true"}).json()["meta"]["count"] == 0

    empty = {"text": "", "username": " ", "start": "", "end": "", "exact": "false", "feature_filters": ""}
    assert client.get("/search", params=empty | {"limit": 1000}).json()["meta"]["count"] == 130, "an empty form"

    text = client.get("/export", params={"text": "climate", "start": "2026-03-02"})
    assert text.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(text.text)))
    assert list(rows[0]) == ["timestamp", "username", "text", "uri"]
    assert text.headers["x-rows"] == str(len(rows))
    assert text.headers["x-truncated"] == "false"


def test_the_cap_on_rows(builder: LakeBuilder, make_client: MakeClient) -> None:
    fill(builder)
    client = make_client(lab_row_cap=70)
    first = client.get("/search").json()
    second = client.get(first["meta"]["next"]).json()
    assert (second["meta"]["count"], second["meta"]["capped"], second["meta"]["next_cursor"]) == (20, True, None)
    export = client.get("/export")
    assert (export.headers["x-rows"], export.headers["x-truncated"]) == ("70", "true")
    free = make_client(lab_row_cap=0)
    assert free.get("/export").headers["x-rows"] == "130"


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"username": "no handle"}, "username"),
        ({"feature_filters": "{"}, "feature_filters"),
        ({"feature_filters": "[1]"}, "feature_filters"),
        ({"feature_filters": '{"langs": ["en"]}'}, "'lang'"),
        ({"feature_filters": '{"lang": ["x"]}'}, "feature_filters"),
        ({"start": "soon"}, "start"),
        ({"start": "2026-01-03", "end": "2026-01-01"}, "start"),
        ({"text": "("}, "text"),
        ({"page": "2"}, "page"),
    ],
)
def test_the_lab_aliases_name_what_is_wrong(client: httpx.Client, parameters: dict[str, str], named: str) -> None:
    for path in ("/search", "/export"):
        answer = client.get(path, params=parameters)
        assert answer.status_code in (400, 422)
        assert named in answer.json()["detail"]


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("text/csv", "text/csv"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("application/vnd.apache.parquet", "application/vnd.apache.parquet"),
        ("*/*", "application/json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
        ("application/json;q=0.5, text/*;q=0.9", "text/csv"),
        ("", "application/json"),
    ],
)
def test_formats_by_accept(builder: LakeBuilder, client: httpx.Client, accept: str, media: str) -> None:
    fill(builder, 5)
    answer = client.get("/v1/search", params={"limit": 3, "fields": "uri,text"}, headers={"Accept": accept})
    assert answer.headers["content-type"].split(";")[0] == media
    if media != "application/json":
        assert 'rel="next"' in answer.headers["link"]
    if media == "application/vnd.apache.parquet":
        assert pq.read_table(io.BytesIO(answer.content)).column_names == ["uri", "text"]
    if media == "text/csv":
        assert len(list(csv.DictReader(io.StringIO(answer.text)))) == 3
    refused = client.get("/v1/search", headers={"Accept": "image/png"})
    assert refused.status_code == 406


def test_explain_reads_nothing_but_says_what_would_be(builder: LakeBuilder, client: httpx.Client) -> None:
    fill(builder)
    like: dict[str, Any] = builder.record(
        "app.bsky.feed.like", did(1), subject_uri=f"at://{did(0)}/{POST}/3aaaaaaaaaaaa"
    )
    builder.commit()
    assert like["uri"]
    body = client.get("/v1/explain", params={"text": "climate", "start": "2026-03-02", "min_likes": 1}).json()
    tables = {read["table"]: read for read in body["reads"]}
    assert set(tables) == {POST, "app.bsky.feed.like"}
    assert 0 < tables[POST]["rows"] < 130
    assert body["rows"] == sum(read["rows"] for read in body["reads"])
    assert body["lane"] == "light"
    export = client.get("/v1/explain", params={"text": "climate", "target": "export", "format": "ndjson"}).json()
    assert export["matches"] == 130
    assert export["matches_relation"] == "exact"
    assert export["expected_bytes"] > 130 * 100
    assert export["lane"] == "export"

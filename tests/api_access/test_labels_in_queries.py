"""Label tables through the whole service: search, counts, groups and exports by an uploaded table."""

from __future__ import annotations

import csv
import io
import time
from typing import Any

import httpx
import pytest

from tests.api.lake_builder import LakeBuilder, did

CSV = {"content-type": "text/csv"}


@pytest.fixture
def posts(builder: LakeBuilder) -> list[dict[str, Any]]:
    """Twenty posts of four accounts; the last one has a record key that is no TID."""
    made = []
    for number in range(20):
        more = {"rkey": "not-a-tid"} if number == 19 else {}
        made.append(builder.post(did(number % 4), f"post {number}", **more))
        builder.tick(60)
    builder.commit()
    return made


def put(client: httpx.Client, name: str, body: str) -> dict[str, Any]:
    answer = client.put(f"/v1/labels/{name}", content=body, headers=CSV)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def texts(client: httpx.Client, **parameters: Any) -> list[str]:
    answer = client.get("/v1/search", params={"sort": "oldest", **parameters})
    assert answer.status_code == 200, answer.text
    return [row["text"] for row in answer.json()["results"]]


def test_posts_are_selected_by_their_label(posts: list[dict[str, Any]], client: httpx.Client) -> None:
    rows = "".join(f"{posts[n]['uri']},{'sad' if n % 2 else 'glad'},{n / 10}\n" for n in (1, 2, 3, 8, 19))
    put(client, "mood", "uri,mood,score\n" + rows)
    assert texts(client, label="mood.mood:sad") == ["post 1", "post 3", "post 19"]
    assert texts(client, label=["mood.mood:sad", "mood.mood:glad"]) == [
        "post 1",
        "post 2",
        "post 3",
        "post 8",
        "post 19",
    ]
    assert texts(client, label=["mood.mood:sad", "mood.score:>=0.3"]) == ["post 3", "post 19"]
    assert texts(client, label="mood.score:0.2..0.8", not_label="mood.mood:sad") == ["post 2", "post 8"]
    assert len(texts(client, not_label="mood.score:*")) == 15
    assert texts(client, label="mood.mood:sad", author=did(3)) == ["post 3", "post 19"]


def test_accounts_are_selected_by_their_label(posts: list[dict[str, Any]], client: httpx.Client) -> None:
    put(client, "cohort", f"did\n{did(1)}\n{did(2)}\n")
    assert texts(client, label="cohort:*", limit=3) == ["post 1", "post 2", "post 5"]
    assert client.get("/v1/counts", params={"label": "cohort:*", "interval": "day"}).json()["total"] == 10
    assert client.get("/v1/counts", params={"not_label": "cohort:*", "interval": "day"}).json()["total"] == 10


def test_groups_and_exports_carry_the_label(posts: list[dict[str, Any]], client: httpx.Client) -> None:
    put(client, "lean", f"did,lean\n{did(0)},left\n{did(1)},right\n{did(2)},right\n")
    groups = client.get("/v1/aggregate", params={"by": "label:lean", "missing": "true"})
    assert groups.status_code == 200, groups.text
    counts = {row["label:lean"]: row["count"] for row in groups.json()["groups"]}
    assert counts == {"right": 10, "left": 5, None: 5}
    body = {"format": "csv", "fields": ["text", "label:lean"], "label": ["lean:right"]}
    job = client.post("/v1/exports", json=body)
    assert job.status_code == 202, job.text
    path = job.headers["location"]
    deadline = time.monotonic() + 60
    while (state := client.get(path).json())["state"] in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert state["state"] == "done", state
    rows = list(csv.reader(io.StringIO(client.get(state["download"]).text.lstrip("\ufeff"))))
    assert len(rows) == 11
    assert {row[1] for row in rows[1:]} == {"right"}
    provenance = client.get(state["provenance"]).text
    assert "anonymous/lean.lean@1" in provenance, "the version of the table is part of what the file is"


def test_a_new_version_does_not_change_an_old_question(posts: list[dict[str, Any]], client: httpx.Client) -> None:
    put(client, "pick", f"uri\n{posts[0]['uri']}\n{posts[1]['uri']}\n")
    first = client.get("/v1/search", params={"label": "pick:*", "limit": 1, "sort": "oldest"}).json()
    put(client, "pick", f"uri\n{posts[5]['uri']}\n")
    assert texts(client, label="pick:*") == ["post 5"]
    assert texts(client, label="pick@1:*") == ["post 0", "post 1"]
    again = client.get(
        "/v1/search", params={"label": "pick:*", "limit": 1, "sort": "oldest", "cursor": first["meta"]["next_cursor"]}
    )
    assert again.status_code == 400, "the cursor belongs to the version it began with"
    assert client.delete("/v1/labels/pick/versions/1").status_code == 204
    assert client.get("/v1/search", params={"label": "pick@1:*"}).status_code == 404


def test_labels_of_deleted_posts_say_nothing(
    builder: LakeBuilder, posts: list[dict[str, Any]], client: httpx.Client
) -> None:
    put(client, "pick", f"uri,why\n{posts[0]['uri']},a\n{posts[1]['uri']},b\n")
    builder.delete(posts[0]["uri"])
    builder.commit()
    assert texts(client, label="pick:*") == ["post 1"]
    groups = client.get("/v1/aggregate", params={"by": "label:pick"}).json()["groups"]
    assert [row["count"] for row in groups] == [1]


@pytest.mark.parametrize(
    ("label", "status", "words"),
    [
        ("mood", 422, "write name:value"),
        ("nothing:x", 404, "no label table 'nothing'"),
        ("mood:x", 422, "several columns: write mood.mood"),
        ("mood.wrong:x", 422, "its columns are: mood, score"),
        ("mood.score:high", 422, "'high' is not a number"),
        ("mood.score@9:1", 404, "has no version 9"),
        ("someone/mood.score:1", 404, "of 'someone'"),
    ],
)
def test_a_label_that_cannot_be_used_is_named(
    posts: list[dict[str, Any]], client: httpx.Client, label: str, status: int, words: str
) -> None:
    put(client, "mood", f"uri,mood,score\n{posts[0]['uri']},sad,0.5\n")
    for parameter in ("label", "not_label"):
        answer = client.get("/v1/search", params={parameter: label})
        assert answer.status_code == status, answer.text
        assert words in answer.json()["detail"]
        assert answer.json()["errors"][0]["parameter"] == parameter

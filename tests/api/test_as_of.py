"""Asking about an older snapshot: what it is made of, how long it can be asked for, and what is told about what is gone."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from lake.manifest import Gap
from lake.retire import unlink_retired
from tests.api.conftest import MakeClient
from tests.api.lake_builder import POST, START_US, LakeBuilder, did

LIKE = "app.bsky.feed.like"


def get(client: httpx.Client, path: str, **parameters: Any) -> dict[str, Any]:
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def texts(body: dict[str, Any]) -> list[str]:
    return [row["text"] for row in body["results"]]


def months_later(builder: LakeBuilder) -> None:
    """Everything that maintenance does to old versions: merged, erased, unlinked, thinned out."""
    builder.maintain()
    unlink_retired(builder.store, builder.manifest, time.time_ns() // 1000 + 1_000_000)
    builder.manifest.thin(1 << 62)


def test_a_version_that_was_named_can_be_cited_for_ever(builder: LakeBuilder, make_client: MakeClient) -> None:
    client = make_client()
    kept = builder.post(did(1), "kept")
    gone = builder.post(did(2), "gone")
    edited = builder.post(did(3), "before the edit")
    like = builder.record(LIKE, did(4), subject_uri=kept["uri"], subject_cid=kept["cid"])
    withdrawn = builder.record(LIKE, did(5), subject_uri=kept["uri"], subject_cid=kept["cid"])
    builder.commit()
    first = get(client, "/v1/search", total="exact")
    version = first["snapshot"]["version"]
    assert first["meta"]["total"] == 3
    builder.tick(3700)
    builder.post(did(1), "unnamed")
    unnamed = builder.commit()
    builder.tick(3700)
    builder.delete(gone["uri"])
    builder.delete(withdrawn["uri"])
    builder.post(did(3), "after the edit", operation="update", rkey=edited["rkey"])
    builder.post(did(1), "later")
    builder.record(LIKE, did(6), subject_uri=kept["uri"], subject_cid=kept["cid"])
    builder.commit()
    months_later(builder)
    client.stop()
    client = make_client()  # a service that was started since

    body = get(client, "/v1/search", as_of=version, fields="uri,text,likes")
    # An edited post is not shown at all: its text of then was withdrawn, its text of today was not there then.
    assert texts(body) == ["kept"]
    assert body["results"][0]["likes"] == 1, "likes that had arrived then and still stand"
    assert body["snapshot"]["version"] == version
    assert body["snapshot"]["created"] == first["snapshot"]["created"]
    assert body["snapshot"]["current_version"] > version
    assert (body["since"]["stood_then"], body["since"]["removed_since"], body["since"]["edited_since"]) == (3, 1, 1)
    assert get(client, "/v1/counts", as_of=version, interval="hour")["total"] == 1
    for path, more in (
        ("/v1/counts", {"interval": "hour"}),
        ("/v1/aggregate", {"by": "author"}),
        ("/v1/trends", {"end": "2026-03-03"}),
    ):
        since = get(client, path, as_of=version, **more)["since"]
        assert since["basis"].startswith(f"all {POST} records")
        assert since["edited_since"] == (0 if path == "/v1/trends" and since["stood_then"] == 0 else 1)
    edges = get(client, "/v1/graph/edges", kind="like", as_of=version)
    assert [edge["source"] for edge in edges["edges"]] == [like["did"]]
    assert (edges["since"]["stood_then"], edges["since"]["removed_since"]) == (2, 1)
    records = get(client, "/v1/records", collection=LIKE, as_of=version)
    assert [row["uri"] for row in records["results"]] == [like["uri"]]
    assert records["since"]["removed_since"] == 1

    refused = client.get("/v1/search", params={"as_of": unnamed})
    assert refused.status_code == 410
    assert refused.json()["type"] == "/problems/snapshot-gone"


def test_a_sample_of_a_snapshot_stays_the_same(builder: LakeBuilder, client: httpx.Client) -> None:
    for number in range(200):
        builder.post(did(number), f"post {number}")
    builder.commit()
    asked = {"sample": 20, "seed": "paper", "fields": "uri,text"}
    first = get(client, "/v1/search", **asked)
    assert len(set(texts(first))) == 20
    assert get(client, "/v1/search", **asked)["results"] == first["results"]
    assert texts(get(client, "/v1/search", **(asked | {"seed": "other"}))) != texts(first)
    builder.tick(7200)
    for number in range(200):
        builder.post(did(number), f"newer {number}")
    builder.commit()
    builder.maintain()
    version = first["snapshot"]["version"]
    assert get(client, "/v1/search", as_of=version, **asked)["results"] == first["results"]
    assert get(client, "/v1/search", **asked)["results"] != first["results"]
    # Where a sampled post is gone, the next one takes its place: the others stay.
    builder.delete(first["results"][3]["uri"])
    builder.commit()
    again = texts(get(client, "/v1/search", as_of=version, **asked))
    assert [text for text in texts(first) if text in again] == texts(first)[:3] + texts(first)[4:]
    assert len(again) == 20


def test_a_version_that_does_not_exist_is_named(builder: LakeBuilder, client: httpx.Client) -> None:
    builder.post(did(1), "x")
    builder.commit()
    answer = client.get("/v1/search", params={"as_of": 99})
    assert answer.status_code == 410
    assert "99" in answer.json()["detail"]
    assert answer.json()["errors"][0]["parameter"] == "as_of"


@pytest.mark.parametrize("filled", [False, True])
def test_a_gap_that_was_filled_is_shown_as_filled(builder: LakeBuilder, client: httpx.Client, filled: bool) -> None:
    hour = 3_600_000_000
    gap = Gap("a", "ws://simulator", START_US + hour, START_US + 2 * hour, "cursor_too_old", "", START_US, 5, 9)
    other = Gap("b", "ws://simulator", START_US + 5 * hour, START_US + 6 * hour, "cursor_too_old", "", START_US, 20, 30)
    report = Gap("c", "ws://simulator", gap.start_us, gap.end_us, "backfilled", "", START_US, 5, 9)
    builder.post(did(1), "x")
    builder.commit((gap, other, report) if filled else (gap, other))
    gaps = get(client, "/v1/search")["coverage"]["gaps"]
    assert [(one["start"], one["reason"], one["filled"]) for one in gaps] == [
        ("2026-03-01T11:00:00.000000Z", "cursor_too_old", filled),
        ("2026-03-01T15:00:00.000000Z", "cursor_too_old", False),
    ]

"""Accounts, edges between them, and what rises."""

from __future__ import annotations

import csv
import io
from typing import Any
from xml.etree import ElementTree

import httpx
import pyarrow.parquet as pq

from tests.api.lake_builder import LakeBuilder, did
from tests.api.test_posts_and_records import get

LIKE, FOLLOW, PROFILE = "app.bsky.feed.like", "app.bsky.graph.follow", "app.bsky.actor.profile"


def test_an_author(builder: LakeBuilder, client: httpx.Client) -> None:
    builder.identity(did(1), "old.example.com")
    builder.record(PROFILE, did(1), rkey="self", display_name="Old name")
    builder.tick(100)
    builder.identity(did(1), "new.example.com")
    builder.record(PROFILE, did(1), "update", rkey="self", display_name="New name")
    post = builder.post(did(1), "a")
    builder.tick(86_400)
    builder.post(did(1), "b")
    builder.delete(post["uri"])
    builder.commit()
    body = get(client, "/v1/authors/new.example.com", daily="true")
    assert body["did"] == did(1)
    assert [handle["handle"] for handle in body["handles"]] == ["old.example.com", "new.example.com"]
    assert body["handle"] == "new.example.com"
    assert body["profile"]["displayName"] == "New name"
    assert [version["standing"] for version in body["profile_history"]] == ["removed", "current"]
    activity = {row["collection"]: row for row in body["activity"]}
    posts = activity["app.bsky.feed.post"]
    assert (posts["creates"], posts["deletes"], posts["current"]) == (2, 1, 1)
    assert [day["day"] for day in body["daily"]] == ["2026-03-01", "2026-03-02"]
    assert client.get(f"/v1/authors/{did(7)}").status_code == 404
    assert client.get("/v1/authors/nobody.example.com").status_code == 404
    builder.tick()
    builder.account(did(1), active=False, status="deactivated")
    builder.commit()
    hidden = get(client, f"/v1/authors/{did(1)}")
    assert (hidden["active"], hidden["status"], hidden["handle"], hidden["profile"]) == (
        False,
        "deactivated",
        None,
        None,
    )
    assert hidden["activity"][0]["current"] == 0


def test_edges_of_every_kind_and_format(builder: LakeBuilder, client: httpx.Client) -> None:
    post = builder.post(did(1), "hello")
    builder.tick()
    for number in (2, 3):
        builder.record(LIKE, did(number), subject_uri=post["uri"])
        builder.record(FOLLOW, did(number), subject=did(1))
    gone = builder.record(FOLLOW, did(4), subject=did(1))
    mention = {"features": [{"$type": "app.bsky.richtext.facet#mention", "did": did(9)}]}
    builder.post(did(2), "re", reply_parent_uri=post["uri"], reply_root_uri=post["uri"], facets=[mention])
    builder.record(LIKE, did(2), subject_uri=post["uri"])
    builder.tick()
    builder.delete(gone["uri"])
    builder.commit()

    def pairs(**parameters: Any) -> list[tuple[str, str]]:
        return sorted(
            (edge["source"], edge["target"]) for edge in get(client, "/v1/graph/edges", **parameters)["edges"]
        )

    assert pairs(kind="follow") == [(did(2), did(1)), (did(3), did(1))]
    assert pairs(kind="reply") == [(did(2), did(1))]
    assert pairs(kind="mention") == [(did(2), did(9))]
    assert pairs(kind="quote") == []
    assert pairs(kind="like", target=did(1), source=did(3)) == [(did(3), did(1))]
    weighted = get(client, "/v1/graph/edges", kind="like", weighted="true")["edges"]
    assert [(edge["source"], edge["weight"]) for edge in weighted] == [(did(2), 2), (did(3), 1)]
    assert get(client, "/v1/graph/edges", kind="like", limit=1)["truncated"]

    text = client.get("/v1/graph/edges", params={"kind": "follow", "format": "csv"}).text
    assert {row["source"] for row in csv.DictReader(io.StringIO(text))} == {did(2), did(3)}
    raw = client.get("/v1/graph/edges", params={"kind": "follow", "format": "parquet"})
    assert pq.read_table(io.BytesIO(raw.content)).num_rows == 2
    assert raw.headers["x-truncated"] == "false"
    gexf = client.get("/v1/graph/edges", params={"kind": "like", "format": "gexf", "weighted": "true"})
    graph = ElementTree.fromstring(gexf.text)  # noqa: S314 - our own document
    assert len(graph.findall(".//{http://gexf.net/1.3}node")) == 3
    assert {edge.get("weight") for edge in graph.findall(".//{http://gexf.net/1.3}edge")} == {"1", "2"}


def test_trends_find_what_grew(builder: LakeBuilder, client: httpx.Client) -> None:
    for minute in range(120):
        recent = minute >= 90
        tags = ["steady"] + (["rising"] if recent and minute % 2 else []) + ([] if recent else ["falling"])
        builder.post(did(minute % 9), "x", tags=tags, langs=["en"])
        builder.tick(60)
    builder.commit()
    body = get(client, "/v1/trends", window_minutes=30, baseline_minutes=90)
    assert [trend["key"] for trend in body["trends"]] == ["rising"]
    assert body["trends"][0]["count"] == 15
    assert body["trends"][0]["baseline_count"] == 0
    assert body["posts"] + body["baseline_posts"] == 120
    assert client.get("/v1/trends", params={"start": "2026-01-01"}).status_code == 422

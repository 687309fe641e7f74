"""Label tables in queries: posts are filtered, grouped and exported by what a researcher uploaded."""

from __future__ import annotations

import csv
import io

import httpx

from tests.api.lake_builder import LakeBuilder, did
from tests.api.test_exports import finished
from tests.api.test_posts_and_records import get


def test_labels_filter_group_and_export(builder: LakeBuilder, client: httpx.Client) -> None:
    posts = [
        builder.post(did(number % 2), f"post {number}", rkey="odd" if number == 3 else None) for number in range(6)
    ]
    builder.commit()
    table = "uri,topic,score\n" + "".join(
        f"{post['uri']},{'war' if number < 2 else 'sport'},{number / 10}\n" for number, post in enumerate(posts[:5])
    )
    made = client.put("/v1/labels/topics", content=table, headers={"Content-Type": "text/csv"})
    assert made.status_code in (200, 201), made.text
    people = f"did,lean\n{did(0)},left\n{did(1)},right\n"
    assert client.put("/v1/labels/lean", content=people, headers={"Content-Type": "text/csv"}).status_code in (200, 201)

    def texts(**parameters: str) -> set[str]:
        return {row["text"] for row in get(client, "/v1/search", **parameters)["results"]}

    assert texts(label="topics.topic:war") == {"post 0", "post 1"}
    assert texts(label="topics.score:>=0.3") == {"post 3", "post 4"}
    assert texts(not_label="topics.topic:sport") == {"post 0", "post 1", "post 5"}
    assert texts(label="lean.lean:left", not_label="topics.topic:war") == {"post 2", "post 4"}
    groups = get(client, "/v1/aggregate", by=["label:topics.topic", "label:lean.lean"], missing="true")["groups"]
    assert {(row["label:topics.topic"], row["label:lean.lean"], row["count"]) for row in groups} == {
        ("war", "left", 1),
        ("war", "right", 1),
        ("sport", "left", 2),
        ("sport", "right", 1),
        (None, "right", 1),
    }
    mixed = get(client, "/v1/aggregate", by=["label:topics.topic", "author"])["groups"]
    assert sum(row["count"] for row in mixed) == 5
    info = finished(
        client, {"label": ["lean.lean:right"], "fields": ["text", "label:topics.topic", "label:topics.score"]}
    )
    assert info["state"] == "done", info
    rows = list(csv.DictReader(io.StringIO(client.get(info["download"]).text)))
    assert [(row["text"], row["label:topics.topic"]) for row in rows] == [
        ("post 1", "war"),
        ("post 3", "sport"),
        ("post 5", ""),
    ]
    told = client.get(info["provenance"]).json()
    assert told["query"]["label"][0].endswith("/lean.lean@1:right")
    assert client.get("/v1/search", params={"label": "nothing:x"}).status_code == 404
    assert client.get("/v1/aggregate", params={"by": "label:nothing"}).status_code == 404

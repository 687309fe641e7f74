"""One post, its thread, records of any collection and the log: what is told about what stands and about what is gone."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.api.lake_builder import POST, LakeBuilder, did

LIKE = "app.bsky.feed.like"


def get(client: httpx.Client, path: str, **parameters: Any) -> dict[str, Any]:
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_post_with_versions_and_engagement(builder: LakeBuilder, client: httpx.Client) -> None:
    first = builder.post(did(1), "first version")
    builder.tick(30)
    builder.post(did(1), "second version", operation="update", rkey=first["rkey"], langs=["en"])
    for number in range(3):
        builder.tick(3600)
        builder.record(LIKE, did(10 + number), subject_uri=first["uri"], subject_cid=first["cid"])
    builder.identity(did(1), "alice.example.com")
    builder.commit()
    by_handle = first["uri"].replace(did(1), "alice.example.com")
    bsky = f"https://bsky.app/profile/alice.example.com/post/{first['rkey']}"
    for uri in (
        first["uri"],
        quote(first["uri"], safe=""),
        by_handle,
        quote(bsky, safe=""),
        first["uri"].replace("//", "/"),
    ):
        body = get(client, f"/v1/posts/{uri}", series="hour")
        assert body["uri"] == first["uri"]
        assert body["standing"] == "current"
        assert body["post"]["text"] == "second version"
        assert body["record"]["text"] == "second version"
        assert body["record"]["$type"] == POST
        assert [(v["operation"], v["standing"], v["cid"] is None) for v in body["versions"]] == [
            ("create", "removed", True),
            ("update", "current", False),
        ]
        assert body["engagement"] == {"likes": 3, "reposts": 0, "replies": 0, "quotes": 0}
        assert [moment["count"] for moment in body["series"]["likes"]] == [1, 1, 1]
    assert "first version" not in json.dumps(body)


@pytest.mark.parametrize("upkeep", [False, True], ids=["pending", "erased"])
def test_a_gone_post_has_a_tombstone_without_content(builder: LakeBuilder, client: httpx.Client, upkeep: bool) -> None:
    deleted, hidden, lost = (builder.post(did(number), f"secret {number}") for number in (1, 2, 3))
    builder.tick()
    builder.delete(deleted["uri"])
    builder.account(did(2), active=False, status="deactivated")
    builder.account(did(3), active=False, status="deleted")
    builder.tick()
    builder.account(did(3), active=True, status=None)
    builder.commit()
    if upkeep:
        builder.maintain()
    for post, standing in ((deleted, "deleted"), (hidden, "hidden"), (lost, "account_deleted")):
        answer = client.get(f"/v1/posts/{post['uri']}")
        assert answer.json()["standing"] == standing
        assert answer.json()["post"] is None
        assert "secret" not in answer.text
        assert post["cid"] not in answer.text
    assert client.get(f"/v1/posts/at://{did(1)}/{POST}/3aaaaaaaaaaaa").status_code == 404
    assert client.get("/v1/posts/nonsense").status_code == 422
    assert client.get(f"/v1/posts/at://{did(1)}/{LIKE}/3aaaaaaaaaaaa").status_code == 422


def test_a_thread_has_depths(builder: LakeBuilder, client: httpx.Client) -> None:
    root = builder.post(did(1), "root")
    builder.tick()

    def reply(text: str, parent: dict[str, Any]) -> dict[str, Any]:
        builder.tick()
        return builder.post(did(2), text, reply_root_uri=root["uri"], reply_parent_uri=parent["uri"])

    a = reply("a", root)
    b = reply("b", a)
    gone = reply("gone", b)
    reply("orphan", gone)
    reply("c", root)
    builder.post(did(3), "elsewhere")
    builder.delete(gone["uri"])
    builder.commit()
    body = get(client, f"/v1/threads/{root['uri']}")
    assert [(row["text"], row["depth"]) for row in body["results"]] == [
        ("root", 0),
        ("a", 1),
        ("b", 2),
        ("orphan", None),
        ("c", 1),
    ]
    page = get(client, f"/v1/threads/{root['uri']}", limit=2)
    rest = get(client, f"/v1/threads/{root['uri']}", limit=4, cursor=page["meta"]["next_cursor"])
    assert [row["text"] for row in page["results"] + rest["results"]] == ["root", "a", "b", "orphan", "c"]


def test_depths_of_deep_and_circular_threads(builder: LakeBuilder, client: httpx.Client) -> None:
    root = builder.post(did(1), "root")
    parent = root["uri"]
    for number in range(1, 1301):
        builder.tick(0.5)
        parent = builder.post(did(2), f"level {number}", reply_root_uri=root["uri"], reply_parent_uri=parent)["uri"]
    builder.tick(5)
    rkeys = [f"circle{number}" for number in range(3)]
    for number, rkey in enumerate(rkeys):
        named = f"at://{did(3)}/{POST}/{rkeys[(number + 1) % 3]}"
        builder.post(did(3), rkey, rkey=rkey, reply_root_uri=root["uri"], reply_parent_uri=named)
    own = f"at://{did(4)}/{POST}/myself"
    builder.post(did(4), "myself", rkey="myself", reply_root_uri=root["uri"], reply_parent_uri=own)
    builder.commit()
    depths, url = {}, f"/v1/threads/{root['uri']}?limit=400"
    while url:
        page = client.get(url).json()
        depths |= {row["text"]: row["depth"] for row in page["results"]}
        url = page["meta"]["next"]
    assert depths == {"root": 0} | {f"level {number}": number for number in range(1, 1301)} | dict.fromkeys(
        [*rkeys, "myself"]
    )


def test_records_of_any_collection_and_their_log(builder: LakeBuilder, client: httpx.Client) -> None:
    other = "fm.teal.alpha.feed.play"
    value = {"$type": other, "track": "x", "n": [1, 2.5, None]}
    play = builder.record("other", did(1), collection=other, record_json=json.dumps(value))
    follow = builder.record("app.bsky.graph.follow", did(1), subject=did(2), created_at="2026-03-01T10:00:00.000Z")
    builder.tick()
    builder.delete(follow["uri"])
    builder.commit()
    body = get(client, "/v1/records", collection=other)
    assert [(row["uri"], row["record"]) for row in body["results"]] == [(play["uri"], value)]
    assert body["results"][0]["provenance"]["offset"] == 0
    assert get(client, "/v1/records", collection="app.bsky.graph.follow")["results"] == []
    log = get(client, "/v1/records", collection="app.bsky.graph.follow", view="log", sort="oldest")["results"]
    assert [(row["operation"], row["standing"], row["record"]) for row in log] == [
        ("create", "removed", None),
        ("delete", "delete", None),
    ]
    assert did(2) not in json.dumps(log)
    only = get(client, "/v1/records", collection="app.bsky.graph.follow", view="log", operation="delete", author=did(1))
    assert [row["operation"] for row in only["results"]] == ["delete"]
    assert get(client, "/v1/records", collection=other, rkey=play["rkey"])["meta"]["count"] == 1
    assert get(client, "/v1/records", collection=other, rkey="self")["meta"]["count"] == 0
    assert client.get("/v1/records").status_code == 422
    counts = get(client, "/v1/collections")["collections"]
    assert {row["collection"]: (row["creates"], row["deletes"], row["known"]) for row in counts} == {
        other: (1, 0, False),
        "app.bsky.graph.follow": (1, 1, True),
    }


def test_a_record_that_no_reader_can_hold_comes_as_text(builder: LakeBuilder, client: httpx.Client) -> None:
    other = "com.example.deep"
    deep = '{"a":' * 20_000 + "1" + "}" * 20_000
    records = {"deep": deep, "huge": '{"n": 1e400}', "plain": '{"n": 1.50, "t": "\\u00e9"}'}
    for rkey, text in records.items():
        builder.record("other", did(1), collection=other, rkey=rkey, record_json=text)
    builder.commit()
    for view in ("current", "log"):
        rows = {row["rkey"]: row for row in get(client, "/v1/records", collection=other, view=view)["results"]}
        assert rows["plain"]["record"] == {"n": 1.5, "t": "é"}
        assert "record_text" not in rows["plain"]
        for rkey in ("deep", "huge"):
            assert rows[rkey]["record"] is None
            assert rows[rkey]["record_text"] == records[rkey]


@pytest.mark.parametrize("interval", ["minute", "hour", "day", "week", "month"])
def test_counts_by_interval_cover_the_range(builder: LakeBuilder, client: httpx.Client, interval: str) -> None:
    for _ in range(12):
        builder.post(did(1), "x")
        builder.tick(1800)
    builder.commit()
    body = get(client, "/v1/counts", interval=interval, share="true", authors="true")
    assert body["total"] == 12
    assert body["total_authors"] == 1
    assert sum(bucket["all_posts"] for bucket in body["counts"]) == 12
    starts = [bucket["start"] for bucket in body["counts"]]
    assert starts == sorted(set(starts))
    assert all(bucket["share"] in (None, 1.0) for bucket in body["counts"])


def test_aggregates_by_two_keys(builder: LakeBuilder, client: httpx.Client) -> None:
    builder.post(did(1), "x", langs=["en"])
    builder.post(did(2), "x", langs=["en", "pt"])
    builder.tick(3600)
    builder.post(did(2), "x", langs=["en"])
    builder.post(did(2), "x")
    builder.commit()
    body = get(client, "/v1/aggregate", by=["lang", "hour"], authors="true")
    assert [(row["lang"], row["hour"][11:13], row["count"], row["authors"]) for row in body["groups"]] == [
        ("en", "10", 2, 2),
        ("en", "11", 1, 1),
        ("pt", "10", 1, 1),
    ]
    missing = get(client, "/v1/aggregate", by="lang", missing="true", limit=1)
    assert missing["total_groups"] == 3
    assert missing["truncated"]
    people = get(client, "/v1/aggregate", by="author")["groups"]
    assert people == [{"author": did(2), "count": 3}, {"author": did(1), "count": 1}]
    assert client.get("/v1/aggregate", params={"by": "colour"}).status_code == 422
    assert client.get("/v1/aggregate").status_code == 422

"""GET /v1/search: what it returns, in which order, and what it never returns."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from lake import text_index
from lake.bloom import FilterIndex
from tests.api.lake_builder import POST, LakeBuilder, did


def texts(client: httpx.Client, **parameters: Any) -> list[str]:
    answer = client.get("/v1/search", params={"clock": "arrival", **parameters})
    assert answer.status_code == 200, answer.text
    return [row["text"] for row in answer.json()["results"]]


def test_posts_come_back_as_the_network_had_them(builder: LakeBuilder, client: httpx.Client) -> None:
    parent = builder.post(did(1), "first")
    builder.tick()
    reply = builder.post(
        did(2),
        "a reply",
        langs=["en", "pt-BR"],
        reply_parent_uri=parent["uri"],
        reply_parent_cid=parent["cid"],
        reply_root_uri=parent["uri"],
        reply_root_cid=parent["cid"],
        rkey="not-a-tid",
    )
    builder.commit()
    row = client.get("/v1/search", params={"text": "reply"}).json()["results"][0]
    assert row["uri"] == reply["uri"] == f"at://{did(2)}/{POST}/not-a-tid"
    assert row["cid"] == reply["cid"]
    assert row["reply_parent_uri"] == parent["uri"]
    assert row["created_at"] == reply["created_at"]
    assert row["langs"] == ["en", "pt-BR"]
    assert row["time"] == "2026-03-01T10:00:01.000000Z"


def test_newest_first_over_hours_and_pages_to_the_end(builder: LakeBuilder, client: httpx.Client) -> None:
    for number in range(57):
        builder.post(did(number % 5), f"post {number}")
        if number % 3:
            builder.tick(613)
        if number % 20 == 19:
            builder.commit()
    builder.commit()
    for sort, expected in (("newest", range(56, -1, -1)), ("oldest", range(57))):
        seen: list[str] = []
        parameters: dict[str, Any] = {"sort": sort, "limit": 10}
        while True:
            body = client.get("/v1/search", params=parameters).json()
            seen += [row["text"] for row in body["results"]]
            if body["meta"]["next_cursor"] is None:
                break
            assert body["meta"]["complete"]
            parameters["cursor"] = body["meta"]["next_cursor"]
        assert seen == [f"post {number}" for number in expected]


def test_a_deleted_post_is_gone_at_once(builder: LakeBuilder, client: httpx.Client) -> None:
    kept, gone = builder.post(did(1), "kept"), builder.post(did(1), "gone")
    builder.commit()
    assert set(texts(client)) == {"kept", "gone"}
    builder.tick(86_400)
    builder.delete(gone["uri"])
    builder.commit()
    assert texts(client) == ["kept"]
    assert kept["uri"]


def test_an_edited_post_appears_once_as_edited(builder: LakeBuilder, client: httpx.Client) -> None:
    before = builder.post(did(1), "before")
    builder.tick(10)
    builder.post(did(1), "after", operation="update", rkey=before["rkey"])
    builder.commit()
    assert texts(client) == ["after"]


def test_accounts_hide_and_end_their_posts(builder: LakeBuilder, client: httpx.Client) -> None:
    for number in range(4):
        builder.post(did(number), f"by {number}")
    builder.tick()
    builder.account(did(0), active=False, status="deactivated")
    builder.account(did(1), active=False, status="deleted")
    builder.account(did(2), active=False, status="takendown")
    builder.account(did(3), active=True, status="throttled")
    builder.commit()
    assert texts(client) == ["by 3"]
    builder.tick()
    for number in range(3):
        builder.account(did(number), active=True, status=None)
    builder.tick()
    builder.post(did(1), "back again")
    builder.commit()
    assert set(texts(client)) == {"by 0", "by 2", "by 3", "back again"}


def test_a_sync_replaces_what_was_there(builder: LakeBuilder, client: httpx.Client) -> None:
    first, second = builder.post(did(1), "lost"), builder.post(did(1), "still there")
    builder.tick()
    builder.sync(did(1))
    builder.tick()
    builder.post(did(1), "still there", rkey=second["rkey"], resync=True)
    builder.commit()
    assert texts(client) == ["still there"]
    assert first["uri"]


def test_filters_by_features(builder: LakeBuilder, client: httpx.Client) -> None:
    facet = {"features": [{"$type": "app.bsky.richtext.facet#mention", "did": did(9)}]}
    tag = {"features": [{"$type": "app.bsky.richtext.facet#tag", "tag": "Climate"}]}
    card = {"$type": "app.bsky.embed.external", "external": {"uri": "https://www.NYTimes.com/2026/x?a=1"}}
    builder.post(did(1), "mention", facets=[facet], langs=["en-US"])
    builder.post(did(1), "tagged", facets=[tag], langs=["pt"])
    quoted = builder.post(did(2), "card", embed=card, labels={"values": [{"val": "porn"}]})
    builder.post(
        did(3),
        "quoting",
        embed={"$type": "app.bsky.embed.record", "record": {"uri": quoted["uri"], "cid": quoted["cid"]}},
    )
    builder.identity(did(9), "Alice.Example.com")
    builder.commit()
    assert texts(client, mention=did(9)) == ["mention"]
    assert texts(client, mention="@alice.example.com") == ["mention"]
    assert texts(client, hashtag="#CLIMATE") == ["tagged"]
    assert texts(client, domain="nytimes.com") == ["card"]
    assert texts(client, url="http://nytimes.com/2026/") == ["card"]
    assert texts(client, url="nytimes.com/2025/") == []
    assert texts(client, lang="en") == ["mention"]
    assert texts(client, lang="en-US") == ["mention"]
    assert texts(client, not_lang="en", not_hashtag="climate", not_domain="nytimes.com") == ["quoting"]
    assert texts(client, self_label="porn") == ["card"]
    assert texts(client, quote="true") == ["quoting"]
    assert texts(client, quoted=quoted["uri"]) == ["quoting"]
    assert texts(client, quoted_author=did(2)) == ["quoting"]
    assert texts(client, media="external") == ["card"]
    assert set(texts(client, not_author=did(1))) == {"card", "quoting"}


def test_an_empty_lake_answers_with_an_empty_page(client: httpx.Client) -> None:
    body = client.get("/v1/search").json()
    assert body["results"] == []
    assert body["meta"]["next_cursor"] is None
    assert body["snapshot"]["version"] == 0


def test_a_missing_manifest_is_503_and_not_ready(tmp_path_factory: Any, make_client: Any, builder: LakeBuilder) -> None:
    builder.manifest_path = str(tmp_path_factory.mktemp("none") / "absent.sqlite")
    client = make_client()
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready").status_code == 503
    answer = client.get("/v1/search")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"]


def test_stats_count_what_was_committed(builder: LakeBuilder, client: httpx.Client) -> None:
    builder.post(did(1), "one")
    builder.identity(did(1), "a.example.com")
    builder.commit()
    body = client.get("/v1/stats").json()
    assert body["rows"] == 2
    assert {table["table"]: table["rows"] for table in body["tables"]} == {POST: 1, "identity": 1}


def test_unknown_and_wrong_parameters_are_named(client: httpx.Client) -> None:
    for parameters, status, named in (
        ({"txt": "x"}, 400, "text"),
        ({"text": '"open'}, 422, "never closed"),
        ({"limit": "5000"}, 422, "limit"),
        ({"start": "yesterday"}, 422, "start"),
        ({"start": "2026-01-02", "end": "2026-01-01"}, 422, "earlier"),
        ({"cursor": "AAAA"}, 400, "cursor"),
        ({"fields": "uri,txt"}, 422, "text"),
        ({"author": "not a handle"}, 422, "author"),
        ({"author": "nobody.example.com"}, 404, "nobody.example.com"),
        ({"limit": ["1", "2"]}, 422, "more than once"),
    ):
        answer = client.get("/v1/search", params=parameters)
        assert answer.status_code == status, (parameters, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert named in answer.json()["detail"], answer.text


LIKE, REPOST = "app.bsky.feed.like", "app.bsky.feed.repost"


def test_engagement_counts_filters_and_orders(builder: LakeBuilder, client: httpx.Client) -> None:
    posts = [builder.post(did(1), f"p{number}", rkey="self-made" if number == 2 else None) for number in range(4)]
    builder.tick(60)
    for number, post in enumerate(posts):
        for liker in range(number):
            like = builder.record(LIKE, did(10 + liker), subject_uri=post["uri"], subject_cid=post["cid"])
    builder.record(REPOST, did(20), subject_uri=posts[0]["uri"])
    builder.post(did(30), "reply", reply_parent_uri=posts[1]["uri"], reply_root_uri=posts[1]["uri"])
    builder.tick(60)
    builder.delete(like["uri"])
    builder.identity(did(1), "author.example.com")
    builder.commit()
    answer = client.get("/v1/search", params={"fields": "text,likes,reposts,replies,handle", "author": did(1)}).json()
    found = {row.pop("text"): row for row in answer["results"]}
    assert found["p0"] == {"likes": 0, "reposts": 1, "replies": 0, "handle": "author.example.com"}
    assert found["p1"] == {"likes": 1, "reposts": 0, "replies": 1, "handle": "author.example.com"}
    assert (found["p2"]["likes"], found["p3"]["likes"]) == (2, 2)
    assert texts(client, min_likes=2, sort="oldest") == ["p2", "p3"]
    assert texts(client, min_likes=1, min_replies=1) == ["p1"]
    seen: list[str] = []
    cursor = None
    while True:
        parameters = {"sort": "engaged", "limit": 2, "author": did(1)} | ({"cursor": cursor} if cursor else {})
        body = client.get("/v1/search", params=parameters).json()
        seen += [row["text"] for row in body["results"]]
        cursor = body["meta"]["next_cursor"]
        if cursor is None:
            break
    assert seen == ["p3", "p2", "p1", "p0"]


def test_totals_say_how_they_are_meant(builder: LakeBuilder, client: httpx.Client) -> None:
    for number in range(30):
        builder.post(did(1), "even" if number % 2 else "odd")
        builder.tick(600)
    builder.commit()
    for mode in ("exact", "estimate"):
        meta = client.get("/v1/search", params={"text": "even", "total": mode, "limit": 3}).json()["meta"]
        assert (meta["count"], meta["total"], meta["total_relation"]) == (3, 15, "exact")


def test_a_seeded_sample_is_repeatable_and_random(builder: LakeBuilder, client: httpx.Client) -> None:
    for number in range(40):
        builder.post(did(1), f"match {number}" if number % 2 else f"other {number}")
    builder.commit()
    first = texts(client, text="match", sample=5, seed="a")
    assert len(first) == 5
    assert all(text.startswith("match") for text in first)
    assert first == texts(client, text="match", sample=5, seed="a")
    assert first != texts(client, text="match", sample=5, seed="b")


def test_as_of_leaves_out_what_came_later_and_what_was_removed(builder: LakeBuilder, client: httpx.Client) -> None:
    builder.post(did(1), "stays")
    gone = builder.post(did(1), "goes")
    version = builder.commit()
    builder.tick(60)
    builder.post(did(1), "later")
    builder.delete(gone["uri"])
    builder.commit()
    assert set(texts(client)) == {"stays", "later"}
    body = client.get("/v1/search", params={"as_of": version}).json()
    assert [row["text"] for row in body["results"]] == ["stays"]
    assert (body["snapshot"]["version"], body["snapshot"]["current_version"]) == (version, version + 1)
    assert client.get("/v1/search", params={"as_of": 99}).status_code == 410


@pytest.mark.parametrize("upkeep", [False, True], ids=["pending", "erased"])
def test_as_of_says_what_was_removed_and_edited_since(builder: LakeBuilder, client: httpx.Client, upkeep: bool) -> None:
    early = builder.post(did(1), "deleted before")
    posts = [builder.post(did(1 + number % 3), f"post {number}") for number in range(9)]
    builder.account(did(5), active=False, status="deactivated")
    builder.post(did(5), "hidden then")
    builder.tick()
    builder.delete(early["uri"])
    version = builder.commit()
    builder.tick(60)
    builder.delete(posts[0]["uri"])
    builder.post(did(2), "edited", operation="update", rkey=posts[1]["rkey"])
    builder.post(did(2), "edited, then deleted", operation="update", rkey=posts[4]["rkey"])
    builder.tick()
    builder.delete(posts[4]["uri"])
    builder.account(did(3), active=False, status="takendown")
    builder.commit()
    if upkeep:
        builder.maintain()
    for path in ("/v1/search", "/v1/counts"):
        since = client.get(path, params={"as_of": version}).json()["since"]
        assert (since["stood_then"], since["removed_since"], since["edited_since"]) == (9, 5, 1)
        own = client.get(path, params={"as_of": version, "author": did(1)}).json()["since"]
        assert (own["stood_then"], own["removed_since"], own["edited_since"]) == (3, 1, 0)
    assert {row["text"] for row in client.get("/v1/search", params={"as_of": version}).json()["results"]} == {
        "post 3",
        "post 6",
        "post 7",
    }


def test_a_wrong_method_is_told_every_right_one(client: httpx.Client) -> None:
    for path, allowed in (
        ("/v1/labels/x", "DELETE, GET, PUT"),
        ("/v1/search", "GET"),
        ("/v1/exports", "GET, POST"),
        (f"/v1/exports/{'0' * 32}/data", "GET, HEAD"),
    ):
        answer = client.patch(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert answer.headers["content-type"] == "application/problem+json"


def test_the_text_index_hides_no_match(
    builder: LakeBuilder, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The files of a test are too small for the share of their size that a side file may have.
    monkeypatch.setattr(text_index, "_LARGEST_SHARE", 100.0)
    for number in range(200):
        builder.post(did(number % 5), f"Photosynthesis {number}" if number % 90 == 0 else f"ordinary words {number}")
        builder.tick(200)
        if number % 10 == 9:
            builder.commit()
    builder.maintain()
    snapshot = builder.manifest.snapshot()
    for file in snapshot.files(POST):
        text_index.build(builder.store, file)
    for query in ("photosynthesis", "OSYNTH", '"synthesis 90"', "nowhere OR photosynthesis", "photosynthesis -180"):
        body = client.get("/v1/search", params={"text": query, "total": "exact"}).json()
        expected = [0, 90, 180] if "-180" not in query and '"' not in query else [90] if '"' in query else [0, 90]
        assert [row["text"] for row in body["results"]] == [f"Photosynthesis {number}" for number in reversed(expected)]
        assert body["meta"]["total"] == len(expected)
        counted = client.get("/v1/counts", params={"text": query, "share": "true"}).json()
        assert counted["total"] == len(expected)
        assert sum(bucket["all_posts"] for bucket in counted["counts"]) == 200
    told = client.get("/v1/explain", params={"text": "photosynthesis"}).json()
    assert told["skipped_files"] >= 7
    assert told["matches"] == 3


def test_filters_of_files_are_asked_once_about_an_author(
    builder: LakeBuilder, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder.post(did(1), "mine")
    builder.post(did(2), "other")
    builder.identity(did(1), "one.example.com")
    builder.commit()
    asked: list[Any] = []
    real = FilterIndex.may_hold

    def noting(self: FilterIndex, files: Any, wanted: Any) -> Any:
        asked.append(dict(wanted))
        return real(self, files, wanted)

    monkeypatch.setattr(FilterIndex, "may_hold", noting)
    for name in (did(1), "one.example.com"):
        assert texts(client, author=name) == ["mine"]
        assert [list(wanted["did"]) for wanted in asked if "did" in wanted] == [[did(1)]]
        asked.clear()

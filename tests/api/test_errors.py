"""What a person gets wrong, and what the answer says: the parameter, the value, and what to write instead."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from api.wording import nearest
from tests.api.lake_builder import LakeBuilder, did

WRONG: list[tuple[str, int, str, str]] = [
    # path, status, the parameter that `errors` names first, what `detail` has to say
    ("/v1/search?limit=abc", 422, "limit", "'abc' is not a whole number"),
    ("/v1/search?limit=5000", 422, "limit", "1000 is the largest"),
    ("/v1/search?limit=0", 422, "limit", "1 is the smallest"),
    ("/v1/search?start=yesterday", 422, "start", "write 2026-11-23"),
    ("/v1/search?start=2026-02-30", 422, "start", "day is out of range"),
    ("/v1/search?start=2026-03-02&end=2026-03-01", 422, "start", "must be earlier than end"),
    ("/v1/search?text=%22open", 422, "text", "never closed"),
    ("/v1/search?text=a+OR", 422, "text", "remove the last operator"),
    ("/v1/search?text=", 422, "text", "leave the parameter out"),
    ("/v1/search?text=a&text=b", 422, "text", "give it once"),
    ("/v1/search?author=bob", 422, "author", "write did:plc:… or a name such as alice.bsky.social"),
    ("/v1/search?author=bob.example.com", 404, "", "use the account's DID"),
    ("/v1/search?lang=english", 422, "lang", "write en (not english)"),
    ("/v1/search?media=picture", 422, "media", "'picture' is none of 'images', 'gallery', 'video', 'external'"),
    ("/v1/search?sort=top", 422, "sort", "'newest', 'oldest', 'engaged'"),
    ("/v1/search?reply=maybe", 422, "reply", "neither true nor false"),
    ("/v1/search?reply_to=xyz", 422, "reply_to", "at://<did or handle>/<collection>/<record key>"),
    (f"/v1/search?thread=at://{did(1)}/app.bsky.feed.like/3abc", 422, "thread", "not a post"),
    ("/v1/search?domain=https://nytimes.com/x", 422, "domain", "write nytimes.com"),
    ("/v1/search?hour_of_day=24", 422, "hour_of_day", "23 is the largest"),
    ("/v1/search?sample=10&limit=3", 422, "sample", "leave cursor and limit out"),
    ("/v1/search?seed=paper", 422, "seed", "give sample too"),
    ("/v1/search?fields=uri,txt", 422, "fields", "did you mean 'text'?"),
    ("/v1/search?fields=", 422, "fields", "leave it out for the usual ones"),
    ("/v1/search?cursor=abc", 400, "cursor", "leave it out to start again"),
    ("/v1/search?as_of=latest", 422, "as_of", "not a whole number"),
    ("/v1/search?label=nothing:x", 404, "label", "GET /v1/labels lists them"),
    ("/v1/search?q=climate", 400, "q", "did you mean 'text'?"),
    ("/v1/search?from=alice", 400, "from", "did you mean 'author'?"),
    ("/v1/search?since=2026-01-01", 400, "since", "did you mean 'start'?"),
    ("/v1/search?hashtags=a", 400, "hashtags", "did you mean 'hashtag'?"),
    ("/v1/search?page=2", 400, "page", "pass the answer's `next_cursor` as `cursor`"),
    ("/v1/search?colour=red", 400, "colour", "the parameters are: as_of, author"),
    ("/v1/counts?interval=5min", 422, "interval", "'minute', 'hour', 'day', 'week', 'month'"),
    ("/v1/counts?interval=minute&start=2000-01-01&end=2026-01-01", 422, "interval", "take a wider one"),
    ("/v1/counts?clock=created", 422, "start", "give start and end"),
    ("/v1/aggregate", 422, "by", "it is required: One or two keys"),
    ("/v1/aggregate?by=language", 422, "by", "it is none of lang, hashtag"),
    ("/v1/aggregate?by=lang&by=lang", 422, "by", "name one only"),
    ("/v1/posts/abc", 422, "uri", "not a record's at-uri"),
    ("/v1/authors/%20", 422, "actor", "neither a DID nor a handle"),
    ("/v1/graph/edges", 422, "kind", "one of follow, block, like"),
    ("/v1/graph/edges?kind=reply&limit=20000", 422, "limit", "choose format csv"),
    ("/v1/trends?start=7d", 422, "start", "window_minutes"),
    ("/v1/records", 422, "collection", "it is required"),
    ("/v1/records?collection=app.bsky.feed.post&operation=delete", 422, "operation", "add view=log"),
    ("/v1/exports/xyz", 404, "id", "GET /v1/exports lists them"),
    ("/v1/serch", 404, "", "did you mean /v1/search?"),
    ("/search?page=2", 400, "page", "`next_cursor`"),
    ("/search?start=01/02/2026", 422, "start", "write 2026-11-23"),
    ("/search?feature_filters=%7B%22language%22:1%7D", 422, "feature_filters", "did you mean 'lang'?"),
]
BODIES: list[tuple[str, Any, int, str, str]] = [
    ("/v1/exports", {"txt": "x"}, 400, "txt", "did you mean 'text'?"),
    ("/v1/exports", {"format": "xlsx", "limit": 0}, 422, "format", "'csv', 'ndjson', 'parquet'; limit: 0 is too small"),
    ("/v1/exports", {"start": "2026-02-02", "end": "2026-02-01"}, 422, "start", "must be earlier than end"),
    ("/v1/exports", [], 422, "body", "send one with Content-Type application/json"),
    ("/v1/compliance", {}, 422, "uris", "give either"),
    ("/v1/compliance", {"uris": ["x"]}, 422, "uris", "at://<did or handle>"),
    ("/v1/compliance", {"uri": "x"}, 400, "uri", "did you mean 'uris'?"),
]


@pytest.fixture
def filled(builder: LakeBuilder) -> LakeBuilder:
    builder.post(did(1), "x")
    builder.commit()
    return builder


def check(answer: httpx.Response, status: int, parameter: str, text: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert text in body["detail"], body["detail"]
    assert "Input should" not in body["detail"], "a text of the library, not of this API"
    assert body["status"] == status
    assert body["request_id"]
    if parameter:
        assert body["errors"][0]["parameter"] == parameter


def test_wrong_addresses(filled: LakeBuilder, client: httpx.Client) -> None:
    for path, status, parameter, text in WRONG:
        check(client.get(path), status, parameter, text)


def test_wrong_bodies(filled: LakeBuilder, client: httpx.Client) -> None:
    for path, body, status, parameter, text in BODIES:
        check(client.post(path, json=body), status, parameter, text)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/search", {"GET"}),
        ("PUT", "/v1/exports", {"GET", "POST"}),
        ("PATCH", "/v1/exports/1", {"GET", "DELETE"}),
        ("GET", "/v1/compliance", {"POST"}),
        ("DELETE", "/v1/exports/1/data", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(client: httpx.Client, method: str, path: str, allowed: set[str]) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert {name.strip() for name in answer.headers["allow"].split(",")} == allowed
    assert all(name in answer.json()["detail"] for name in allowed)


def test_several_fields_come_as_one_text_or_repeated(filled: LakeBuilder, client: httpx.Client) -> None:
    for query in ("fields=uri,text", "fields=uri&fields=text", "fields=uri%2C+text&fields=uri"):
        assert list(client.get(f"/v1/search?{query}").json()["results"][0]) == ["uri", "text"]
    for names in ("uri,text", ["uri,text"], ["uri", "text"]):
        made = client.post("/v1/exports", json={"fields": names})
        assert made.status_code == 202, made.text


@pytest.mark.parametrize("known", [["text"], ["start", "end"]])
def test_a_synonym_is_told_only_where_it_exists(known: list[str]) -> None:
    assert nearest("q", known) == ("text" if "text" in known else None)
    assert nearest("strat", ["start"]) == "start"
    assert nearest("sentiment", ["not_mention"]) is None

"""Which queue a query waits in: heavy ones of others never hold up a light one, and no row is lost between the two."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import pytest

from api.aggregates import run_counts
from lake import account_index
from tests.api.conftest import MakeClient
from tests.api.lake_builder import LakeBuilder, did
from tests.api.test_posts_and_records import get


def fill(builder: LakeBuilder) -> list[dict[str, Any]]:
    posts = []
    for number in range(60):
        posts.append(builder.post(did(number % 3), f"word {number}"))
        builder.tick(1500)
    builder.commit()
    builder.maintain()
    return posts


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk that begins with one hour and doubles."""
    monkeypatch.setattr("api.walk._FIRST_ROWS", 1)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("sort", ["newest", "oldest"])
@pytest.mark.parametrize("limit", [1, 7, 30, 59, 60, 100])
@pytest.mark.parametrize("seconds", [0, 0.01, 60])
def test_a_search_that_goes_on_as_a_heavy_one_finds_the_same(
    builder: LakeBuilder, make_client: MakeClient, sort: str, limit: int, seconds: float
) -> None:
    posts = [post["uri"] for post in fill(builder)]
    client = make_client(heavy_bytes=0, light_seconds=seconds)
    expected = posts if sort == "oldest" else posts[::-1]
    found: list[str] = []
    cursor: dict[str, str] = {}
    for _ in range(61):
        page = get(client, "/v1/search", sort=sort, limit=limit, fields="uri", **cursor)
        assert len(page["results"]) <= limit
        found += [post["uri"] for post in page["results"]]
        if page["meta"]["next_cursor"] is None:
            break
        cursor = {"cursor": page["meta"]["next_cursor"]}
    assert found == expected


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("place", [0, 30, 59, None])
def test_either_half_of_a_search_may_find_nothing(
    builder: LakeBuilder, make_client: MakeClient, place: int | None
) -> None:
    posts = fill(builder)
    client = make_client(heavy_bytes=0, light_seconds=0)
    text = "nowhere" if place is None else f'"word {place}"'
    for sort in ("newest", "oldest"):
        page = get(client, "/v1/search", sort=sort, text=text, exact="true", limit=100)
        assert [post["uri"] for post in page["results"]] == ([] if place is None else [posts[place]["uri"]])
        assert page["meta"]["complete"]
        assert page["meta"]["next_cursor"] is None


def test_light_answers_do_not_wait_for_heavy_ones(
    builder: LakeBuilder, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder.identity(did(0), "zero.example.com")
    posts = fill(builder)
    snapshot = builder.manifest.snapshot()
    for file in account_index.missing(builder.root, snapshot):
        account_index.build(builder.store, file)
    go_on = threading.Event()
    entered = threading.Semaphore(0)

    def held(*arguments: Any) -> Any:
        entered.release()
        assert go_on.wait(60)
        return run_counts(*arguments)

    monkeypatch.setattr("api.routes.counts.run_counts", held)
    client = make_client(heavy_bytes=snapshot.totals("identity").bytes, heavy_slots=1, queue_seconds=60)
    answers: list[httpx.Response] = []

    def heavy() -> None:
        answers.append(client.get("/v1/counts", params={"text": "word"}, timeout=120))

    threads = [threading.Thread(target=heavy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert entered.acquire(timeout=30)
        began = time.monotonic()
        assert len(get(client, "/v1/search", limit=5)["results"]) == 5
        assert len(get(client, "/v1/search", limit=5, text="word", total="exact")["results"]) == 5
        assert get(client, f"/v1/posts/{posts[7]['uri']}")["standing"] == "current"
        for actor in (did(0), "zero.example.com"):
            assert get(client, f"/v1/authors/{actor}", daily="true")["activity"][0]["creates"] == 20
        assert not answers
        assert time.monotonic() - began < 30
    finally:
        go_on.set()
        for thread in threads:
            thread.join(60)
    assert [answer.status_code for answer in answers] == [200] * 3

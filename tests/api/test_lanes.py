"""Which queue a query waits in: heavy ones of others never hold up a light one, and no row is lost between the two."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.aggregates import run_counts
from lake import account_index, text_index
from lake.manifest import LiveFile
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
@pytest.mark.parametrize("sort", ["newest", "oldest"])
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("heavy_bytes", [0, 1 << 40])
@pytest.mark.parametrize("text", ["word", "wordy OR third OR first", "wordy -third", "nowhere"])
def test_a_search_by_text_begins_with_the_first_hour(
    builder: LakeBuilder, make_client: MakeClient, sort: str, limit: int, heavy_bytes: int, text: str
) -> None:
    """What is found does not depend on where the page ends: within the first hour, with it, or behind it."""
    posts = [
        builder.post(did(number), f"word{'y' * (number % 4 == 0)} {('first', 'second', 'third')[number % 3]}")
        for number in range(40)
        if builder.tick(1500)
    ]
    builder.commit()
    builder.maintain()
    for file in text_index.missing(builder.root, builder.manifest.snapshot()):
        text_index.build(builder.store, file)
    client = make_client(heavy_bytes=heavy_bytes, light_seconds=0.01)
    matches: dict[str, Callable[[str], bool]] = {
        "word": lambda found: "word" in found,
        "wordy OR third OR first": lambda found: "second" not in found or "wordy" in found,
        "wordy -third": lambda found: "wordy" in found and "third" not in found,
        "nowhere": lambda _: False,
    }
    expected = [post["uri"] for post in posts if matches[text](post["text"])]
    found: list[str] = []
    cursor: dict[str, str] = {}
    for _ in range(41):
        page = get(client, "/v1/search", text=text, sort=sort, limit=limit, fields="uri", **cursor)
        found += [post["uri"] for post in page["results"]]
        if page["meta"]["next_cursor"] is None:
            break
        assert page["results"]
        cursor = {"cursor": page["meta"]["next_cursor"]}
    assert found == (expected if sort == "oldest" else expected[::-1])


@pytest.mark.usefixtures("small_steps")
def test_a_word_of_every_hour_asks_the_index_about_one(
    builder: LakeBuilder, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(builder)
    for file in text_index.missing(builder.root, builder.manifest.snapshot()):
        text_index.build(builder.store, file)
    asked: list[int] = []
    parts = text_index.parts

    def counting(root: Path, files: Sequence[LiveFile], condition: text_index.Condition) -> Any:
        asked.append(len(files))
        return parts(root, files, condition)

    monkeypatch.setattr("api.posts_query.parts", counting)
    client = make_client()
    assert len(get(client, "/v1/search", text="word", limit=1)["results"]) == 1
    assert asked == [1]
    assert get(client, "/v1/search", text="nowhere", limit=1)["results"] == []
    assert asked[2] > 20, "a rare word is looked for everywhere"


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

"""What ended is carried from one state of the lake to the next: counts stay equal to those of the files, whatever happens."""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from api import ended_rows, throughput
from api.current import Ends
from api.identifiers import tid_text
from tests.api.conftest import MakeClient
from tests.api.lake_builder import START_US, LakeBuilder, did
from tests.api.test_posts_and_records import get

DAY_US = 86_400_000_000


def post(builder: LakeBuilder, draw: random.Random) -> dict[str, Any]:
    """A post whose key may name another time than that of its arrival, or no time."""
    rkey = draw.choice(
        [None, None, None, tid_text(START_US - draw.randrange(400) * DAY_US << 10), f"no-tid-{draw.random()}"]
    )
    langs = draw.choice([["en"], ["pt", "en-US"], None])
    return builder.post(did(draw.randrange(6)), "x", rkey=rkey, langs=langs, resync=draw.random() < 0.05)


def happen(builder: LakeBuilder, draw: random.Random, posts: list[dict[str, Any]]) -> None:
    """Something that ends rows, brings them back, adds some, or only changes the files."""
    some = draw.choice(posts)
    who = did(draw.randrange(6))
    match draw.randrange(9):
        case 0 | 1:
            builder.delete(some["uri"])
        case 2:
            builder.post(some["did"], "edited", operation="update", rkey=some["rkey"], langs=["pt"])
        case 3:
            builder.account(who, active=False, status=draw.choice(["deactivated", "takendown"]))
        case 4:
            builder.account(who, active=True, status=None)
        case 5:
            builder.sync(who)
        case 6 if draw.random() < 0.3:
            builder.account(who, active=False, status="deleted")
        case 7 if not builder.pending:
            builder.maintain(erasing=draw.random() < 0.5)
        case _:
            posts += [post(builder, draw) for _ in range(3)]


@pytest.mark.parametrize("seed", range(8))
def test_counts_follow_what_happens(builder: LakeBuilder, client: httpx.Client, seed: int) -> None:
    draw = random.Random(seed)
    posts = []
    for number in range(60):
        posts.append(post(builder, draw))
        builder.tick(14_000)
        if number % 20 == 19:
            builder.commit()
            builder.maintain(erasing=False)
    for _ in range(25):
        for _ in range(draw.randrange(1, 4)):
            builder.tick(60)
            happen(builder, draw, posts)
        if builder.pending:
            builder.commit()
        for lang in ({}, {"lang": "en"}, {"lang": "pt", "start": "2026-03-02T00:00:00Z"}):
            quick = get(client, "/v1/counts", interval="hour", **lang)
            exact = get(client, "/v1/counts", interval="hour", rollups="false", **lang)
            assert quick["source"] == "rollups"
            assert quick["counts"] == exact["counts"]


def test_only_what_changed_is_looked_for(
    builder: LakeBuilder, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts = []
    for _ in range(60):
        posts.append(builder.post(did(1), "x"))
        builder.tick(14_000)
    builder.delete(posts[0]["uri"])
    builder.commit()
    builder.maintain(erasing=False)
    read: list[int] = []
    real = Ends.ended_rows

    def noting(self: Ends, session: Any, paths: Any, columns: Any, *rest: Any) -> Any:
        # The file of the hour that is not rolled yet is counted as it is, without the languages of what ended.
        if "langs" in columns:
            read.append(len(paths))
        return real(self, session, paths, columns, *rest)

    monkeypatch.setattr(Ends, "ended_rows", noting)

    def expected() -> float:
        return float(get(client, "/v1/explain", target="counts")["expected_seconds"])

    monkeypatch.setattr(throughput, "_FILE_SECONDS", 1.0)
    # The first count reads each file for its rows and for what ended.
    first = expected()
    assert first > 2 * 50
    assert get(client, "/v1/counts", interval="day")["total"] == 59
    assert sum(read) > 50
    assert 0 < expected() < 0.1, "an answer takes some time, whatever it reads"
    read.clear()
    builder.delete(posts[30]["uri"])
    builder.commit()
    assert 0.9 < expected() < 3.1
    assert not read
    assert get(client, "/v1/counts", interval="day")["total"] == 58
    assert 1 <= sum(read) <= 3, "the files of the hour of its key and its neighbours"
    read.clear()
    assert get(client, "/v1/counts", interval="day")["total"] == 58
    assert not read
    monkeypatch.setattr(ended_rows, "_MOST_CHANGED", 0)
    builder.delete(posts[31]["uri"])
    builder.commit()
    assert first / 3 < expected() < first / 1.5, "what ended is looked for everywhere, but nothing is counted anew"
    assert get(client, "/v1/counts", interval="day")["total"] == 57
    assert sum(read) > 50


def test_hours_are_counted_before_anyone_asks(builder: LakeBuilder, make_client: MakeClient, tmp_path: Path) -> None:
    make_client(rollup_seconds=0.2)
    for _ in range(30):
        builder.post(did(1), "x", langs=["en"])
        builder.tick(28_000)
    builder.commit()
    builder.maintain()
    deadline = time.monotonic() + 30
    counted = 0
    while counted < 30 and time.monotonic() < deadline:
        time.sleep(0.1)
        with sqlite3.connect(tmp_path / "state" / "rollups.sqlite") as database:
            [(counted,)] = database.execute("SELECT count(*) FROM hours")
    assert counted == 30

"""Counts over weeks from roll-ups: equal to counting the files, said in the answer, and made anew for changed files."""

from __future__ import annotations

import httpx
import pytest

from tests.api.lake_builder import LakeBuilder, did
from tests.api.test_posts_and_records import get

LANGS = [["en"], ["en-US", "pt"], ["EN", "en-GB"], [], None, ["*"]]


def fill(builder: LakeBuilder) -> None:
    for number in range(90):
        post = builder.post(did(number % 4), f"x {number}", langs=LANGS[number % 6], resync=number % 17 == 0)
        builder.tick(11_000)
        if number % 13 == 0:
            builder.delete(post["uri"])
        if number % 30 == 29:
            builder.commit()
    builder.commit()
    builder.maintain()
    for number in range(20):
        builder.post(did(number % 4), f"late {number}", langs=["en"])
        builder.tick(500)
    builder.account(did(3), active=False, status="deactivated")
    builder.commit()


@pytest.mark.parametrize("lang", [None, "en", "pt"])
@pytest.mark.parametrize(
    "span", [{}, {"start": "2026-03-02T10:30:00Z", "end": "2026-03-11T07:45:00Z"}, {"start": "2026-03-03"}]
)
def test_rollups_equal_the_files(
    builder: LakeBuilder, client: httpx.Client, lang: str | None, span: dict[str, str]
) -> None:
    fill(builder)
    parameters = span | ({"lang": lang} if lang else {})
    for interval in ("hour", "day", "week", "month"):
        quick = get(client, "/v1/counts", interval=interval, **parameters)
        exact = get(client, "/v1/counts", interval=interval, rollups="false", **parameters)
        assert (quick["source"], quick["total_relation"]) == ("rollups", "exact")
        assert (exact["source"], exact["total_relation"]) == ("files", "exact")
        assert quick["counts"] == exact["counts"]


def test_rollups_are_used_only_where_they_can_answer(builder: LakeBuilder, client: httpx.Client) -> None:
    fill(builder)
    for parameters in (
        {"text": "x"},
        {"lang": ["en", "pt"]},
        {"lang": "en-US"},
        {"author": did(1)},
        {"authors": "true"},
        {"share": "true"},
        {"resync": "true"},
        {"start": "2026-03-05", "end": "2026-03-07"},
        {"as_of": 1},
    ):
        assert get(client, "/v1/counts", **{"interval": "hour", **parameters})["source"] == "files", parameters


def test_a_changed_file_is_counted_anew(builder: LakeBuilder, client: httpx.Client) -> None:
    fill(builder)
    before = get(client, "/v1/counts", interval="day")["total"]
    assert get(client, "/v1/counts", interval="day", rollups="false")["total"] == before
    post = next(event for event in builder.events if event.get("text") == "x 30")
    builder.delete(post["uri"])
    builder.commit()
    assert get(client, "/v1/counts", interval="day")["total"] == before - 1
    assert get(client, "/v1/counts", interval="day", rollups="false")["total"] == before - 1
    builder.maintain()
    assert get(client, "/v1/counts", interval="day")["total"] == before - 1


def test_what_ends_rows_is_subtracted_at_once(builder: LakeBuilder, client: httpx.Client) -> None:
    fill(builder)

    def same(**parameters: str) -> int:
        quick = get(client, "/v1/counts", interval="hour", **parameters)
        exact = get(client, "/v1/counts", interval="hour", rollups="false", **parameters)
        assert (quick["source"], exact["source"]) == ("rollups", "files")
        assert quick["counts"] == exact["counts"]
        return int(quick["total"])

    posts = [event for event in builder.events if event.get("text", "") and event["operation"] == "create"]
    before = same(), same(lang="en"), same(lang="pt")
    builder.delete(posts[4]["uri"])
    builder.post(posts[1]["did"], "edited", operation="update", rkey=posts[1]["rkey"], langs=["pt"])
    builder.commit()
    assert same() < before[0]
    builder.sync(did(1))
    builder.account(did(2), active=False, status="deleted")
    builder.account(did(0), active=False, status="takendown")
    builder.commit()
    assert same() == 0
    same(lang="en")
    same(lang="pt")
    builder.maintain()
    assert same() == 0
    same(lang="pt")

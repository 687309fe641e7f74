"""Searches with minimum counts of likes, reposts and replies: every page, however it ends, and every total equals a filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api import bounds as bounds_module
from api import minimums, posts_query, totals, walk
from api.answers import TotalRelation
from api.citations import AsOf
from api.columns import publish, to_json
from api.engagement import count_engagement
from api.engine import Session
from api.filters import PostFilters
from api.posts_query import Selection, narrow
from api.relation import Lake
from api.search import SearchPlan, Sort, run_search
from api.snapshots import Scan, scan
from api.totals import Total, TotalMode, run_total
from api.walk import Page
from lake import engagement_bounds, named_keys, text_index
from lake.manifest import TopicPartition
from schemas.topics import TABLE_TOPICS
from tests.api.lake_builder import POST, did
from tests.api.test_filters_property import LIKE, UPKEEP, World, current, matches, render

Row = dict[str, Any]


@pytest.fixture(scope="module", params=UPKEEP)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        # The files of a test are too small for the share of their size that a side file may have, and for being worth an index.
        patch.setattr(text_index, "_LARGEST_SHARE", 100.0)
        patch.setattr(posts_query, "_FEW_ROWS", 0)
        made = World(tmp_path_factory.mktemp("world"), *UPKEEP[request.param])
        yield made
    made.close()


def planned(world: World, filters: PostFilters, as_of: AsOf | None = None) -> Scan:
    plan = scan(world.snapshot, POST, filters.start, filters.end, as_of)
    return narrow(world.lake, plan, filters)


def page_of(
    world: World, plan: Scan, filters: PostFilters, sort: Sort, limit: int, seconds: float, cursor: Any
) -> Page:
    with world.engine.session() as session:
        asked = SearchPlan(plan, Selection(filters), sort, ("uri",), limit, cursor, seconds)
        return run_search(session, world.lake, asked)


def uris(page: Page) -> list[str]:
    return [row["uri"] for row in to_json(publish(POST, page.rows, ("uri",)))]


def total_of(world: World, plan: Scan, filters: PostFilters, mode: TotalMode, seconds: float) -> Total:
    with world.engine.session() as session:
        return run_total(session, world.lake, plan, Selection(filters), mode, seconds)


def expected(world: World, chosen: Row, least_replies: int | None, before: dict[str, int]) -> list[str]:
    """The matches, oldest first; `before`: by table, the first offset that was not there yet."""

    def visible(table: str) -> list[Row]:
        return [row for row in current(world.builder.events, table) if row["kafka_offset"] < before.get(table, 1 << 40)]

    likes = Counter(row["subject_uri"] for row in visible(LIKE))
    replies = Counter(row["reply_parent_uri"] for row in visible(POST))
    found = [
        row for row in visible(POST) if matches(row, chosen, likes) and replies[row["uri"]] >= (least_replies or 0)
    ]
    return [row["uri"] for row in sorted(found, key=lambda row: (row["time_us"], row["kafka_offset"]))]


CHOSEN = st.sampled_from(
    [
        {},
        {"lang": ["en"]},
        {"reply": False},
        {"words": "cat"},
        {"author": [did(1), did(3)]},
        {"words": ("and", "cat", "dog")},
    ]
)
LEAST = st.tuples(st.sampled_from([None, 1, 2, 3, 9]), st.sampled_from([None, 1, 2])).filter(lambda both: any(both))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=CHOSEN,
    least=LEAST,
    sort=st.sampled_from([Sort.NEWEST, Sort.OLDEST]),
    limit=st.sampled_from([2, 7, 50]),
    seconds=st.sampled_from([0.0, 60.0]),
    indexed=st.booleans(),
    counted=st.sampled_from([(1, 1), (2, 5), (1_000, 400_000)]),
    passed=st.sampled_from([0, 1_000_000]),
    as_of=st.none() | st.tuples(st.integers(0, 200), st.integers(0, 120)),
)
def test_pages_and_totals_equal_a_plain_filter(
    world: World,
    chosen: Row,
    least: tuple[int | None, int | None],
    sort: Sort,
    limit: int,
    seconds: float,
    indexed: bool,
    counted: tuple[int, int],
    passed: int,
    as_of: tuple[int, int] | None,
) -> None:
    likes, replies = least
    chosen = chosen | ({} if likes is None else {"min_likes": likes})
    parameters = {name: value for name, value in chosen.items() if name != "words"}
    if "words" in chosen:
        parameters["text"] = render(chosen["words"])
    filters = PostFilters(**parameters, min_replies=replies)
    before = {} if as_of is None else dict(zip((POST, LIKE), as_of, strict=True))
    positions = {TopicPartition(TABLE_TOPICS[table], 0): offset for table, offset in before.items()}
    plan = planned(world, filters, None if as_of is None else AsOf(1, 0, positions))
    wanted = expected(world, chosen, replies, before)
    if sort is Sort.NEWEST:
        wanted.reverse()
    with pytest.MonkeyPatch.context() as patch:
        if not indexed:
            patch.setattr(bounds_module, "_MOST_UNBOUNDED", -1)
        patch.setattr(minimums, "_FIRST_COUNTED", counted[0])
        patch.setattr(minimums, "_MOST_COUNTED", counted[1])
        patch.setattr(minimums, "_MOST_PASSED", passed)
        patch.setattr(walk, "_FIRST_ROWS", 10)
        found: list[str] = []
        cursor = None
        while True:
            page = page_of(world, plan, filters, sort, limit, seconds, cursor)
            assert page.complete or (seconds == 0 and page.rows.num_rows <= limit)
            assert page.next is None or page.next != cursor
            found += uris(page)
            cursor = page.next
            if cursor is None:
                break
        assert found == wanted
        patch.setattr(totals, "_FIRST_ROWS", 10)
        assert total_of(world, plan, filters, TotalMode.EXACT, 60) == Total(len(wanted), TotalRelation.EXACT)
        assert total_of(world, plan, filters, TotalMode.ESTIMATE, 60) == Total(len(wanted), TotalRelation.EXACT)
        some = total_of(world, plan, filters, TotalMode.EXACT, 0)
        assert some.count <= len(wanted)
        assert some.relation is TotalRelation.AT_LEAST or some.count == len(wanted)


def test_a_page_whose_time_is_over_ends_where_it_stopped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also within a step, of which much has to be counted without an index."""
    monkeypatch.setattr(bounds_module, "_MOST_UNBOUNDED", -1)
    monkeypatch.setattr(minimums, "_MOST_PASSED", 0)
    monkeypatch.setattr(minimums, "_FIRST_COUNTED", 5)
    filters = PostFilters(min_likes=1_000)
    plan = planned(world, filters)
    hours = Counter[int]()
    for file in plan.files:
        hours[file.hour_us] += file.rows
    hour = max(hours, key=lambda hour: hours[hour])
    one = replace(plan, files=tuple(file for file in plan.files if file.hour_us == hour))
    assert one.rows > 10
    page = page_of(world, one, filters, Sort.NEWEST, 3, 0.0, None)
    assert (page.rows.num_rows, page.complete) == (0, False)
    assert page.next is not None
    assert total_of(world, one, filters, TotalMode.EXACT, 0).count == 0


def test_only_what_may_fill_the_page_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, None)
    builder = world.builder
    posts = [builder.post(did(number), "text") for number in range(80) if builder.tick()]
    for number, post in enumerate(posts[::8]):
        builder.record(LIKE, did(number), subject_uri=post["uri"], subject_cid=post["cid"])
    builder.commit()
    builder.maintain()
    world.snapshot = builder.manifest.snapshot()
    for file in named_keys.missing(builder.root, world.snapshot):
        named_keys.build(builder.store, file)
    engagement_bounds.update(builder.store, world.snapshot, lambda: True)
    counted: list[int] = []

    def spy(session: Session, lake: Lake, plan: Scan, asked: PostFilters, keys: pa.Table, *more: Any) -> pa.Table:
        counted.append(keys.num_rows)
        return count_engagement(session, lake, plan, asked, keys, *more)

    monkeypatch.setattr(posts_query, "_FEW_ROWS", 0)
    monkeypatch.setattr(minimums, "count_engagement", spy)
    filters = PostFilters(min_likes=1)
    plan = planned(world, filters)
    liked = [post["uri"] for post in posts[::8]]
    # One more than the page has tells that there is a next one, and some may have ended.
    assert uris(page_of(world, plan, filters, Sort.NEWEST, 3, 60, None)) == liked[:-4:-1]
    assert counted == [5]
    assert not uris(page_of(world, plan, PostFilters(min_likes=2), Sort.NEWEST, 3, 60, None))
    assert counted == [5]
    world.close()

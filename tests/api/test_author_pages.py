"""A search for an account's posts opens the files that fill its page and no others, and tells the same as without the index."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import api.few_rows
import api.walk
from api.current import CurrentState
from api.cursors import Cursor
from api.engine import Engine, FileGone, Session
from api.filters import PostFilters
from api.identifiers import tid_value
from api.key_skip import holding, narrow_by_keys
from api.posts_query import Selection
from api.relation import Lake
from api.routes.search import DEFAULT_FIELDS
from api.search import SearchPlan, Sort, run_search
from api.snapshots import Scan, scan
from api.walk import Page
from lake import account_index
from lake.account_index import AccountIndex
from lake.bloom import FilterIndex, Value
from lake.manifest import LiveFile
from lake.page_rows import CannotReadError
from tests.api.lake_builder import POST, START_US, LakeBuilder, did
from tests.api.test_author_activity import index
from tests.api.test_filters_property import features, random_text

HOURS = 12


class Asked(FilterIndex):
    """Filters that remember of which files they were asked about accounts."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.files: list[str] = []

    def may_hold(self, files: Iterable[LiveFile], wanted: Mapping[str, Sequence[Value]]) -> list[LiveFile]:
        """As the filters do."""
        files = list(files)
        if "did" in wanted:
            self.files += [file.path for file in files]
        return super().may_hold(files, wanted)


class Searched:
    """A lake of some hours: account 1 has one post in each, account 2 several in every third."""

    def __init__(self, root: Path) -> None:
        self.builder = LakeBuilder(root)
        rng = random.Random(7)
        self.mine = []
        for hour in range(HOURS):
            self.mine.append(self.builder.post(did(1), random_text(rng), **features(rng, self.mine)))
            for _ in range(4 if hour % 3 == 0 else 0):
                self.builder.tick(5)
                self.builder.post(did(2), random_text(rng), **features(rng, self.mine))
            self.builder.tick(3600)
        self.builder.commit()
        self.builder.maintain()
        index(self.builder)
        root = self.builder.root
        self.engine = Engine([root], threads=1, memory_mb=512, spill_mb=256, spill_dir=root.parent / "spill")

    def lake(self) -> Lake:
        root = self.builder.root
        return Lake(root, CurrentState(root, 2**20), Asked(root), AccountIndex(root))

    def page(
        self, *people: int, limit: int, sort: Sort = Sort.NEWEST, cursor: Cursor | None = None, **more: object
    ) -> Page:
        filters = PostFilters(author=[did(number) for number in people], **more)
        lake = self.lake()
        plan = narrow_by_keys(lake, scan(self.builder.manifest.snapshot(), POST, filters.start, filters.end), filters)
        with self.engine.session() as session:
            return run_search(
                session, lake, SearchPlan(plan, Selection(filters), sort, DEFAULT_FIELDS, limit, cursor, 60)
            )


@pytest.fixture
def searched(tmp_path: Path) -> Iterator[Searched]:
    made = Searched(tmp_path)
    yield made
    made.engine.close()
    made.builder.close()


def test_the_files_that_fill_the_page_are_read_and_no_others(searched: Searched) -> None:
    for limit in (1, 4, 11):
        newest, oldest = searched.page(1, limit=limit), searched.page(1, limit=limit, sort=Sort.OLDEST)
        assert (newest.files_read, newest.rows.num_rows) == (limit + 1, limit)
        assert (oldest.files_read, oldest.rows.num_rows) == (limit + 1, limit)
    assert searched.page(1, limit=50).files_read == HOURS
    assert searched.page(2, limit=7).files_read == 2, "eight posts"
    assert searched.page(2, limit=8).files_read == 3
    assert searched.page(3, limit=8).files_read == 0
    assert searched.page(1, 2, limit=7, start=START_US + 6 * 3_600_000_000).files_read == 4, "1 + 1 + 5 + 1 posts"


@pytest.mark.parametrize("sort", [Sort.NEWEST, Sort.OLDEST])
def test_a_further_page_begins_in_the_file_of_the_last(searched: Searched, sort: Sort) -> None:
    first = searched.page(1, limit=4, sort=sort)
    second = searched.page(1, limit=4, sort=sort, cursor=first.next)
    keys = [tid_value(post["rkey"]) for post in searched.mine]
    expected = keys[4:8] if sort is Sort.OLDEST else keys[-5:-9:-1]
    assert second.rows["rkey_tid"].to_pylist() == expected
    assert second.files_read == 1 + 4 + 1


def test_what_is_pending_is_read_beyond(searched: Searched) -> None:
    for post in searched.mine[-3:]:
        searched.builder.delete(post["uri"])
    searched.builder.commit()
    page = searched.page(1, limit=4)
    assert page.rows["rkey_tid"].to_pylist() == [tid_value(post["rkey"]) for post in searched.mine[-4:-8:-1]]
    assert page.files_read == 1 + 3 + 4 + 1, "the small file of the deletions, what they end, the page and one more"


def test_nothing_is_read_of_accounts_that_are_hidden(searched: Searched) -> None:
    searched.builder.account(did(1), active=False, status="deactivated")
    searched.builder.commit()
    page = searched.page(1, limit=4)
    assert (page.files_read, page.rows.num_rows, page.next, page.complete) == (0, 0, None, True)
    both = searched.page(1, 2, limit=50)
    assert set(both.rows["did"].to_pylist()) == {did(2)}
    assert both.rows.num_rows == 4 * 4


@pytest.mark.parametrize("people", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("limit", [3, 50])
def test_all_columns_are_the_same_without_the_index(
    searched: Searched, people: tuple[int, ...], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = searched.page(*people, limit=limit)
    monkeypatch.setattr("api.walk._AT_ONCE_ROWS", 0)
    in_two = searched.page(*people, limit=limit)
    shutil.rmtree(searched.builder.root / account_index.FOLDER)
    without = searched.page(*people, limit=limit)
    assert known.rows.to_pylist() == in_two.rows.to_pylist() == without.rows.to_pylist()
    assert known.rows.schema == in_two.rows.schema == without.rows.schema
    assert known.rows.num_rows
    assert known.next == in_two.next == without.next


class Taken:
    """Remembers what was read by itself and what was left to the engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows = self.left = 0
        plain = api.walk.few_rows

        def few(session: Session, lake: Lake, plan: Scan, columns: Sequence[str]) -> tuple[pa.Table | None, Scan]:
            rows, rest = plain(session, lake, plan, columns)
            self.rows += 0 if rows is None else rows.num_rows
            self.left += len(rest.files)
            return rows, rest

        monkeypatch.setattr("api.walk.few_rows", few)


def test_rows_of_rolled_hours_are_read_by_themselves(searched: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Taken(monkeypatch)
    assert searched.page(1, limit=5).rows.num_rows == 5
    assert (taken.rows, taken.left) == (6, 0)
    assert searched.page(1, 2, limit=7).rows.num_rows == 7
    assert taken.left == 0
    searched.builder.post(did(1), "not rolled yet")
    searched.builder.commit()
    assert searched.page(1, limit=5).rows["text"][0].as_py() == "not rolled yet"
    assert taken.left == 1


def test_the_engine_reads_what_cannot_be_read_by_itself(searched: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = searched.page(1, 2, limit=20)
    taken = Taken(monkeypatch)
    plain, calls = api.few_rows.rows_of, itertools.count()

    def sometimes(*arguments: Any) -> dict[str, list[Any]]:
        if next(calls) % 2:
            raise CannotReadError("on purpose")
        return plain(*arguments)

    monkeypatch.setattr("api.few_rows.rows_of", sometimes)
    found = searched.page(1, 2, limit=20)
    assert taken.rows
    assert taken.left
    assert found.rows.to_pylist() == expected.rows.to_pylist()
    assert found.next == expected.next


def test_a_file_that_is_gone_is_told(searched: Searched) -> None:
    newest = scan(searched.builder.manifest.snapshot(), POST, None, None).files[-1]
    (searched.builder.root / newest.path).unlink()
    with pytest.raises(FileGone):
        searched.page(1, limit=5)


@pytest.mark.parametrize("sort", [Sort.NEWEST, Sort.OLDEST])
def test_pages_are_the_same_while_posts_end(searched: Searched, sort: Sort, monkeypatch: pytest.MonkeyPatch) -> None:
    """Erased, pending, edited and late: page by page as the engine reads them."""
    builder = searched.builder
    for post in searched.mine[1:4]:
        builder.delete(post["uri"])
    builder.commit()
    builder.maintain()
    index(builder)
    builder.delete(searched.mine[6]["uri"])
    builder.post(did(1), "later")
    builder.commit()

    def pages(**more: object) -> list[dict[str, Any]]:
        rows, cursor = [], None
        while True:
            page = searched.page(1, 2, limit=3, sort=sort, cursor=cursor, **more)
            rows += page.rows.to_pylist()
            cursor = page.next
            if cursor is None:
                return rows

    taken = Taken(monkeypatch)
    for more in ({}, {"media": ["images"]}, {"reply": True}, {"start": START_US + 2 * 3_600_000_000}):
        monkeypatch.setattr("api.few_rows._MOST_ROWS", 64)
        found = pages(**more)
        monkeypatch.setattr("api.few_rows._MOST_ROWS", 0)
        assert found == pages(**more)
    assert taken.rows


def test_filters_are_asked_about_accounts_where_there_is_no_side_file(searched: Searched) -> None:
    plan = scan(searched.builder.manifest.snapshot(), POST, None, None)
    lake = searched.lake()
    assert isinstance(lake.filters, Asked)
    having = holding(lake, plan, {"did": [did(2)]}).files
    assert len(having) == 4
    assert not lake.filters.files
    (lake.root / account_index.FOLDER / f"{having[1].sha256}.accounts").unlink()
    assert holding(lake, plan, {"did": [did(2)]}).files == having
    assert lake.filters.files == [having[1].path]
    lake.filters.files.clear()
    key = searched.mine[5]
    tids = {"rkey_tid": [tid_value(key["rkey"])], "did": [did(1)]}
    (only,) = holding(lake, plan, tids).files
    assert only.min_time_us <= key["time_us"] <= only.max_time_us
    assert set(lake.filters.files) == {only.path}, "the key ruled the others out first"
    assert not holding(lake, plan, tids | {"did": [did(2)]}).files

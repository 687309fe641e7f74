"""The rows that are looked for in the texts alone are never fewer than those that the engine finds, and no others without NOT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api import text_rows
from api.engine import Engine
from api.filters import PostFilters
from api.posts_query import narrow
from api.query_text import parse
from api.relation import Lake
from api.snapshots import Scan, scan
from api.sql import Bound, text_predicate
from api.text_rows import Wording, with_matching_rows
from lake import text_index
from tests.api.lake_builder import POST, LakeBuilder, did

_WORDS = (
    "the",
    "Straße",
    "STRASSE",
    "café",
    "cafe\u0301",
    "İstanbul",
    "地震速報",
    "🦋🦋",
    "a_b",
    "x-ray",
    "ray",
    "don't",
)
_TEXTS = st.lists(
    st.none() | st.lists(st.sampled_from(_WORDS), max_size=5).map(" ".join) | st.text(max_size=12),
    min_size=1,
    max_size=12,
)
_TERMS = st.sampled_from(
    ["the", "strasse", "straße", "CAFÉ", "istanbul", "地震", "🦋", "ray", '"x-ray the"', "a*b", "don't"]
)
_QUERIES = st.recursive(
    _TERMS,
    lambda inner: st.tuples(inner, st.sampled_from([" ", " OR ", " AND ", " NOT "]), inner).map(
        lambda parts: f"({parts[0]}){parts[1]}({parts[2]})"
    ),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(texts=_TEXTS, query=_QUERIES, exact=st.booleans(), case=st.booleans())
def test_no_match_is_left_out(texts: list[str | None], query: str, exact: bool, case: bool) -> None:
    wording = Wording.of(PostFilters(text=query, exact=exact, case_sensitive=case))
    bound = Bound()
    predicate = text_predicate(parse(query), "text", bound, exact=exact, case_sensitive=case)
    with duckdb.connect() as connection:
        connection.register("posts", pa.table({"text": pa.array(texts, pa.string()), "number": range(len(texts))}))
        rows = connection.execute(f"SELECT number FROM posts WHERE {predicate}", bound.values).fetchall()
    truth = {number for (number,) in rows}
    if wording is None:
        assert "NOT" in query
        return
    found = wording.matches(pa.array(texts, pa.large_string()))
    assert found is not None
    numbers = {number for number, matching in enumerate(found) if matching}
    assert truth <= numbers
    assert truth == numbers or "NOT" in query


def test_a_search_that_asks_for_no_word_has_no_wording() -> None:
    assert Wording.of(PostFilters()) is None
    assert Wording.of(PostFilters(text="NOT spam")) is None
    assert Wording.of(PostFilters(text="ham OR NOT spam")) is None
    assert Wording.of(PostFilters(text="ham NOT spam")) is not None


class World:
    """A rolled hour with text index, of which three posts have the word."""

    def __init__(self, root: Path) -> None:
        self.builder = LakeBuilder(root)
        for number in range(300):
            self.builder.post(did(1), "zeitgeist today" if number in (7, 150, 151) else f"sourdough {number}")
        self.builder.commit()
        self.builder.maintain()
        for file in text_index.missing(self.builder.root, self.builder.manifest.snapshot()):
            text_index.build(self.builder.store, file)
        self.engine = Engine([self.builder.root], threads=1, memory_mb=256, spill_mb=64, spill_dir=root / "spill")

    def scan(self, text: str) -> Scan:
        """What the index leaves of the hour."""
        lake = Lake(self.builder.root, *(None,) * 3)  # type: ignore[arg-type]
        return narrow(lake, scan(self.builder.manifest.snapshot(), POST, None, None), PostFilters(text=text))

    def matching(self, plan: Scan, text: str) -> Scan:
        """What is left after a look into the texts."""
        wording = Wording.of(PostFilters(text=text))
        assert wording is not None
        with self.engine.session() as session:
            return with_matching_rows(session, self.builder.root, plan, wording)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.engine.close()
    made.builder.manifest.close()


def test_the_rows_of_a_file_are_named(world: World) -> None:
    plan = world.scan("zeitgeist")
    (file,) = plan.files
    assert plan.rows_to_read(file) < file.rows, "the index leaves blocks out"
    found = world.matching(plan, "zeitgeist")
    assert found.rows_to_read(file) == 3
    assert found.counts == {file.path: 3}
    assert all(end == first + 1 for first, end in found.stretches[file.path])
    whole = replace(plan, stretches={})
    assert world.matching(whole, "zeitgeist").stretches == found.stretches
    assert world.matching(whole, "kubernetes").files == ()


def test_what_matches_too_often_or_cannot_be_read_is_left_to_the_engine(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(world.scan("zeitgeist"), stretches={})
    (file,) = plan.files
    monkeypatch.setattr(text_rows, "_MOST_ROWS", 2)
    found = world.matching(plan, "zeitgeist")
    assert (found.files, found.stretches, found.counts) == ((file,), {}, {})
    monkeypatch.undo()
    small = replace(plan, files=(replace(file, kind="small"),))
    assert world.matching(small, "kubernetes").files == small.files, "small files are the engine's"
    path = world.builder.root / file.path
    path.write_bytes(path.read_bytes()[:100])
    assert world.matching(plan, "zeitgeist").files == (file,)
    path.unlink()
    assert world.matching(plan, "zeitgeist").files == (file,)

"""The text index never hides a match, leaves files out, keeps its size, and follows the files of the lake."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import HOUR, POST, START

from api.query_text import And, Node, Not, Or, Term, parse, term_pattern
from api.sql import Bound, text_predicate
from api.text_skip import required, required_by
from lake import text_grams, text_index
from lake.convert import lake_schema
from lake.dictionaries import joined
from lake.manifest import LiveFile
from lake.merge import Merge, row_groups
from lake.store import LakeStore

_WORDS = st.sampled_from(
    [
        *(
            "the",
            "Straße",
            "STRASSE",
            "café",
            "cafe\u0301",
            "İstanbul",
            "istanbul",
            "ǅungla",
            "ſomething",
            "\u212aelvin",
        ),
        *("Σίσυφος", "ΣΊΣΥΦΟΣ", "地震速報", "地震", "速報です", "한국어", "🦋🦋", "conspiracy", "CONSPIRATORIAL"),
    ]
)
_GLUE = st.sampled_from([" ", "  ", "\n", "\u3000", "\u2028 ", "", ", ", "\x00", "-"])
_TEXTS = st.lists(st.tuples(_WORDS, _GLUE), max_size=8).map(lambda parts: "".join(a + b for a, b in parts)) | st.text(
    max_size=40
)


def holding(root: Path, files: Sequence[LiveFile], condition: text_index.Condition | None) -> list[LiveFile]:
    """The files that can hold a match."""
    return [part.file for part in text_index.parts(root, files, condition)]


def _write(store: LakeStore, texts: list[str | None], number: int = 0) -> LiveFile:
    schema = lake_schema(POST)
    columns = [pa.nulls(len(texts), field.type) for field in schema]
    columns[schema.get_field_index("text")] = pa.array(texts, pa.string())
    columns[schema.get_field_index("time")] = pa.array([START + number * HOUR] * len(texts), pa.timestamp("us"))
    rows = pa.table(columns, schema=pa.schema([field.with_nullable(True) for field in schema]))
    hour = START + number * HOUR
    made = store.write_table(rows, POST, hour, f"x{number}", kind="rolled")
    return LiveFile(
        made.path, POST, hour, made.rows, made.bytes, hour, hour, made.sha256, "rolled", 0, False, 0, 1, hour
    )


def _write_rolled(store: LakeStore, texts: list[str]) -> LiveFile:
    """As maintenance writes it: sorted, in row groups."""
    schema = lake_schema(POST)
    columns = [pa.nulls(len(texts), field.type) for field in schema]
    columns[schema.get_field_index("text")] = pa.array(texts, pa.string())
    columns[schema.get_field_index("time")] = pa.array(np.arange(START, START + len(texts)), pa.timestamp("us"))
    columns[schema.get_field_index("operation")] = pa.array(["create"] * len(texts), pa.string())
    rows = pa.table(columns, names=schema.names).cast(schema)
    with store.writer(POST, START, "rolled", kind="rolled", rows=len(texts)) as writer:
        for piece in row_groups(joined(POST, [rows]), Merge(POST, START)):
            writer.write(piece)
    made = writer.result()
    return LiveFile(
        made.path, POST, START, made.rows, made.bytes, START, START, made.sha256, "rolled", 0, False, 0, 1, START
    )


class _Snapshot:
    """The one question of a snapshot that the index asks."""

    def __init__(self, files: list[LiveFile]) -> None:
        self._files = files

    def files(self, table: str) -> list[LiveFile]:
        return [file for file in self._files if file.table == table]


def _matches(connection: duckdb.DuckDBPyConnection, node: Node, texts: list[str | None], exact: bool) -> bool:
    bound = Bound()
    predicate = text_predicate(node, "text", bound, exact=exact, case_sensitive=False)
    connection.register("texts", pa.table({"text": pa.array(texts, pa.string())}))
    [(count,)] = connection.execute(f"SELECT count(*) FROM texts WHERE {predicate}", bound.values).fetchall()
    return bool(count)


def _pieces(draw: st.DrawFn, texts: list[str | None]) -> str:
    whole = draw(st.sampled_from([text for text in texts if text] or ["word"]))
    start = draw(st.integers(0, len(whole) - 1))
    piece = whole[start : start + draw(st.integers(1, 24))]
    change = draw(st.sampled_from([str, str.upper, str.lower, str.swapcase, str.title]))
    form = draw(st.sampled_from(["NFC", "NFD", None]))
    piece = change(piece)
    if draw(st.booleans()):
        piece = re.sub(r"(?<=\S)\S(?=\S)", "*", piece, count=1)
    return unicodedata.normalize(form, piece) if form else piece


@st.composite
def _cases(draw: st.DrawFn) -> tuple[list[str | None], Node, bool]:
    texts: list[str | None] = draw(st.lists(_TEXTS | st.none(), min_size=1, max_size=6))
    terms = st.builds(Term, st.just(0).map(lambda _: _pieces(draw, texts)).filter(lambda t: t.replace("*", "").strip()))
    nodes = st.recursive(
        terms,
        lambda inner: (
            st.builds(Not, inner)
            | st.lists(inner, min_size=2, max_size=3).map(lambda items: And(tuple(items)))
            | st.lists(inner, min_size=2, max_size=3).map(lambda items: Or(tuple(items)))
        ),
        max_leaves=4,
    )
    return texts, draw(nodes), draw(st.booleans())


@pytest.fixture(scope="module")
def connection() -> duckdb.DuckDBPyConnection:
    return duckdb.connect()


@settings(max_examples=300, deadline=None)
@given(case=_cases())
def test_a_match_is_never_hidden(
    case: tuple[list[str | None], Node, bool],
    connection: duckdb.DuckDBPyConnection,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    texts, node, exact = case
    store = LakeStore(tmp_path_factory.mktemp("lake"))
    file = _write(store, texts)
    text_index.build(store, file)
    if _matches(connection, node, texts, exact):
        assert holding(store.root, [file], required_by(node)) == [file]
    for place, text in enumerate(texts):
        if _matches(connection, node, [text], exact):
            (part,) = text_index.parts(store.root, [file], required_by(node))
            assert part.rows is None or any(first <= place < end for first, end in part.rows)


def test_white_space_is_the_same_set_for_the_search_and_the_index(connection: duckdb.DuckDBPyConnection) -> None:
    folding = text_grams._folding()
    everything = [chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
    connection.register("one", pa.table({"c": everything}))
    pattern = term_pattern(Term("a b"), exact=False)
    found = connection.execute("SELECT c FROM one WHERE regexp_matches('a' || c || 'b', $p)", {"p": pattern}).fetchall()
    spaces = {char for (char,) in found}
    assert spaces == {char for char in everything if folding[ord(char)] == ord(" ")}
    assert spaces == {char for char in everything if char.isspace()}


def test_characters_that_the_search_engine_takes_for_the_same_fold_to_the_same(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    folding = text_grams._folding()
    everything = [chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
    connection.register("one", pa.table({"c": everything}))
    cased = [char for char in everything if len({char, char.lower(), char.upper(), char.title()}) > 1]
    groups: dict[int, list[str]] = {}
    for char in cased:
        groups.setdefault(int(folding[ord(char)]), []).append(char)
    for start in range(0, len(cased), 64):
        some = cased[start : start + 64]
        pattern = "[" + "".join(f"\\x{{{ord(char):x}}}" for char in some) + "]"
        found = connection.execute("SELECT c FROM one WHERE regexp_matches(c, $p, 'i')", {"p": pattern}).fetchall()
        allowed = {int(folding[ord(char)]) for char in some}
        assert {int(folding[ord(char)]) for (char,) in found} <= allowed | {0}


def test_files_without_the_word_are_left_out(tmp_path: Path) -> None:
    store = LakeStore(tmp_path)
    files = [
        _write(store, [f"post {number} about {topic}", None, ""], number)
        for number, topic in enumerate(["zeitgeist of today", "sourdough bread", "地震速報です"])
    ]
    for file in files:
        assert text_index.build(store, file) == (tmp_path / ".text-index" / f"{file.sha256}.slots").stat().st_size

    def left(query: str) -> list[int]:
        return [files.index(file) for file in holding(tmp_path, files, required(query))]

    assert left("ZEITGEIST") == [0]
    assert left('"sourdough  bread"') == [1]
    assert left('"sourdough today"') == []
    assert left("地震速報") == [2]
    assert left("zeitgeist OR sourdough") == [0, 1]
    assert left("zeitgeist sourdough") == []
    assert left("zeit*today") == [0]
    assert left("about -zeitgeist") == [0, 1, 2]
    assert left("zeitgeist OR ab") == [0, 1, 2]
    assert left("cat") == []
    assert left("ost") == [0, 1, 2]
    assert left('"t of"') == [0]
    assert left('"of  t"') == [0]
    assert left('"of\u3000t*y"') == [0]
    assert left('"f z"') == []


def test_blocks_without_the_word_are_left_out(tmp_path: Path) -> None:
    store = LakeStore(tmp_path)
    file = _write(
        store, [*(f"{'zeitgeist' if row in (5, 41, 42, 79) else 'sourdough'} {row}" for row in range(80)), None]
    )
    text_index.build(store, file)

    def rows(query: str) -> list[text_index.Rows | None]:
        return [part.rows for part in text_index.parts(tmp_path, [file], required(query))]

    assert rows("zeitgeist") == [((0, 11), (33, 44), (77, 81))]
    assert rows("kubernetes") == []
    assert rows("-zeitgeist") == [None]


def test_the_index_follows_the_files_of_the_lake(tmp_path: Path) -> None:
    store = LakeStore(tmp_path)
    old, new = _write(store, ["nothing of note"], 0), _write(store, ["nothing of note"], 1)
    small = LiveFile(*(getattr(new, name) if name != "kind" else "small" for name in LiveFile.__slots__))
    assert text_index.missing(tmp_path, _Snapshot([old, new])) == [new, old]  # type: ignore[arg-type]
    assert holding(tmp_path, [old, new], required("zeitgeist")) == [old, new]
    text_index.build(store, old)
    text_index.build(store, new)
    assert text_index.missing(tmp_path, _Snapshot([old, new])) == []  # type: ignore[arg-type]
    assert holding(tmp_path, [small, old, new], required("zeitgeist")) == [small]
    assert text_index.sweep(tmp_path, _Snapshot([new])) == 1  # type: ignore[arg-type]
    assert holding(tmp_path, [old, new], required("zeitgeist")) == [old]
    path = tmp_path / ".text-index" / f"{new.sha256}.slots"
    for damaged in (b"", b"PXG", path.read_bytes()[:-1], b"PXG\x00" + path.read_bytes()[4:]):
        path.write_bytes(damaged)
        assert holding(tmp_path, [new], required("zeitgeist")) == [new]


def test_a_flipped_bit_anywhere_hides_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = LakeStore(tmp_path)
    # Few different words in no order: a large file with few grams.
    draw = random.Random(1)
    words = [sha256(b"%d" % number).hexdigest()[:12] for number in range(45)]
    texts: list[str | None] = [" ".join(draw.choices(words, k=60)) for _ in range(4000)]
    file = _write(store, [*texts, "zeitgeist 地震 sourdough77"])
    text_index.build(store, file)
    path = tmp_path / ".text-index" / f"{file.sha256}.slots"
    whole = path.read_bytes()
    assert len(whole) > 1024 + 44, "more than one piece"
    held = [required(text) for text in ("zeitgeist", "地震", "sourdough77", '"zeitgeist"')]
    absent = required("kubernetes")
    assert holding(tmp_path, [file], absent) == []
    noticed = 0
    for place in [*range(60), *range(60, len(whole), 37), *range(len(whole) - 40, len(whole))]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        assert all(holding(tmp_path, [file], condition) == [file] for condition in held), place
        noticed += holding(tmp_path, [file], absent) == [file]
    assert noticed
    assert "is damaged and not used" in caplog.text
    path.write_bytes(whole)
    assert holding(tmp_path, [file], absent) == []


def test_a_side_file_keeps_its_share_of_the_file(tmp_path: Path) -> None:
    store = LakeStore(tmp_path)
    texts: list[str | None] = [
        "".join(chr(97 + (row * 7919 + place * place * 31 + row // 7) % 26) for place in range(200))
        for row in range(20_000)
    ]
    file = _write(store, texts)
    assert text_index.build(store, file) <= max(file.bytes * 0.151, 1000)
    assert holding(tmp_path, [file], required(f'"{texts[77]}"')) == [file]


def test_a_query_is_parsed_as_the_search_parses_it() -> None:
    assert required(None) is None
    assert required("NOT zeitgeist") is None
    assert required("zeitgeist") == required_by(parse("zeitgeist")) == required("Zeitgeist")


@pytest.mark.parametrize(("rows", "groups", "page"), [(60_000, 2, 7500), (20_000, 2, 4096), (2_000, 1, 2000)])
def test_blocks_are_the_pages_of_posts(tmp_path: Path, rows: int, groups: int, page: int) -> None:
    store = LakeStore(tmp_path)
    texts = ["good morning"] * rows
    for place, word in ((0, "zeitgeist"), (rows // 2, "kubernetes"), (rows - 1, "vladivostok")):
        texts[place] = word
    file = _write_rolled(store, texts)
    with store.open(file.path) as parquet:
        assert parquet.num_row_groups == groups
    text_index.build(store, file)
    for number, word in ((0, "zeitgeist"), (rows // 2, "kubernetes"), (rows - 1, "vladivostok")):
        (part,) = text_index.parts(tmp_path, [file], required(word))
        assert part.rows is not None
        assert any(first <= number < end for first, end in part.rows), "never too few"
        assert sum(end - first for first, end in part.rows) <= page, "one page"


def test_blocks_are_pages_of_row_groups() -> None:
    def ends(texts: list[str | None], groups: list[int]) -> list[int]:
        return text_index._block_ends(pa.chunked_array([texts], pa.string()), groups)

    words: list[str | None] = ["word"] * 80_000
    assert ends(words, [40_000, 40_000]) == [10_000 * number for number in range(1, 9)]
    assert ends(words, [80_000]) == [10_000 * number for number in range(1, 9)]
    with_deletes = ends([*words, *[None] * 4_000], [40_000, 40_000, 4_000])
    assert len(with_deletes) == 8
    assert with_deletes[-1] == 84_000
    assert 80_000 not in with_deletes[:-2], "rows without text add no block"
    many = ends(words, [4_000] * 20)
    assert len(set(many)) == 8
    assert many[-1] == 80_000
    assert all(end % 4_000 == 0 for end in many), "whole row groups"
    assert ends(["a", None], [2]) == [2] * 8
    assert ends([], []) == [0] * 8

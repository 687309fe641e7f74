"""Rows that are read by themselves are those that a reader of Parquet finds, in every encoding that a file of posts has."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import HOUR, START

from lake import account_index, layout, page_places, page_values
from lake.account_index import AccountIndex
from lake.convert import lake_schema
from lake.errors import FileDamaged
from lake.manifest import LiveFile
from lake.page_places import places_of
from lake.page_rows import Buffers, CannotReadError, rows_of
from lake.store import LakeStore

POST = "app.bsky.feed.post"
_WORD = 1 << 64


def _column(rng: np.random.Generator, kind: pa.DataType, count: int) -> pa.Array:
    """Values of a type, some of them null or all, in stretches or not, few different ones or many."""
    share = rng.choice([0.0, 0.001, 0.5, 0.999, 1.0])
    gone = rng.random(count) < share
    if rng.random() < 0.3:
        gone = np.sort(gone)
    values: list[Any]
    if pa.types.is_list(kind):
        words = [None, "", "é", "word", "x" * 300]
        values = [[words[n] for n in rng.integers(0, 5, rng.integers(0, 4))] for _ in range(count)]
        if rng.random() < 0.3:
            values = [some[:1] for some in values]
    elif pa.types.is_string(kind):
        different = int(rng.choice([1, 40, count]))
        values = [f"{'ü' * (n % 7)}{n}" for n in rng.integers(0, different, count).tolist()]
    elif pa.types.is_fixed_size_binary(kind):
        values = [rng.bytes(32) for _ in range(count)]
    elif pa.types.is_boolean(kind):
        values = (rng.random(count) < rng.choice([0.0, 0.5])).tolist()
    else:
        largest = 2**31 if kind == pa.int32() else int(rng.choice([1, 1000, 2**40, 2**63]))
        numbers = rng.integers(-largest, largest - 1, count, dtype=np.int64, endpoint=True)
        values = (np.sort(numbers) if rng.random() < 0.5 else numbers).tolist()
    return pa.array([None if lost else value for value, lost in zip(values, gone.tolist(), strict=True)], kind)


def _table(rng: np.random.Generator, dids: Sequence[str]) -> pa.Table:
    schema = lake_schema(POST)
    columns = {field.name: _column(rng, field.type, len(dids)) for field in schema}
    columns["did"] = pa.array(dids, pa.string())
    columns["time"] = pa.array(START + rng.integers(0, HOUR, len(dids)), pa.timestamp("us"))
    return pa.table(columns, schema=schema)


def _write(store: LakeStore, rows: pa.Table) -> LiveFile:
    made = store.write_table(rows, POST, START, "x", kind="rolled")
    return LiveFile(
        made.path, POST, START, made.rows, made.bytes, START, START, made.sha256, "rolled", 0, False, 0, 1, START
    )


def _read(store: LakeStore, file: LiveFile, dids: Sequence[str]) -> list[dict[str, Any]] | None:
    """The rows of some accounts, as the index places them."""
    groups = AccountIndex(store.root).places(file, dids)
    assert groups is not None
    names = lake_schema(POST).names
    found: dict[str, list[Any]] = {name: [] for name in names}
    descriptor, buffers = os.open(store.absolute(file.path), os.O_RDONLY), Buffers()
    try:
        for group, pages in groups:
            for name, values in rows_of(descriptor, group, pages, dids, names, buffers).items():
                found[name] += values
    finally:
        os.close(descriptor)
    schema = lake_schema(POST)
    return _listed(pa.table([pa.array(found[name], schema.field(name).type) for name in names], names=names))


def _listed(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows with their times as numbers, for Python has fewer years."""
    columns = [column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in rows.columns]
    return pa.table(columns, names=rows.column_names).to_pylist()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32), count=st.sampled_from([1, 7, 300, 3000]), accounts=st.sampled_from([1, 5, 400, 5000])
)
def test_they_are_the_rows_of_the_file(
    seed: int, count: int, accounts: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    dids = [f"did:{'web' if n % 9 == 0 else 'plc'}:{n}" for n in rng.integers(0, accounts, count).tolist()]
    store = LakeStore(tmp_path_factory.mktemp("lake"))
    with pytest.MonkeyPatch.context() as patch:
        # Several groups of several pages, of few rows each, and several pieces of each.
        patch.setattr(layout, "_LEAST_POST_ROWS", 500)
        patch.setattr(layout, "_LEAST_PAGE_ROWS", 100)
        patch.setattr(layout, "_BATCH_ROWS", 64)
        patch.setattr("lake.page_rows._STEP", 50)
        for module in (page_values, page_places):
            patch.setattr(module, "DELTA_MARK", 256)
        patch.setattr("lake.page_rows.DELTA_MARK", 256)
        patch.setattr(page_values, "LEVEL_MARK", 10)
        file = _write(store, _table(rng, dids))
        account_index.build(store, file)
        everything = _listed(pq.read_table(store.absolute(file.path)))
        for asked in (
            [dids[0]],
            [dids[-1]],
            list(dict.fromkeys(dids[:3])),
            ["did:plc:absent"],
            ["did:plc:absent", dids[0]],
        ):
            assert _read(store, file, asked) == [row for row in everything if row["did"] in asked]


def test_only_pages_that_have_the_account_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_LEAST_POST_ROWS", 500)
    monkeypatch.setattr(layout, "_LEAST_PAGE_ROWS", 100)
    store = LakeStore(tmp_path)
    rows = _table(np.random.default_rng(1), [f"did:plc:{n}" for n in range(1000)])
    # One kind of post, so that the order is that of arrival.
    for name in ("reply_root_rkey_tid", "reply_root_uri_text", "langs", "embed_type"):
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(name), pa.nulls(1000, rows.schema.field(name).type))
    file = _write(store, rows)
    account_index.build(store, file)
    index = AccountIndex(store.root)
    written = pq.read_table(store.absolute(file.path), columns=["did"])["did"].to_pylist()
    assert [len(group.columns["did"].pages) for group in places_of(store, file)] == [4, 4]
    for row in (0, 124, 125, 499, 500, 999):
        places = index.places(file, [written[row]])
        assert places is not None
        assert [pages for _, pages in places] == [[row % 500 // 125]]
    assert index.places(file, ["did:plc:absent"]) == []


def test_a_changed_page_is_no_page_to_be_placed(tmp_path: Path) -> None:
    store = LakeStore(tmp_path)
    file = _write(store, _table(np.random.default_rng(2), [f"did:plc:{n % 50}" for n in range(2000)]))
    (group, *_) = places_of(store, file)
    page = group.columns["rkey_tid"].pages[0]
    path = store.absolute(file.path)
    whole = path.read_bytes()
    place = page.begin + page.packed // 2
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(FileDamaged):
        account_index.build(store, file)


def test_large_pages_are_left_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LakeStore(tmp_path)
    file = _write(store, _table(np.random.default_rng(5), [f"did:plc:{n % 50}" for n in range(2000)]))
    account_index.build(store, file)
    assert _read(store, file, ["did:plc:1"])
    for step in (10, 1 << 20):
        monkeypatch.setattr("lake.page_rows._STEP", step)
        monkeypatch.setattr("lake.page_rows._LARGEST", 500)
        with pytest.raises(CannotReadError):
            _read(store, file, ["did:plc:1"])


def test_what_is_not_a_page_is_left_to_others(tmp_path: Path) -> None:
    store = LakeStore(tmp_path)
    file = _write(store, _table(np.random.default_rng(3), [f"did:plc:{n % 50}" for n in range(2000)]))
    groups = places_of(store, file)
    path = store.absolute(file.path)
    whole = path.read_bytes()
    names = lake_schema(POST).names
    for content in (b"", whole[: len(whole) // 3], bytes(len(whole))):
        path.write_bytes(content)
        descriptor = os.open(path, os.O_RDONLY)
        with pytest.raises(CannotReadError):
            rows_of(descriptor, groups[0], [0], ["did:plc:1"], names, Buffers())
        os.close(descriptor)


def test_no_flipped_bit_ends_in_another_way(tmp_path: Path) -> None:
    store = LakeStore(tmp_path)
    rng = np.random.default_rng(6)
    file = _write(store, _table(rng, [f"did:plc:{n % 50}" for n in range(2000)]))
    groups = places_of(store, file)
    path = store.absolute(file.path)
    whole = path.read_bytes()
    names = lake_schema(POST).names
    columns = [chunk for group in groups for chunk in group.columns.values()]
    pages = [page for chunk in columns for page in (*chunk.pages, chunk.dictionary) if page is not None and page.packed]
    noticed = 0
    for _ in range(150):
        page = pages[int(rng.integers(len(pages)))]
        place = page.begin + int(rng.integers(page.packed))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(rng.integers(8))]) + whole[place + 1 :])
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for group in groups:
                rows_of(descriptor, group, range(8), ["did:plc:1", "did:plc:2"], names, Buffers())
        except CannotReadError:
            noticed += 1
        finally:
            os.close(descriptor)
    assert noticed > 20


def test_a_file_of_another_layout_has_no_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LakeStore(tmp_path)
    rows = _table(np.random.default_rng(4), ["did:plc:1"] * 10)
    plain = layout.writer_options

    def other(*arguments: Any, **more: Any) -> dict[str, Any]:
        return plain(*arguments, **more) | {"data_page_version": "2.0", "compression": "gzip", "compression_level": 1}

    monkeypatch.setattr("lake.file_batch.writer_options", other)
    file = _write(store, rows)
    assert places_of(store, file) == ()
    account_index.build(store, file)
    index = AccountIndex(tmp_path)
    assert index.places(file, ["did:plc:1"]) is None
    assert index.activity(file, "did:plc:1")


def test_differences_wrap_around() -> None:
    values = [2**63 - 1, -(2**63), 0, 2**63 - 1, -1] * 100
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table({"n": values}),
        sink,
        use_dictionary=False,
        column_encoding={"n": "DELTA_BINARY_PACKED"},
        compression="none",
    )
    data = sink.getvalue().to_pybytes()
    begin = data.index(page_values_head(len(values), values[0]))
    marks = list(page_values.delta_marks(data, begin, len(values)))
    assert [page_values.delta_at(data, begin, marks[0], n) for n in range(len(values))] == values


def page_values_head(count: int, first: int) -> bytes:
    """How a page of differences begins."""

    def number(value: int) -> bytes:
        out = bytearray()
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*out, value])

    return number(256) + number(4) + number(count) + number((first << 1 ^ first >> 63) % _WORD)


@pytest.mark.parametrize("width", [1, 2, 7, 8, 13, 16, 17, 24])
def test_numbers_in_runs(width: int) -> None:
    values = np.random.default_rng(width).integers(0, 1 << width, 40).tolist()
    bits = sum(value << width * place for place, value in enumerate(values))
    packed = bytes([5 << 1 | 1]) + bits.to_bytes(5 * width, "little")
    repeated = bytes([12 << 1]) + values[0].to_bytes(-(-width // 8), "little")
    runs = b"x" + repeated + packed + repeated + packed
    expected = [values[0]] * 12 + values + [values[0]] * 12 + values
    for count in (1, 12, 13, 50, 52, 64, 65, 104):
        assert page_values.numbers(runs, 1, width, count).tolist() == expected[:count]
        assert page_values.number_at(runs, 1, width, count - 1) == expected[count - 1]


def test_a_text_is_found_by_where_it_begins() -> None:
    texts = [b"a", b"", b"\x01\x00\x00\x00a", b"bb"]
    page = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    begins = [0, 5, 9, 18]
    assert [page_values.number_of_text(page, 0, begin) for begin in begins] == [0, 1, 2, 3]
    assert page_values.number_of_text(page, 0, page.index(b"\x01\x00\x00\x00a", 1)) is None
    assert [page_values.text_at(page, 0, number, len(page)) for number in range(4)] == texts
    with pytest.raises(IndexError):
        page_values.text_at(page, 0, 3, len(page) - 1)

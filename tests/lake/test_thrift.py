"""Structs of thrift's compact protocol are written as they were read, and what is none is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake.thrift import (
    BINARY,
    BYTE,
    DOUBLE,
    FALSE,
    I16,
    I32,
    I64,
    LIST,
    STRUCT,
    TRUE,
    Items,
    NotThriftError,
    Struct,
    Value,
    read_struct,
    write_struct,
)

_PLAIN: dict[int, st.SearchStrategy[Any]] = {
    BYTE: st.integers(0, 255),
    I16: st.integers(-(2**15), 2**15 - 1),
    I32: st.integers(-(2**31), 2**31 - 1),
    I64: st.integers(-(2**63), 2**63 - 1),
    DOUBLE: st.floats(allow_nan=False),
    BINARY: st.binary(max_size=200),
}
_PLAIN_VALUES = st.sampled_from(sorted(_PLAIN)).flatmap(lambda kind: _PLAIN[kind].map(lambda value: Value(kind, value)))
_FLAGS = st.booleans().map(lambda flag: Value(TRUE if flag else FALSE, flag))
_NUMBERS = st.integers(1, 2**15 - 1)


def _lists(structs: st.SearchStrategy[Struct]) -> st.SearchStrategy[Value]:
    plain = st.sampled_from(sorted(_PLAIN)).flatmap(
        lambda kind: st.lists(_PLAIN[kind], max_size=40).map(lambda values: Items(kind, values))
    )
    flags = st.lists(st.booleans(), max_size=20).map(lambda values: Items(TRUE, values))
    nested = st.lists(structs, max_size=3).map(lambda values: Items(STRUCT, values))
    return st.one_of(plain, flags, nested).map(lambda items: Value(LIST, items))


def _more(structs: st.SearchStrategy[Struct]) -> st.SearchStrategy[Struct]:
    inner = structs.map(lambda fields: Value(STRUCT, fields))
    return st.dictionaries(_NUMBERS, st.one_of(_PLAIN_VALUES, _FLAGS, _lists(structs), inner), max_size=6)


STRUCTS = st.recursive(st.dictionaries(_NUMBERS, st.one_of(_PLAIN_VALUES, _FLAGS), max_size=20), _more, max_leaves=6)


@given(fields=STRUCTS, before=st.binary(max_size=5), after=st.binary(max_size=5))
def test_a_struct_that_was_written_is_read(fields: Struct, before: bytes, after: bytes) -> None:
    encoded = write_struct(fields)
    found, place = read_struct(before + encoded + after, len(before))
    assert found == fields
    assert list(found) == list(fields)
    assert place == len(before) + len(encoded)


@given(fields=STRUCTS, share=st.floats(0, 1, exclude_max=True))
def test_a_torn_struct_is_refused(fields: Struct, share: float) -> None:
    encoded = write_struct(fields)
    with pytest.raises(NotThriftError):
        read_struct(encoded[: int(len(encoded) * share)])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_struct_or_refused(data: bytes) -> None:
    try:
        fields, _ = read_struct(data)
    except NotThriftError:
        return
    assert read_struct(write_struct(fields))[0] == fields


def test_nesting_has_a_bound() -> None:
    deep: Struct = {}
    for _ in range(100):
        deep = {1: Value(LIST, Items(STRUCT, [deep]))}
    with pytest.raises(NotThriftError, match="deep"):
        read_struct(write_struct(deep))
    with pytest.raises(NotThriftError, match="deep"):
        read_struct(b"\x19" + b"\x19" * 10_000)


@pytest.mark.parametrize("writer", ["pyarrow", "duckdb", "polars"])
def test_footers_of_other_programs_are_written_as_they_were(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "file.parquet"
    rows = pa.table(
        {
            "a": pa.array([1, None, 3] * 50),
            "b": pa.array([["x", "y"], None, []] * 50, pa.list_(pa.string())),
            "c": pa.array([b"\x00\xff", b"", None] * 50),
            "d": pa.array([1.5, None, -0.0] * 50),
        }
    )
    if writer == "pyarrow":
        bloom = {"a": {"ndv": 100, "fpp": 0.1}}
        pq.write_table(rows, path, row_group_size=40, write_page_index=True, bloom_filter_options=bloom)
    elif writer == "duckdb":
        # A connection of its own: the module's default one may hold another test's unfinished result.
        with duckdb.connect() as connection:
            connection.register("rows", rows)
            connection.execute(f"COPY rows TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 2048)")
    else:
        pl.DataFrame(rows).write_parquet(path, row_group_size=40)
    data = path.read_bytes()
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") : -8]
    fields, place = read_struct(footer)
    assert place == len(footer)
    assert fields[3].value == rows.num_rows
    assert len(fields[4].value.values) == pq.read_metadata(path).num_row_groups
    assert write_struct(fields) == footer

"""Probing Parquet's bloom filters never leaves out a file that DuckDB finds the value in, and survives what is no filter."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lake.bloom import FilterIndex
from lake.manifest import LiveFile

_INTS = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(0, 40))
_TEXTS = st.one_of(st.none(), st.text(max_size=8), st.sampled_from(["did:plc:a", "did:plc:b", "did:web:é.example"]))
_ROWS = st.lists(st.tuples(_TEXTS, _INTS, _INTS), min_size=1, max_size=60)


def _file(folder: Path, name: str, rows: list[tuple[Any, ...]], group: int = 1 << 20) -> LiveFile:
    who, key, other = (list(column) for column in zip(*rows, strict=True))
    table = pa.table(
        {"did": pa.array(who, pa.string()), "key": pa.array(key, pa.int64()), "other": pa.array(other, pa.int64())}
    )
    options = {name: {"ndv": len(rows), "fpp": 0.05} for name in ("did", "key")}
    pq.write_table(table, folder / name, row_group_size=group, bloom_filter_options=options, store_schema=False)
    return _live(folder, name)


def _live(folder: Path, name: str) -> LiveFile:
    data = (folder / name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return LiveFile(name, "t", 0, 1, len(data), 0, 0, digest, "rolled", 0, False, 0, 1, 0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hours=st.lists(_ROWS, min_size=1, max_size=4), group=st.sampled_from([7, 1 << 20]), data=st.data())
def test_no_file_with_a_match_is_left_out(
    tmp_path: Path, hours: list[list[tuple[Any, ...]]], group: int, data: st.DataObject
) -> None:
    files = [_file(tmp_path, f"{number}.parquet", rows, group) for number, rows in enumerate(hours)]
    everything = [row for rows in hours for row in rows]
    columns = data.draw(st.sets(st.sampled_from(["did", "key", "other"]), min_size=1))
    wanted: dict[str, list[Any]] = {}
    for place, column in enumerate(("did", "key", "other")):
        known = [row[place] for row in everything if row[place] is not None] or ["x" if column == "did" else 1]
        if column in columns:
            wanted[column] = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=3))
    condition = " AND ".join(f"list_contains(${column}, {column})" for column in wanted)
    with duckdb.connect() as connection:
        truth = {
            file.path
            for file in files
            if connection.execute(
                f"SELECT 1 FROM read_parquet($file) WHERE {condition}", {"file": str(tmp_path / file.path), **wanted}
            ).fetchone()
        }
    found = [file.path for file in FilterIndex(tmp_path).may_hold(files, wanted)]
    assert truth <= set(found)
    assert found == [file.path for file in files if file.path in found], "in their order"


def test_files_without_the_value_are_left_out(tmp_path: Path) -> None:
    chance = random.Random(1)
    files = [
        _file(
            tmp_path,
            f"{number}.parquet",
            [(f"did:plc:{chance.random()}", chance.getrandbits(62), 0) for _ in range(500)],
        )
        for number in range(20)
    ]
    index = FilterIndex(tmp_path)
    tries = [("did", f"did:plc:{number}") for number in range(20)] + [("key", number) for number in range(20)]
    left = sum(len(index.may_hold(files, {column: [value]})) for column, value in tries)
    assert left < len(files) * len(tries) * 0.15
    assert index.may_hold(files, {"other": [12345]}) == files, "a column without a filter tells nothing"
    small = [replace(file, kind="small") for file in files]
    assert index.may_hold(small, {"did": ["did:plc:1"]}) == small
    assert index.may_hold(files, {"did": []}) == [], "no value is no match"


def test_both_columns_must_match_in_one_row_group(tmp_path: Path) -> None:
    file = _file(tmp_path, "a.parquet", [("a", 1, 0)] * 10 + [("b", 2, 0)] * 10, group=10)
    index = FilterIndex(tmp_path)
    assert index.may_hold([file], {"did": ["a"], "key": [1]}) == [file]
    assert index.may_hold([file], {"did": ["a"], "key": [2]}) == []


@pytest.mark.parametrize("damage", ["header", "cut", "no Parquet", "gone"])
def test_what_is_no_filter_rules_nothing_out(tmp_path: Path, damage: str) -> None:
    file = _file(tmp_path, "a.parquet", [("a", 1, 0), ("b", 2, 0)])
    path = tmp_path / file.path
    raw = bytearray(path.read_bytes())
    index = FilterIndex(tmp_path)
    if damage == "header":
        column = pq.read_metadata(path).row_group(0).column(0)
        assert index.may_hold([file], {"did": ["z"]}) == []
        raw[column.bloom_filter_offset] ^= 0xFF
        path.write_bytes(raw)
    elif damage == "cut":
        # The footer was read when the file was whole.
        assert index.may_hold([file], {"did": ["z"]}) == []
        path.write_bytes(raw[:8])
        assert index.may_hold([file], {"did": ["z"]}) == [file]
    elif damage == "no Parquet":
        path.write_bytes(b"not a Parquet file")
    else:
        path.unlink()
    assert FilterIndex(tmp_path).may_hold([file], {"did": ["z"]}) == [file]

"""The formats that are written natively hold what the JSON of an answer holds."""

from __future__ import annotations

import csv
import io
from datetime import datetime
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from api.columns import to_json
from api.tabular import flat, ndjson, write_csv

SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("langs", pa.list_(pa.string())),
        ("likes", pa.int64()),
        ("resync", pa.bool_()),
        ("time", pa.timestamp("us")),
    ]
)
texts = st.text(st.characters(codec="utf-8"), max_size=12)
rows = st.fixed_dictionaries(
    {
        "text": st.none() | texts,
        "langs": st.none() | st.lists(st.none() | texts, max_size=3),
        "likes": st.none() | st.integers(-(2**63), 2**63 - 1),
        "resync": st.none() | st.booleans(),
        "time": st.none() | st.datetimes(datetime(1, 1, 1), datetime(9999, 1, 1)),  # noqa: DTZ001 - UTC without zone
    }
)


@settings(max_examples=200, deadline=None)
@given(st.lists(rows, max_size=5))
def test_lines_and_lists_are_the_json_of_the_rows(values: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(values, schema=SCHEMA)
    lines = ndjson(table).split(b"\n")
    assert [msgspec.json.decode(line) for line in lines if line] == to_json(table)
    lists = flat(table)["langs"].to_pylist()
    assert [text if text is None else msgspec.json.decode(text) for text in lists] == [row["langs"] for row in values]


@settings(max_examples=200, deadline=None)
@given(st.lists(rows, max_size=5), st.lists(st.sampled_from(SCHEMA.names), min_size=1, unique=True))
def test_every_row_is_a_line_that_readers_of_csv_see(values: list[dict[str, Any]], names: list[str]) -> None:
    table = flat(pa.Table.from_pylist(values, schema=SCHEMA).select(names))
    sink = io.BytesIO()
    write_csv(table, sink, header=True)
    read = list(csv.reader(io.StringIO(sink.getvalue().decode(), newline="")))
    assert read[0] == names
    assert len([row for row in read[1:] if row]) == len(values)
    text = read[0].index("text") if "text" in names else None
    if text is not None:
        assert [row[text] for row in read[1:]] == [row["text"] or "" for row in values]
    frame = pd.read_csv(io.BytesIO(sink.getvalue()), lineterminator="\n")
    assert len(frame) == len(values)

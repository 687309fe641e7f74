"""Small results as files in an answer: CSV, NDJSON, Parquet, straight from an Arrow table."""

from __future__ import annotations

import io
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq


class TableFormat(StrEnum):
    """How rows are written."""

    CSV = "csv"
    NDJSON = "ndjson"
    PARQUET = "parquet"


MEDIA_TYPES: Final = {
    TableFormat.CSV: "text/csv; charset=utf-8",
    TableFormat.NDJSON: "application/x-ndjson",
    TableFormat.PARQUET: "application/vnd.apache.parquet",
}
_FORMULA: Final = "^[=+\\-@\t\r]"


def time_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Timestamps as RFC 3339 texts in UTC with six fractional digits."""
    text = pc.replace_substring(column.cast(pa.string()), " ", "T")
    return pc.binary_join_element_wise(text, pa.scalar("Z"), "")


def flat(table: pa.Table, *, spreadsheet_safe: bool = False) -> pa.Table:
    """The table with columns that CSV can hold: times as text, lists as JSON arrays.

    spreadsheet_safe: texts that a spreadsheet would run as a formula get a leading apostrophe, which changes the data.
    """
    columns: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_timestamp(column.type):
            columns[name] = time_texts(column)
        elif pa.types.is_list(column.type):
            columns[name] = _json_texts(name, column)
        else:
            columns[name] = column
        if spreadsheet_safe and pa.types.is_string(columns[name].type):
            dangerous = pc.match_substring_regex(columns[name], _FORMULA)
            columns[name] = pc.if_else(
                dangerous, pc.binary_join_element_wise(pa.scalar("'"), columns[name], ""), columns[name]
            )
    return pa.table(columns)


def _json_texts(name: str, lists: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists as JSON arrays; null stays null."""
    frame = _frame(pa.table({name: lists}))
    # Objects with one member, whose name and braces are cut off again.
    whole = frame.select(text=pl.struct(name).struct.json_encode())
    head = len(msgspec.json.encode(name)) + 2
    inner = pl.col("text").str.slice(head, pl.col("text").str.len_chars() - head - 1)
    texts = whole.select(pl.when(frame[name].is_not_null()).then(inner))
    return texts.to_arrow(compat_level=pl.CompatLevel.oldest()).column(0).cast(pa.string())


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def write_csv(table: pa.Table, sink: Any, *, header: bool) -> None:
    """RFC 4180 with a line feed: every text quoted, null an empty unquoted field, so that "" and null stay apart.

    Not in a table of one column, where such a null would be an empty line, which pandas, R and Python's csv pass over as
    no row at all: there null is "" too.
    """
    if table.num_columns == 1:
        table = pa.table({table.column_names[0]: pc.fill_null(table.column(0).cast(pa.string()), "")})
    pacsv.write_csv(table, sink, pacsv.WriteOptions(include_header=header, quoting_style="needed"))


def ndjson(table: pa.Table) -> bytes:
    """One JSON object a line, with the values of `api.columns.to_json`."""
    texts = [time_texts(column) if pa.types.is_timestamp(column.type) else column for column in table.itercolumns()]
    return _frame(pa.table(texts, names=table.column_names)).write_ndjson().encode()


def table_bytes(table: pa.Table, form: TableFormat, metadata: Mapping[str, str]) -> bytes:
    """A whole small table as a file; `metadata` goes into a Parquet file's footer."""
    sink = io.BytesIO()
    if form is TableFormat.CSV:
        write_csv(flat(table), sink, header=True)
    elif form is TableFormat.NDJSON:
        sink.write(ndjson(table))
    else:
        pq.write_table(table.replace_schema_metadata(dict(metadata)), sink, compression="zstd")
    return sink.getvalue()

"""Public columns of a table: their names, the lake columns each one needs, and the conversion of result tables.

Public names are the Avro field names of `schemas.records`, with `time` and `received` for the two times, plus `uri`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, Field

from api.times import format_time
from lake.convert import from_lake_columns
from schemas.tables import TABLES

_RENAMED: Final = {"time_us": "time", "received_us": "received"}
_TIMES: Final = ("time", "received")
_URI_FIELDS: Final = ("did", "collection", "rkey")
PROVENANCE: Final = ("kafka_partition", "kafka_offset")


def _split_names(value: Any) -> Any:
    """Names given as a list, as one text with commas, or as both."""
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return value
    names = tuple(dict.fromkeys(name.strip() for text in texts for name in text.split(",") if name.strip()))
    if not names:
        raise ValueError("no field is named: leave it out for the usual ones")
    return names


FieldNames = Annotated[
    tuple[Annotated[str, Field(max_length=2000)], ...], BeforeValidator(_split_names), Field(max_length=100)
]
"""A parameter that chooses columns: names separated by commas or repeated, each kept once; empty = the usual ones."""


@cache
def public_fields(table: str) -> tuple[str, ...]:
    """Every column that a client may ask for, `uri` first, provenance last. KeyError for an unknown table."""
    names = [_RENAMED.get(group.field.name, group.field.name) for group in TABLES[table].groups]
    return (*(("uri",) if "collection" in names else ()), *names, *PROVENANCE)


@cache
def lake_columns(table: str, fields: tuple[str, ...]) -> tuple[str, ...]:
    """The lake columns that these public fields are made of, each once, in the order of the table."""
    wanted = set(fields) | (set(_URI_FIELDS) if "uri" in fields else set())
    columns = [
        column
        for group in TABLES[table].groups
        if _RENAMED.get(group.field.name, group.field.name) in wanted
        for column, _ in group.columns
    ]
    return (*columns, *(name for name in PROVENANCE if name in wanted))


def publish(table: str, rows: pa.Table, fields: Sequence[str]) -> pa.Table:
    """Lake rows as the public columns `fields`, in that order; times stay timestamps (UTC), everything else is as
    the network had it."""
    asked = set(fields) | (set(_URI_FIELDS) if "uri" in fields else set())
    found = from_lake_columns(table, rows, [name for name in asked if name not in ("uri", *_TIMES, *PROVENANCE)])
    columns: dict[str, Any] = {}
    for field in fields:
        if field == "uri":
            columns[field] = pc.binary_join_element_wise(
                pa.scalar("at:/"), found["did"], found["collection"], found["rkey"], "/"
            )
        elif field in (*_TIMES, *PROVENANCE):
            columns[field] = rows[field]
        else:
            columns[field] = found[field]
    return pa.table(columns)


def to_json(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON values: times in RFC 3339 UTC, null for members that a record does not have."""
    columns: dict[str, list[Any]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_timestamp(column.type):
            micros = column.cast(pa.int64()).to_pylist()
            columns[name] = [None if value is None else format_time(value) for value in micros]
        else:
            columns[name] = column.to_pylist()
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]

"""Columns as dictionaries (numbers into a list of distinct texts): what lets an hour of a million rows be merged in little memory.

Files are read that way, rows are moved as numbers, and the writer stores the lists as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lake.convert import lake_schema

_NAMES: Final = frozenset(
    {"did", "kind", "operation", "collection", "source_host", "protocol", "record_type", "subject", "erased"}
)
_ENDINGS: Final = ("_did", "_collection", "_text")

_INDEX: Final = pa.int32()


def dictionary_columns(table: str) -> list[str]:
    """The text columns of `table` that repeat or are mostly null."""
    return [
        field.name
        for field in lake_schema(table)
        if field.type == pa.string() and (field.name in _NAMES or field.name.endswith(_ENDINGS))
    ]


def merge_schema(table: str) -> pa.Schema:
    """`lake_schema` with `dictionary_columns` as dictionaries."""
    names = set(dictionary_columns(table))
    return pa.schema(
        field.with_type(pa.dictionary(_INDEX, pa.string())) if field.name in names else field
        for field in lake_schema(table)
    )


def joined(table: str, parts: Iterable[pa.Table]) -> pa.Table:
    """All parts (in either form) as one table of `merge_schema`, each column with one dictionary."""
    schema = merge_schema(table)
    return pa.concat_tables([schema.empty_table(), *(part.cast(schema) for part in parts)]).unify_dictionaries()


def taken(rows: pa.Table, places: pa.Array) -> pa.Table:
    """The rows at `places`, each dictionary reduced to the values these rows use.

    The rest must not reach a file: it may be content that was just erased.
    """
    return pa.table([_compact(column.take(places)) for column in rows.columns], schema=rows.schema)


def compacted(rows: pa.Table) -> pa.Table:
    """`rows` with each dictionary reduced to the values in use."""
    return pa.table([_compact(column) for column in rows.columns], schema=rows.schema)


def without(column: pa.ChunkedArray, gone: npt.NDArray[np.bool_]) -> pa.ChunkedArray:
    """`column` with nulls where `gone` is true; a dictionary loses the values that only those rows had."""
    if column.null_count == len(column):
        return column
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    mask = pa.array(gone)
    if pa.types.is_dictionary(array.type):
        indices = pc.if_else(mask, pa.scalar(None, _INDEX), array.indices)
        return _compact(pa.chunked_array([pa.DictionaryArray.from_arrays(indices, array.dictionary)]))
    return pa.chunked_array([pc.if_else(mask, pa.scalar(None, array.type), array)])


def _compact(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_dictionary(column.type):
        return column
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(array, pa.ChunkedArray):
        array = array.unify_dictionaries().chunk(0) if array.num_chunks else pa.array([], column.type)
    indices, values = array.indices, array.dictionary
    numbers = np.asarray(indices.fill_null(0))
    used = np.zeros(len(values), np.bool_)
    used[numbers[np.asarray(indices.is_valid())]] = True
    if used.all():
        return pa.chunked_array([array])
    places = np.cumsum(used, dtype=np.int32) - 1
    mask = None if indices.null_count == 0 else np.asarray(indices.is_null())
    moved = pa.array(places[numbers] if len(places) else numbers.astype(np.int32), mask=mask, type=_INDEX)
    return pa.chunked_array([pa.DictionaryArray.from_arrays(moved, values.filter(pa.array(used)))])

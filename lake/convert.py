"""Decoded Avro columns to lake columns and back, whole columns at a time.

`schemas.tables` says which columns hold each field. A compact column is filled only if the text comes back exactly; every
other value goes to the `_text` column beside it. Nothing here makes a Python object per event, except `from_lake`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from lake import base32
from lake.errors import ForeignTable
from schemas.lexicons import Kind
from schemas.tables import DIGEST, PROVENANCE, TABLES, TIMESTAMP, ColumnGroup, Table

ERASED: Final = "erased"
"""Column that says why a row's content is gone (delete, update, account, sync); null while the row is a record."""
EDIT: Final = "edit"
"""Mark in `erased` of a row that a newer version replaced and whose content is kept, by setting."""

_AT_URI: Final = "at://"
_YEAR_1_US: Final = -62_135_596_800_000_000
_YEAR_10000_US: Final = 253_402_300_800_000_000
_CANONICAL_LENGTH: Final = 24
_DAYS_IN_MONTH: Final = np.array([0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], np.int64)


def lake_schema(table: str) -> pa.Schema:
    """Arrow schema of a lake file of `table`: the contract's columns and `erased`. Raises ForeignTable."""
    return contract(table).arrow.append(pa.field(ERASED, pa.string()))


def contract(table: str) -> Table:
    """The contract's shape of `table`; raises ForeignTable if there is none."""
    try:
        return TABLES[table]
    except KeyError:
        raise ForeignTable(f"No table {table!r} in the contract.", "Tables are listed in schemas/tables.py.") from None


def to_lake(table_name: str, decoded: pl.DataFrame | pa.Table) -> pa.Table:
    """Lake rows of `table_name` from decoded Avro fields plus kafka_partition and kafka_offset, in the same order.

    Columns that the writer's (older) schema did not have may be absent: they become null. Values must be valid UTF-8.
    """
    shape = contract(table_name)
    frame = pl.from_arrow(decoded) if isinstance(decoded, pa.Table) else decoded
    assert isinstance(frame, pl.DataFrame)
    rows = frame.height
    columns: dict[str, pa.Array] = {}
    for group in shape.groups:
        name = group.field.name
        if name not in frame.columns:
            columns.update({column: pa.nulls(rows, kind) for column, kind in group.columns})
            continue
        arrays = _TO_LAKE.get(group.field.kind, _plain_to_lake)(frame.get_column(name), group)
        columns.update(zip((column for column, _ in group.columns), arrays, strict=True))
    for name, kind in PROVENANCE:
        columns[name] = _arrow(frame.get_column(name), kind)
    columns[ERASED] = pa.nulls(rows, pa.string())
    schema = lake_schema(table_name)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def from_lake_columns(table_name: str, rows: pa.Table, fields: Collection[str] | None = None) -> pa.Table:
    """The Avro fields of lake rows, as columns, plus kafka_partition, kafka_offset and `erased` where present.

    fields: only these Avro fields (None = all).
    """
    columns: dict[str, pa.Array] = {}
    for group in contract(table_name).groups:
        if fields is not None and group.field.name not in fields:
            continue
        arrays = [
            _one_chunk(rows.column(name)).cast(kind) if name in rows.column_names else pa.nulls(rows.num_rows, kind)
            for name, kind in group.columns
        ]
        columns[group.field.name] = _FROM_LAKE.get(group.field.kind, _plain_from_lake)(arrays)
    for name in (*(name for name, _ in PROVENANCE), ERASED):
        if name in rows.column_names:
            columns[name] = _one_chunk(rows.column(name))
    return pa.table(columns)


def from_lake(table_name: str, rows: pa.Table) -> list[dict[str, Any]]:
    """Decoded Avro events (dicts, for `schemas.rebuild`) of lake rows; a Python object per row, for exports and tests."""
    result: list[dict[str, Any]] = from_lake_columns(table_name, rows).to_pylist()
    return result


# --- buffers of text ------------------------------------------------------------------------------------------------


def _one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _arrow(series: pl.Series, kind: pa.DataType) -> pa.Array:
    return _one_chunk(series.to_arrow(compat_level=pl.CompatLevel.oldest())).cast(kind)


def _valid(array: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False))


def _offsets(array: pa.Array) -> npt.NDArray[np.int64]:
    """Byte offsets of a large_string array without nulls."""
    return np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]


def _characters(array: pa.Array, length: int) -> base32.Bytes:
    """(n, length) bytes of a large_string array whose n texts all have `length` bytes."""
    if len(array) == 0:
        return np.empty((0, length), np.uint8)
    offsets = _offsets(array)
    data = np.frombuffer(array.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    return data.reshape(len(array), length)


def _of_length(array: pa.Array, length: int) -> tuple[npt.NDArray[np.bool_], base32.Bytes]:
    """Which texts have exactly `length` bytes, and those texts' bytes, row by row."""
    mask = pc.fill_null(pc.equal(pc.binary_length(array), length), False)
    chosen = np.asarray(mask.to_numpy(zero_copy_only=False))
    picked = array if array.null_count == 0 and chosen.all() else array.filter(mask)
    return chosen, _characters(picked, length)


def _text_array(characters: base32.Bytes) -> pa.Array:
    rows, length = characters.shape
    offsets = np.arange(0, (rows + 1) * length, length, dtype=np.int32)
    data = np.ascontiguousarray(characters)
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(data))


def _scatter(rows: int, where: npt.NDArray[np.bool_], values: npt.NDArray[Any], dtype: Any) -> npt.NDArray[Any]:
    if len(values) == rows:
        return values.astype(dtype, copy=False)
    full = np.zeros((rows, *values.shape[1:]), dtype)
    full[where] = values
    return full


def _fallback(array: pa.Array, exact: npt.NDArray[np.bool_]) -> pa.Array:
    """The texts of the rows that have no exact compact form; null elsewhere."""
    if exact.all() or array.null_count == len(array):
        return pa.nulls(len(array), pa.string())
    return pc.if_else(pa.array(~exact), array, pa.scalar(None, array.type)).cast(pa.string())


def _digest_array(digests: base32.Bytes, exact: npt.NDArray[np.bool_]) -> pa.Array:
    bitmap = None if exact.all() else pa.py_buffer(np.packbits(exact, bitorder="little"))
    return pa.Array.from_buffers(DIGEST, len(exact), [bitmap, pa.py_buffer(np.ascontiguousarray(digests))])


def _numbers(values: npt.NDArray[np.int64], exact: npt.NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    return pa.array(values, mask=None if exact.all() else ~exact).cast(kind)


# --- fields to lake columns -----------------------------------------------------------------------------------------


def _plain_to_lake(series: pl.Series, group: ColumnGroup) -> list[pa.Array]:
    return [_arrow(series, group.columns[0][1])]


def _micros_to_lake(series: pl.Series, group: ColumnGroup) -> list[pa.Array]:
    return [_arrow(series, pa.int64()).cast(TIMESTAMP)]


def _tids(array: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    chosen, characters = _of_length(array, base32.TID_LENGTH)
    numbers, valid = base32.decode_tids(characters)
    rows = len(array)
    return _scatter(rows, chosen, numbers, np.int64), _scatter(rows, chosen, valid, np.bool_)


def _tid_to_lake(series: pl.Series, group: ColumnGroup) -> list[pa.Array]:
    array = _arrow(series, pa.large_string())
    numbers, exact = _tids(array)
    return [_numbers(numbers, exact, pa.int64()), _fallback(array, exact)]


def _cid_to_lake(series: pl.Series, group: ColumnGroup) -> list[pa.Array]:
    array = _arrow(series, pa.large_string())
    chosen, characters = _of_length(array, base32.CID_LENGTH)
    digests, valid = base32.decode_cids(characters)
    exact = _scatter(len(array), chosen, valid, np.bool_)
    return [_digest_array(_scatter(len(array), chosen, digests, np.uint8), exact), _fallback(array, exact)]


def _uri_to_lake(series: pl.Series, group: ColumnGroup) -> list[pa.Array]:
    """Splits `at://did/collection/tid`; any other text stays whole."""
    array = _arrow(series, pa.large_string())
    rows = len(array)
    # at: + / + / + did + / + collection + / + tid: the text has four slashes, and the last 13 characters are a TID.
    texts = pl.Series("uri", array)
    parts = texts.str.splitn("/", 5).struct
    scheme, empty, did, collection, rkey = (parts.field(f"field_{number}") for number in range(5))
    numbers, exact = _tids(_arrow(rkey, pa.large_string()))
    split_well = ((scheme == "at:") & (empty == "") & (did != "") & (collection != "")).fill_null(False)
    exact &= split_well.to_numpy()
    keep = pa.array(exact)
    pieces = [
        array_ if exact.all() else pc.if_else(keep, array_, pa.scalar(None, pa.string()))
        for array_ in (_arrow(did, pa.string()), _arrow(collection, pa.string()))
    ]
    assert len(pieces[0]) == rows
    return [*pieces, _numbers(numbers, exact, pa.int64()), _fallback(array, exact)]


def _datetime_to_lake(series: pl.Series, group: ColumnGroup) -> list[pa.Array]:
    array = _arrow(series, pa.large_string())
    rows = len(array)
    chosen, characters = _of_length(array, _CANONICAL_LENGTH)
    micros, valid = _parse_canonical(characters)
    micros = _scatter(rows, chosen, micros, np.int64)
    exact = _scatter(rows, chosen, valid, np.bool_)
    text = _fallback(array, exact)
    parsed = exact
    if text.null_count < rows:
        other = _parse_lenient(text)
        found = _valid(other)
        micros = np.where(found, np.asarray(other.fill_null(0)), micros)
        parsed = exact | found
    return [_numbers(micros, parsed, pa.int64()).cast(TIMESTAMP), text]


def _parse_canonical(characters: base32.Bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """`YYYY-MM-DDTHH:MM:SS.mmmZ` as microseconds, and which rows are exactly that."""
    digits = characters - np.uint8(48)
    valid = np.ones(len(characters), np.bool_)
    for position, character in ((4, "-"), (7, "-"), (10, "T"), (13, ":"), (16, ":"), (19, "."), (23, "Z")):
        valid &= characters[:, position] == ord(character)

    def number(*positions: int) -> npt.NDArray[np.int64]:
        nonlocal valid
        value = np.zeros(len(characters), np.int64)
        for position in positions:
            valid &= digits[:, position] < 10
            value = value * 10 + digits[:, position]
        return value

    year, month, day = number(0, 1, 2, 3), number(5, 6), number(8, 9)
    hour, minute, second, milli = number(11, 12), number(14, 15), number(17, 18), number(20, 21, 22)
    valid &= (year >= 1) & (month >= 1) & (month <= 12) & (day >= 1)
    month = np.where(valid, month, 1)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    valid &= (day <= _DAYS_IN_MONTH[month]) & ((month != 2) | (day <= 28) | leap)
    valid &= (hour < 24) & (minute < 60) & (second < 60)
    # Days since 1970-01-01 with the year starting in March, so that a leap day is the last of its year.
    shifted = year - (month <= 2)
    day_of_year = (153 * (month + np.where(month > 2, -3, 9)) + 2) // 5 + day - 1
    days = 365 * shifted + shifted // 4 - shifted // 100 + shifted // 400 + day_of_year - 719_468
    micros = (((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + milli * 1000
    return micros, valid


def _parse_lenient(texts: pa.Array) -> pa.Array:
    """Other RFC 3339 spellings as microseconds; null where the text is no time of the years 1 to 9999."""
    series = pl.Series("text", texts)
    micros: pl.Series | None = None
    for pattern in ("%Y-%m-%dT%H:%M:%S%.f%:z", "%Y-%m-%dT%H:%M:%S%.fZ", "%Y-%m-%dT%H:%M:%S%.f"):
        zoned = pattern.endswith("z")
        parsed = series.str.to_datetime(
            pattern, time_unit="us", time_zone="UTC" if zoned else None, strict=False, exact=True
        ).cast(pl.Int64)
        micros = parsed if micros is None else micros.fill_null(parsed)
    assert micros is not None
    micros = pl.select(
        pl.when((micros >= _YEAR_1_US) & (micros < _YEAR_10000_US)).then(micros).otherwise(None)
    ).to_series()
    return _arrow(micros, pa.int64())


# --- lake columns to fields -----------------------------------------------------------------------------------------


def _plain_from_lake(arrays: list[pa.Array]) -> pa.Array:
    return arrays[0]


def _micros_from_lake(arrays: list[pa.Array]) -> pa.Array:
    return arrays[0].cast(pa.int64())


def _tid_texts(numbers: pa.Array) -> pa.Array:
    characters = base32.encode_tids(np.asarray(numbers.fill_null(0)))
    texts = _text_array(characters)
    return texts if numbers.null_count == 0 else pc.if_else(numbers.is_valid(), texts, pa.scalar(None, pa.string()))


def _tid_from_lake(arrays: list[pa.Array]) -> pa.Array:
    return pc.coalesce(_tid_texts(arrays[0]), arrays[1])


def _cid_from_lake(arrays: list[pa.Array]) -> pa.Array:
    digests, texts = arrays
    present = digests.drop_null()
    raw = np.frombuffer(present.buffers()[1], np.uint8, len(present) * 32, present.offset * 32) if len(present) else b""
    encoded = _text_array(base32.encode_cids(np.asarray(raw, np.uint8).reshape(-1, 32) if len(present) else _NO_DIGEST))
    if len(present) == len(digests):
        return encoded
    valid = _valid(digests)
    positions = pa.array(np.cumsum(valid) - 1, mask=~valid)
    return pc.coalesce(encoded.take(positions), texts)


_NO_DIGEST: Final = np.empty((0, 32), np.uint8)


def _uri_from_lake(arrays: list[pa.Array]) -> pa.Array:
    did, collection, rkey, text = arrays
    joined = pc.binary_join_element_wise(pa.scalar("at:/"), did, collection, _tid_texts(rkey), "/")
    return pc.coalesce(joined, text)


def _datetime_from_lake(arrays: list[pa.Array]) -> pa.Array:
    times, texts = arrays
    series = pl.Series("time", times).dt.strftime("%Y-%m-%dT%H:%M:%S.%3fZ")
    return pc.coalesce(texts, _arrow(series, pa.string()))


_TO_LAKE: Final[dict[Kind, Callable[[pl.Series, ColumnGroup], list[pa.Array]]]] = {
    Kind.TID: _tid_to_lake,
    Kind.CID: _cid_to_lake,
    Kind.URI: _uri_to_lake,
    Kind.DATETIME: _datetime_to_lake,
    Kind.MICROS: _micros_to_lake,
}
_FROM_LAKE: Final[dict[Kind, Callable[[list[pa.Array]], pa.Array]]] = {
    Kind.TID: _tid_from_lake,
    Kind.CID: _cid_from_lake,
    Kind.URI: _uri_from_lake,
    Kind.DATETIME: _datetime_from_lake,
    Kind.MICROS: _micros_from_lake,
}

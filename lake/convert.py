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
from lake.base32 import Mask
from lake.errors import ForeignTable
from schemas.lexicons import Kind
from schemas.tables import DIGEST, MILLIS, PROVENANCE, TABLES, ColumnGroup, Table

ERASED: Final = "erased"
"""Column that says why a row's content is gone (delete, update, account, sync); null while the row is a record."""
EDIT: Final = "edit"
"""Mark in `erased` of a row that a newer version replaced and whose content is kept, by setting."""

_YEAR_1_US: Final = -62_135_596_800_000_000
_YEAR_10000_US: Final = 253_402_300_800_000_000
_CANONICAL_LENGTH: Final = 24
_DAYS_IN_MONTH: Final = np.array([0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], np.int32)


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
    # One call for all columns: each crossing between the libraries costs tens of microseconds.
    fields = decoded if isinstance(decoded, pa.Table) else decoded.to_arrow(compat_level=pl.CompatLevel.oldest())
    have, rows = set(fields.column_names), fields.num_rows
    columns: dict[str, pa.Array] = {}
    for group in shape.groups:
        name = group.field.name
        array = _one_chunk(fields.column(name)) if name in have else pa.nulls(rows)
        columns.update(zip((column for column, _ in group.columns), _columns_of(array, group), strict=True))
    for name, kind in PROVENANCE:
        columns[name] = _as(_one_chunk(fields.column(name)), kind)
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


# --- columns of text ------------------------------------------------------------------------------------------------


def _one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _as(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return array if array.type == kind else array.cast(kind)


def _arrow(series: pl.Series, kind: pa.DataType) -> pa.Array:
    return _as(_one_chunk(series.to_arrow(compat_level=pl.CompatLevel.oldest())), kind)


def _bytes_of(texts: pa.Array) -> tuple[npt.NDArray[np.int64], base32.Bytes]:
    """Offsets (n + 1) into the bytes of a large_string array, and the bytes."""
    if len(texts) == 0:
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(texts.buffers()[2], np.uint8) if offsets[-1] > offsets[0] else np.empty(0, np.uint8)
    return offsets - offsets[0], data[offsets[0] : offsets[-1]]


def _present(array: pa.Array) -> Mask:
    found: Mask = array.is_valid().to_numpy(zero_copy_only=False)
    return found


def _of_length(texts: pa.Array, length: int) -> tuple[Mask, base32.Bytes]:
    """Which texts have exactly `length` bytes, and those texts' bytes, row by row."""
    offsets, data = _bytes_of(texts)
    chosen = np.diff(offsets) == length
    if texts.null_count:
        chosen &= _present(texts)
    # Nulls take no bytes as a rule, so the chosen texts lie side by side unless there are others.
    if len(data) != length * np.count_nonzero(chosen):
        _, data = _bytes_of(texts.filter(pa.array(chosen)))
    return chosen, data.reshape(-1, length)


def _text_array(characters: base32.Bytes) -> pa.Array:
    rows, length = characters.shape
    offsets = np.arange(0, (rows + 1) * length, length, dtype=np.int32)
    data = np.ascontiguousarray(characters)
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(data))


def _scatter(chosen: Mask, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`values` in the rows that were chosen, zeros in the others."""
    if len(values) == len(chosen):
        return values
    full = np.zeros((len(chosen), *values.shape[1:]), values.dtype)
    full[chosen] = values
    return full


def _fallback(texts: pa.Array, exact: Mask) -> pa.Array:
    """The texts of the rows that have no exact compact form; null elsewhere."""
    if np.count_nonzero(exact) == len(texts) - texts.null_count:
        return pa.nulls(len(texts), pa.string())
    return pc.if_else(pa.array(~exact), texts, pa.scalar(None, texts.type)).cast(pa.string())


def _digests(digests: base32.Bytes, exact: Mask) -> pa.Array:
    bitmap = None if exact.all() else pa.py_buffer(np.packbits(exact, bitorder="little"))
    return pa.Array.from_buffers(DIGEST, len(exact), [bitmap, pa.py_buffer(np.ascontiguousarray(digests))])


def _numbers(values: npt.NDArray[np.int64], exact: Mask) -> pa.Array:
    return pa.array(values, mask=None if exact.all() else ~exact)


# --- fields to lake columns -----------------------------------------------------------------------------------------


def _columns_of(values: pa.Array, group: ColumnGroup) -> list[pa.Array]:
    """The lake columns of one Avro field."""
    kinds = [kind for _, kind in group.columns]
    if values.null_count == len(values):
        return [pa.nulls(len(values), kind) for kind in kinds]
    convert = _TO_LAKE.get(group.field.kind)
    if convert is None:
        return [_as(values, kinds[0])]
    return convert(_as(values, pa.large_string()))


def _tids(texts: pa.Array) -> tuple[npt.NDArray[np.int64], Mask]:
    chosen, characters = _of_length(texts, base32.TID_LENGTH)
    numbers, valid = base32.decode_tids(characters)
    return _scatter(chosen, numbers), _scatter(chosen, valid)


def _tid_to_lake(texts: pa.Array) -> list[pa.Array]:
    numbers, exact = _tids(texts)
    return [_numbers(numbers, exact), _fallback(texts, exact)]


def _cid_to_lake(texts: pa.Array) -> list[pa.Array]:
    chosen, characters = _of_length(texts, base32.CID_LENGTH)
    digests, valid = base32.decode_cids(characters)
    exact = _scatter(chosen, valid)
    return [_digests(_scatter(chosen, digests), exact), _fallback(texts, exact)]


def _uri_to_lake(texts: pa.Array) -> list[pa.Array]:
    if texts.null_count:
        present = _present(texts)
        places = pa.array(np.cumsum(present) - 1, mask=~present)
        return [array.take(places) for array in _split_uris(texts.drop_null())]
    return _split_uris(texts)


def _split_uris(texts: pa.Array) -> list[pa.Array]:
    """Splits `at://did/collection/tid` (no nulls); any other text stays whole."""
    offsets, data = _bytes_of(texts)
    begin, end = offsets[:-1], offsets[1:]
    chosen, at = _four_slashes(texts, offsets, data)
    # at: + / + / + did + / + collection + / + tid
    valid = (at[:, 0] == 3) & (at[:, 1] == 4) & (at[:, 2] > 5) & (at[:, 3] > at[:, 2] + 1)
    valid &= ((end - begin)[chosen] - at[:, 3] - 1) == base32.TID_LENGTH
    chosen, at = chosen[valid], at[valid]
    valid = (
        (data[begin[chosen]] == ord("a"))
        & (data[begin[chosen] + 1] == ord("t"))
        & (data[begin[chosen] + 2] == ord(":"))
    )
    exact = np.zeros(len(texts), np.bool_)
    if len(chosen):
        keys = np.lib.stride_tricks.sliding_window_view(data, base32.TID_LENGTH)[end[chosen] - base32.TID_LENGTH]
        numbers, exact_keys = base32.decode_tids(keys)
        exact_keys &= valid
        exact[chosen] = exact_keys
    if not exact.any():
        return [
            *(pa.nulls(len(texts), kind) for kind in (pa.string(), pa.string(), pa.int64())),
            texts.cast(pa.string()),
        ]
    at = at[exact_keys]
    whole = exact.all()
    picked = texts if whole else texts.filter(pa.array(exact))
    pieces: list[pa.Array] = [
        _cut(picked, np.full(len(at), 5), at[:, 2] - 5),
        _cut(picked, at[:, 2] + 1, at[:, 3] - at[:, 2] - 1),
        pa.array(numbers[exact_keys]),
    ]
    if not whole:
        places = pa.array(np.cumsum(exact) - 1, mask=~exact)
        pieces = [piece.take(places) for piece in pieces]
    return [*pieces, _fallback(texts, exact)]


def _cut(texts: pa.Array, begin: npt.NDArray[np.int64], length: npt.NDArray[np.int64]) -> pa.Array:
    """A piece of each ASCII text."""
    if (length == length[0]).all():
        offsets, data = _bytes_of(texts)
        return _text_array(np.lib.stride_tricks.sliding_window_view(data, int(length[0]))[offsets[:-1] + begin])
    return _arrow(pl.Series("text", texts).str.slice(pl.Series(begin), pl.Series(length)), pa.string())


def _four_slashes(
    texts: pa.Array, offsets: npt.NDArray[np.int64], data: base32.Bytes
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows whose text is ASCII with four slashes, and where those are, as (rows, 4) places within the text."""
    slashes = np.flatnonzero(data == ord("/"))
    rows = len(texts)
    ascii_only = not len(data) or data.max() < 0x80
    if len(slashes) == 4 * rows and ascii_only:
        at = slashes.reshape(rows, 4)
        if ((at[:, 0] >= offsets[:-1]) & (at[:, 3] < offsets[1:])).all():
            return np.arange(rows), at - offsets[:-1, None]
    first = np.searchsorted(slashes, offsets)
    well = np.diff(first) == 4
    if not ascii_only:
        # Places are counted in bytes here and in characters where the text is cut.
        well &= pc.equal(pc.utf8_length(texts), pc.binary_length(texts)).to_numpy(zero_copy_only=False)
    chosen = np.flatnonzero(well)
    if not len(chosen):
        return chosen, np.empty((0, 4), np.int64)
    return chosen, slashes[first[chosen][:, None] + np.arange(4)] - offsets[chosen][:, None]


def _datetime_to_lake(texts: pa.Array) -> list[pa.Array]:
    chosen, characters = _of_length(texts, _CANONICAL_LENGTH)
    micros, valid = _parse_canonical(characters)
    micros, exact = _scatter(chosen, micros), _scatter(chosen, valid)
    text = _fallback(texts, exact)
    parsed = exact
    if text.null_count < len(text):
        other = _parse_lenient(text)
        found = _present(other)
        micros = np.where(found, np.asarray(other.fill_null(0)), micros)
        parsed = exact | found
    return [_numbers(micros // 1000, parsed).cast(MILLIS), text]


def _parse_canonical(characters: base32.Bytes) -> tuple[npt.NDArray[np.int64], Mask]:
    """`YYYY-MM-DDTHH:MM:SS.mmmZ` as microseconds, and which rows are exactly that."""
    # A column per character, so that every step below walks memory in order.
    columns = np.ascontiguousarray(characters.T)
    digits = (columns - np.uint8(48)).astype(np.int32)
    valid = np.ones(len(characters), np.bool_)
    for position, character in ((4, "-"), (7, "-"), (10, "T"), (13, ":"), (16, ":"), (19, "."), (23, "Z")):
        valid &= columns[position] == ord(character)

    def number(*positions: int) -> npt.NDArray[np.int32]:
        nonlocal valid
        value = np.zeros(len(characters), np.int32)
        for position in positions:
            valid &= digits[position] < 10
            value = value * 10 + digits[position]
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
    milliseconds = ((hour * 60 + minute) * 60 + second) * 1000 + milli
    return (days.astype(np.int64) * 86_400_000 + milliseconds) * 1000, valid


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
    valid = _present(digests)
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


_TO_LAKE: Final[dict[Kind, Callable[[pa.Array], list[pa.Array]]]] = {
    Kind.TID: _tid_to_lake,
    Kind.CID: _cid_to_lake,
    Kind.URI: _uri_to_lake,
    Kind.DATETIME: _datetime_to_lake,
}
_FROM_LAKE: Final[dict[Kind, Callable[[list[pa.Array]], pa.Array]]] = {
    Kind.TID: _tid_from_lake,
    Kind.CID: _cid_from_lake,
    Kind.URI: _uri_from_lake,
    Kind.DATETIME: _datetime_from_lake,
    Kind.MICROS: _micros_from_lake,
}

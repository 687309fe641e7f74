"""From an uploaded file to the table that is stored: every check, with errors that name row and column.

Runs in a process of its own (`worker`), because files from outside can be made to exhaust memory or to crash a decoder.
Rows are counted as a spreadsheet shows them: the header of a CSV is row 1; the first row of a Parquet file is row 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from api.labels.names import COLUMN, ValueKind
from lake.base32 import TID_LENGTH, decode_tids

KEYS: Final = ("uri", "did")
_MAX_ERRORS: Final = 20
_COUNTED_VALUES: Final = 50
_NULL_TEXTS: Final = ["", "NA", "NULL", "null"]
_BATCH_ROWS: Final = 65_536
_ROW_GROUP: Final = 122_880
_MAX_DID: Final = 2048
_DID: Final = r"did:[a-z]+:[A-Za-z0-9._:%-]+"
_NSID: Final = r"[A-Za-z][A-Za-z0-9-]*(?:\.[A-Za-z0-9][A-Za-z0-9-]*)+\.[A-Za-z][A-Za-z0-9]*"
_URI_PATTERN: Final = rf"^at://(?P<did>{_DID})/(?P<collection>{_NSID})/(?P<rkey>[A-Za-z0-9._:~-]{{1,512}})$"
_FORMULA_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a table may hold."""

    rows: int
    columns: int
    value_characters: int
    expanded_bytes: int


@dataclass(slots=True)
class BadTable(Exception):  # noqa: N818 - an outcome: the upload is answered with it
    """The upload is not a label table. `errors` hold row (None = the whole table), column and what is wrong."""

    detail: str
    errors: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Column:
    """A value column: its name, what it holds, and the name it has in the stored file."""

    name: str
    kind: ValueKind
    stored: str
    summary: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A checked table, as it is stored: the lake's key columns and v0, v1, … for the values."""

    key: str
    columns: tuple[Column, ...]
    rows: pa.Table


class _Errors:
    """Collects what is wrong until it is enough."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self.total = 0

    def add(self, row: int | None, column: str | None, detail: str) -> None:
        self.total += 1
        if len(self.found) < _MAX_ERRORS:
            self.found.append({"row": row, "column": column, "detail": detail})

    def raise_if_any(self) -> None:
        if not self.total:
            return
        first = self.found[0]
        place = ", ".join(
            text
            for text in (
                f"row {first['row']}" if first["row"] is not None else "",
                f"column {first['column']!r}" if first["column"] is not None else "",
            )
            if text
        )
        more = f" (and {self.total - 1} more)" if self.total > 1 else ""
        raise BadTable(f"{place}: {first['detail']}{more}" if place else f"{first['detail']}{more}", self.found)


def read_upload(path: Path, *, parquet: bool, limits: Limits, multiple: bool) -> LabelTable:
    """Read and check an uploaded file. `multiple` allows several rows with the same key. Raises BadTable."""
    rows, first_row = (_read_parquet(path, limits), 1) if parquet else (_read_csv(path, limits), 2)
    return check(rows, first_row=first_row, limits=limits, multiple=multiple)


def check(rows: pa.Table, *, first_row: int, limits: Limits, multiple: bool) -> LabelTable:
    """Check a table of plain columns and bring it into its stored form. Raises BadTable."""
    key = _check_names(rows.column_names, limits)
    if rows.num_rows == 0:
        raise BadTable("the table has no rows: send at least one")
    errors = _Errors()
    stored = _keys(rows[key], key, first_row, errors)
    columns = []
    for number, name in enumerate(name for name in rows.column_names if name != key):
        values, kind = _values(rows[name], name, first_row, limits, errors)
        columns.append(Column(name, kind, f"v{number}", _summary(values, kind)))
        stored[f"v{number}"] = values
    errors.raise_if_any()
    table = pa.table(stored)
    if not multiple:
        _check_unique(table, key, first_row, errors)
    order = [(name, "ascending") for name in table.column_names if not name.startswith("v")]
    return LabelTable(key, tuple(columns), table.sort_by(order))


def write(table: LabelTable, path: Path) -> None:
    """Write the stored form: sorted by key, zstd, in row groups small enough to skip."""
    pq.write_table(table.rows, path, compression="zstd", row_group_size=_ROW_GROUP)


# --- reading ---------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, limits: Limits) -> pa.Table:
    with path.open("rb") as file:
        start = file.read(65_536)
    if start.startswith(_FORMULA_BOMS) or b"\0" in start:
        raise BadTable("the file is not UTF-8 text: save the table as CSV (UTF-8)")
    header = start.splitlines()[0] if start.strip() else b""
    if b"," not in header and (b";" in header or b"\t" in header):
        raise BadTable("the columns are not separated by commas: save the table as CSV with commas")
    wrong: list[Any] = []

    def on_bad_row(row: Any) -> str:
        wrong.append((row.number, row.expected_columns, row.actual_columns))
        return "error" if len(wrong) >= _MAX_ERRORS else "skip"

    try:
        with pc_csv.open_csv(
            path,
            read_options=pc_csv.ReadOptions(use_threads=False, block_size=4 * 2**20),
            parse_options=pc_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=on_bad_row),
            convert_options=pc_csv.ConvertOptions(
                column_types=_AllBinary(header), null_values=_NULL_TEXTS, strings_can_be_null=True, check_utf8=False
            ),
        ) as reader:
            found = _bounded(reader, limits)
    except pa.ArrowInvalid as error:
        if not wrong:
            raise BadTable(f"the file cannot be read as CSV: {_first_line(error)}") from None
        found = None
    if wrong:
        errors = _Errors()
        for number, expected, actual in wrong:
            errors.add(
                number, None, f"it has {actual} values, the header has {expected}: quote values that hold commas"
            )
        errors.raise_if_any()
    assert found is not None
    return found


class _AllBinary(dict[str, pa.DataType]):
    """Every column of the header as bytes, so that each one can be checked with its row and name."""

    def __init__(self, header: bytes) -> None:
        names = header.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").split(",")
        super().__init__({name.strip('"'): pa.binary() for name in names})


def _read_parquet(path: Path, limits: Limits) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows > limits.rows:
                raise BadTable(f"the table has {file.metadata.num_rows} rows: {limits.rows} are allowed")
            names = file.schema_arrow.names
            _check_names(names, limits)
            nested = [field.name for field in file.schema_arrow if pa.types.is_nested(field.type)]
            if nested:
                raise BadTable(
                    f"column {nested[0]!r} holds {file.schema_arrow.field(nested[0]).type}: send plain values"
                )
        # Read as dictionaries, a value that is repeated a million times is held once.
        with pq.ParquetFile(path, read_dictionary=names, pre_buffer=False) as file:
            return _bounded(file.iter_batches(_BATCH_ROWS, use_threads=False), limits)
    except (pa.ArrowException, OSError) as error:
        raise BadTable(f"the file cannot be read as Parquet: {_first_line(error)}") from None


def _bounded(batches: Iterator[pa.RecordBatch], limits: Limits) -> pa.Table:
    found: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        rows += batch.num_rows
        size += batch.nbytes
        if rows > limits.rows:
            raise BadTable(f"the table has more than {limits.rows} rows: split it into several tables")
        if size > limits.expanded_bytes:
            raise BadTable(
                f"the table takes more than {limits.expanded_bytes} bytes in memory: send fewer or shorter values"
            )
        found.append(batch)
    if not found:
        raise BadTable("the table has no rows: send a header and at least one row")
    return pa.Table.from_batches(found)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


def _check_names(names: list[str], limits: Limits) -> str:
    """The name of the key column."""
    keys = [name for name in names if name in KEYS]
    if len(keys) != 1:
        have = ", ".join(repr(name[:64]) for name in names[:10])
        raise BadTable(
            f"exactly one column must be named `uri` (at-uris of records) or `did` (accounts); the columns are: {have}"
        )
    errors = _Errors()
    for name in names:
        if not re.fullmatch(COLUMN, name, re.ASCII):
            errors.add(None, name[:64], "name columns with a to z, 0 to 9 and _, a letter first, at most 64 characters")
    for name in {name for name in names if names.count(name) > 1}:
        errors.add(None, name, "two columns have this name")
    if len(names) - 1 > limits.columns:
        errors.add(None, None, f"there are {len(names) - 1} value columns: {limits.columns} are allowed")
    errors.raise_if_any()
    return keys[0]


# --- keys ------------------------------------------------------------------------------------------------------------


def _text(column: pa.ChunkedArray, name: str, first_row: int, errors: _Errors) -> pa.Array:
    """The column as one array of UTF-8 text, empty text where it is wrong."""
    plain = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(plain, pa.ChunkedArray):
        plain = pa.concat_arrays(plain.chunks)
    if pa.types.is_dictionary(plain.type):
        plain = plain.dictionary_decode()
    if pa.types.is_large_string(plain.type) or pa.types.is_string_view(plain.type):
        return plain.cast(pa.string())
    if pa.types.is_string(plain.type):
        return plain
    try:
        return plain.cast(pa.string())
    except pa.ArrowInvalid:
        found = []
        for row, value in enumerate(plain.to_pylist()):
            try:
                found.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                errors.add(row + first_row, name, "the text is not UTF-8")
                found.append("")
        return pa.array(found, pa.string())


def _keys(column: pa.ChunkedArray, key: str, first_row: int, errors: _Errors) -> dict[str, pa.Array]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)):
        raise BadTable(f"column {key!r} holds {kind}: it must hold text")
    before = errors.total
    text = pc.utf8_trim_whitespace(_text(column, key, first_row, errors))
    how = (
        "write did:plc:… or did:web:…"
        if key == "did"
        else "write at://<did>/<collection>/<record key>, with a DID, not a handle"
    )
    if key == "did":
        good = pc.match_substring_regex(text, f"^{_DID}$")
        parts = None
    else:
        parts = pc.extract_regex(text, _URI_PATTERN)
        good = parts.is_valid()
    good = pc.and_(
        pc.fill_null(good, False), pc.fill_null(pc.less_equal(pc.binary_length(text), _MAX_DID + 1024), False)
    )
    for row in np.flatnonzero(~good.to_numpy(zero_copy_only=False))[: _MAX_ERRORS + 1].tolist():
        value = text[row].as_py()
        errors.add(
            row + first_row, key, f"it is empty: {how}" if not value else f"{value[:80]!r} is not a {key}: {how}"
        )
    extra = int(len(good) - pc.sum(good).as_py()) - (_MAX_ERRORS + 1)
    errors.total += max(0, extra)
    if errors.total > before:
        errors.raise_if_any()
    if parts is None:
        return {"did": text}
    rkey = pc.struct_field(parts, "rkey")
    numbers, exact = _tids(rkey)
    return {
        "did": pc.struct_field(parts, "did"),
        "collection": pc.struct_field(parts, "collection"),
        "rkey_tid": pa.array(numbers, pa.int64(), mask=~exact),
        "rkey_text": pc.if_else(pa.array(exact), pa.scalar(None, pa.string()), rkey),
    }


def _tids(rkey: pa.Array) -> tuple[Any, Any]:
    """Record keys as the lake stores TIDs: the numbers, and which keys are exactly one."""
    chosen = pc.equal(pc.binary_length(rkey), TID_LENGTH).to_numpy(zero_copy_only=False)
    numbers = np.zeros(len(rkey), np.int64)
    exact = np.zeros(len(rkey), np.bool_)
    if chosen.any():
        joined = "".join(rkey.filter(pa.array(chosen)).to_pylist()).encode("ascii")
        values, valid = decode_tids(np.frombuffer(joined, np.uint8).reshape(-1, TID_LENGTH))
        numbers[chosen], exact[chosen] = values, valid
    return numbers, exact


def _check_unique(table: pa.Table, key: str, first_row: int, errors: _Errors) -> None:
    names = ["did"] if key == "did" else ["did", "collection", "rkey_tid", "rkey_text"]
    numbered = table.select(names).append_column("row", pa.array(np.arange(table.num_rows) + first_row))
    counted = numbered.group_by(names).aggregate([("row", "count"), ("row", "min"), ("row", "max")])
    repeated = counted.filter(pc.greater(counted["row_count"], 1)).sort_by("row_min")
    errors.total += max(0, repeated.num_rows - _MAX_ERRORS)
    for first, last in zip(
        repeated["row_min"].to_pylist()[:_MAX_ERRORS], repeated["row_max"].to_pylist()[:_MAX_ERRORS], strict=True
    ):
        errors.add(last, key, f"the same {key} stands in row {first}: keep one row of it, or upload with multiple=true")
    errors.raise_if_any()


# --- values ----------------------------------------------------------------------------------------------------------


def _values(
    column: pa.ChunkedArray, name: str, first_row: int, limits: Limits, errors: _Errors
) -> tuple[pa.Array, ValueKind]:
    """The values in their stored type, and what they are."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if (
        pa.types.is_binary(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    ):
        if _too_long(column, name, first_row, limits, errors):
            return pa.nulls(len(column), pa.string()), ValueKind.TEXT
        text = _text(column, name, first_row, errors)
        if _too_long(pa.chunked_array([text]), name, first_row, limits, errors):
            return text, ValueKind.TEXT
        found = _infer(text) if pa.types.is_binary(kind) else (text, ValueKind.TEXT)
    else:
        plain = pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
        if pa.types.is_dictionary(plain.type):
            plain = plain.dictionary_decode()
        found = _plain(plain, name)
    values, value_kind = found
    if value_kind is ValueKind.NUMBER:
        values = pc.if_else(pc.fill_null(pc.is_nan(values), False), pa.scalar(None, pa.float64()), values)
        infinite = pc.fill_null(pc.is_inf(values), False)
        for row in np.flatnonzero(infinite.to_numpy(zero_copy_only=False))[:_MAX_ERRORS].tolist():
            errors.add(row + first_row, name, "the value is infinite")
    return values, value_kind


def _too_long(column: pa.ChunkedArray, name: str, first_row: int, limits: Limits, errors: _Errors) -> bool:
    """Whether a text value is longer than allowed; looked up in the dictionary, before repeated values take their room."""
    before, row = errors.total, first_row
    for chunk in column.chunks:
        coded = pa.types.is_dictionary(chunk.type)
        texts = chunk.dictionary if coded else chunk
        # Bytes while the text is not known to be UTF-8: a character has four at most.
        binary = pa.types.is_binary(texts.type)
        lengths = pc.divide(pc.binary_length(texts), 4) if binary else pc.utf8_length(texts)
        long = pc.fill_null(
            pc.greater(lengths.take(chunk.indices) if coded else lengths, limits.value_characters), False
        )
        for position in np.flatnonzero(long.to_numpy(zero_copy_only=False)).tolist():
            errors.add(row + position, name, f"the value has more than {limits.value_characters} characters")
        row += len(chunk)
    return errors.total > before


def _plain(values: pa.Array, name: str) -> tuple[pa.Array, ValueKind]:
    if pa.types.is_boolean(values.type):
        return values, ValueKind.BOOLEAN
    if pa.types.is_null(values.type):
        return values.cast(pa.string()), ValueKind.TEXT
    try:
        if pa.types.is_integer(values.type):
            return values.cast(pa.int64()), ValueKind.INTEGER
        if pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
            return values.cast(pa.float64()), ValueKind.NUMBER
    except pa.ArrowInvalid as error:
        raise BadTable(f"column {name!r}: {_first_line(error)}") from None
    raise BadTable(f"column {name!r} holds {values.type}: send text, numbers or true and false")


def _infer(text: pa.Array) -> tuple[pa.Array, ValueKind]:
    """The narrowest of boolean, integer, number, text that every value of a CSV column has."""
    if text.null_count == len(text):
        return text, ValueKind.TEXT
    lowered = pc.utf8_lower(text)
    if pc.all(pc.is_in(lowered.drop_null(), pa.array(["true", "false"]))).as_py():
        return pc.equal(lowered, "true"), ValueKind.BOOLEAN
    # 007 is a code, not a number.
    if pc.all(pc.match_substring_regex(text.drop_null(), r"^[+-]?(0|[1-9][0-9]{0,17})$")).as_py():
        return pc.utf8_ltrim(text, "+").cast(pa.int64()), ValueKind.INTEGER
    if pc.all(
        pc.match_substring_regex(text.drop_null(), r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$")
    ).as_py():
        codes = pc.any(pc.match_substring_regex(text.drop_null(), r"^[+-]?0[0-9]")).as_py()
        if not codes:
            return pc.utf8_ltrim(text, "+").cast(pa.float64()), ValueKind.NUMBER
    return text, ValueKind.TEXT


def _summary(values: pa.Array, kind: ValueKind) -> dict[str, Any]:
    """What a column holds in short: missing values, distinct ones, the most frequent with their counts, smallest, largest."""
    present = values.drop_null()
    found: dict[str, Any] = {"missing": values.null_count, "distinct": pc.count_distinct(present).as_py()}
    if kind in (ValueKind.INTEGER, ValueKind.NUMBER):
        found |= pc.min_max(present).as_py()
    if len(present) and found["distinct"] <= _COUNTED_VALUES and kind is not ValueKind.NUMBER:
        counts = pc.value_counts(present).to_pylist()
        found["values"] = [
            {"value": item["values"], "rows": item["counts"]}
            for item in sorted(counts, key=lambda item: (-item["counts"], str(item["values"])))
        ]
    return found

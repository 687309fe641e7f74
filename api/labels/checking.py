"""From plain columns to a label table in its stored form: every check of names, keys and values."""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from api.labels.columns import Column
from api.labels.names import COLUMN, ValueKind
from api.labels.table import KEYS, MAX_ERRORS, BadTable, Errors, LabelTable, Limits, first_line
from lake.base32 import TID_LENGTH, decode_tids

_COUNTED_VALUES: Final = 50
_MAX_DID: Final = 2048
_DID: Final = r"did:[a-z]+:[A-Za-z0-9._:%-]+"
_NSID: Final = r"[A-Za-z][A-Za-z0-9-]*(?:\.[A-Za-z0-9][A-Za-z0-9-]*)+\.[A-Za-z][A-Za-z0-9]*"
_URI_PATTERN: Final = rf"^at://(?P<did>{_DID})/(?P<collection>{_NSID})/(?P<rkey>[A-Za-z0-9._:~-]{{1,512}})$"


def check(rows: pa.Table, *, first_row: int, limits: Limits, multiple: bool) -> LabelTable:
    """Check a table of plain columns and bring it into its stored form. Raises BadTable."""
    key = check_names(rows.column_names, limits)
    if rows.num_rows == 0:
        raise BadTable("the table has no rows: send at least one")
    errors = Errors()
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


def check_names(names: list[str], limits: Limits) -> str:
    """The name of the key column."""
    keys = [name for name in names if name in KEYS]
    if len(keys) != 1:
        have = ", ".join(repr(name[:64]) for name in names[:10])
        raise BadTable(
            f"exactly one column must be named `uri` (at-uris of records) or `did` (accounts); the columns are: {have}"
        )
    errors = Errors()
    for name in names:
        if not re.fullmatch(COLUMN, name, re.ASCII):
            errors.add(None, name[:64], "name columns with a to z, 0 to 9 and _, a letter first, at most 64 characters")
    for name in {name for name in names if names.count(name) > 1}:
        errors.add(None, name, "two columns have this name")
    if len(names) - 1 > limits.columns:
        errors.add(None, None, f"there are {len(names) - 1} value columns: {limits.columns} are allowed")
    errors.raise_if_any()
    return keys[0]


def _text(column: pa.ChunkedArray, name: str, first_row: int, errors: Errors) -> pa.Array:
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


def _keys(column: pa.ChunkedArray, key: str, first_row: int, errors: Errors) -> dict[str, pa.Array]:
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
    for row in np.flatnonzero(~good.to_numpy(zero_copy_only=False))[: MAX_ERRORS + 1].tolist():
        value = text[row].as_py()
        errors.add(
            row + first_row, key, f"it is empty: {how}" if not value else f"{value[:80]!r} is not a {key}: {how}"
        )
    extra = int(len(good) - pc.sum(good).as_py()) - (MAX_ERRORS + 1)
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


def _check_unique(table: pa.Table, key: str, first_row: int, errors: Errors) -> None:
    names = ["did"] if key == "did" else ["did", "collection", "rkey_tid", "rkey_text"]
    numbered = table.select(names).append_column("row", pa.array(np.arange(table.num_rows) + first_row))
    counted = numbered.group_by(names).aggregate([("row", "count"), ("row", "min"), ("row", "max")])
    repeated = counted.filter(pc.greater(counted["row_count"], 1)).sort_by("row_min")
    errors.total += max(0, repeated.num_rows - MAX_ERRORS)
    for first, last in zip(
        repeated["row_min"].to_pylist()[:MAX_ERRORS], repeated["row_max"].to_pylist()[:MAX_ERRORS], strict=True
    ):
        errors.add(last, key, f"the same {key} stands in row {first}: keep one row of it, or upload with multiple=true")
    errors.raise_if_any()


def _values(
    column: pa.ChunkedArray, name: str, first_row: int, limits: Limits, errors: Errors
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
        for row in np.flatnonzero(infinite.to_numpy(zero_copy_only=False))[:MAX_ERRORS].tolist():
            errors.add(row + first_row, name, "the value is infinite")
    return values, value_kind


def _too_long(column: pa.ChunkedArray, name: str, first_row: int, limits: Limits, errors: Errors) -> bool:
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
        raise BadTable(f"column {name!r}: {first_line(error)}") from None
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

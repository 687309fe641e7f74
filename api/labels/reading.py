"""From an uploaded file to plain columns, within bounds of rows and memory; `checking` makes a label table of them.

Runs in a process of its own (`worker`), because files from outside can be made to exhaust memory or to crash a decoder.
Rows are counted as a spreadsheet shows them: the header of a CSV is row 1; the first row of a Parquet file is row 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from api.labels.checking import check, check_names
from api.labels.table import MAX_ERRORS, BadTable, Errors, LabelTable, Limits, first_line

_NULL_TEXTS: Final = ["", "NA", "NULL", "null"]
_BATCH_ROWS: Final = 65_536
_UTF_16_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")


def read_upload(path: Path, *, parquet: bool, limits: Limits, multiple: bool) -> LabelTable:
    """Read and check an uploaded file. `multiple` allows several rows with the same key. Raises BadTable."""
    rows, first_row = (_read_parquet(path, limits), 1) if parquet else (_read_csv(path, limits), 2)
    return check(rows, first_row=first_row, limits=limits, multiple=multiple)


def _read_csv(path: Path, limits: Limits) -> pa.Table:
    with path.open("rb") as file:
        start = file.read(65_536)
    if start.startswith(_UTF_16_BOMS) or b"\0" in start:
        raise BadTable("the file is not UTF-8 text: save the table as CSV (UTF-8)")
    header = start.splitlines()[0] if start.strip() else b""
    if b"," not in header and (b";" in header or b"\t" in header):
        raise BadTable("the columns are not separated by commas: save the table as CSV with commas")
    wrong: list[Any] = []

    def on_bad_row(row: Any) -> str:
        wrong.append((row.number, row.expected_columns, row.actual_columns))
        return "error" if len(wrong) >= MAX_ERRORS else "skip"

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
        if not wrong and "Empty CSV" in str(error):
            raise BadTable("the table has no rows: send a header and at least one row") from None
        if not wrong:
            raise BadTable(f"the file cannot be read as CSV: {first_line(error)}") from None
        found = None
    if wrong:
        errors = Errors()
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
            check_names(names, limits)
            nested = [field.name for field in file.schema_arrow if pa.types.is_nested(field.type)]
            if nested:
                raise BadTable(
                    f"column {nested[0]!r} holds {file.schema_arrow.field(nested[0]).type}: send plain values"
                )
        # Read as dictionaries, a value that is repeated a million times is held once.
        with pq.ParquetFile(path, read_dictionary=names, pre_buffer=False) as file:
            return _bounded(file.iter_batches(_BATCH_ROWS, use_threads=False), limits)
    except (pa.ArrowException, OSError) as error:
        raise BadTable(f"the file cannot be read as Parquet: {first_line(error)}") from None


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

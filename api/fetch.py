"""The second half of reading a page: all columns of the few rows that were found by reading a few columns of many.

A column of an hour is one compressed page, so that reading a row costs nearly as much as reading its hour: the first half decodes
only what filters and order need, this one only the files in which something was found. Rows are named by their number in the
file, because the reader skips by it; several values of another column are looked for in every row.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import pyarrow as pa

from api.engine import Session
from api.relation import ROW
from lake.convert import lake_schema

PLACE: Final = ("time", "kafka_partition", "kafka_offset")
"""The columns whose values order the rows of a table, and tell them apart."""
_FILES_AT_ONCE: Final = 8
"""Each file is a branch of a statement, which holds to its end what it read of all of them: 768 rows of 64 files at once took more
than a gigabyte, and 64 rows half as much CPU again."""


def fetch(session: Session, table: str, places: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The rows at `places` (with the columns ROW, in any order), in their order, with `columns` and PLACE.

    Blocks for reading the files that have them.
    """
    names = list(dict.fromkeys((*columns, *PLACE)))
    if not places.num_rows:
        return lake_schema(table).empty_table().select(names)
    if set(names) <= set(places.column_names):
        return places.select(names)
    rows_of: dict[str, list[int]] = {}
    keys = list(zip(*(places[name].to_pylist() for name in ROW), strict=True))
    for path, number in keys:
        rows_of.setdefault(path, []).append(number)
    paths = sorted(rows_of)
    selected = ", ".join(f"r.{name}" for name in (*names, *ROW))
    found = []
    for first in range(0, len(paths), _FILES_AT_ONCE):
        some = paths[first : first + _FILES_AT_ONCE]
        branches = [
            f"SELECT {selected} FROM read_parquet($file{number}, hive_partitioning = false) AS r"
            f" WHERE r.file_row_number IN ({', '.join(map(str, rows_of[path]))})"
            for number, path in enumerate(some)
        ]
        found.append(
            session.few(" UNION ALL ".join(branches), {f"file{number}": path for number, path in enumerate(some)})
        )
    rows = pa.concat_tables(found)
    numbers = dict(zip(zip(*(rows[name].to_pylist() for name in ROW), strict=True), itertools.count()))
    return rows.select(names).take(pa.array([numbers[key] for key in keys], pa.int64()))

"""The second half of reading a page: all columns of the few rows that were found by reading a few columns of many.

A column of an hour is one compressed page, so that reading a row costs as much as reading its hour: the first half decodes only
what filters and order need, this one only the hours in which something was found.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

import pyarrow as pa

from api.engine import Session
from api.relation import READ_FILES, Lake
from api.sql import Bound, one_of
from lake.convert import lake_schema
from lake.manifest import LiveFile

PLACE: Final = ("time", "kafka_partition", "kafka_offset")
"""The columns whose values order the rows of a table, and tell them apart."""


def fetch(
    session: Session, lake: Lake, table: str, files: Sequence[LiveFile], places: pa.Table, columns: Sequence[str]
) -> pa.Table:
    """The rows at `places` (with the columns PLACE, in any order), in their order, with `columns` and PLACE.

    `files` have to hold them all. Blocks for reading the ones that do.
    """
    names = tuple(dict.fromkeys((*columns, *PLACE)))
    if not places.num_rows:
        return lake_schema(table).empty_table().select(list(names))
    if set(names) <= set(places.column_names):
        return places.select(list(names))
    times = sorted(places["time"].cast(pa.int64()).to_pylist())
    holding = [file for file in files if _any_between(times, file.min_time_us, file.max_time_us)]
    keys = list(zip(places["kafka_partition"].to_pylist(), places["kafka_offset"].to_pylist(), strict=True))
    bound = Bound()
    wanted = one_of("r.kafka_offset", sorted({offset for _, offset in keys}), bound)
    statement = f"SELECT {', '.join(f'r.{name}' for name in names)} FROM {READ_FILES} AS r WHERE {wanted}"
    rows = session.table(statement, {**bound.values, "files": lake.paths(holding)})
    partitions, offsets = rows["kafka_partition"].to_pylist(), rows["kafka_offset"].to_pylist()
    numbers = {key: number for number, key in enumerate(zip(partitions, offsets, strict=True))}
    return rows.take(pa.array([numbers[key] for key in keys], pa.int64()))


def _any_between(times: Sequence[int], low: int, high: int) -> bool:
    place = bisect_left(times, low)
    return place < len(times) and times[place] <= high

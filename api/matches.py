"""What a selection matches, where an index names few rows: read once into memory, by rows, for a statement that looks at all of it.

Counting and grouping need every match at once. Over files that are read whole one statement does all; rows that an index names
are branches of a statement, of which only so many are planned at a time.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa

from api.engine import Session
from api.relation import Lake, Source, columns_in
from api.snapshots import Scan
from api.sql import Bound

_SHARE: Final = 3
"""Rows are read by themselves where they are at most one in so many; else reading all costs less than planning the branches."""
_STEP_ROWS: Final = 4_000_000
_MOST_MATCHES: Final = 500_000
"""A selection with more matches than memory should hold is read whole."""
_NAME: Final = "matches"


@dataclass(frozen=True)
class Matches:
    """`FROM {relation} WHERE {condition}` with alias r and the values of `bound`, to which the statement may add its own."""

    relation: str
    condition: str
    bound: Bound


def matches(session: Session, lake: Lake, scan: Scan, source: Source, used: str) -> Matches:
    """The rows that `source` selects of a scan. `used`: every text of the statement that names their columns. May block for
    reading them beforehand; a later call in the session takes the place of what this one gave."""
    if _SHARE * sum(map(scan.rows_to_read, scan.files)) <= scan.rows:
        found = _read(session, lake, scan, source, used)
        if found is not None:
            session.register(_NAME, found)
            return Matches(f"{_NAME} AS r", "TRUE", Bound())
    bound = Bound()
    bound.values |= {**source.bound.values, "files": lake.paths(scan.files)}
    return Matches(source.relation, source.condition, bound)


def _read(session: Session, lake: Lake, scan: Scan, source: Source, used: str) -> pa.Table | None:
    """All matches, or None when they are too many."""
    columns = ", ".join(f"r.{name}" for name in columns_in(scan.table, used))
    found: list[pa.Table] = []
    rows = 0
    for step in scan.steps(newest_first=True, first_rows=_STEP_ROWS, largest_rows=_STEP_ROWS):
        part = replace(scan, files=step)
        reading, values = lake.reading(part, f"{columns} {source.joins} {source.condition}")
        statement = f"SELECT {columns} FROM {source.over(reading)} WHERE {source.condition}"
        found.append(session.few(statement, {**source.bound.values, **values}))
        rows += found[-1].num_rows
        if rows > _MOST_MATCHES:
            return None
    return pa.concat_tables(found)

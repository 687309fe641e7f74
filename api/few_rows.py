"""The rows of an account in hours that have few of it, read by themselves: what the first step of a page of its posts is made of.

Of an hour of posts a query engine takes ten milliseconds of CPU for one row; the pages that the row lies in, a third of that.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa

from api.engine import Session
from api.identifiers import POST
from api.relation import Lake
from api.snapshots import Scan
from lake.convert import lake_schema
from lake.manifest import LiveFile
from lake.page_rows import Buffers, CannotReadError, rows_of

_MOST_ROWS: Final = 64
"""Of a file with more rows of the accounts the query engine reads all faster than each is found here."""
_THREADS: Final = 2


def few_rows(session: Session, lake: Lake, scan: Scan, columns: Sequence[str]) -> tuple[pa.Table | None, Scan]:
    """Every row of the scan's accounts in files that have few of them and say where, with some lake columns; None without such
    files. And the scan of the other files. Blocks for the reads."""
    counts = scan.counts or {}
    # Of other tables a column is one page.
    few = [file for file in scan.files if 0 < counts.get(file.path, 0) <= _MOST_ROWS] if scan.table == POST else []
    if not few:
        return None, scan

    own = threading.local()

    def begin() -> None:
        own.buffers = Buffers()

    def read(file: LiveFile) -> dict[str, list[Any]] | None:
        session.check()
        return _read(lake, file, scan.accounts, columns, own.buffers)

    with ThreadPoolExecutor(_THREADS, initializer=begin) as threads:
        found = list(threads.map(read, few))
    known = {file.path for file, rows in zip(few, found, strict=True) if rows is not None}
    rest = replace(scan, files=tuple(file for file in scan.files if file.path not in known))
    if not known:
        return None, rest
    arrays = [
        _array(scan.table, name, [one for rows in found if rows is not None for one in rows[name]]) for name in columns
    ]
    return pa.table(arrays, names=list(columns)), rest


def _array(table: str, name: str, values: list[Any]) -> pa.Array:
    kind = lake_schema(table).field(name).type
    found = pa.array(values, kind)
    # As the engine reads them: times of every unit in microseconds.
    return found.cast(pa.timestamp("us")) if pa.types.is_timestamp(kind) else found


def _read(
    lake: Lake, file: LiveFile, dids: Sequence[str], columns: Sequence[str], buffers: Buffers
) -> dict[str, list[Any]] | None:
    """The rows of some accounts in a file by column; None where the query engine has to read it."""
    groups = lake.accounts.places(file, dids)
    if groups is None:
        return None
    rows: dict[str, list[Any]] = {name: [] for name in columns}
    try:
        descriptor = os.open(lake.root / file.path, os.O_RDONLY)
    except OSError:
        # The query engine says what is the matter with it.
        return None
    try:
        for group, pages in groups:
            for name, values in rows_of(descriptor, group, pages, dids, columns, buffers).items():
                rows[name] += values
    except CannotReadError:
        return None
    finally:
        os.close(descriptor)
    return rows

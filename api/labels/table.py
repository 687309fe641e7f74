"""What a label table is: its limits, its stored form, and the errors that name row and column."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from api.labels.columns import Column

MAX_ERRORS: Final = 20
"""Errors that are told; more are counted."""
_ROW_GROUP: Final = 122_880
KEYS: Final = ("uri", "did")
"""Names of the key column."""


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
class LabelTable:
    """A checked table, as it is stored: the lake's key columns and v0, v1, … for the values."""

    key: str
    columns: tuple[Column, ...]
    rows: pa.Table


def write(table: LabelTable, path: Path) -> None:
    """Write the stored form: sorted by key, zstd, in row groups small enough to skip."""
    pq.write_table(table.rows, path, compression="zstd", row_group_size=_ROW_GROUP)


class Errors:
    """Collects what is wrong until it is enough."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self.total = 0

    def add(self, row: int | None, column: str | None, detail: str) -> None:
        """Note what is wrong; `row` None = the whole table."""
        self.total += 1
        if len(self.found) < MAX_ERRORS:
            self.found.append({"row": row, "column": column, "detail": detail})

    def raise_if_any(self) -> None:
        """Raise BadTable with everything that was added."""
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


def first_line(error: BaseException) -> str:
    """The first line of a library's message."""
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__

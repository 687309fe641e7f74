"""The vocabulary of queries: where files are, and a relation with its conditions and bound values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from api.current import CurrentState, Ends
from api.engine import Session
from api.snapshots import Scan
from api.sql import Bound, all_of
from lake.account_index import AccountIndex
from lake.bloom import FilterIndex
from lake.convert import lake_schema
from lake.manifest import LiveFile
from lake.text_index import Rows

READ_FILES: Final = "read_parquet($files, hive_partitioning = false)"
"""How every statement reads files: an explicit list as bound value, never a pattern or a text from a client."""

ROW: Final = ("filename", "file_row_number")
"""Where a row lies: columns that the reader of Parquet adds to those of a file, when they are asked for by name."""


def columns_in(table: str, sql: str) -> list[str]:
    """The columns of a table's files, and of ROW, that a text of SQL names, and perhaps some more."""
    words = set(re.findall(r"\w+", sql))
    return [name for name in (*lake_schema(table).names, *ROW) if name in words]


def _in_stretches(stretches: Rows) -> str:
    """That a row is in one of some stretches; single rows are listed, which the reader looks up instead of comparing each."""
    rows = sum(end - first for first, end in stretches)
    if rows <= _SINGLE * len(stretches):
        return f"file_row_number IN ({', '.join(str(row) for first, end in stretches for row in range(first, end))})"
    return " OR ".join(f"file_row_number BETWEEN {first} AND {end - 1}" for first, end in stretches)


_SINGLE: Final = 4
"""Stretches that are as short on average."""


@dataclass(frozen=True)
class Lake:
    """Where a query finds files, what has ended, which files can hold a key, and what accounts have in them."""

    root: Path
    current: CurrentState
    filters: FilterIndex
    accounts: AccountIndex

    def paths(self, files: Sequence[LiveFile]) -> list[str]:
        """The absolute paths of files, for a bound value."""
        return [str(self.root / file.path) for file in files]

    def reading(self, scan: Scan, used: str) -> tuple[str, dict[str, Any]]:
        """The rows of a scan that can match, as a relation with the columns that the rest of the statement, `used`, names, and
        its bound values.

        Files of which only some rows can are a branch each, for the reader skips by row number but has one condition for all
        its files.
        """
        # Two thirds take as long as all.
        partly = [file for file in scan.files if 3 * scan.rows_to_read(file) < 2 * file.rows]
        if not partly:
            return READ_FILES, {"files": self.paths(scan.files)}
        paths = {file.path for file in partly}
        whole = self.paths([file for file in scan.files if file.path not in paths])
        values: dict[str, Any] = {"files": whole} if whole else {}
        # Planning a branch with every column of the files takes twice as long as with these.
        columns = f"SELECT {', '.join(columns_in(scan.table, used)) or 'file_row_number'} FROM"
        branches = [f"{columns} {READ_FILES}"] if whole else []
        for number, (file, path) in enumerate(zip(partly, self.paths(partly), strict=True)):
            values[f"file{number}"] = path
            wanted = _in_stretches(scan.stretches[file.path])
            branches.append(f"{columns} read_parquet($file{number}, hive_partitioning = false) WHERE {wanted}")
        return f"({' UNION ALL '.join(branches)})", values


@dataclass(frozen=True)
class Source:
    """A relation of rows with alias r: `FROM {relation} WHERE {condition}`, with `bound.values` and `$files`.

    ends: what the reader has still to leave out of the rows it gets; None when the relation does.
    """

    joins: str
    predicates: tuple[str, ...]
    bound: Bound
    ends: Ends | None = None

    @property
    def relation(self) -> str:
        """The rows of `$files`."""
        return self.over(READ_FILES)

    def over(self, reading: str) -> str:
        """The rows of another table function or subquery that has the columns of the files."""
        return f"{reading} AS r {self.joins}"

    def also(self, predicate: str) -> Source:
        """The rows for which another predicate holds too."""
        return replace(self, predicates=(*self.predicates, predicate))

    def attached(self, session: Session) -> Source:
        """The same with a relation that leaves out what ended."""
        if self.ends is None:
            return self
        return replace(self, joins=f"{self.joins} {self.ends.attach(session)}", ends=None)

    @property
    def condition(self) -> str:
        """The conjunction of all predicates."""
        return all_of(self.predicates)

"""Answers: rows that can be iterated, or turned into pandas, polars or Arrow, with what the service says about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

Row = dict[str, Any]


@dataclass(frozen=True)
class Provenance:
    """What an answer was computed from: cite `snapshot`, and pass it as `as_of` to ask about the same data again.

    `gaps` are the known holes in the range asked for that nothing filled since; an empty list means none is known.
    """

    snapshot: int
    created: str
    gaps: tuple[Row, ...]
    coverage: Row

    @staticmethod
    def of(body: Row) -> Provenance:
        """From the members `snapshot` and `coverage` of an answer."""
        coverage = body.get("coverage") or {}
        snapshot = body["snapshot"]
        return Provenance(
            snapshot["version"],
            snapshot["created"],
            tuple(gap for gap in coverage.get("gaps") or () if not gap.get("filled")),
            coverage,
        )


class Rows(Sequence[Row]):
    """Rows of one answer, as dictionaries. `body` is the whole answer, `provenance` what it was computed from."""

    def __init__(self, rows: Sequence[Row], body: Row) -> None:
        self._rows = list(rows)
        self.body = body
        self.provenance = Provenance.of(body)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __repr__(self) -> str:
        return f"<{len(self)} rows of snapshot {self.provenance.snapshot}>"

    def to_arrow(self) -> pa.Table:
        """A pyarrow table; needs `bluesky-post-explorer-client[arrow]`."""
        return to_arrow(self._rows)

    def to_pandas(self) -> pd.DataFrame:
        """A pandas data frame; needs `bluesky-post-explorer-client[pandas]`."""
        return to_pandas(self._rows)

    def to_polars(self) -> pl.DataFrame:
        """A polars data frame; needs `bluesky-post-explorer-client[polars]`."""
        return to_polars(self._rows)


@dataclass(frozen=True)
class Total:
    """How many rows match: `relation` is `exact`, `at_least` or `estimate`."""

    count: int
    relation: str


class Search(Iterator[Row]):
    """The results of a search, page after page as they are needed; each one is a dictionary. Iterate it once.

    `provenance` and `total` are known after the first row was asked for.
    """

    def __init__(self, pages: Callable[[str | None], Row], limit: int | None) -> None:
        self._pages = pages
        self._left = limit
        self._page: Iterator[Row] = iter(())
        self._cursor: str | None = None
        self._done = False
        self.provenance: Provenance | None = None
        self.total: Total | None = None
        self.requests = 0

    def __next__(self) -> Row:
        while self._left is None or self._left > 0:
            row = next(self._page, None)
            if row is not None:
                if self._left is not None:
                    self._left -= 1
                return row
            if self._done:
                break
            self._fetch()
        raise StopIteration

    def _fetch(self) -> None:
        body = self._pages(self._cursor)
        self.requests += 1
        if self.provenance is None:
            self.provenance = Provenance.of(body)
            meta = body["meta"]
            if meta.get("total") is not None:
                self.total = Total(meta["total"], meta["total_relation"])
        self._page = iter(body["results"])
        self._cursor = body["meta"]["next_cursor"]
        self._done = self._cursor is None

    def all(self) -> list[Row]:
        """Every row that is left."""
        return list(self)

    def to_arrow(self) -> pa.Table:
        """What is left as a pyarrow table; needs `bluesky-post-explorer-client[arrow]`."""
        return to_arrow(self.all())

    def to_pandas(self) -> pd.DataFrame:
        """What is left as a pandas data frame; needs `bluesky-post-explorer-client[pandas]`."""
        return to_pandas(self.all())

    def to_polars(self) -> pl.DataFrame:
        """What is left as a polars data frame; needs `bluesky-post-explorer-client[polars]`."""
        return to_polars(self.all())


_TIMES = frozenset({"time", "received", "start"})
"""Columns that hold times of the service: always RFC 3339 in UTC. `created_at` is the author's text and stays text."""


def _extra(module: str, extra: str) -> Any:
    """A library that only tables need; ImportError says how to install it."""
    try:
        return import_module(module)
    except ImportError:
        wanted = f"bluesky-post-explorer-client[{extra}]"
        raise ImportError(f"{module} is not installed: pip install '{wanted}'", name=module) from None


def to_arrow(rows: Sequence[Row], extra: str = "arrow") -> pa.Table:
    """Rows as a pyarrow table; the service's times become timestamps in UTC."""
    pa, pc = _extra("pyarrow", extra), _extra("pyarrow.compute", extra)

    if not rows:
        return pa.table({})
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    for name in _TIMES & set(names):
        if pa.types.is_string(table[name].type):
            # Strings with a zone are read as UTC only if they end in one form: the service's always end in Z.
            plain = pc.utf8_rtrim(table[name], "Z").cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
            table = table.set_column(table.column_names.index(name), name, plain)
    return table


def to_pandas(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as a pandas data frame."""
    _extra("pandas", "pandas")
    frame: pd.DataFrame = to_arrow(rows, "pandas").to_pandas()
    return frame


def to_polars(rows: Sequence[Row]) -> pl.DataFrame:
    """Rows as a polars data frame."""
    library = _extra("polars", "polars")
    names = list(dict.fromkeys(name for row in rows for name in row))
    frame: pl.DataFrame = library.DataFrame(
        {name: [row.get(name) for row in rows] for name in names}, infer_schema_length=None, strict=False
    )
    times = [name for name in names if name in _TIMES and frame.schema[name] == library.String]
    return frame.with_columns(library.col(name).str.to_datetime(time_unit="us", time_zone="UTC") for name in times)

"""Which rows hold the words of a search, read from the texts alone, for words that few rows have.

The query engine opens every file that may hold a word as a branch of its statement, reads its pages one by one, and then again for
the columns of what it found. Here only the pages that the text index names are read, without a statement, and the engine is left
with the rows that match. What a row has to have is looked for with the engine's own kind of regular expression, so that no match
is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from api.engine import Session
from api.filters import PostFilters
from api.query_text import And, Node, Not, Or, Term, alternation, parse, term_pattern
from api.snapshots import Scan
from lake.manifest import LiveFile
from lake.text_index import Rows

_MOST_ROWS: Final = 256
"""A file with more matches is left to the engine: naming each of them costs more than looking for them again."""
_THREADS: Final = 2


@dataclass(frozen=True)
class Wording:
    """The words of a search."""

    node: Node
    exact: bool
    case_sensitive: bool

    @classmethod
    def of(cls, filters: PostFilters) -> Wording | None:
        """The words of some filters; None when they ask for none that a row has to have."""
        if filters.text is None:
            return None
        wording = cls(parse(filters.text), filters.exact, filters.case_sensitive)
        try:
            asks = wording.matches(pa.array([], pa.string())) is not None
        except pa.ArrowInvalid:
            # A pattern that is too large for it may not be for the engine, which also says so if it is.
            asks = False
        return wording if asks else None

    def matches(self, texts: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_] | None:
        """For each text whether it has what a match must have; None when that is nothing. What it must not have is not looked
        for."""
        return self._matches(self.node, texts)

    def _matches(self, node: Node, texts: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_] | None:
        match node:
            case Term():
                return self._found(term_pattern(node, exact=self.exact), texts)
            case Not():
                return None
            case And(operands):
                known = [found for found in (self._matches(one, texts) for one in operands) if found is not None]
                return np.logical_and.reduce(known) if known else None
            case Or(operands):
                terms = tuple(one for one in operands if isinstance(one, Term))
                parts = [self._matches(one, texts) for one in operands if not isinstance(one, Term)]
                if terms:
                    parts.append(self._found(alternation(terms, exact=self.exact), texts))
                known = [part for part in parts if part is not None]
                return np.logical_or.reduce(known) if len(known) == len(parts) else None

    def _found(self, pattern: str, texts: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
        found = pc.match_substring_regex(texts, pattern, ignore_case=not self.case_sensitive)
        return np.asarray(pc.fill_null(found, False))


def with_matching_rows(session: Session, root: Path, scan: Scan, wording: Wording) -> Scan:
    """The scan with no other rows of rolled files than those whose text matches, where these are few; small files, and those that
    cannot be read, as they were. Blocks for reading the texts."""
    rolled = [file for file in scan.files if file.kind == "rolled"]
    stretches, counts = dict(scan.stretches), dict(scan.counts or {})
    empty = set()
    with ThreadPoolExecutor(_THREADS, "text") as pool:
        work = partial(_rows_of, root, scan.stretches, wording)
        for file, rows in zip(rolled, pool.map(work, rolled), strict=True):
            session.check()
            if rows is None:
                continue
            counts[file.path] = len(rows)
            stretches[file.path] = tuple((row, row + 1) for row in rows)
            if not rows:
                empty.add(file.path)
    files = tuple(file for file in scan.files if file.path not in empty)
    return replace(scan, files=files, stretches=stretches, counts=counts)


def _rows_of(root: Path, stretches: Mapping[str, Rows], wording: Wording, file: LiveFile) -> Sequence[int] | None:
    """The numbers of the rows of a file that match; None where they are many, or the file cannot be read this way: the engine says
    what is the matter with it."""
    found: list[int] = []
    for first, end in stretches.get(file.path, ((0, file.rows),)):
        try:
            texts = _texts(root / file.path, first, end)
        except (OSError, pl.exceptions.PolarsError):
            return None
        matching = wording.matches(texts)
        assert matching is not None
        found += (np.flatnonzero(matching) + first).tolist()
        if len(found) > _MOST_ROWS:
            return None
    return found


def _texts(path: Path, first: int, end: int) -> pa.Array:
    frame = pl.scan_parquet(path, glob=False, hive_partitioning=False).select("text").slice(first, end - first)
    return frame.collect().to_series().to_arrow(compat_level=pl.CompatLevel.oldest())

"""Which rows of a table have ended, and the table without their content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from lake.convert import EDIT, ERASED, lake_schema
from lake.dictionaries import compacted, joined, without
from lake.fold import ENDING_COLUMNS, Endings, blank, content_columns, erasable, may_have_ended
from lake.layout import ARRIVAL, row_group_rows, sort_keys


@dataclass(frozen=True, slots=True)
class Ended:
    """Which rows of a table are to be emptied, by place in ascending order, and why each of them."""

    places: npt.NDArray[np.int64]
    reasons: pl.Series

    @property
    def losing(self) -> npt.NDArray[np.int64]:
        """The places of the rows that lose their content; edits keep theirs."""
        places: npt.NDArray[np.int64] = self.places[(self.reasons != EDIT).to_numpy()]
        return places

    def emptied(self, table: str, rows: pa.Table) -> pa.Table:
        """Those rows (of `merge_schema`), emptied, in order of arrival."""
        picked = rows.take(pa.array(self.places)).cast(lake_schema(table))
        return by_arrival(table, [blank(table, picked, self.reasons)])

    def others(self, rows: pa.Table) -> pa.Table:
        """All rows but those."""
        kept = np.ones(rows.num_rows, np.bool_)
        kept[self.places] = False
        return compacted(rows.filter(pa.array(kept)))


def find_ended(table: str, rows: pa.Table, endings: Endings | None, *, keep_edits: bool) -> Ended | None:
    """The rows of `rows` (of `merge_schema`, at least `judged_columns`) that have ended; None if there are none."""
    if endings is None or endings.empty:
        return None
    suspects = np.flatnonzero(may_have_ended(rows, endings))
    if not len(suspects):
        return None
    schema = lake_schema(table)
    picked = rows.take(pa.array(suspects)).cast(pa.schema([schema.field(name) for name in rows.column_names]))
    reasons = erasable(table, picked, endings, keep_edits=keep_edits)
    found = reasons.is_not_null().to_numpy()
    return Ended(suspects[found], reasons.drop_nulls()) if found.any() else None


def suspect_columns(table: str, endings: Endings) -> list[str]:
    """The columns in which `may_have_ended` looks for these endings."""
    of_records = not endings.records.is_empty()
    names = ("did", "rkey_tid", "rkey_text") if of_records else ("did",)
    return [name for name in names if name in lake_schema(table).names]


def judged_columns(table: str, endings: Endings) -> list[str]:
    """The columns that `find_ended` needs for these endings."""
    of_records = not endings.records.is_empty()
    names = (*(ENDING_COLUMNS if of_records else ("did", "rev_tid", "time", "operation")), "kind", ERASED)
    return [name for name in names if name in lake_schema(table).names]


def by_arrival(table: str, parts: Iterable[pa.Table]) -> pa.Table:
    """Emptied rows in the only order that does not tell what they were."""
    rows = joined(table, parts)
    return rows.take(pc.sort_indices(rows, sort_keys=ARRIVAL))


def together(parts: Iterable[tuple[int, Ended | None]]) -> Ended | None:
    """What is to be emptied in consecutive parts of a table, each given with its number of rows; None if nothing is."""
    places, reasons, before = [], [], 0
    for rows, ended in parts:
        if ended is not None:
            places.append(ended.places + before)
            reasons.append(ended.reasons)
        before += rows
    return Ended(np.concatenate(places), pl.concat(reasons)) if places else None


def without_ended(rows: pa.Table, ended: Ended, table: str) -> Iterator[pa.Table]:
    """`rows` of a rolled file in their order, the ended ones emptied; much cheaper than sorting again."""
    if sort_keys(table) == ARRIVAL:
        # A tombstone keeps its offset in any case, so its place tells nothing more.
        yield from cut(table, _emptied_in_place(rows, ended, table))
        return
    yield from cut(table, joined(table, [ended.others(rows), ended.emptied(table, rows)]))


def marked(column: pa.ChunkedArray, ended: Ended) -> pa.ChunkedArray:
    """The column ERASED with the reasons of rows that have ended."""
    mask = np.zeros(len(column), np.bool_)
    mask[ended.places] = True
    texts = column.cast(pa.string()).combine_chunks()
    reasons = ended.reasons.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string())
    return pc.replace_with_mask(texts, pa.array(mask), reasons).cast(column.type)


def cut(table: str, piece: pa.Table) -> Iterator[pa.Table]:
    """The row groups of a rolled file."""
    step = row_group_rows(table, "rolled", piece.num_rows)
    for start in range(0, piece.num_rows, step):
        yield piece if piece.num_rows <= step else compacted(piece.slice(start, step))


def _emptied_in_place(rows: pa.Table, ended: Ended, table: str) -> pa.Table:
    gone = np.zeros(rows.num_rows, np.bool_)
    gone[ended.losing] = True
    content = set(content_columns(table))
    columns = [without(rows.column(name), gone) if name in content else rows.column(name) for name in rows.column_names]
    place = rows.column_names.index(ERASED)
    columns[place] = marked(columns[place], ended)
    return pa.table(columns, schema=rows.schema)

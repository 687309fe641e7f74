"""Erasure without decoding and encoding what it does not change: a new file of the old one's bytes and of what lost its content.

Tables in order of arrival keep their rows where they are: of a row group with ended rows, the columns that lose values are encoded
anew, and the one that says why. Posts lie by language, and a row left in its place would tell which it had: a row group that
loses rows is encoded anew without them, and they become tombstones in the last row group, which holds nothing else. Everything
else is copied (`lake.chunks`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lake.chunks import CannotSpliceError, Chunk, Group, Parts, read_parts
from lake.convert import ERASED, lake_schema
from lake.dictionaries import dictionary_columns, joined, merge_schema, without
from lake.emptying import Ended, by_arrival, find_ended, judged_columns, marked, suspect_columns
from lake.errors import FileDamaged
from lake.file_writer import Spliced
from lake.fold import Endings, content_columns, may_have_ended
from lake.layout import ARRIVAL, PARQUET_VERSION, of_columns, row_group_rows, sort_keys, writer_options
from lake.manifest import LiveFile
from lake.store import LakeStore, read_columns
from lake.thrift import Struct

_WORTH_IT: Final = 0.6
"""Most rows of a sorted file in row groups that lose some, one of two: beyond, it is laid out anew as a whole, in groups of one
size."""


def find_in_groups(
    store: LakeStore, file: LiveFile, endings: Endings, *, keep_edits: bool
) -> list[tuple[int, Ended | None]]:
    """For each row group the number of its rows, and which of them have ended. Reads few columns where none has.

    Raises FileDamaged.
    """
    table, found = file.table, []
    schema, suspects = merge_schema(table), suspect_columns(table, endings)
    more = [name for name in judged_columns(table, endings) if name not in suspects]
    with store.open(file.path, dictionary_columns(table)) as parquet:
        for number in range(parquet.num_row_groups):
            rows = read_columns(parquet, file.path, suspects, schema, [number])
            ended = None
            if may_have_ended(rows, endings).any():
                judged = read_columns(parquet, file.path, more, schema, [number])
                rows = pa.table([*rows.columns, *judged.columns], names=[*suspects, *more])
                ended = find_ended(table, rows, endings, keep_edits=keep_edits)
            found.append((rows.num_rows, ended))
    return found


def splice(store: LakeStore, file: LiveFile, found: Sequence[tuple[int, Ended | None]]) -> Spliced | None:
    """A rolled file without the content of the rows that `find_in_groups` found; None if it is to be written anew as a whole.

    Holds the file in memory. Raises FileDamaged, also where bytes that are only copied are not those that were written.
    """
    if sort_keys(file.table) != ARRIVAL and not _worth_it(found):
        return None
    try:
        data = store.absolute(file.path).read_bytes()
    except OSError as error:
        raise _damaged(file, str(error)) from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise _damaged(file, "its digest is not the one in the manifest")
    try:
        parts = read_parts(memoryview(data))
    except CannotSpliceError:
        return None
    if parts.shape != _todays_shape(file.table):
        return None
    with pq.ParquetFile(
        pa.BufferReader(data), page_checksum_verification=True, read_dictionary=dictionary_columns(file.table)
    ) as parquet:
        work = _Splice(store, file, parquet, parts.groups)
        groups = work.in_place(found) if sort_keys(file.table) == ARRIVAL else work.moved(found)
    if groups is None:
        return None
    erased = file.erased + work.emptied
    return Spliced(Parts(parts.shape, groups), file.rows, file.min_time_us, file.max_time_us, erased)


class _Splice:
    """The row groups of one new file being put together. emptied: rows that lost their content."""

    def __init__(self, store: LakeStore, file: LiveFile, parquet: pq.ParquetFile, groups: Sequence[Group]) -> None:
        self._file = file
        self._parquet = parquet
        self._groups = groups
        self._schema = merge_schema(file.table)
        self._content = frozenset(content_columns(file.table))
        self._options = writer_options(file.table, "rolled", store.compression, file.rows, rewritten=True)
        self.emptied = 0

    def in_place(self, found: Sequence[tuple[int, Ended | None]]) -> list[Group]:
        """Each row group with its rows where they were."""
        return [
            group if ended is None else Group(group.rows, [self._emptied(number, one, ended) for one in group.chunks])
            for number, (group, (_, ended)) in enumerate(zip(self._groups, found, strict=True))
        ]

    def moved(self, found: Sequence[tuple[int, Ended | None]]) -> list[Group] | None:
        """The row groups without the rows that ended, and a last one of tombstones; None if that has become a large one."""
        table, last = self._file.table, len(found) - 1
        groups, before, moved = [], [], []
        for number, (group, (_, ended)) in enumerate(zip(self._groups, found, strict=True)):
            alone = number == last and self._of_tombstones(number)
            if ended is None and not alone:
                groups.append(group)
                continue
            rows = joined(table, [self._read(number)])
            if ended is not None:
                moved.append(ended.emptied(table, rows))
                self._count(ended)
                rows = ended.others(rows)
            if alone:
                before.append(rows)
            elif rows.num_rows:
                groups.append(self._encoded(rows))
        tombstones = joined(table, [*before, by_arrival(table, moved)])
        if tombstones.num_rows > row_group_rows(table, "rolled", self._file.rows):
            return None
        return [*groups, self._encoded(tombstones)]

    def _emptied(self, number: int, chunk: Chunk, ended: Ended) -> Chunk:
        name = chunk.column
        if name == ERASED:
            self._count(ended)
            return self._encoded(self._table(name, marked(self._read(number, [name]).column(0), ended))).chunks[0]
        if name not in self._content or chunk.empty:
            return chunk
        values = self._read(number, [name]).column(0).unify_dictionaries()
        lost = values.take(pa.array(ended.losing))
        if lost.null_count == len(lost):
            return chunk
        gone = np.zeros(len(values), np.bool_)
        gone[ended.losing] = True
        return self._encoded(self._table(name, without(values, gone))).chunks[0]

    def _count(self, ended: Ended) -> None:
        self.emptied += len(ended.losing)

    def _of_tombstones(self, number: int) -> bool:
        (place,) = (place for place, chunk in enumerate(self._groups[number].chunks) if chunk.column == ERASED)
        statistics = self._parquet.metadata.row_group(number).column(place).statistics
        return statistics is not None and statistics.has_null_count and statistics.null_count == 0

    def _read(self, number: int, columns: list[str] | None = None) -> pa.Table:
        return read_columns(self._parquet, self._file.path, columns, self._schema, [number])

    def _table(self, name: str, values: pa.ChunkedArray) -> pa.Table:
        return pa.table([values], schema=pa.schema([self._schema.field(name)]))

    def _encoded(self, rows: pa.Table) -> Group:
        sink = pa.BufferOutputStream()
        options = of_columns(self._options, rows.column_names)
        with pq.ParquetWriter(sink, rows.schema, store_schema=False, **options) as writer:
            writer.write_table(rows, row_group_size=rows.num_rows)
        (group,) = read_parts(memoryview(sink.getvalue())).groups
        return group


def _worth_it(found: Sequence[tuple[int, Ended | None]]) -> bool:
    return sum(rows for rows, ended in found if ended is not None) <= _WORTH_IT * sum(rows for rows, _ in found)


@cache
def _todays_shape(table: str) -> Struct:
    """What the footer of a file of `table` says about all of it, if it is written now."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, lake_schema(table), store_schema=False, version=PARQUET_VERSION):
        pass
    return read_parts(memoryview(sink.getvalue())).shape


def _damaged(file: LiveFile, how: str) -> FileDamaged:
    return FileDamaged(
        f"{file.path} cannot be read: {how}.", "Run `post-explorer lake verify`; restore it from a backup."
    )

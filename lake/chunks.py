"""Parquet files as pieces of bytes: column chunks taken out of files, and files put together from such pieces.

A chunk is copied with everything that was said about it (encodings, statistics, page checksums, bloom filter); only the places in
the file change. Numbers of fields: parquet.thrift of apache/parquet-format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lake.thrift import BINARY, I64, LIST, STRUCT, Items, NotThriftError, Struct, Value, read_struct, write_struct

_MAGIC: Final = b"PAR1"
_TAIL: Final = 8
"""Bytes behind the footer: its length, and the magic."""

_SCHEMA, _ROWS, _GROUPS, _KEY_VALUES = 2, 3, 4, 5
"""Of FileMetaData."""
_COLUMNS, _PLAIN_BYTES, _GROUP_ROWS, _GROUP_PLACE, _PACKED_BYTES = 1, 2, 3, 5, 6
"""Of RowGroup."""
_ENTRY_PLACE, _META = 2, 3
"""Of ColumnChunk."""
_PATH, _VALUES, _PLAIN, _PACKED, _DATA, _DICTIONARY, _STATISTICS, _BLOOM, _BLOOM_BYTES = 3, 5, 6, 7, 9, 11, 12, 14, 15
"""Of ColumnMetaData."""
_NULLS: Final = 3
"""Of Statistics."""
_KNOWN_PLACES: Final = frozenset(range(1, 18)) - {10}
"""Fields of ColumnMetaData without another place in the file than those that are moved here (10: index pages, of nobody)."""


class CannotSpliceError(Exception):
    """A file is laid out in a way that cannot be copied in pieces; it can be read and written anew."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column of a row group: what the footer says about it, its pages, and its bloom filter if it has one.

    begin: where the pages were in the file that they come from.
    """

    column: str
    meta: Struct
    begin: int
    pages: memoryview
    bloom: memoryview | None

    @property
    def empty(self) -> bool:
        """Whether its statistics say that every row is null; of lists they do not tell."""
        statistics = self.meta[_STATISTICS].value if _STATISTICS in self.meta else {}
        flat = len(self.meta[_PATH].value.values) == 1
        return flat and _NULLS in statistics and statistics[_NULLS].value == self.meta[_VALUES].value


@dataclass(frozen=True, slots=True)
class Group:
    """A row group."""

    rows: int
    chunks: Sequence[Chunk]


@dataclass(frozen=True, slots=True)
class Parts:
    """A file in pieces. shape: what its footer says about all of them (columns, version, which program wrote it)."""

    shape: Struct
    groups: Sequence[Group]


def read_parts(data: memoryview) -> Parts:
    """The pieces of a file, which share its memory. Raises CannotSpliceError."""
    if len(data) < len(_MAGIC) + _TAIL or not bytes(data[: len(_MAGIC)]) == bytes(data[-len(_MAGIC) :]) == _MAGIC:
        raise CannotSpliceError("it does not begin and end as a Parquet file")
    size = int.from_bytes(data[-_TAIL : -len(_MAGIC)], "little")
    end = len(data) - _TAIL - size
    if end < len(_MAGIC):
        raise CannotSpliceError("its footer is longer than the file")
    try:
        footer, _ = read_struct(bytes(data[end:-_TAIL]))
        groups = [_group(data[:end], group) for group in footer[_GROUPS].value.values]
    except (NotThriftError, KeyError, AttributeError, TypeError) as error:
        raise CannotSpliceError(f"its footer is not what was expected: {error!r}") from error
    shape = {number: value for number, value in footer.items() if number not in (_ROWS, _GROUPS, _KEY_VALUES)}
    return Parts(shape, groups)


def write_parts(write: Callable[[Any], object], parts: Parts, key_values: Mapping[bytes, bytes]) -> None:
    """Writes a file of the pieces, in their order, with these entries in its footer."""
    write(_MAGIC)
    place = len(_MAGIC)
    entries: list[list[Struct]] = []
    for group in parts.groups:
        entries.append([])
        for chunk in group.chunks:
            entries[-1].append(_moved(chunk, place))
            write(chunk.pages)
            place += len(chunk.pages)
    for group, metas in zip(parts.groups, entries, strict=True):
        for chunk, meta in zip(group.chunks, metas, strict=True):
            if chunk.bloom is not None:
                meta[_BLOOM] = Value(I64, place)
                write(chunk.bloom)
                place += len(chunk.bloom)
    groups = [_group_entry(group.rows, metas) for group, metas in zip(parts.groups, entries, strict=True)]
    own = [{1: Value(BINARY, key), 2: Value(BINARY, value)} for key, value in key_values.items()]
    footer = parts.shape | {
        _ROWS: Value(I64, sum(group.rows for group in parts.groups)),
        _GROUPS: Value(LIST, Items(STRUCT, groups)),
        _KEY_VALUES: Value(LIST, Items(STRUCT, own)),
    }
    encoded = write_struct(dict(sorted(footer.items())))
    write(encoded + len(encoded).to_bytes(4, "little") + _MAGIC)


def _group(data: memoryview, group: Struct) -> Group:
    return Group(group[_GROUP_ROWS].value, [_chunk(data, entry) for entry in group[_COLUMNS].value.values])


def _chunk(data: memoryview, entry: Struct) -> Chunk:
    meta = entry[_META].value
    if entry.keys() - {_ENTRY_PLACE, _META} or _place(entry, _ENTRY_PLACE) or meta.keys() - _KNOWN_PLACES:
        raise CannotSpliceError("a column has an index, is encrypted or lies in another file")
    begin = min(_place(meta, _DATA), _place(meta, _DICTIONARY) or _place(meta, _DATA))
    bloom = _slice(data, _place(meta, _BLOOM), meta[_BLOOM_BYTES].value) if _BLOOM in meta else None
    pages = _slice(data, begin, meta[_PACKED].value)
    return Chunk(meta[_PATH].value.values[0].decode(), meta, begin, pages, bloom)


def _place(fields: Struct, number: int) -> int:
    return int(fields[number].value) if number in fields else 0


def _slice(data: memoryview, begin: int, size: int) -> memoryview:
    if begin < len(_MAGIC) or size < 0 or begin + size > len(data):
        raise CannotSpliceError("a column lies outside of the file")
    return data[begin : begin + size]


def _moved(chunk: Chunk, place: int) -> Struct:
    meta = dict(chunk.meta)
    for number in (_DATA, _DICTIONARY):
        if _place(meta, number):
            meta[number] = Value(I64, _place(meta, number) - chunk.begin + place)
    return meta


def _group_entry(rows: int, metas: Iterable[Struct]) -> Struct:
    found = list(metas)
    columns = [{_ENTRY_PLACE: Value(I64, 0), _META: Value(STRUCT, meta)} for meta in found]
    first = _place(found[0], _DICTIONARY) or _place(found[0], _DATA)
    return {
        _COLUMNS: Value(LIST, Items(STRUCT, columns)),
        _PLAIN_BYTES: Value(I64, sum(_place(meta, _PLAIN) for meta in found)),
        _GROUP_ROWS: Value(I64, rows),
        _GROUP_PLACE: Value(I64, first),
        _PACKED_BYTES: Value(I64, sum(_place(meta, _PACKED) for meta in found)),
    }

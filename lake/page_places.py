"""Where the pages of a rolled file of posts lie, and some of the values in them: what it takes to read a row by itself.

The footer of such a file has 15 KB, and says neither where the pages of a column are nor which of them have no value. The places
are a part of the side file of accounts (`lake.account_index`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow.parquet as pq
import zstandard

from lake.errors import FileDamaged
from lake.manifest import LiveFile
from lake.page_values import DELTA_MARK, Bytes, LevelMark, Mark, delta_marks, level_marks, numbers, text_marks
from lake.store import LakeStore
from lake.thrift import NotThriftError, Struct, read_struct

PLAIN: Final[int] = 0
DELTA: Final[int] = 5
DICTIONARY: Final[int] = 8
PLANES: Final[int] = 9
"""Encodings of pages, by their numbers in Parquet."""
LIST_LEVEL: Final = 3
"""The definition level of a value in a list; 0: no list, 1: an empty one, 2: an element that is null."""
TEXT: Final[int] = 0
BITS: Final[int] = 1
"""Sizes that stand for texts and binary values of any length, and for booleans."""
_BITS: Final = 8
EVERY_PAGE: Final = (1 << _BITS) - 1
_LARGEST_NUMBER: Final = 8
_SIZES: Final = {"BYTE_ARRAY": TEXT, "BOOLEAN": BITS, "INT32": 4, "INT64": 8}
_DATA_PAGE: Final = 0
_DICTIONARY_PAGE: Final = 2
_WORD: Final = (1 << 32) - 1
_LEVEL_MARK: Final = struct.Struct("<III")
_FIRST_LEVEL: Final = LevelMark(0, 0, 0)
_DELTA_MARK: Final = struct.Struct("<Iq")
_KIND, _PLAIN_BYTES, _PACKED_BYTES, _CHECKSUM, _DATA_HEADER, _DICTIONARY_HEADER = 1, 2, 3, 4, 5, 7
"""Fields of PageHeader; of both kinds of pages, 1 is the number of values and 2 their encoding."""


class Page(msgspec.Struct, array_like=True, frozen=True):
    """Where the packed bytes of a page are in the file, how many they are, and how many unpacked. rows, levels: 0 for a dictionary;
    values: those that are not null; encoding: None when all of its rows are null; the marks are packed."""

    begin: int
    packed: int
    plain: int
    rows: int
    levels: int
    values: int
    encoding: int | None
    marks: bytes = b""
    level_marks: bytes = b""

    def level_mark(self, number: int) -> LevelMark:
        """The last mark that is not behind a level."""
        found = _FIRST_LEVEL
        for mark in _LEVEL_MARK.iter_unpack(self.level_marks):
            if mark[1] > number:
                break
            found = LevelMark(*mark)
        return found

    def mark(self, number: int) -> Mark:
        """The last mark that is not behind a value of a page of differences."""
        place, before = _DELTA_MARK.unpack_from(self.marks, _DELTA_MARK.size * (number // DELTA_MARK))
        return Mark(place, before)

    @property
    def text_marks(self) -> Sequence[int]:
        """The places of the marks of a page of texts."""
        return memoryview(self.marks).cast("I")


class Chunk(msgspec.Struct, array_like=True, frozen=True):
    """A column of a row group. size: bytes of a value, or TEXT, or BITS; nested: whether it is one of lists."""

    size: int
    nested: bool
    dictionary: Page | None
    pages: tuple[Page, ...]


class Group(msgspec.Struct, array_like=True, frozen=True):
    """A row group: its columns by name."""

    columns: dict[str, Chunk]


_DECODER: Final = msgspec.msgpack.Decoder(Group)


def encoded(group: Group) -> bytes:
    """For a side file."""
    return msgspec.msgpack.encode(group)


def decoded(content: bytes) -> Group:
    """Raises msgspec.DecodeError."""
    return _DECODER.decode(content)


def places_of(store: LakeStore, file: LiveFile) -> tuple[Group, ...]:
    """The places of a file. Blocks for reading and unpacking all of it. Empty where it is laid out in another way than
    `lake.layout` does today. Raises FileDamaged."""
    with store.open(file.path) as parquet:
        content = store.absolute(file.path).read_bytes()
        try:
            return tuple(_group(parquet, number, memoryview(content)) for number in range(parquet.num_row_groups))
        except _DamagedError as error:
            raise FileDamaged(
                f"{file.path} cannot be read: {error}.", "Run `post-explorer lake verify`; restore it from a backup."
            ) from error
        except (_OtherLayoutError, NotThriftError, KeyError, IndexError, ValueError):
            return ()


def pages_of(groups: Sequence[Group], column: str) -> list[tuple[int, int, int]]:
    """For each page of a column of a file the numbers of its group and of it in that, and which bit of eight stands for it:
    neighbours share one where there are more pages."""
    pages = [
        (number, place) for number, group in enumerate(groups) for place in range(len(group.columns[column].pages))
    ]
    return [(*page, bit if len(pages) <= _BITS else _BITS * bit // len(pages)) for bit, page in enumerate(pages)]


class _OtherLayoutError(Exception):
    pass


class _DamagedError(Exception):
    pass


def _group(parquet: pq.ParquetFile, number: int, data: memoryview) -> Group:
    group, columns = parquet.metadata.row_group(number), {}
    for place in range(group.num_columns):
        field = parquet.schema.column(place)
        columns[field.path.partition(".")[0]] = _chunk(field, group.column(place), data, group.num_rows)
    return Group(columns)


def _chunk(field: Any, chunk: Any, data: memoryview, rows: int) -> Chunk:
    nested = field.max_repetition_level == 1
    levels = (field.max_repetition_level, field.max_definition_level)
    if levels != ((1, LIST_LEVEL) if nested else (0, 1)) or chunk.compression != "ZSTD":
        raise _OtherLayoutError
    fixed = field.physical_type == "FIXED_LEN_BYTE_ARRAY"
    size = field.length if fixed else _SIZES.get(field.physical_type)
    if size is None or (fixed and size <= _LARGEST_NUMBER):
        raise _OtherLayoutError
    begin = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
    content = bytes(data[begin : begin + chunk.total_compressed_size])
    place, dictionary, pages = 0, None, []
    while place < len(content):
        header, place = read_struct(content, place)
        packed = header[_PACKED_BYTES].value
        page = _page(header, content[place : place + packed], begin + place, size, nested=nested)
        place += packed
        if header[_KIND].value == _DICTIONARY_PAGE:
            dictionary = page
        else:
            pages.append(page)
    if sum(page.rows for page in pages) != rows:
        raise _OtherLayoutError
    return Chunk(size, nested, dictionary, tuple(pages))


def _page(header: Struct, packed: bytes, begin: int, size: int, *, nested: bool) -> Page:
    plain = header[_PLAIN_BYTES].value
    if _CHECKSUM in header and zlib.crc32(packed) != header[_CHECKSUM].value & _WORD:
        raise _DamagedError("a page is not as it was written")
    try:
        data = zstandard.ZstdDecompressor().decompress(packed, max_output_size=plain) if plain else b""
    except zstandard.ZstdError as error:
        raise _DamagedError(str(error)) from error
    if header[_KIND].value == _DICTIONARY_PAGE:
        count = header[_DICTIONARY_HEADER].value[1].value
        return Page(begin, len(packed), plain, 0, 0, count, PLAIN, _marks(data, 0, count, size, PLAIN))
    if header[_KIND].value != _DATA_PAGE:
        raise _OtherLayoutError
    own = header[_DATA_HEADER].value
    count, encoding = own[1].value, own[2].value
    if encoding not in (PLAIN, DELTA, DICTIONARY, PLANES) or (size in (TEXT, BITS) and encoding in (DELTA, PLANES)):
        raise _OtherLayoutError
    begins = values_begin(data, nested=nested)
    levels = numbers(data, begins[-2] + 4, 2 if nested else 1, count)
    rows = int(np.count_nonzero(numbers(data, 4, 1, count) == 0)) if nested else count
    values = int(np.count_nonzero(levels == (LIST_LEVEL if nested else 1)))
    if not levels.any():
        return Page(begin, len(packed), plain, rows, count, 0, None)
    marks = _marks(data, begins[-1], values, size, encoding) if values else b""
    of_levels = level_marks(data, begins[-2] + 4, begins[-1], nested=nested)
    packed_marks = b"".join(_LEVEL_MARK.pack(*mark) for mark in of_levels)
    return Page(begin, len(packed), plain, rows, count, values, encoding, marks, packed_marks)


def values_begin(data: Bytes, *, nested: bool) -> Sequence[int]:
    """Where the levels of a page begin, with their length before them, and behind them the values."""
    places = [0]
    for _ in range(2 if nested else 1):
        places.append(places[-1] + 4 + int.from_bytes(data[places[-1] : places[-1] + 4], "little"))
    return places


def _marks(data: bytes, begin: int, count: int, size: int, encoding: int) -> bytes:
    if encoding == DELTA:
        return b"".join(_DELTA_MARK.pack(*mark) for mark in delta_marks(data, begin, count))
    return np.fromiter(text_marks(data, begin), "<u4").tobytes() if encoding == PLAIN and size == TEXT else b""

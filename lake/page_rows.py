"""The few rows that some accounts have in a rolled file of posts, read from the pages that they lie in.

A query engine opens such a file, parses its footer and decodes every column up to the row: some ten milliseconds. This reads only
pages that have a value of the rows (`lake.page_places`), and of long ones only as much as comes before it.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, Final, cast

import numpy as np
import zstandard

from lake.page_places import BITS, DELTA, DICTIONARY, LIST_LEVEL, PLAIN, TEXT, Chunk, Group, Page, values_begin
from lake.page_values import (
    DELTA_MARK,
    TEXT_MARK,
    Bytes,
    delta_at,
    number_at,
    number_of_text,
    numbers,
    rank,
    rank_of_elements,
    text_at,
)

_STEP: Final = 64 << 10
"""Packed bytes that are read and unpacked at once."""
_LARGEST: Final = 16 << 20
"""Most bytes of a page or dictionary that are unpacked: a reader has memory for two."""
_DID: Final = "did"
_BROKEN: Final = (zstandard.ZstdError, struct.error, IndexError, KeyError, ValueError, OSError, MemoryError)
"""What reading ends with where the bytes are not those of the places; MemoryError where they promise more than there can be."""

Values = list[Any]
Unpack = Callable[[bytes], bytes]


class CannotReadError(Exception):
    """The rows cannot be read this way; a query engine may read the file or say what is the matter with it."""


def rows_of(
    descriptor: int, group: Group, pages: Sequence[int], dids: Sequence[str], columns: Sequence[str], buffers: Buffers
) -> dict[str, Values]:
    """The values of some columns, in one order, of all rows of some accounts in a row group of an open file; `pages`: the numbers
    of the pages of its accounts that can have them. Numbers, times too, as int; texts as str.

    Blocks for reading and unpacking pages. Raises CannotReadError.
    """
    try:
        unpack, ranks = zstandard.ZstdDecompressor().decompress, _Ranks()
        rows = _Column(descriptor, unpack, buffers, ranks, group.columns[_DID]).of_accounts(pages, dids)
        if not rows:
            return {name: [] for name in columns}
        numbered = [row for row, _ in rows]
        return {
            name: [did for _, did in rows]
            if name == _DID
            else _Column(descriptor, unpack, buffers, ranks, group.columns[name]).values(numbered)
            for name in columns
        }
    except _BROKEN as error:
        raise CannotReadError(repr(error)) from error


class _Ranks:
    """Ranks of rows in levels: columns that have a value in the same rows have the same levels."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, int], tuple[int, int]] = {}

    def of(self, page: Page, levels: bytes, row: int) -> tuple[int, int]:
        """See `lake.page_values.rank`."""
        found = self._known.get((levels, row))
        if found is None:
            place, skipped, before = page.level_mark(row)
            values, level = rank(levels, place, row - skipped)
            found = self._known[levels, row] = (before + values, level)
        return found


class Buffers:
    """Memory for what is unpacked, used again for file after file by one thread: fresh memory costs half as much as unpacking."""

    def __init__(self) -> None:
        self.page = bytearray()
        self.dictionary = bytearray()


class _Packed:
    """The packed bytes of a page, as a stream."""

    def __init__(self, descriptor: int, page: Page) -> None:
        self._descriptor = descriptor
        self._place = page.begin
        self._end = page.begin + page.packed

    def read(self, size: int) -> bytes:
        """The next bytes; none at the end."""
        found = os.pread(self._descriptor, min(size, self._end - self._place), self._place)
        self._place += len(found)
        return found


class _Content:
    """The content of a page, unpacked as far as it is asked for: `data` up to `known`."""

    def __init__(self, descriptor: int, unpack: Unpack, page: Page, buffer: bytearray) -> None:
        self._page = page
        self._stream: zstandard.ZstdDecompressionReader | None = None
        self.data: Bytes
        if page.plain > _LARGEST:
            raise ValueError("a page is too large")
        if page.packed <= _STEP:
            self.data = unpack(os.pread(descriptor, page.packed, page.begin)) if page.packed else b""
            self.known = len(self.data)
        else:
            # An unpacker of its own: another page may be unpacked before this one goes on.
            packed = cast("IO[bytes]", _Packed(descriptor, page))
            self._stream = zstandard.ZstdDecompressor().stream_reader(packed, read_size=_STEP)
            if len(buffer) < page.plain:
                buffer.extend(bytes(page.plain - len(buffer)))
            self.data = buffer
            self.known = 0

    def upto(self, end: int) -> Bytes:
        """The content with at least its first `end` bytes. Raises IndexError where it is shorter."""
        while self.known < end:
            if self._stream is None or end > self._page.plain:
                raise IndexError("a page is shorter than was written")
            with memoryview(self.data)[self.known : end] as missing:
                size = self._stream.readinto(missing)
            if not size:
                raise IndexError("a page is shorter than was written")
            self.known += size
        return self.data

    def all(self) -> Bytes:
        """The whole content."""
        return self.upto(self._page.plain)


class _Column:
    """Values of a column of a row group."""

    def __init__(self, descriptor: int, unpack: Unpack, buffers: Buffers, ranks: _Ranks, chunk: Chunk) -> None:
        self._descriptor = descriptor
        self._unpack = unpack
        self._buffers = buffers
        self._ranks = ranks
        self._chunk = chunk
        self._dictionary: _Content | None = None

    def of_accounts(self, pages: Sequence[int], dids: Sequence[str]) -> list[tuple[int, str]]:
        """The rows with one of some texts in some pages of the column, which has no nulls, in order."""
        codes = self._codes(dids)
        if not codes:
            return []
        rows, first = [], 0
        for number, page in enumerate(self._chunk.pages):
            if number in pages:
                if page.encoding != DICTIONARY or page.values != page.rows:
                    raise ValueError("accounts are laid out in another way")
                data = self._content(page).all()
                begin = values_begin(data, nested=False)[-1]
                found = numbers(data, begin + 1, data[begin], page.rows)
                for code, did in codes.items():
                    rows += [(first + row, did) for row in np.flatnonzero(found == code).tolist()]
            first += page.rows
        return sorted(rows)

    def values(self, rows: Sequence[int]) -> Values:
        """The values of some rows of the group, which are in order."""
        found: Values = []
        first = taken = 0
        for page in self._chunk.pages:
            behind = first + page.rows
            if taken < len(rows) and rows[taken] < behind:
                end = bisect_left(rows, behind, taken)
                own = [row - first for row in rows[taken:end]]
                if page.encoding is None:
                    found += [None] * len(own)
                else:
                    found += self._nested(page, own) if self._chunk.nested else self._flat(page, own)
                taken = end
            first = behind
        if taken != len(rows):
            raise IndexError("a column is shorter than others")
        return found

    def _flat(self, page: Page, rows: Sequence[int]) -> Iterator[Any]:
        content = self._content(page)
        begin = 4 + int.from_bytes(content.upto(4)[:4], "little")
        levels = bytes(content.upto(begin)[4:begin])
        for row in rows:
            number, level = self._ranks.of(page, levels, row)
            yield self._value(page, content, begin, number) if level else None

    def _nested(self, page: Page, rows: Sequence[int]) -> Iterator[Any]:
        content = self._content(page)
        data = content.all()
        _, levels, values = values_begin(data, nested=True)
        starts: Sequence[int] = range(page.rows + 1)
        if page.levels != page.rows:
            starts = [*np.flatnonzero(numbers(data, 4, 1, page.levels) == 0).tolist(), page.levels]
        for row in rows:
            place, skipped, before = page.level_mark(starts[row])
            number, level = rank_of_elements(data, levels + 4 + place, starts[row] - skipped)
            number += before
            if level < LIST_LEVEL - 1:
                yield [] if level else None
                continue
            elements = []
            for element in range(starts[row], starts[row + 1]):
                _, level = rank_of_elements(data, levels + 4 + place, element - skipped)
                elements.append(self._value(page, content, values, number) if level == LIST_LEVEL else None)
                number += level == LIST_LEVEL
            yield elements

    def _value(self, page: Page, content: _Content, begin: int, number: int) -> Any:
        """A value of a page, whose values begin at `begin`."""
        size = self._chunk.size
        if page.encoding == DICTIONARY:
            data = content.all()
            code = number_at(data, begin + 1, data[begin], number)
            assert self._chunk.dictionary is not None
            return self._value(self._chunk.dictionary, self._in_dictionary(), 0, code)
        if page.encoding == DELTA:
            return delta_at(content.all(), begin, page.mark(number), number % DELTA_MARK)
        if page.encoding == PLAIN and size == TEXT:
            marks, mark = page.text_marks, number // TEXT_MARK
            end = page.plain if mark + 1 == len(marks) else begin + marks[mark + 1]
            return text_at(content.upto(end), begin + marks[mark], number % TEXT_MARK, end).decode()
        if page.encoding == PLAIN and size == BITS:
            return bool(content.all()[begin + (number >> 3)] >> (number & 7) & 1)
        if page.encoding == PLAIN:
            first = begin + number * size
            found = bytes(content.upto(first + size)[first : first + size])
        else:
            found = bytes(content.all()[begin + number :: page.values][:size])
        return int.from_bytes(found, "little", signed=True) if size <= 8 else found

    def _codes(self, dids: Sequence[str]) -> dict[int, str]:
        """The numbers that stand for some texts."""
        page = self._chunk.dictionary
        if page is None:
            raise ValueError("accounts are laid out in another way")
        wanted = {len(did.encode()).to_bytes(4, "little") + did.encode(): did for did in dids}
        content, codes, begin = self._in_dictionary(), {}, 0
        marks = page.text_marks
        while wanted and begin < page.plain:
            data = content.upto(min(begin + _STEP, page.plain))
            for text in list(wanted):
                place = data.find(text, max(0, begin - len(text)), content.known)
                while place >= 0:
                    mark = bisect_right(marks, place) - 1
                    behind = number_of_text(data, marks[mark], place)
                    if behind is not None:
                        codes[mark * TEXT_MARK + behind] = wanted.pop(text)
                        break
                    place = data.find(text, place + 1, content.known)
            begin = content.known
        return codes

    def _in_dictionary(self) -> _Content:
        if self._dictionary is None:
            assert self._chunk.dictionary is not None
            self._dictionary = _Content(
                self._descriptor, self._unpack, self._chunk.dictionary, self._buffers.dictionary
            )
        return self._dictionary

    def _content(self, page: Page) -> _Content:
        return _Content(self._descriptor, self._unpack, page, self._buffers.page)

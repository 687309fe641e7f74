"""Single values out of the pages of a Parquet column: found by their number, without decoding the values before them where it can
be helped.

Only the encodings that `lake.layout` asks for. Format: "Encodings" of apache/parquet-format. Functions take the decompressed bytes
of a page and raise IndexError, ValueError or struct.error for bytes that are no such page.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = bytes | bytearray

TEXT_MARK: Final = 256
"""Texts between two marks."""
LEVEL_MARK: Final = 1024
"""Levels between two marks of them, at least."""
DELTA_MARK: Final = 1024
"""Values between two marks of differences: whole blocks."""
BLOCK_DELTAS: Final = 256
"""Of DELTA_BINARY_PACKED, as the writer makes them: a block has four pieces of 32 differences."""
_PIECE_DELTAS: Final = 64
_PIECES: Final = 4
_WIDEST: Final = 24
"""Bits of a number in a run; a dictionary of more values is not written."""
_WHOLE_BYTES: Final = (8, 16)
_WORD: Final = (1 << 64) - 1
_SEVEN_BITS: Final = 0x7F
_ELEMENT: Final = 3
_SIZE: Final = struct.Struct("<I").unpack_from


class Mark(NamedTuple):
    """Where adding up differences can begin: the place behind the first byte of values, and the value there."""

    place: int
    before: int


def varint(data: Bytes, place: int) -> tuple[int, int]:
    """The number that begins at a place, and the place behind it."""
    number = shift = 0
    while True:
        byte = data[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
        shift += 7


class LevelMark(NamedTuple):
    """Where reading levels can begin: the place behind the first byte of levels, and how many levels, and values, are before it."""

    place: int
    levels: int
    values: int


def level_marks(data: Bytes, begin: int, end: int, *, nested: bool) -> Iterator[LevelMark]:
    """A mark for every so many levels of a page, of a column without or of lists; none for the first."""
    place, levels, values, marked = begin, 0, 0, 0
    while place < end:
        if levels >= marked + LEVEL_MARK:
            yield LevelMark(place - begin, levels, values)
            marked = levels
        head, behind = varint(data, place)
        run = 8 * (head >> 1) if head & 1 else head >> 1
        found, last = (rank_of_elements if nested else rank)(data, place, run - 1)
        values += found + (last == (_ELEMENT if nested else 1))
        levels += run
        place = behind + ((head >> 1) * (2 if nested else 1) if head & 1 else 1)


def rank(data: Bytes, place: int, number: int) -> tuple[int, int]:
    """Of the levels of a column without lists: how many of the first `number` rows have a value, and the level of the next one."""
    before = 0
    while True:
        head = data[place]
        place += 1
        if head > _SEVEN_BITS:
            head, place = varint(data, place - 1)
        size = head >> 1
        if not head & 1:
            if number < size:
                return before + number * data[place], data[place]
            before += size * data[place]
            number -= size
            place += 1
            continue
        bits = int.from_bytes(data[place : place + size], "little")
        if number < 8 * size:
            return before + (bits & ((1 << number) - 1)).bit_count(), bits >> number & 1
        before += bits.bit_count()
        number -= 8 * size
        place += size


def rank_of_elements(data: Bytes, place: int, number: int) -> tuple[int, int]:
    """Of the levels of a column of lists: how many of the first `number` are values, which have level 3, and the next level."""
    before = 0
    while True:
        head = data[place]
        place += 1
        if head > _SEVEN_BITS:
            head, place = varint(data, place - 1)
        size = head >> 1
        if not head & 1:
            level = data[place]
            if number < size:
                return before + (number if level == _ELEMENT else 0), level
            if level == _ELEMENT:
                before += size
            number -= size
            place += 1
            continue
        bits = int.from_bytes(data[place : place + 2 * size], "little")
        some = bits & ((1 << 2 * number) - 1)
        before += (some & some >> 1 & _low_bits(2 * size)).bit_count()
        if number < 8 * size:
            return before, bits >> 2 * number & _ELEMENT
        number -= 8 * size
        place += 2 * size


@cache
def _low_bits(size: int) -> int:
    """The lower bit of each pair of bits of some bytes."""
    return int.from_bytes(b"\x55" * size, "little")


def number_at(data: Bytes, place: int, width: int, number: int) -> int:
    """One of the numbers of `width` bits that lie in runs from a place on."""
    if not width:
        return 0
    while True:
        head, place = varint(data, place)
        size = (head >> 1) * width if head & 1 else -(-width // 8)
        count = 8 * (head >> 1) if head & 1 else head >> 1
        if number >= count:
            number -= count
            place += size
        elif head & 1:
            first = number * width
            some = data[place + (first >> 3) : place + (first + width + 7 >> 3)]
            return int.from_bytes(some, "little") >> (first & 7) & ((1 << width) - 1)
        else:
            return int.from_bytes(data[place : place + size], "little")


def numbers(data: Bytes, place: int, width: int, count: int) -> npt.NDArray[np.uint32]:
    """The first `count` numbers of `width` bits that lie in runs from a place on."""
    found = np.zeros(count, np.uint32)
    if not width:
        return found
    if width > _WIDEST:
        raise ValueError("numbers are too wide")
    packed, stretches, done = [], [], 0
    while done < count:
        head, place = varint(data, place)
        if head & 1:
            size = (head >> 1) * width
            packed.append(data[place : place + size])
            stretches.append((done, 8 * (head >> 1)))
            done += 8 * (head >> 1)
        else:
            size = -(-width // 8)
            found[done : done + (head >> 1)] = int.from_bytes(data[place : place + size], "little")
            done += head >> 1
        place += size
    if stretches:
        unpacked, first = _unpacked(b"".join(packed), width), 0
        for begin, size in stretches:
            end = min(begin + size, count)
            found[begin:end] = unpacked[first : first + end - begin]
            first += size
    return found


def _unpacked(data: bytes, width: int) -> npt.NDArray[np.uint32]:
    if width in _WHOLE_BYTES:
        return np.frombuffer(data, f"<u{width // 8}").astype(np.uint32)
    octets = np.frombuffer(data + bytes(4), np.uint8).astype(np.uint32)
    bits = np.arange(0, 8 * len(data) // width * width, width)
    places, shifts = bits >> 3, (bits & 7).astype(np.uint32)
    words = octets[places] | octets[places + 1] << 8 | octets[places + 2] << 16 | octets[places + 3] << 24
    unpacked: npt.NDArray[np.uint32] = words >> shifts & np.uint32((1 << width) - 1)
    return unpacked


def text_at(data: Bytes, place: int, number: int, end: int) -> bytes:
    """A text or binary value; `place` is that of the value `number` values before it, and all of them end before `end`."""
    for _ in range(number):
        place += 4 + _SIZE(data, place)[0]
    size = _SIZE(data, place)[0]
    if place + 4 + size > end:
        raise IndexError("a value ends behind its page")
    return bytes(data[place + 4 : place + 4 + size])


def number_of_text(data: Bytes, mark: int, place: int) -> int | None:
    """How many texts lie between the one at a mark and the one that begins at a place; None where none does."""
    number = 0
    while mark < place:
        mark += 4 + _SIZE(data, mark)[0]
        number += 1
    return number if mark == place else None


def text_marks(data: Bytes, begin: int) -> Iterator[int]:
    """The place, behind the first one, of every so many texts of those that fill the page from there on."""
    place = begin
    for number in itertools.count():
        if place >= len(data):
            return
        if number % TEXT_MARK == 0:
            yield place - begin
        place += 4 + _SIZE(data, place)[0]


def delta_start(data: Bytes, place: int) -> Mark:
    """The mark of the first value of a page of differences; `place` 0 is where the page's values begin."""
    begin = place
    size, place = varint(data, place)
    pieces, place = varint(data, place)
    if (size, pieces) != (BLOCK_DELTAS, _PIECES):
        raise ValueError("blocks of another size")
    _, place = varint(data, place)
    first, place = varint(data, place)
    return Mark(place - begin, _signed(first))


def delta_marks(data: Bytes, begin: int, count: int) -> Iterator[Mark]:
    """A mark for every so many of the `count` values of a page of differences."""
    place, value = delta_start(data, begin)
    for number in range(0, max(count, 1), DELTA_MARK):
        yield Mark(place, value)
        if number + DELTA_MARK < count:
            added, end = _sum(data, begin + place, DELTA_MARK)
            value, place = _wrapped(value + added), end - begin


def delta_at(data: Bytes, begin: int, mark: Mark, number: int) -> int:
    """The value `number` values behind that of a mark."""
    return _wrapped(mark.before + _sum(data, begin + mark.place, number)[0])


def _sum(data: Bytes, place: int, count: int) -> tuple[int, int]:
    """The sum of the next differences, and the place behind them where they are whole blocks."""
    total = 0
    while count > 0:
        least, place = varint(data, place)
        widths = data[place : place + _PIECES]
        place += _PIECES
        total += _signed(least) * min(count, BLOCK_DELTAS)
        for width in widths:
            if count > 0 and width:
                some = int.from_bytes(data[place : place + _PIECE_DELTAS // 8 * width], "little")
                if count < _PIECE_DELTAS:
                    some &= (1 << count * width) - 1
                total += _sum_of_fields(some, width)
            place += _PIECE_DELTAS // 8 * width
            count -= _PIECE_DELTAS
        if place > len(data):
            raise IndexError("a block ends behind its page")
    return total, place


def _sum_of_fields(fields: int, width: int) -> int:
    for mask, shift in _folds(width):
        fields = (fields & mask) + (fields >> shift & mask)
    return fields


@cache
def _folds(width: int) -> list[tuple[int, int]]:
    """How 64 fields of `width` bits become 16 of twice as many, and so on down to one."""
    folds, count = [], _PIECE_DELTAS
    while count > 1:
        count //= 2
        folds.append((sum(((1 << width) - 1) << 2 * width * place for place in range(count)), width))
        width *= 2
    return folds


def _signed(zigzag: int) -> int:
    return (zigzag >> 1) ^ -(zigzag & 1)


def _wrapped(value: int) -> int:
    """Differences wrap around, as 64 bits do."""
    value &= _WORD
    return value - (1 << 64) if value >> 63 else value

"""Thrift's compact protocol, as far as Parquet's footers and page headers use it: structs read without knowing their definition.

A struct is a dictionary of its fields by number, in the order they came in. What nobody asks for is carried along, so that a
struct that was read is written as it was.

Format: "Thrift compact protocol encoding" of apache/thrift.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

TRUE: Final = 1
FALSE: Final = 2
BYTE: Final = 3
I16: Final = 4
I32: Final = 5
I64: Final = 6
DOUBLE: Final = 7
BINARY: Final = 8
LIST: Final = 9
STRUCT: Final = 12

_INTEGERS: Final = frozenset({I16, I32, I64})
_DEEPEST: Final = 32
"""Parquet's own structs nest a quarter as deep."""
_MOST_BITS: Final = 63
_SHORT_LIST: Final = 15
_SHORT_STEP: Final = 15


class Value(NamedTuple):
    """A field's value: int, float, bool, bytes, Items or Struct; `kind` is its type on the wire."""

    kind: int
    value: Any


class Items(NamedTuple):
    """A list of values that are all of one kind."""

    kind: int
    values: list[Any]


Struct = dict[int, Value]


class NotThriftError(ValueError):
    """The bytes are no struct of the kinds that Parquet has."""


def read_struct(data: bytes, place: int = 0) -> tuple[Struct, int]:
    """The struct that begins at `place`, and the place behind it. Raises NotThriftError."""
    reader = _Reader(data, place)
    try:
        return reader.struct(_DEEPEST), reader.place
    except (IndexError, struct.error) as error:
        raise NotThriftError("a struct ends behind the last byte") from error


def write_struct(fields: Struct) -> bytes:
    """The bytes of a struct."""
    out = bytearray()
    _write_struct(out, fields)
    return bytes(out)


class _Reader:
    def __init__(self, data: bytes, place: int) -> None:
        self._data = data
        self.place = place

    def struct(self, depth: int) -> Struct:
        data, number = self._data, 0
        fields: Struct = {}
        while True:
            head = data[self.place]
            self.place += 1
            if head == 0:
                return fields
            kind = head & 0x0F
            number = number + (head >> 4) if head >> 4 else self._integer()
            fields[number] = Value(kind, kind == TRUE if kind in (TRUE, FALSE) else self._value(kind, depth))

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _INTEGERS:
            return self._integer()
        if kind == BINARY:
            return self._bytes(self._number())
        if kind in (STRUCT, LIST):
            if not depth:
                raise NotThriftError("values are nested too deep")
            return self.struct(depth - 1) if kind == STRUCT else self._items(depth - 1)
        if kind == BYTE:
            return self._bytes(1)[0]
        if kind == DOUBLE:
            return struct.unpack("<d", self._bytes(8))[0]
        raise NotThriftError(f"a value is of kind {kind}")

    def _items(self, depth: int) -> Items:
        head = self._bytes(1)[0]
        kind = head & 0x0F
        count = self._number() if head >> 4 == _SHORT_LIST else head >> 4
        if count > len(self._data):
            raise NotThriftError("a list is longer than the file")
        if kind in (TRUE, FALSE):
            # One byte each, in lists only.
            return Items(kind, [byte == TRUE for byte in self._bytes(count)])
        return Items(kind, [self._value(kind, depth) for _ in range(count)])

    def _number(self) -> int:
        data, place, number, shift = self._data, self.place, 0, 0
        while True:
            byte = data[place]
            place += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > _MOST_BITS:
                raise NotThriftError("a number is too long")
        self.place = place
        return number

    def _integer(self) -> int:
        number = self._number()
        return (number >> 1) ^ -(number & 1)

    def _bytes(self, count: int) -> bytes:
        begin = self.place
        self.place = begin + count
        found = self._data[begin : self.place]
        if len(found) != count:
            raise IndexError
        return found


def _write_struct(out: bytearray, fields: Struct) -> None:
    before = 0
    for number, (kind, value) in fields.items():
        kind = kind if kind not in (TRUE, FALSE) else TRUE if value else FALSE
        step = number - before
        if 0 < step <= _SHORT_STEP:
            out.append(step << 4 | kind)
        else:
            out.append(kind)
            _write_integer(out, number)
        before = number
        if kind not in (TRUE, FALSE):
            _write_value(out, kind, value)
    out.append(0)


def _write_value(out: bytearray, kind: int, value: Any) -> None:
    if kind in _INTEGERS:
        _write_integer(out, value)
    elif kind == BINARY:
        _write_number(out, len(value))
        out += value
    elif kind == STRUCT:
        _write_struct(out, value)
    elif kind == LIST:
        _write_items(out, value)
    elif kind == BYTE:
        out.append(value)
    else:
        out += struct.pack("<d", value)


def _write_items(out: bytearray, items: Items) -> None:
    count = len(items.values)
    if count < _SHORT_LIST:
        out.append(count << 4 | items.kind)
    else:
        out.append(_SHORT_LIST << 4 | items.kind)
        _write_number(out, count)
    for value in items.values:
        if items.kind in (TRUE, FALSE):
            out.append(TRUE if value else FALSE)
        else:
            _write_value(out, items.kind, value)


def _write_integer(out: bytearray, value: int) -> None:
    _write_number(out, (value << 1) ^ (value >> _MOST_BITS))


def _write_number(out: bytearray, number: int) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)

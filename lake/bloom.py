"""Which rolled files can hold a value of a column at all, asked of the bloom filters in the Parquet files themselves, and of the
least and greatest value of numbers.

Opening a file costs a query engine a third of a millisecond, and thirty days are 720 files for each table. A probe is one read
of 32 bytes at a place that the file's footer names; footers are read once for each file, named by its digest.

Format: BloomFilter.md of apache/parquet-format, "split block bloom filter": XXH64 with seed 0 of the plain encoding of the value,
whose upper half picks a block of 256 bits and whose lower half a bit in each of its eight words.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from lake.manifest import LiveFile

log = logging.getLogger("explorer.lake")

Value = str | int
"""A text or a 64-bit integer, as the column has it; nulls are in no filter."""

_MOST_FILES: Final = 50_000
"""Files whose filters are known at once, some hundred bytes each: a year of six large tables."""
_SALTS: Final = (
    0x47B6137B,
    0x44974D91,
    0x8824AD5B,
    0xA2B7289D,
    0x705495C7,
    0x2DF1424B,
    0x9EFC4947,
    0x5C6BFB31,
)
_RANGED: Final = ("rkey_tid",)
"""Keys of records grow with time, so that few hours have one between their least and greatest."""
_BLOCK_BYTES: Final = 32
_HEADER_MOST: Final = 32
_HEADER_START: Final = b"\x15"
"""Thrift's compact protocol: field 1, a 32-bit integer (the number of bytes of bits)."""
_HEADER_REST: Final = bytes.fromhex("1c1c00001c1c00001c1c000000")
"""Algorithm BLOCK, hash XXHASH, compression UNCOMPRESSED: the only ones that the format has."""

Place = tuple[int, int]
"""Where the bits of a filter begin in the file, and how many blocks they are."""
Range = tuple[int, int]
"""Least and greatest value."""


class Group(NamedTuple):
    """What is known of a row group: of which columns it has filters, and ranges."""

    places: Mapping[str, Place]
    ranges: Mapping[str, Range]


Filters = tuple[Group, ...]
"""For each row group."""


class Wanted(NamedTuple):
    """A value: the upper half of its hash, and its bits in a block."""

    value: Value
    upper: int
    mask: int


class FilterIndex:
    """Answers from the bloom filters of one lake's files. Thread-safe."""

    def __init__(self, root: Path) -> None:
        self._root = f"{root}{os.sep}"
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Filters] = OrderedDict()

    def may_hold(self, files: Iterable[LiveFile], wanted: Mapping[str, Sequence[Value]]) -> list[LiveFile]:
        """The files that can have a row with, in every column of `wanted`, one of its values; in their order, never too few.

        Small files and columns without a filter count as if they held everything. Blocks for about ten microseconds per file
        and column when the files are in memory, and for reading the footers of files that were not asked about before.
        """
        hashed = {
            column: [_hashed(value) for value in (sorted(values, key=int) if column in _RANGED else values)]
            for column, values in wanted.items()
        }
        return [file for file in files if file.kind != "rolled" or self._may_hold(file, hashed)]

    def _may_hold(self, file: LiveFile, wanted: Mapping[str, Sequence[Wanted]]) -> bool:
        filters = self._known.get(file.sha256)
        if filters is None:
            filters = self._learn(file)
        within = [(group, found) for group in filters if all((found := _within(group.ranges, wanted)).values())]
        if not within:
            return not filters
        if not any(column in group.places for group, _ in within for column in wanted):
            return True
        try:
            descriptor = os.open(self._root + file.path, os.O_RDONLY)
        except OSError:
            return True
        try:
            return any(
                all(
                    column not in group.places or _any_of(descriptor, group.places[column], values)
                    for column, values in found.items()
                )
                for group, found in within
            )
        finally:
            os.close(descriptor)

    def _learn(self, file: LiveFile) -> Filters:
        path = self._root + file.path
        try:
            filters = _filters_of(path)
        except (OSError, pa.ArrowException) as error:
            # Whoever reads the file says what is the matter with it.
            log.warning("the bloom filters of a file cannot be found", extra={"path": path, "cause": str(error)})
            return (Group({}, {}),)
        with self._lock:
            self._known[file.sha256] = filters
            while len(self._known) > _MOST_FILES:
                self._known.popitem(last=False)
        return filters


def _filters_of(path: str) -> Filters:
    footer = pq.read_metadata(path)
    with open(path, "rb") as file:  # noqa: PTH123 - a path object for each of thousands of files takes longer than the read
        found = []
        for number in range(footer.num_row_groups):
            group, columns, ranges = footer.row_group(number), {}, {}
            for position in range(footer.num_columns):
                column = group.column(position)
                if column.path_in_schema in _RANGED and column.statistics is not None and column.statistics.has_min_max:
                    ranges[column.path_in_schema] = (column.statistics.min, column.statistics.max)
                if column.bloom_filter_offset is not None and column.physical_type in ("INT64", "BYTE_ARRAY"):
                    place = _place(file.fileno(), column.bloom_filter_offset, column.bloom_filter_length)
                    if place is None:
                        log.warning(
                            "a bloom filter is not what was written and not used: verify the lake",
                            extra={"path": path, "column": column.path_in_schema},
                        )
                    else:
                        columns[column.path_in_schema] = place
            found.append(Group(columns, ranges))
    return tuple(found)


def _place(descriptor: int, offset: int, length: int | None) -> Place | None:
    """Where the bits are behind the header at `offset`; None when that is no header of a filter in this file."""
    head = os.pread(descriptor, _HEADER_MOST, offset)
    size, after = _size_of(head)
    begin = offset + after + len(_HEADER_REST)
    if not size or size % _BLOCK_BYTES or head[after : after + len(_HEADER_REST)] != _HEADER_REST:
        return None
    if begin + size > os.fstat(descriptor).st_size or (length is not None and begin + size != offset + length):
        return None
    return begin, size // _BLOCK_BYTES


def _size_of(head: bytes) -> tuple[int, int]:
    """The number of bytes of bits, and where in the header it ends; 0 when the header does not begin with it."""
    if head[:1] != _HEADER_START:
        return 0, 0
    number = 0
    for place, byte in enumerate(head[1:6]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            # Zigzag: odd numbers are negative.
            return (0 if number & 1 else number >> 1), place + 2
    return 0, 0


def _within(ranges: Mapping[str, Range], wanted: Mapping[str, Sequence[Wanted]]) -> dict[str, Sequence[Wanted]]:
    """The values of each column that lie between the least and greatest of a row group, where those are known; `wanted` has them
    in order."""
    found = dict(wanted)
    for column in wanted.keys() & ranges.keys():
        least, greatest = ranges[column]
        values = wanted[column]
        found[column] = values[bisect_left(values, least, key=_number) : bisect_right(values, greatest, key=_number)]
    return found


def _number(wanted: Wanted) -> int:
    return int(wanted.value)


def _hashed(value: Value) -> Wanted:
    plain = value.encode() if isinstance(value, str) else value.to_bytes(8, "little", signed=True)
    hashed = xxhash.xxh64_intdigest(plain)
    low, mask = hashed & 0xFFFFFFFF, 0
    for word, salt in enumerate(_SALTS):
        mask |= 1 << (32 * word + ((low * salt & 0xFFFFFFFF) >> 27))
    return Wanted(value, hashed >> 32, mask)


def _any_of(descriptor: int, place: Place, values: Sequence[Wanted]) -> bool:
    begin, blocks = place
    for _, upper, mask in values:
        block = os.pread(descriptor, _BLOCK_BYTES, begin + _BLOCK_BYTES * (upper * blocks >> 32))
        if len(block) < _BLOCK_BYTES or int.from_bytes(block, "little") & mask == mask:
            return True
    return False

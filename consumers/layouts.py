"""Avro values that lie alike, read by position: most of the network is likes, reposts and follows, byte for byte of one layout.

Values of one length and schema whose lengths, union branches and nulls stand at the same places are a matrix of bytes, and every
field is a block of its columns. One comparison with a model value, under a mask, tells which values have its layout: structure must
be equal, texts must be ASCII as the model's, a number must take as many bytes. Whatever differs is not read here.
This reads a like in a fifth of the time that the general native decoder takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from consumers.records import Slices

FEWEST: Final = 256
"""Below so many values of one length the general decoder is as fast."""
MOST_LAYOUTS: Final = 4
"""Layouts looked for among the values of one length."""

_PIECE: Final = 1024
"""Values looked at together."""
_LARGEST: Final = 0xFFFE
"""Bytes of the largest values that are looked at."""

_ARROW: Final[dict[str, pa.DataType]] = {"string": pa.large_string(), "long": pa.int64(), "boolean": pa.bool_()}
_LONGEST_VARINT: Final = 9  # the tenth byte of an Avro long holds the 64th bit alone; no time or sequence has it
_STRUCTURE, _HIGH_BIT, _ALL_BUT_LOWEST = 0xFF, 0x80, 0xFE

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a schema: `kind` is string, long, boolean, or "" for any other type."""

    name: str
    kind: str
    nullable: bool
    arrow: pa.DataType


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the fields stand in values like `model`; a field without a place is null. `mask` says which bits must agree."""

    model: Bytes
    mask: Bytes
    places: tuple[tuple[_Field, int, int] | tuple[_Field, None, None], ...]
    did: tuple[int, int]


def fields_of(parsed: Any) -> tuple[_Field, ...]:
    """The fields of a parsed schema."""
    found = []
    for field in parsed["fields"]:
        nullable = isinstance(field["type"], list)
        kind = field["type"][1] if nullable else field["type"]
        array = isinstance(kind, dict) and kind.get("type") == "array"
        arrow = pa.large_list(pa.large_string()) if array else _ARROW.get(kind if isinstance(kind, str) else "")
        found.append(_Field(field["name"], kind if isinstance(kind, str) else "", nullable, arrow))
    return tuple(found)


def layout_of(value: bytes, header: int, fields: Sequence[_Field]) -> Layout | None:
    """The layout of `value` behind its `header` bytes; None when it is no record, or not one that is read by position."""
    mask = np.full(len(value), _STRUCTURE, np.uint8)
    places: list[Any] = []
    did: tuple[int, int] | None = None
    at = header
    try:
        for field in fields:
            if field.nullable:
                branch = value[at]
                at += 1
                if branch == 0:
                    places.append((field, None, None))
                    continue
                if branch != 2:
                    return None
            begin = at
            if field.kind == "string":
                size, begin = _varint(value, at)
                if size < 0:
                    return None
                at = begin + size
                mask[begin:at] = _HIGH_BIT
                if not value[begin:at].isascii():
                    return None
            elif field.kind == "long":
                _, at = _varint(value, at)
                mask[begin:at] = _HIGH_BIT
            elif field.kind == "boolean":
                at += 1
                mask[begin] = _ALL_BUT_LOWEST
                if value[begin] > 1:
                    return None
            else:
                return None
            places.append((field, begin, at))
            if field.name == "did":
                did = begin, at
    except IndexError:
        return None
    if at != len(value) or did is None or did[0] == did[1]:
        return None
    return Layout(np.frombuffer(value, np.uint8), mask, tuple(places), did)


def _varint(value: bytes, at: int) -> tuple[int, int]:
    """A non-negative or negative long and the place behind it; IndexError when it does not end in time."""
    zigzag = 0
    for count in range(_LONGEST_VARINT):
        byte = value[at + count]
        zigzag |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return (zigzag >> 1) ^ -(zigzag & 1), at + count + 1
    raise IndexError


def read_alike(
    values: Slices, keys: Slices, header: bytes, fields: Sequence[_Field]
) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
    """The values of frequent layouts, as places in `values` and their rows; each begins with `header` and its `did` is its key."""
    for size, rest in _by_size(values.size):
        for _ in range(MOST_LAYOUTS):
            model: Any = values[int(rest[0])]
            layout = layout_of(model, len(header), fields) if size and model.startswith(header) else None
            if layout is None:
                break
            alike, rows = _read(values, keys, rest, layout)
            if rows.num_rows < FEWEST:
                break
            yield rest[alike], rows
            rest = rest[~alike]
            if len(rest) < FEWEST:
                break


def _by_size(sizes: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each size that is frequent, and the places that have it, ascending; there is no size below 0."""
    if len(sizes) < FEWEST:
        return
    # Two bytes are sorted by counting; larger values are too rare to lie alike.
    small = np.where((sizes < 0) | (sizes > _LARGEST), _LARGEST + 1, sizes).astype(np.uint16)
    order = np.argsort(small, kind="stable")
    counts = np.bincount(small, minlength=_LARGEST + 2)
    ends = np.cumsum(counts)
    for size in np.flatnonzero(counts[: _LARGEST + 1] >= FEWEST).tolist():
        yield size, order[ends[size] - counts[size] : ends[size]]


def _read(
    values: Slices, keys: Slices, places: NDArray[np.int64], layout: Layout
) -> tuple[NDArray[np.bool_], pa.Table]:
    """Which of the values at `places`, all as long as the model, lie as `layout` says, and their rows."""
    count, size = len(places), len(layout.model)
    found = np.zeros(count, np.bool_)
    blocks = [None if end is None else np.empty((count, end - begin), np.uint8) for _, begin, end in layout.places]  # type: ignore[operator]
    done = 0
    # Piece by piece, so that the bytes of a piece stay in the processor's cache while its fields are taken out.
    for start in range(0, count, _PIECE):
        piece = slice(start, min(start + _PIECE, count))
        rows = values.matrix(places[piece], size)
        different = (rows ^ layout.model) & layout.mask
        if different.any():
            found[piece] = ~np.any(different, axis=1)
        else:
            found[piece] = True
        found[piece] &= _same_keys(rows, keys, places[piece], *layout.did)
        if not found[piece].all():
            rows = rows[found[piece]]
        for block, (_, begin, end) in zip(blocks, layout.places, strict=True):
            if block is not None:
                block[done : done + len(rows)] = rows[:, begin:end]
        done += len(rows)
    columns = {
        field.name: pa.nulls(done, field.arrow) if block is None else _column(block[:done], field.kind)
        for block, (field, _, _) in zip(blocks, layout.places, strict=True)
    }
    return found, pa.table(columns)


def _same_keys(rows: Bytes, keys: Slices, places: NDArray[np.int64], begin: int, end: int) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = keys.size[places] == end - begin
    fitting = slice(None) if same.all() else same
    different = rows[fitting, begin:end] != keys.matrix(places[fitting], end - begin)
    if different.any():
        same[fitting] = ~np.any(different, axis=1)
    return same


def _column(block: Bytes, kind: str) -> pa.Array:
    rows, width = block.shape
    if kind == "string":
        offsets = np.arange(rows + 1, dtype=np.int64) * width
        return pa.LargeStringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(block))
    if kind == "boolean":
        return pa.array(block.ravel() != 0)
    return pa.array(_longs(block))


def _longs(block: Bytes) -> NDArray[np.int64]:
    zigzag = np.zeros(len(block), np.uint64)
    for place in range(block.shape[1]):
        zigzag |= (block[:, place] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * place)
    return (zigzag >> np.uint64(1)).astype(np.int64) ^ -(zigzag & np.uint64(1)).astype(np.int64)

"""Messages as columns: keys and values are places in one buffer, so that nothing below makes an object per message."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

NULL: Final = -1
"""The size of a key or value that is not there, which differs from an empty one."""

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Slices:
    """A column of byte strings: the i-th is `data[begin[i] : begin[i] + size[i]]`, or None where `size` is NULL.

    They lie in `data` in order and do not overlap; a null one has a place between its neighbours.
    """

    data: NDArray[np.uint8]
    begin: Places
    size: Places

    def __len__(self) -> int:
        return len(self.size)

    def __getitem__(self, index: int) -> bytes | None:
        size = int(self.size[index])
        begin = int(self.begin[index])
        return None if size == NULL else self.data[begin : begin + size].tobytes()

    def __iter__(self) -> Iterator[bytes | None]:
        return (self[index] for index in range(len(self)))

    def at(self, places: Places | slice) -> Slices:
        """The ones at `places`, which ascend."""
        return Slices(self.data, self.begin[places], self.size[places])

    def matrix(self, places: Places, width: int) -> NDArray[np.uint8]:
        """Those at `places`, which all have `width` bytes, at least one, as the rows of a matrix of their own."""
        if not len(places):
            return np.empty((0, width), np.uint8)
        # An element of `width` bytes at every byte: taking some of them is one copy each.
        anywhere = np.ndarray(
            (len(self.data) - width + 1,), np.dtype((np.void, width)), self.data.data, 0, strides=(1,)
        )
        return anywhere[self.begin[places]].view(np.uint8).reshape(-1, width)

    def arrow(self) -> pa.LargeBinaryArray:
        """All of them side by side; null where there is none."""
        count = len(self)
        # What lies between two of them is declared as an element too, and not taken.
        bounds = np.empty(2 * count, np.int64)
        bounds[0::2] = self.begin
        bounds[1::2] = self.begin + np.maximum(self.size, 0)
        elements = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), max(0, 2 * count - 1), [None, pa.py_buffer(bounds), pa.py_buffer(self.data)]
        )
        missing = self.size == NULL
        return elements.take(pa.array(np.arange(0, 2 * count, 2), mask=missing if missing.any() else None))

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        return int(np.maximum(self.size, 0).sum())


class Arena:
    """The bytes of a batch, side by side as they arrive, so that they need not be copied together later.

    It is only address space until it is written to, and batch after batch is written to the same memory: pages that
    were not used before cost more than what is written to them.
    """

    def __init__(self, capacity: int) -> None:
        self._memory = np.empty(capacity, np.uint8)
        self._data = self._memory[:]
        self._used = 0
        self._done = False

    def room(self, size: int) -> tuple[NDArray[np.uint8], int]:
        """A buffer, and from where on `size` bytes of it are the caller's; one of its own when the arena is full."""
        if self._done:
            self._begin_anew()
        begin = self._used
        if begin + size > len(self._data):
            return np.empty(size, np.uint8), 0
        self._used += size
        return self._data, begin

    def next_batch(self) -> None:
        """What comes from now on belongs to another batch."""
        self._done = True

    def give_back(self) -> None:
        """Give the memory back to the system; what lies in it stays where it is while somebody uses it."""
        self._memory = np.empty(len(self._memory), np.uint8)
        self._done = True

    def _begin_anew(self) -> None:
        # Records hold the view, not the memory, so that it tells whether somebody still uses what was written.
        used = weakref.ref(self._data)
        self._data = np.empty(0, np.uint8)
        if used() is not None:
            self._memory = np.empty(len(self._memory), np.uint8)
        self._data = self._memory[:]
        self._used = 0
        self._done = False


@dataclass(frozen=True, slots=True)
class TopicRecords:
    """The messages of one topic as columns, in order of arrival; all of one length.

    `timestamps_ms` is the Kafka timestamp, -1 when the broker has none. Keys and values lie in one buffer.
    """

    topic: str
    partitions: NDArray[np.int32]
    offsets: NDArray[np.int64]
    timestamps_ms: NDArray[np.int64]
    keys: Slices
    values: Slices

    def __len__(self) -> int:
        return len(self.offsets)

    def at(self, places: Places) -> TopicRecords:
        """The messages at `places`, which ascend."""
        return TopicRecords(
            self.topic,
            self.partitions[places],
            self.offsets[places],
            self.timestamps_ms[places],
            self.keys.at(places),
            self.values.at(places),
        )

    @classmethod
    def of(
        cls,
        topic: str,
        partitions: NDArray[np.int32],
        offsets: NDArray[np.int64],
        timestamps_ms: NDArray[np.int64],
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
    ) -> TopicRecords:
        """From keys and values that are Python objects."""
        pieces = list(chain.from_iterable(zip(keys, values, strict=True)))
        size = np.fromiter((NULL if piece is None else len(piece) for piece in pieces), np.int64, len(pieces))
        data = np.frombuffer(b"".join([piece or b"" for piece in pieces]), np.uint8)
        ends = np.cumsum(np.maximum(size, 0))
        begin = ends - np.maximum(size, 0)
        return cls(
            topic,
            partitions,
            offsets,
            timestamps_ms,
            Slices(data, begin[0::2], size[0::2]),
            Slices(data, begin[1::2], size[1::2]),
        )

    @staticmethod
    def joined(parts: Sequence[TopicRecords]) -> TopicRecords:
        """Several of one topic, at least one, as one; their bytes are copied unless all lie in one buffer."""
        data, shifts = parts[0].values.data, [0] * len(parts)
        if any(part.values.data is not data for part in parts):
            data = np.concatenate([part.values.data for part in parts])
            shifts = np.cumsum([0, *(len(part.values.data) for part in parts[:-1])]).tolist()

        def slices(columns: list[Slices]) -> Slices:
            begin = np.concatenate([column.begin + shift for column, shift in zip(columns, shifts, strict=True)])
            return Slices(data, begin, np.concatenate([column.size for column in columns]))

        return TopicRecords(
            parts[0].topic,
            np.concatenate([part.partitions for part in parts]),
            np.concatenate([part.offsets for part in parts]),
            np.concatenate([part.timestamps_ms for part in parts]),
            slices([part.keys for part in parts]),
            slices([part.values for part in parts]),
        )

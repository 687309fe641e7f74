"""Which source position is safe to store, given acknowledgements in any order. Pure: no Kafka, no clock.

Events are counted in batches in the order the source sent them. The safe position is the last event of the newest batch
such that it and every batch before it are acknowledged completely; the stored cursor is never anything else.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple


class Position(NamedTuple):
    """A place in one host's stream: `seq` is its sequence number, None on software without one; `time_us` its event time.

    `made_us` is up to when the events had been made that the host had delivered by then, which every host tells alike; None when
    that is not known. It is long before `time_us` on a host that is behind.
    """

    host: str
    protocol: str
    seq: int | None
    time_us: int
    made_us: int | None = None

    @property
    def common_us(self) -> int:
        """The time up to which another host, by its own clock, need not be asked again."""
        return self.time_us if self.made_us is None else min(self.time_us, self.made_us)


class Batch:
    """Events handed over together. It is acknowledged when `pending`, which the owner of the mark changes, is 0 again.

    `topics` counts its records by topic; `receipt` is for the owner; `on_done` is called once when all of it, and all before it,
    is acknowledged; never after a rewind.
    """

    __slots__ = ("on_done", "pending", "position", "receipt", "sealed", "topics")

    def __init__(self) -> None:
        self.pending = 0
        self.sealed = False
        self.receipt: object = None
        self.topics: Counter[str] = Counter()
        # Of the last event of the batch; None while it holds none that has a position.
        self.position: Position | None = None
        self.on_done: Callable[[], None] | None = None


class LowWaterMark:
    """Tracks batches until everything before them is acknowledged."""

    def __init__(self, start: Position | None = None) -> None:
        self._safe = start
        self._batches: deque[Batch] = deque()
        self.acknowledged: Counter[str] = Counter()
        """Records by topic in the batches up to the safe position, as of the last time that was asked for."""

    def open(self) -> Batch:
        """Begin the next batch of the stream; the one before must be sealed."""
        if self._batches and not self._batches[-1].sealed:
            raise ValueError("the batch before is still open")
        batch = Batch()
        self._batches.append(batch)
        return batch

    def seal(self, batch: Batch, position: Position | None) -> None:
        """End a batch at `position`, that of its last event; None when it holds nothing that moves the cursor."""
        batch.position = position
        batch.sealed = True

    @property
    def safe_position(self) -> Position | None:
        """The last position below which every event is acknowledged; None when there is none yet."""
        batches = self._batches
        while batches and batches[0].sealed and batches[0].pending == 0:
            done = batches.popleft()
            if done.position is not None:
                self._safe = done.position
            self.acknowledged.update(done.topics)
            if done.on_done is not None:
                done.on_done()
        return self._safe

    def rewind(self) -> Position | None:
        """Forget every batch that is not acknowledged, and return where the source must be read again from."""
        safe = self.safe_position
        self._batches.clear()
        return safe

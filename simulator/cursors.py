"""What of the log is still served, and where in it a cursor points.

Most of the time everything is visible. A rebuilt archive hides all that was before; reused sequence numbers hide the events that
the server lost; a raised floor hides the beginning. What is visible is a list of spans of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from simulator.log import BlockInfo, LogWriter, SegmentInfo, read_block
from simulator.request import RequestRefusedError

TIMESTAMP_CURSOR = 10**15  # below: a sequence number; from here: unix microseconds
Span = tuple[int, int | None]


@dataclass(frozen=True)
class Start:
    """Where a subscription begins; `outdated` is the text of the `#info` frame to send first, or None."""

    position: int
    outdated: str | None = None


@dataclass(frozen=True)
class VisibleSegment:
    """A segment cut to what is visible of it; `end` is exclusive."""

    segment: SegmentInfo
    start: int
    end: int
    active: bool


class Cursors:
    """Maps cursors to log positions by the rules of section 6.1 of the Jetstream reference."""

    def __init__(self, log: LogWriter, infos: Callable[[SegmentInfo], list[BlockInfo]], spans: list[Span]) -> None:
        self._log = log
        self._infos = infos
        self.spans = spans

    def segments(self) -> Iterator[VisibleSegment]:
        """Visible parts of segments, oldest first."""
        segments = self._log.segments
        for start, stop in self.spans:
            for segment in segments:
                end = segment.position + segment.events
                if stop is not None:
                    end = min(end, stop)
                low = max(segment.position, start)
                if low < end:
                    yield VisibleSegment(segment, low, end, segment is segments[-1])

    def visible_from(self, position: int) -> tuple[int, int]:
        """The first visible position at or after this one, and the end of its span (the log's end for the last)."""
        tip = self._log.position
        for start, stop in self.spans:
            end = tip if stop is None else stop
            if position < end:
                return max(position, start), end
        return max(position, tip), tip

    def floor(self, oldest_us: int) -> VisibleSegment | None:
        """The oldest visible segment that still holds something younger than `oldest_us`; None while nothing is visible."""
        last = None
        for last in self.segments():
            if last.segment.max_time >= oldest_us:
                return last
        return last

    def start(
        self, cursor: int | None, *, version: int, next_seq: int, now_us: int, oldest_us: int, legacy: bool = False
    ) -> Start:
        """Where a subscription with this cursor begins; RequestRefusedError for `CursorTooOld`.

        Legacy hosts know times only, and find the exact event.
        """
        tip = Start(self._log.position)
        floor = self.floor(oldest_us)
        if cursor is None or floor is None:
            return tip
        if legacy:
            return tip if cursor > now_us else Start(max(floor.start, self._find(cursor, by_time=True)))
        if cursor < TIMESTAMP_CURSOR:
            return self._start_at_seq(max(1, cursor), floor, version, next_seq)
        if cursor > now_us:
            return tip
        first_seq, first_time = self._first(floor)
        if cursor < first_time:
            text = f"requested cursor {cursor} is outside the retention; starting at sequence {first_seq}"
            return Start(floor.start, text if version == 2 else None)
        sealed = None
        for part in self.segments():
            if part.active and (sealed is None or cursor > sealed.segment.max_time):
                return Start(part.start)
            sealed = part
        return Start(self._find(cursor, by_time=True))

    def position_of_seq(self, seq: int) -> int:
        """The position of the first visible event with this number or a later one; the log's end if there is none."""
        return self._find(seq, by_time=False)

    def _start_at_seq(self, cursor: int, floor: VisibleSegment, version: int, next_seq: int) -> Start:
        if cursor >= next_seq:
            return Start(self._log.position)
        first_seq, _ = self._first(floor)
        if cursor >= first_seq:
            return Start(self._find(cursor, by_time=False))
        if version == 1:
            return Start(floor.start)
        message = f"cursor {cursor} is older than the oldest available sequence {first_seq}"
        raise RequestRefusedError(400, "CursorTooOld", message)

    def _first(self, part: VisibleSegment) -> tuple[int, int]:
        """Sequence number and time of the first visible event of a segment."""
        if part.start == part.segment.position:
            return part.segment.first_seq, part.segment.min_time
        for info in self._infos(part.segment):
            if info.position <= part.start < info.position + info.events:
                block = read_block(info)
                return block.seqs[part.start - info.position], block.times[part.start - info.position]
        raise AssertionError("a visible position is in some block")

    def _find(self, value: int, *, by_time: bool) -> int:
        for part in self.segments():
            if (part.segment.max_time if by_time else part.segment.last_seq) < value:
                continue
            for info in self._infos(part.segment):
                if info.position + info.events <= part.start or info.position >= part.end:
                    continue
                if (info.max_time if by_time else info.last_seq) < value:
                    continue
                block = read_block(info)
                low, high = max(0, part.start - info.position), min(info.events, part.end - info.position)
                values = block.times if by_time else block.seqs
                for at in range(low, high):
                    if values[at] >= value:
                        return info.position + at
        return self._log.position

"""The synthetic network at rest and in motion: generator, log, checkpoint, and how cursors map to log positions."""

from __future__ import annotations

import asyncio
import bisect
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Any

import msgspec

from simulator.clock import SimulatedClock
from simulator.config import SimulatorSettings
from simulator.errors import DataFolderBusyError, LogVersionError
from simulator.events import Batch
from simulator.generator import Generator
from simulator.log import Block, BlockInfo, LogWriter, SegmentInfo, read_block, read_infos
from simulator.recovery import replay
from simulator.request import RequestRefusedError

FORMAT = 1
BLOCK_EVENTS = 1024
TIMESTAMP_CURSOR = 10**15  # below: a sequence number; from here: unix microseconds
_HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Start:
    """Where a subscription begins; `outdated` is the text of the `#info` frame to send first, or None."""

    position: int
    outdated: str | None = None


class Network:
    """Owns the data folder. Everything runs on one event loop; nothing here waits except `recover` and `history`."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        self._folder = settings.data_dir
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self._birth = self._birth_certificate()
        self.log = LogWriter(self._folder / "log", settings.segment_events)
        self.generator = Generator(settings)
        self.tip = asyncio.Event()
        self.ready = False
        self.paused = False
        self._checkpoint_at = time.monotonic()
        self._recover()
        self.clock = SimulatedClock(self.log.last_time or self._birth["history_start_us"], settings.speed)

    def history(self) -> Iterator[int]:
        """Generate what is missing of the history, a block at a time; yields the events made so far. Sets `ready` at the end."""
        settings = self.settings
        end = self._birth["history_end_us"]
        step = int(BLOCK_EVENTS / settings.history_rate * 1e6)
        now = max(self.log.last_time, self._birth["history_start_us"])
        while not self._birth["history_done"] and now < end and not self.full:
            upto = min(end, now + step)
            slots = max(1, round((upto - now) * settings.history_rate / 1e6))
            self.append(self.generator.batch(slots, now, upto))
            now = upto
            yield self.log.position
        if not self._birth["history_done"]:
            self._birth["history_done"] = True
            self._write_json("network.json", self._birth)
            self.checkpoint()
        real = settings.clock_start is None and settings.speed == 1.0
        self.clock = SimulatedClock(max(end, self.log.last_time + 1), settings.speed)
        if real:
            self.clock.set(time.time_ns() // 1000)
        self.ready = True

    @property
    def full(self) -> bool:
        """Whether `max_events` is reached."""
        return self.settings.max_events is not None and self.log.position >= self.settings.max_events

    def live(self, slots: int, start_us: int, end_us: int) -> None:
        """Generate and publish live events of `slots` commits within the given simulated time."""
        if self.settings.max_events is not None:
            slots = min(slots, self.settings.max_events - self.log.position)
        if slots > 0:
            self.append(
                self.generator.batch(slots, max(start_us, self.log.last_time), max(end_us, self.log.last_time + 1))
            )

    def append(self, batch: Batch) -> None:
        """Write a batch to the log, then wake the subscribers."""
        if not len(batch):
            return
        self.log.append(batch)
        waiting, self.tip = self.tip, asyncio.Event()
        waiting.set()
        if time.monotonic() - self._checkpoint_at > self.settings.checkpoint_seconds:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Write the generator's state, atomically."""
        data = msgspec.msgpack.encode({"position": self.log.position, "state": self.generator.state()})
        path = self._folder / "checkpoint.msgpack"
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self._checkpoint_at = time.monotonic()

    def close(self) -> None:
        """Checkpoint, sync the log and give the folder free."""
        self.checkpoint()
        self.log.close()
        self._lock.close()

    # Cursors ----------------------------------------------------------------------------------------------------------

    def floor(self) -> SegmentInfo | None:
        """The oldest segment that cursors may reach, None while the log is empty."""
        segments = self.log.segments
        if not segments:
            return None
        oldest = self.clock.now_us() - int(self.settings.cursor_lookback_hours * _HOUR_US)
        at = bisect.bisect_left(segments, oldest, key=lambda segment: segment.max_time)
        return segments[min(at, len(segments) - 1)]

    def start(self, cursor: int | None, version: int) -> Start:
        """Where a subscription with this cursor begins, by the rules of section 6.1; RequestRefusedError for `CursorTooOld`."""
        tip = Start(self.log.position)
        floor = self.floor()
        if cursor is None or floor is None or self.settings.cursor_lookback_hours == 0:
            return tip
        if cursor < TIMESTAMP_CURSOR:
            cursor = max(1, cursor)
            if cursor >= self.generator.events.next_seq:
                return tip
            if cursor < floor.first_seq:
                if version == 1:
                    return Start(floor.position)
                raise RequestRefusedError(
                    400,
                    "CursorTooOld",
                    f"cursor {cursor} is older than the oldest available sequence {floor.first_seq}",
                )
            return Start(self._position_of(cursor, by_time=False))
        if cursor > self.clock.now_us():
            return tip
        if cursor < floor.min_time:
            text = f"requested cursor {cursor} is outside the retention; starting at sequence {floor.first_seq}"
            return Start(floor.position, text if version == 2 else None)
        active = self.log.segments[-1]
        sealed = self.log.segments[-2].max_time if len(self.log.segments) > 1 else 0
        if cursor > sealed:
            return Start(active.position)
        return Start(self._position_of(cursor, by_time=True))

    def segment_at(self, position: int) -> int:
        """Index of the segment that holds a position."""
        return bisect.bisect_right(self.log.segments, position, key=lambda segment: segment.position) - 1

    def infos(self, segment: int) -> list[BlockInfo]:
        """Blocks of a segment; the list of the active one grows."""
        if segment == len(self.log.segments) - 1:
            return self.log.blocks
        return list(read_infos(self.log.segments[segment].path, tail=False))

    def _position_of(self, value: int, *, by_time: bool) -> int:
        segments = self.log.segments
        at = bisect.bisect_left(segments, value, key=lambda one: one.max_time if by_time else one.last_seq)
        for info in self.infos(min(at, len(segments) - 1)):
            if (info.max_time if by_time else info.last_seq) >= value:
                block = read_block(info)
                values = block.times if by_time else block.seqs
                return info.position + next(index for index, one in enumerate(values) if one >= value)
        return self.log.position

    # Start and restart ------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        path = self._folder / "checkpoint.msgpack"
        position = 0
        if path.exists():
            saved = msgspec.msgpack.decode(path.read_bytes())
            position = saved["position"]
            if position > self.log.position:
                raise LogVersionError(
                    f"{path} is ahead of the log ({position} > {self.log.position})",
                    "Restore the whole data folder, or move it away",
                )
            self.generator.restore(saved["state"])
        if position < self.log.position:
            replay(self.generator.population, self._blocks_from(position), position)
            self.generator.events.next_seq = self.log.last_seq + 1
            self.generator.population.rev_floor = self.log.last_time << 10
            self.generator.reseed(self.log.position)

    def _blocks_from(self, position: int) -> Iterator[Block]:
        for at in range(self.segment_at(position), len(self.log.segments)):
            for info in self.infos(at):
                if info.position + info.events > position:
                    yield read_block(info)

    def _take_lock(self) -> TextIOWrapper:
        file = (self._folder / "lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise DataFolderBusyError(
                f"{self._folder} is in use by another simulator", "Stop that one, or choose another data folder"
            ) from error
        return file

    def _birth_certificate(self) -> dict[str, Any]:
        """What was fixed at the first start; another seed or population cannot continue the same log."""
        settings = self.settings
        path = self._folder / "network.json"
        identity = {"format": FORMAT, "seed": settings.seed, "accounts": settings.accounts}
        if path.exists():
            birth: dict[str, Any] = json.loads(path.read_text())
            found = {name: birth.get(name) for name in identity}
            if found != identity:
                raise LogVersionError(
                    f"{self._folder} holds the network {found}, asked for {identity}",
                    "Use the same seed, accounts and version, or choose another data folder",
                )
            return birth
        end = int(settings.clock_start.timestamp() * 1e6) if settings.clock_start else time.time_ns() // 1000
        start = end - int(settings.history_hours * _HOUR_US)
        birth = {**identity, "history_start_us": start, "history_end_us": end, "history_done": False}
        self._write_json("network.json", birth)
        return birth

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        temporary = self._folder / f"{name}.tmp"
        temporary.write_text(json.dumps(value))
        temporary.replace(self._folder / name)

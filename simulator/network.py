"""The synthetic network at rest and in motion: generator, log, checkpoint, scenarios, and what of the log is served."""

from __future__ import annotations

import asyncio
import bisect
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import msgspec

from simulator.clock import SimulatedClock
from simulator.config import SimulatorSettings
from simulator.cursors import Cursors, Span, Start
from simulator.errors import DataFolderBusyError, DataFolderError, LogVersionError
from simulator.events import Batch
from simulator.generator import Generator
from simulator.log import Block, BlockInfo, LogWriter, SegmentInfo, read_block, read_infos
from simulator.oddities import add_oddity
from simulator.recovery import replay
from simulator.scenarios import Point, Scenarios

FORMAT = 1
BLOCK_EVENTS = 1024
_HOUR_US = 3_600_000_000


class Network:
    """Owns the data folder. Everything runs on one event loop; nothing here waits except start-up and `history`."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        self._folder = settings.data_dir
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataFolderError(
                f"cannot use {self._folder}: {error}", "Choose a data folder that can be written"
            ) from error
        with ExitStack() as undo:
            self._lock = undo.enter_context(_take_lock(self._folder))
            self._birth = self._birth_certificate()
            self.scenarios = Scenarios(settings.seed, settings.scenarios)
            self.log = LogWriter(self._folder / "log", settings.segment_events)
            undo.callback(self.log.close)
            self.generator = Generator(settings)
            self._recover()
            undo.pop_all()
        self.log.epoch = self._birth["epoch"]
        self.cursors = Cursors(self.log, self.infos, [(start, end) for start, end in self._birth["spans"]])
        self.tip = asyncio.Event()
        self.ready = False
        self.paused = False
        self.rate = settings.rate
        self.compactions = int(self._birth["compactions"])
        self._checkpoint_at = time.monotonic()
        self.clock = SimulatedClock(self.log.last_time or self._birth["history_start_us"], settings.speed)

    def history(self) -> Iterator[int]:
        """Generate what is missing of the history, a block at a time; yields the events made so far. Sets `ready` at the end."""
        settings, birth = self.settings, self._birth
        end = birth["history_end_us"]
        step = int(BLOCK_EVENTS / settings.history_rate * 1e6)
        now = max(self.log.last_time, birth["history_start_us"])
        while not birth["history_done"] and now < end and not self.full:
            upto = min(end, now + step)
            self._generate(max(1, round((upto - now) * settings.history_rate / 1e6)), now, upto)
            now = upto
            yield self.log.position
        if not birth["history_done"]:
            birth["history_done"] = True
            self._save_birth()
            self.checkpoint()
        self.clock = SimulatedClock(max(end, self.log.last_time + 1), settings.speed)
        if settings.clock_start is None and settings.speed == 1.0:
            self.clock.set(time.time_ns() // 1000)
        self.ready = True

    @property
    def full(self) -> bool:
        """Whether `max_events` is reached."""
        return self.settings.max_events is not None and self.log.position >= self.settings.max_events

    def live(self, slots: int, start_us: int, end_us: int) -> None:
        """Generate and publish live events of `slots` commits within the given simulated time."""
        start = max(start_us, self.log.last_time)
        self._generate(slots, start, max(end_us, start + 1))

    def append(self, batch: Batch) -> None:
        """Write a batch to the log, then wake the subscribers."""
        if not len(batch):
            return
        self.log.append(batch)
        waiting, self.tip = self.tip, asyncio.Event()
        waiting.set()
        if time.monotonic() - self._checkpoint_at > self.settings.checkpoint_seconds:
            self.checkpoint()

    def start(self, cursor: int | None, version: int) -> Start:
        """Where a subscription with this cursor begins; RequestRefusedError for `CursorTooOld`."""
        hours = self.settings.cursor_lookback_hours
        now = self.clock.now_us()
        next_seq = self.generator.events.next_seq
        oldest = now - int(hours * _HOUR_US)
        return self.cursors.start(
            cursor if hours else None,
            version=version,
            next_seq=next_seq,
            now_us=now,
            oldest_us=oldest,
            legacy=self.settings.legacy,
        )

    def segment_at(self, position: int) -> SegmentInfo:
        """The segment that holds a position below the log's end."""
        segments = self.log.segments
        return segments[bisect.bisect_right(segments, position, key=lambda segment: segment.position) - 1]

    def infos(self, segment: SegmentInfo) -> list[BlockInfo]:
        """Blocks of a segment; the list of the active one grows."""
        if segment.path == self.log.segments[-1].path:
            return self.log.blocks
        return list(read_infos(segment.path, tail=False))

    # Incidents --------------------------------------------------------------------------------------------------------

    def forget_before(self, position: int) -> None:
        """Raise the floor: nothing before this position is served any more."""
        self._set_spans(
            [(max(start, position), end) for start, end in self.cursors.spans if end is None or end > position]
        )

    def reset_archive(self) -> None:
        """The served archive starts over, empty, with sequence numbers from 1."""
        self.generator.events.next_seq = 1
        self.log.epoch += 1
        self._set_spans([(self.log.position, None)])
        self.checkpoint()

    def lose_tail(self, events: int) -> None:
        """The server forgets its last events and will use their sequence numbers again."""
        first = max(1, self.generator.events.next_seq - events)
        position = self.cursors.position_of_seq(first)
        self.generator.events.next_seq = first
        self.log.epoch += 1
        kept = [(start, min(end or position, position)) for start, end in self.cursors.spans if start < position]
        self._set_spans([*kept, (self.log.position, None)])
        self.checkpoint()

    def compact(self) -> None:
        """The archive will drop superseded rows of all segments that are sealed now."""
        self.compactions += 1
        self._birth |= {
            "compactions": self.compactions,
            "compacted_to": self.log.segments[-1].position if self.log.segments else 0,
        }
        self._save_birth()

    @property
    def compacted_to(self) -> int:
        """Rows before this position are compacted in the archive."""
        return int(self._birth["compacted_to"])

    # Start, checkpoint, restart ---------------------------------------------------------------------------------------

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

    def _generate(self, slots: int, start_us: int, end_us: int) -> None:
        if self.settings.max_events is not None:
            slots = min(slots, self.settings.max_events - self.log.position)
        if slots <= 0:
            return
        batch = self.generator.batch(slots, start_us, end_us)
        events = len(batch)
        for name in self.scenarios.armed(Point.EVENT) if events else ():
            turn, amount = self.scenarios.fired(name), self.scenarios.amount(name)
            for extra, _ in enumerate(self.scenarios.hits(name, events)):
                add_oddity(self.generator, batch, name, turn + extra, amount)
        self.append(batch)

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
        for segment in self.log.segments:
            if segment.position + segment.events > position:
                for info in self.infos(segment):
                    if info.position + info.events > position:
                        yield read_block(info)

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
        birth |= {"spans": [(0, None)], "compactions": 0, "compacted_to": 0, "epoch": 0}
        self._birth = birth
        self._save_birth()
        return birth

    def _set_spans(self, spans: list[Span]) -> None:
        self.cursors.spans = spans
        self._birth |= {"spans": spans, "epoch": self.log.epoch}
        self._save_birth()

    def _save_birth(self) -> None:
        temporary = self._folder / "network.json.tmp"
        temporary.write_text(json.dumps(self._birth))
        temporary.replace(self._folder / "network.json")


def _take_lock(folder: Path) -> TextIOWrapper:
    file = (folder / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise DataFolderBusyError(
            f"{folder} is in use by another simulator", "Stop that one, or choose another data folder"
        ) from error
    return file

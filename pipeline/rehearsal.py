"""A rehearsal of a validation phase: a simulated day, week or month through the real pipeline, measured on its way.

For a checkout that has captured nothing yet. The history is made by the simulator, read over its socket as fast as the
processes go, and judged afterwards like captured data; then some time at live rate shows freshness and memory. What it
cannot show is the calendar: a month passes in minutes.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import psutil
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource  # type: ignore[attr-defined]

from lake.manifest import Manifest
from lake.roll import hours_to_roll
from pipeline.errors import SupervisionError
from pipeline.kafka import make_admin
from pipeline.lag import end_offsets
from pipeline.messages import read_dead_letters
from pipeline.prober import Prober
from pipeline.proof import Proof, prove
from pipeline.stack import Stack, empty_folder
from pipeline.summary import Summary, summarize
from pipeline.topics import EVENT_TOPICS, REQUEST_TIMEOUT_SECONDS
from simulator.ledger import Ledger

PYTHON_PROCESSES: Final = ("producer", "writer", "maintain", "api")
"""The processes of production; simulator and embedded broker stand for others' machines and for Redpanda."""
EVENTS_PER_DAY: Final = {1: 2_400_000, 2: 400_000, 3: 100_000}
"""What a rehearsal makes unless told otherwise: phase 1 at a third of the lab's plan, the longer ones thinner."""
LIVE_RATE: Final = 350.0
"""Today's network, events/s."""
_BYTES_PER_EVENT: Final = 1_200
"""Disk that a rehearsal needs per event: ledger, topics, lake, and the files that maintenance replaces."""
_TELL_SECONDS: Final = 5.0
_SAMPLE_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Scale:
    """How much is made. `live_seconds` at LIVE_RATE follow the history; `give_up` bounds every wait, in seconds."""

    hours: int
    events_per_day: float
    live_seconds: float
    give_up: float

    @property
    def events(self) -> int:
        """In the history."""
        return round(self.events_per_day / 24 * self.hours)


@dataclass
class Memory:
    """Bytes in memory, the most of all samples. A page that processes share counts in parts, where the system tells (PSS)."""

    python: int = 0
    all_processes: int = 0
    by_process: dict[str, int] = field(default_factory=dict)

    def take(self, stack: Stack) -> None:
        """One sample of the running processes."""
        sizes: Counter[str] = Counter()
        for name in stack.supervisor.names():
            pid = stack.supervisor.pid(name)
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if pid is not None:
                    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
                    sizes[name] = sum(_proportional_bytes(process) for process in family)
        self.python = max(self.python, sum(sizes[name] for name in PYTHON_PROCESSES))
        self.all_processes = max(self.all_processes, sizes.total())
        for name, size in sizes.items():
            self.by_process[name] = max(self.by_process.get(name, 0), size)


def _proportional_bytes(process: psutil.Process) -> int:
    used = process.memory_full_info()
    return int(getattr(used, "pss", used.rss))


@dataclass
class Rehearsed:
    """What was measured on the way. Times in seconds, `batch_seconds` between the commits of a writer that never waited."""

    scale: Scale
    history_events: int = 0
    history_seconds: float = 0.0
    catch_up_seconds: float = 0.0
    batch_seconds: list[float] = field(default_factory=list)
    catch_up_memory: Memory = field(default_factory=Memory)
    live_memory: Memory = field(default_factory=Memory)
    freshness: list[float] = field(default_factory=list)
    restarts: int = 0
    topic_messages: int = 0
    topic_bytes: int = 0
    proof: Proof | None = None
    summary: Summary | None = None

    @property
    def events_per_second(self) -> float:
        """Socket to committed, sustained over the whole history."""
        return self.history_events / self.catch_up_seconds if self.catch_up_seconds else 0.0


@contextmanager
def rehearsed(state: Path, scale: Scale, say: Callable[[str], None]) -> Iterator[tuple[Stack, Rehearsed, Prober]]:
    """Makes the data in `state`, which is emptied first, and gives the stack with API and broker still running.

    Blocks for minutes. Raises SupervisionError when there is no room on the disk or a step takes longer than `give_up`.
    """
    _check_room(state, scale)
    empty_folder(state)
    stack = Stack(
        state,
        EXPLORER_SIMULATOR_RATE="0",
        EXPLORER_SIMULATOR_HISTORY_HOURS=str(scale.hours),
        EXPLORER_SIMULATOR_HISTORY_RATE=f"{scale.events_per_day / 86_400:.6f}",
        EXPLORER_SIMULATOR_CURSOR_LOOKBACK_HOURS=str(scale.hours + 24),
        # All closed hours are to be merged before they are judged, not at leisure.
        EXPLORER_MAINTAIN_INTERVAL_SECONDS="2",
        EXPLORER_MAINTAIN_CLOSE_AFTER_SECONDS="5",
        EXPLORER_MAINTAIN_LATE_SECONDS="15",
        EXPLORER_MAINTAIN_ROLLS_PER_RUN="2000",
    )
    result = Rehearsed(scale)
    with stack.running():
        rehearsal = _Rehearsal(stack, result, say)
        rehearsal.make_history()
        with Prober(f"{stack.api_url}/v1/search?limit=1").asking() as prober:
            rehearsal.catch_up()
            rehearsal.merge()
            rehearsal.live()
            rehearsal.compare()
            yield stack, result, prober


class _Rehearsal:
    """The steps, in order."""

    def __init__(self, stack: Stack, result: Rehearsed, say: Callable[[str], None]) -> None:
        self._stack = stack
        self._result = result
        self._say = say

    def make_history(self) -> None:
        """Broker, topics that keep all of it, and the simulator's past."""
        stack, result, scale = self._stack, self._result, self._result.scale
        self._say(f"making {scale.events:,} events over {scale.hours} h of simulated history in {stack.state}")
        stack.start("broker")
        _keep_for_ever(stack)
        begun = time.monotonic()
        stack.start("simulator", wait=False)
        self._follow(
            lambda: bool((stack.simulator() or {}).get("ready")),
            "the history is made",
            lambda: f"{(stack.simulator() or {}).get('generated', 0):,} of {scale.events:,} events made",
        )
        result.history_seconds = time.monotonic() - begun
        result.history_events = int((stack.simulator() or {}).get("generated", 0))

    def catch_up(self) -> None:
        """The whole history through producer, broker and writer, as fast as they go."""
        stack, result = self._stack, self._result
        begun = time.monotonic()
        stack.start("writer", "producer", "maintain", "api")
        self._follow(
            stack.drained,
            "the history is in the lake",
            lambda: f"{stack.committed_rows():,} of {result.history_events:,} events committed",
            result.catch_up_memory,
        )
        result.catch_up_seconds = time.monotonic() - begun
        with stack.manifest() as manifest:
            result.batch_seconds = batch_seconds(manifest)

    def merge(self) -> None:
        """Waits until maintenance has made one file of every closed hour."""
        self._follow(
            lambda: not self._unmerged(),
            "closed hours are merged",
            lambda: f"{self._unmerged():,} table-hours left to merge",
            self._result.catch_up_memory,
        )

    def _unmerged(self) -> int:
        with self._stack.manifest() as manifest:
            return len(hours_to_roll(manifest, (manifest.newest_time_us(1 << 62) or 0) - 3_600_000_000))

    def live(self) -> None:
        """A while at the rate of today's network: freshness, and the memory it takes."""
        stack, result = self._stack, self._result
        seconds = result.scale.live_seconds
        if not seconds:
            return
        self._say(f"{seconds:g} s at {LIVE_RATE:g} events/s")
        stack.control(f"scenario?name=rate&amount={LIVE_RATE:g}")
        settled = time.monotonic() + min(10.0, seconds / 2)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sampled = time.monotonic()
            while time.monotonic() < sampled + _SAMPLE_SECONDS:
                stack.tick()
            if time.monotonic() > settled:
                result.live_memory.take(stack)
                # From the manifest, not from the writer's own word.
                result.freshness.append(max(time.time() - stack.newest_us() / 1e6, 0.0))
        stack.pause()
        self._follow(stack.drained, "everything sent is committed", lambda: f"{stack.committed_rows():,} rows")

    def compare(self) -> None:
        """Ledger, topics and lake."""
        stack, result = self._stack, self._result
        self._say("comparing ledger, topics and lake, event by event")
        ends = end_offsets(stack.kafka, EVENT_TOPICS, REQUEST_TIMEOUT_SECONDS)
        result.topic_messages = sum(ends.values())
        result.topic_bytes = sum(
            path.stat().st_size
            for path in (stack.state / "kafka").rglob("*.log")
            if path.parent.name.startswith("bluesky.")
        )
        with stack.manifest() as manifest:
            snapshot = manifest.snapshot()
            ledger = Ledger(stack.ledger_folder)
            result.proof = prove(ledger, snapshot, stack.lake)
            result.summary = summarize(ledger, snapshot, stack.lake, read_dead_letters(stack.kafka))
        result.restarts = sum(stack.supervisor.restarts(name) for name in stack.supervisor.names())

    def _follow(
        self, done: Callable[[], bool], what: str, progress: Callable[[], str], memory: Memory | None = None
    ) -> None:
        """Waits for `done`, saying every few seconds how far it is."""
        stack = self._stack
        deadline = time.monotonic() + self._result.scale.give_up
        told = time.monotonic()
        while not done():
            sampled = time.monotonic()
            if memory is not None:
                memory.take(stack)
            while time.monotonic() < sampled + _SAMPLE_SECONDS:
                stack.tick()
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                self._say(f"  {progress()}")
            if time.monotonic() > deadline:
                raise SupervisionError(
                    f"not within {self._result.scale.give_up:g} s: {what}\n{stack.explain()}",
                    "a smaller --events-per-day or a larger --give-up",
                )


def batch_seconds(manifest: Manifest) -> list[float]:
    """The times between one ingest commit and the next, oldest first: what one batch took while there was a backlog."""
    made = [info.created_us for info in manifest.versions(1_000_000) if info.reason == "ingest"][::-1]
    return [(later - earlier) / 1e6 for earlier, later in pairwise(made)]


def _keep_for_ever(stack: Stack) -> None:
    """History older than a topic's retention would be deleted by the broker before it is read."""
    admin = make_admin(stack.kafka)
    keep = [
        ConfigEntry("retention.ms", "-1", incremental_operation=AlterConfigOpType.SET),
        ConfigEntry("retention.bytes", "-1", incremental_operation=AlterConfigOpType.SET),
    ]
    resources = [ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=keep) for topic in EVENT_TOPICS]
    for future in admin.incremental_alter_configs(resources).values():
        future.result(REQUEST_TIMEOUT_SECONDS)


def _check_room(state: Path, scale: Scale) -> None:
    existing = next(folder for folder in (state, *state.absolute().parents) if folder.exists())
    free, needed = shutil.disk_usage(existing).free, scale.events * _BYTES_PER_EVENT
    if free < needed:
        raise SupervisionError(
            f"{scale.events:,} events need about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free at {existing}",
            "make room, or ask for fewer with --events-per-day",
        )

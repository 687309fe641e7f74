"""Three writer processes, 20 rebalances, 30 SIGKILLs, duplicates on the way in: the lake ends as exactly what was published."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress

import pytest

from consumers.config import MaintenanceConfig
from consumers.maintenance import MaintenanceService
from lake.steps import CommitStep
from pipeline.kafka import make_producer
from tests.consumers.conftest import Lake, wait_until
from tests.consumers.processes import WriterProcess
from tests.consumers.support import HOUR_US, START_US, Event, events, produce, rows_on_disk

KILLS = 30
REBALANCES = 20
EVENTS = 40_000


class Swarm:
    """Three places for writers; a place whose writer died or was stopped gets a new one."""

    def __init__(self, lake: Lake, rng: random.Random) -> None:
        self._lake = lake
        self._rng = rng
        self._numbers = itertools.count()
        self.places: list[WriterProcess] = []
        self.kills = 0
        self.stops = 0
        self.crashpoints: Counter[str] = Counter()

    def start(self, place: int, crashpoint: str | None = None) -> None:
        # Static members and dynamic ones together: both ways of coming back are exercised.
        member = {"instance_id": f"{self._lake.group}-{place}"} if place == 0 else {}
        writer = WriterProcess(
            self._lake, f"{place}-{next(self._numbers)}", crashpoint, batch_rows=400, poll_messages=200,
            batch_age_seconds=0.2, rejoin_seconds=0.1, **member,
        )  # fmt: skip
        if place == len(self.places):
            self.places.append(writer)
        else:
            self.places[place] = writer

    def kill_at_random(self, place: int) -> None:
        """SIGKILL at whatever it is doing."""
        time.sleep(self._rng.random() * 0.4)
        self.places[place].kill()
        self.kills += 1

    def kill_at_a_step(self, place: int) -> None:
        """Replace the writer by one that kills itself between two steps of a commit."""
        self.stop(place)
        step = self._rng.choice([step for step in CommitStep if step.value in _WRITER_STEPS])
        self.start(place, f"{step.value}:{self._rng.randint(1, 3)}")
        with suppress(subprocess.TimeoutExpired):
            self.places[place].wait(20)
            self.crashpoints[step.value] += 1
        self.places[place].kill()
        self.kills += 1

    def stop(self, place: int) -> None:
        """A clean stop, which is a rebalance for the others."""
        self.places[place].send(signal.SIGTERM)
        # The signal's own default while the process is still starting, else a clean end.
        assert self.places[place].wait(60) in (0, -signal.SIGTERM), self.places[place].log.read_text()
        self.stops += 1

    def close(self) -> None:
        for writer in self.places:
            writer.kill()


_WRITER_STEPS = {
    "batch-ready", "file-written", "file-synced", "file-renamed", "files-durable", "manifest-open", "manifest-committed",
}  # fmt: skip


@pytest.mark.timeout(900)
def test_kills_and_rebalances_neither_lose_nor_repeat(lake: Lake) -> None:
    rng = random.Random(20261123)
    made = events(EVENTS, seed=77, span_us=2 * HOUR_US)
    done = threading.Event()
    feeder = threading.Thread(target=feed, args=(lake, made, done))
    swarm = Swarm(lake, rng)
    maintenance = MaintenanceService(
        MaintenanceConfig(unlink_after_seconds=0.0, close_after_seconds=0.0, erase_seconds=0.0, small_files=8, late_seconds=0.0),
        lake.manifest, lake.store, lambda facts: None,
    )  # fmt: skip
    try:
        for place in range(3):
            swarm.start(place)
        feeder.start()
        while swarm.kills < KILLS or swarm.stops < REBALANCES:
            place = rng.randrange(3)
            if swarm.kills < KILLS and rng.random() < 0.6:
                swarm.kill_at_random(place)
            elif swarm.kills < KILLS and rng.random() < 0.5 and not done.is_set():
                swarm.kill_at_a_step(place)
            else:
                swarm.stop(place)
            swarm.start(place)
            maintenance.run_once(threading.Event())
        done.set()
        feeder.join(60)
        wait_until(lambda: lake.rows() == len(made), 120, lambda: f"{lake.rows()} of {len(made)} rows")
        for place in range(3):
            swarm.stop(place)
    finally:
        done.set()
        feeder.join(60)
        swarm.close()
    # With all writers gone, what crashed commits left may go at any age; then the folders are the lake.
    final = MaintenanceService(
        MaintenanceConfig(unlink_after_seconds=0.0, orphan_after_seconds=0.0, close_after_seconds=0.0, late_seconds=0.0),
        lake.manifest, lake.store, lambda facts: None,
    )  # fmt: skip
    final.run_once(threading.Event())
    final.run_once(threading.Event())
    found = Counter(rows_on_disk(lake.root))
    expected = Counter((event.table, event.identity) for event in made)
    assert found - expected == Counter(), "rows that nobody published, or twice"
    assert expected - found == Counter(), "published events without a row"
    assert all(total.closes for total in lake.manifest.reconciliation(START_US, START_US + 3 * HOUR_US))
    assert (swarm.kills, swarm.stops >= REBALANCES) == (KILLS, True)
    assert swarm.crashpoints, "no kill hit a named step"
    print(f"{swarm.kills} kills ({dict(swarm.crashpoints)} at named steps), {swarm.stops} stops, {len(made)} events")


def feed(lake: Lake, made: list[Event], done: threading.Event) -> None:
    """Publish everything in small pieces until the test is over, with an overlap as a restarted producer sends it."""
    producer = make_producer(lake.kafka, linger_ms=5)
    size = 200
    for start in range(0, len(made), size):
        produce(lake.kafka, made[max(0, start - 20) : start + size], producer)
        done.wait(0.3)

"""Three writer processes, 20 rebalances, 30 SIGKILLs, duplicates on the way in: the lake ends as exactly what was published."""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest

from consumers.config import MaintenanceConfig
from consumers.decode import released_schemas
from consumers.maintenance import MaintenanceService
from lake.steps import CommitStep
from pipeline.frames import Wanted, rows_of_lake
from pipeline.kafka import make_producer
from schemas.bodies import decode_body
from schemas.framing import split
from schemas.rebuild import frame_v2
from tests.consumers.conftest import Lake, wait_until
from tests.consumers.processes import WriterProcess
from tests.consumers.support import HOUR_US, START_US, Event, events, produce, rows_on_disk
from tests.support.steps import INGEST_STEPS

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
        """SIGKILL at whatever it is doing, once it has been given partitions."""
        writer = self.places[place]
        wait_until(
            lambda: writer.status().get("assigned", 0) > 0 or not writer.running, 60, lambda: writer.log.read_text()
        )
        time.sleep(self._rng.random() * 0.5)
        self._kill(place)

    def kill_at_a_step(self, place: int, step: CommitStep) -> bool:
        """Replace the writer by one that kills itself between two steps of a commit; whether it came to that."""
        self.stop(place)
        self.start(place, f"{step.value}:{self._rng.randint(1, 3)}")
        with suppress(subprocess.TimeoutExpired):
            assert self.places[place].wait(20) == -signal.SIGKILL, self.places[place].log.read_text()
            self.crashpoints[step.value] += 1
            self.kills += 1
            return True
        self._kill(place)
        return False

    def _kill(self, place: int) -> None:
        assert self.places[place].running, self.places[place].log.read_text()
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


def claims(lake: Lake) -> int:
    """How often partitions were taken over; a rebalance raises it."""
    return sum(position.epoch for position in lake.manifest.offsets().values())


@pytest.mark.timeout(900)
def test_kills_and_rebalances_neither_lose_nor_repeat(lake: Lake) -> None:
    rng = random.Random(20261123)
    made = events(EVENTS, seed=77, span_us=2 * HOUR_US)
    done = threading.Event()
    feeder = threading.Thread(target=feed, args=(lake, made, done))
    swarm = Swarm(lake, rng)
    # Replaced files outlive the writers that are reading them for what the lake has already, as they outlive queries.
    maintenance = MaintenanceService(
        MaintenanceConfig(unlink_after_seconds=10.0, close_after_seconds=0.0, erase_seconds=0.0, small_files=8, late_seconds=0.0),
        lake.manifest, lake.store, lambda facts: None,
    )  # fmt: skip
    try:
        for place in range(3):
            swarm.start(place)
        feeder.start()
        rebalances, seen = 0, claims(lake)
        # Every step once while there is something to commit, the rest of the kills at any moment, clean stops in between.
        steps = rng.sample(INGEST_STEPS, len(INGEST_STEPS))
        while swarm.kills < KILLS or rebalances < REBALANCES:
            place = rng.randrange(3)
            choice = rng.random()
            if steps and (choice < 0.4 or swarm.kills + len(steps) >= KILLS):
                if swarm.kill_at_a_step(place, steps[0]):
                    steps.pop(0)
            elif choice < 0.75 and swarm.kills + len(steps) < KILLS:
                swarm.kill_at_random(place)
            else:
                swarm.stop(place)
            swarm.start(place)
            maintenance.run_once(threading.Event())
            rebalances, seen = rebalances + (claims(lake) > seen), claims(lake)
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
    assert source_frames(made) == lake_frames(lake), "the same events with another content"
    assert swarm.kills >= KILLS
    assert swarm.crashpoints.keys() == {step.value for step in INGEST_STEPS}
    assert rebalances >= REBALANCES
    print(
        f"{swarm.kills} kills, {sum(swarm.crashpoints.values())} of them at named steps; {rebalances} rebalances seen,"
        f" {swarm.stops} clean stops; {len(made)} events"
    )


def source_frames(made: list[Event]) -> Counter[str]:
    """The published events as the source's frames."""
    frames: Counter[str] = Counter()
    for event in made:
        reference, body = split(event.value)
        schema = released_schemas(reference)
        assert schema is not None
        frames[text_of(decode_body(schema, body))] += 1
    return frames


def lake_frames(lake: Lake) -> Counter[str]:
    """The frames that the lake's rows give back; no event of this test ends another's life, so none is empty."""
    return Counter(text_of(row) for row in rows_of_lake(lake.store, lake.manifest.snapshot(), Wanted()))


def text_of(row: Mapping[str, Any]) -> str:
    return json.dumps(json.loads(frame_v2(row)), sort_keys=True)


def feed(lake: Lake, made: list[Event], done: threading.Event) -> None:
    """Publish everything in small pieces until the test is over, with an overlap as a restarted producer sends it."""
    producer = make_producer(lake.kafka, linger_ms=5)
    size = 200
    for start in range(0, len(made), size):
        produce(lake.kafka, made[max(0, start - 20) : start + size], producer)
        done.wait(0.3)

"""The design's invariants, held by a state machine on both manifests; every fault is proven to have fired.

A walk meets each fault once, so that none is left to chance; random runs mix them. More of those:
`LAKE_MACHINE_EXAMPLES=2000 LAKE_MACHINE_STEPS=60 pytest tests/lake/test_lake_machine.py --hypothesis-seed=7`.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from machine import LakeMachine, url_maker
from support import HOUR, POST

from lake.steps import CommitStep
from tests.support.steps import INGEST_STEPS, SWAP_STEPS

_NUMBERS = itertools.count()
EXAMPLES = int(os.environ.get("LAKE_MACHINE_EXAMPLES", "0"))
STEPS = int(os.environ.get("LAKE_MACHINE_STEPS", "25"))
RUNS = settings(
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

_OF_FILES = [step for step in SWAP_STEPS if step is not CommitStep.FILE_UNLINKED]
FAULTS = {
    *(f"ingest:{step.value}" for step in INGEST_STEPS),
    *(f"{swap}:{step.value}" for swap in ("small", "rolled", "erase", "replay") for step in _OF_FILES),
    "unlink:file-unlinked",
    "disk-full-file-written",
    "disk-full-file-synced",
    "answer-lost-True",
    "answer-lost-False",
    "zombie-refused",
    "rebuilt",
    "old-version-read",
}


@pytest.fixture(params=["sqlite", "postgres"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[LakeMachine]]:
    """The machine on one kind of manifest, a new manifest for every run."""
    if request.param == "sqlite":

        class OnSqlite(LakeMachine):
            new_manifest_url = staticmethod(url_maker(tmp_path))
            connection_error = sqlite3.OperationalError("disk I/O error")
            fired: ClassVar[set[str]] = set()

        yield OnSqlite
        return
    server: str = request.getfixturevalue("postgres_server")
    with psycopg.connect(server, autocommit=True) as connection:

        def new_schema() -> str:
            name = f"machine{next(_NUMBERS)}"
            connection.execute(f"CREATE SCHEMA {name}")
            return f"{server}&options=-csearch_path%3D{name}"

        class OnPostgres(LakeMachine):
            new_manifest_url = staticmethod(new_schema)
            connection_error = psycopg.OperationalError("server closed the connection unexpectedly")
            fired: ClassVar[set[str]] = set()

        yield OnPostgres


def live(machine: type[LakeMachine], *rules: Callable[[LakeMachine], object]) -> None:
    """A short life: `rules`, then maintenance and the rest of the messages; every invariant is looked at after each."""
    lake = machine()
    lake.begin()
    try:
        for rule in (*rules, LakeMachine.settle, lambda m: m.ingest(0, 9, None, 1), lambda m: m.ingest(1, 9, None, 1)):
            rule(lake)
            lake.every_consumed_event_is_there_once()
            lake.answers_are_current()
            lake.what_was_erased_left_no_byte()
            lake.the_books_close()
    finally:
        lake.teardown()


def repeated_by_another_host(lake: LakeMachine, earlier: bool) -> None:
    """A new record of account 0 comes twice, in the order given, witnessed in two neighbouring hours."""
    lake.write_record(0, 1, 1, 50, "create")
    table, event = lake.sent[-1]
    other = event | {"time_us": event["time_us"] + (-HOUR if earlier else HOUR), "source_host": "other"}
    lake.ingest(0, 9, None, 1)
    lake.send(table, other)


def test_the_lake_holds_through_every_fault(machine: type[LakeMachine]) -> None:
    for step in INGEST_STEPS:
        live(machine, partial(LakeMachine.ingest, partition=0, most=5, step=step, ordinal=1))
    delete = partial(LakeMachine.write_record, who=0, key=0, hour=0, minute=40, operation="delete")
    consume = partial(LakeMachine.ingest, partition=0, most=9, step=None, ordinal=1)
    for step in _OF_FILES:
        for kind in ("small", "rolled"):
            live(machine, consume, partial(LakeMachine.roll, table=POST, hour=0, kind=kind, step=step))
        live(machine, delete, consume, partial(LakeMachine.erase, step=step, ordinal=1, files=None))
        live(machine, partial(LakeMachine.replay, hour=0, hours=3, step=step, ordinal=1, dry=False))
    live(machine, LakeMachine.settle, partial(LakeMachine.unlink, step=CommitStep.FILE_UNLINKED))
    for step in (CommitStep.FILE_WRITTEN, CommitStep.FILE_SYNCED):
        for what in ("ingest", "roll", "erase"):
            live(machine, partial(LakeMachine.fill_the_disk, step=step, what=what))
    for applied in (True, False):
        live(machine, partial(LakeMachine.lose_the_answer, partition=0, applied=applied))
    live(machine, partial(LakeMachine.rebalance, partition=0), LakeMachine.zombie_commits)
    live(machine, LakeMachine.settle, LakeMachine.lose_the_manifest)
    for earlier in (False, True):
        live(machine, consume, partial(repeated_by_another_host, earlier=earlier), consume, LakeMachine.settle)
    late = partial(LakeMachine.write_for_a_lagging_host, who=0, key=0, hour=0, minute=1, days=30)
    live(machine, consume, delete, consume, LakeMachine.settle, late, consume)
    live(machine, consume, delete, consume, LakeMachine.settle, LakeMachine.note_ends, late, consume)
    live(machine, LakeMachine.begin_to_read, LakeMachine.settle, LakeMachine.go_on_reading)
    assert FAULTS - machine.fired == set(), "these faults never happened"


def test_the_lake_holds_through_any_mixture(machine: type[LakeMachine]) -> None:
    examples = EXAMPLES or (12 if machine.__name__ == "OnSqlite" else 6)
    run_state_machine_as_test(machine, settings=settings(RUNS, max_examples=examples))

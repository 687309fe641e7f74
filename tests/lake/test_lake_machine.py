"""The design's invariants after each fault of the lake's model; every fault is proven to have fired."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

from machine import INGEST_STEPS, SWAP_STEPS, LakeMachine, url_maker
from support import POST

from lake.steps import CommitStep

FAULTS = {step.value for step in (*INGEST_STEPS, *SWAP_STEPS)} | {
    "answer-lost-True",
    "answer-lost-False",
    "zombie-refused",
    "rebuilt",
}


def every_fault_once(machine: type[LakeMachine]) -> None:
    """A short life with each fault, every invariant looked at after each step."""

    def life(*rules: Callable[[LakeMachine], object]) -> None:
        lake = machine()
        lake.begin()
        for rule in (*rules, LakeMachine.settle, lambda m: m.ingest(0, 9, None, 1), lambda m: m.ingest(1, 9, None, 1)):
            rule(lake)
            lake.every_consumed_event_is_there_once()
            lake.answers_are_current()
            lake.what_was_erased_left_no_byte()
            lake.the_books_close()
        lake.teardown()

    for step in INGEST_STEPS:
        life(partial(LakeMachine.ingest, partition=0, most=5, step=step, ordinal=1))
    for step in set(SWAP_STEPS) - {CommitStep.FILE_UNLINKED}:
        life(partial(LakeMachine.roll, table=POST, hour=0, kind="rolled", step=step))
        life(partial(LakeMachine.replay, hour=0, step=step, dry=False))
    life(LakeMachine.settle, partial(LakeMachine.unlink, step=CommitStep.FILE_UNLINKED))
    for applied in (True, False):
        life(partial(LakeMachine.lose_the_answer, partition=0, applied=applied))
    life(partial(LakeMachine.rebalance, partition=0), LakeMachine.zombie_commits)
    life(LakeMachine.settle, LakeMachine.lose_the_manifest)
    assert FAULTS - machine.fired == set(), "these faults never happened"


def test_the_lake_holds_through_every_fault(tmp_path: Path) -> None:
    class OnSqlite(LakeMachine):
        new_manifest_url = staticmethod(url_maker(tmp_path))
        connection_error = sqlite3.OperationalError("disk I/O error")
        fired: ClassVar[set[str]] = set()

    every_fault_once(OnSqlite)

"""SIGKILL of a real writer process at every point between two durable steps, and at any moment in between."""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from lake.steps import CommitStep
from tests.consumers.conftest import Lake, wait_until
from tests.consumers.processes import WriterProcess
from tests.consumers.support import HOUR_US, START_US, events, live_paths, produce, rows_in
from tests.support.steps import INGEST_STEPS


@pytest.mark.parametrize("step", INGEST_STEPS, ids=lambda step: str(step.value))
@pytest.mark.parametrize("ordinal", [1, 3])
def test_a_kill_between_any_two_steps_neither_loses_nor_repeats(lake: Lake, step: CommitStep, ordinal: int) -> None:
    made = events(900, seed=ordinal * 100 + INGEST_STEPS.index(step))
    # Several commits, so that the third passing of a once-per-commit point happens.
    config = {"batch_rows": 200, "poll_messages": 100, "instance_id": f"{lake.group}-a"}
    produce(lake.kafka, made)
    doomed = WriterProcess(lake, "doomed", f"{step.value}:{ordinal}", **config)
    try:
        assert doomed.wait() == -signal.SIGKILL, doomed.log.read_text()
        heir = WriterProcess(lake, "heir", **config)
        try:
            lake.wait_for_rows(len(made))
            heir.send(signal.SIGTERM)
            assert heir.wait() == 0, heir.log.read_text()
        finally:
            heir.kill()
    finally:
        doomed.kill()
    assert Counter(rows_in(lake.root, live_paths(lake.manifest))) == Counter((e.table, e.identity) for e in made)
    assert all(total.closes for total in lake.manifest.reconciliation(START_US, START_US + HOUR_US))
    assert not list((lake.root / ".tmp").iterdir())


def test_a_writer_that_slept_through_its_eviction_is_refused(lake: Lake) -> None:
    made = events(2_000)
    sleeper = WriterProcess(lake, "sleeper", batch_rows=100, poll_messages=50)
    heir: WriterProcess | None = None
    try:
        produce(lake.kafka, made[:500])
        lake.wait_for_rows(500)
        sleeper.send(signal.SIGSTOP)
        produce(lake.kafka, made[500:1_500])
        heir = WriterProcess(lake, "heir")
        lake.wait_for_rows(1_500)
        sleeper.send(signal.SIGCONT)
        produce(lake.kafka, made[1_500:])
        lake.wait_for_rows(len(made))
        wait_until(lambda: lake.rows() == len(made), 5)
        for process in (sleeper, heir):
            process.send(signal.SIGTERM)
            assert process.wait() == 0, process.log.read_text()
    finally:
        sleeper.kill()
        if heir is not None:
            heir.kill()
    assert Counter(rows_in(lake.root, live_paths(lake.manifest))) == Counter((e.table, e.identity) for e in made)

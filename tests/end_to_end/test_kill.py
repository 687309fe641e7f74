"""The real pipeline with SIGKILL in mid-stream: afterwards the lake equals the simulator's ledger exactly."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.stack import proof_of, stack

pytestmark = pytest.mark.timeout(900)

# The broker too: its Java process dies with the one that looks after it, which is started again.
VICTIMS = ("producer", "writer", "producer", "broker", "writer", "producer", "writer")
AT_LEAST = 20_000


def test_lake_equals_ledger_after_sigkills(tmp_path: Path) -> None:
    environment = {
        "EXPLORER_SIMULATOR_HISTORY_HOURS": "2",
        "EXPLORER_SIMULATOR_HISTORY_RATE": "3",
        "EXPLORER_SIMULATOR_RATE": "1500",
        "EXPLORER_SIMULATOR_MAX_EVENTS": "500000",
        "EXPLORER_WRITER_BATCH_AGE_SECONDS": "0.5",
        "EXPLORER_WRITER_SESSION_TIMEOUT_SECONDS": "6",
    }
    with stack(tmp_path, **environment) as running:
        running.start("broker", "simulator", "writer", "producer")
        chooser = random.Random(7)
        for number in range(len(VICTIMS)):
            before = running.committed_rows()
            running.until(lambda rows=before: running.committed_rows() > rows, "more rows are committed")  # type: ignore[misc]
            running.kill(VICTIMS[number])
            if chooser.random() < 0.5:
                running.kill(("writer", "producer")[number % 2])
        running.pause()
        running.until(running.drained, "everything sent is committed")
        restarted = {event.name for event in running.events if "started again" in event.text}
        assert restarted == {"producer", "writer", "broker"}
        assert running.stop() == []

    proof = proof_of(running)
    assert proof.total("sent") >= AT_LEAST
    assert proof.holds, proof.text()

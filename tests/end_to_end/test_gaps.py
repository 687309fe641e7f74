"""A producer that was away for longer than the source remembers: the gap is recorded, listed, and filled from the archive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lake.convert import from_lake
from lake.store import LakeStore
from producers.wire import format_time
from schemas.identity import Identity, row_identity
from simulator.ledger import Ledger
from tests.producers.source import event_identity
from tests.support.stack import Stack, run_command, stack

pytestmark = pytest.mark.timeout(900)

HELD = 100
"""The sequence up to which the producer had read before it was away."""


def run(made: Stack, *arguments: str, status: int = 0) -> str:
    return run_command(made, *arguments, status=status).stdout


def stored(made: Stack) -> dict[Identity, str]:
    """Identity of every event in the lake, with the protocol that brought it."""
    store = LakeStore(made.lake)
    with made.manifest() as manifest:
        snapshot = manifest.snapshot()
        return {
            row_identity(row): row["protocol"]
            for table in snapshot.tables()
            for file in snapshot.files(table, None, None)
            for row in from_lake(table, store.read(file.path))
        }


def test_a_gap_is_recorded_listed_and_filled_from_the_archive(tmp_path: Path) -> None:
    settings = {
        "EXPLORER_SIMULATOR_HISTORY_HOURS": "3",
        "EXPLORER_SIMULATOR_HISTORY_RATE": "0.5",
        "EXPLORER_SIMULATOR_RATE": "20",
        "EXPLORER_SIMULATOR_SEGMENT_EVENTS": "512",
        "EXPLORER_SIMULATOR_CURSOR_LOOKBACK_HOURS": "1",
        "EXPLORER_SIMULATOR_API_KEY": "secret",
        "EXPLORER_WRITER_BATCH_AGE_SECONDS": "0.5",
    }
    with stack(tmp_path / "stack", **settings) as made:
        made.start("broker", "simulator", "writer")
        before = {event.seq: event for event in Ledger(made.ledger_folder).events()}
        # As a producer leaves it that stopped three hours ago.
        at = format_time(before[HELD].time_us)
        run(made, "cursor", "set", f"127.0.0.1:{made.port}", "--seq", str(HELD), "--time", at)
        made.start("producer")
        made.until(lambda: made.report("producer").get("gaps") == 1, "the gap is noticed")
        made.pause()
        made.until(made.drained, "what the source still has is committed")
        ledger = {event.seq: event_identity(event) for event in Ledger(made.ledger_folder).events() if event.seq > HELD}
        streamed = stored(made)
        (gap,) = json.loads(run(made, "gaps", "list", "--open", "--json"))
        assert (gap["reason"], gap["from_seq"], gap["filled"]) == ("cursor_too_old", HELD, None)
        assert set(streamed) == {identity for seq, identity in ledger.items() if seq >= gap["to_seq"]}

        assert "401" in run_command(made, "gaps", "fill", "--all", status=1).stderr
        made.environment["EXPLORER_SOURCE_ARCHIVE_KEY"] = "secret"
        assert "rows" in run(made, "gaps", "fill", gap["id"])
        made.until(lambda: len(stored(made)) >= len(ledger), "the gap's events are committed")

        filled = stored(made)
        assert set(filled) == set(ledger.values())
        assert {filled[identity] for identity in set(filled) - set(streamed)} == {"archive"}
        assert json.loads(run(made, "gaps", "list", "--open", "--json")) == []
        assert "1 gaps, 0 open" in run(made, "gaps", "list")
        assert "nothing to fill" in run(made, "gaps", "fill", "--all")
        sent = {
            json.dumps(json.loads(event.raw), sort_keys=True)
            for event in Ledger(made.ledger_folder).events()
            if event.seq > HELD
        }
        printed = {json.dumps(json.loads(line), sort_keys=True) for line in run(made, "events").splitlines()}
        assert printed == sent

"""Stacks of real processes for tests: quick restarts, and what a lake holds, to be compared."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from lake.manifest import open_manifest
from pipeline.proof import Proof, prove, stored_identities
from pipeline.stack import Stack
from pipeline.supervisor import SupervisorSettings
from simulator.ledger import Ledger

__all__ = ["Stack", "identities", "proof_of", "run_command", "stack"]


@contextmanager
def stack(state: Path, **environment: str) -> Iterator[Stack]:
    """A stack that is gone at the end, whatever happens, and starts again at once what was killed."""
    with Stack(state, SupervisorSettings(restart_first_seconds=0.1), **environment).running() as made:
        yield made


def run_command(made: Stack, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """`post-explorer` with the stack's settings; fails the test for another exit status or a stack trace."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        env={**os.environ, **made.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def proof_of(made: Stack) -> Proof:
    """The simulator's ledger against the lake, event by event."""
    with made.manifest() as manifest:
        return prove(Ledger(made.ledger_folder), manifest.snapshot(), made.lake)


def identities(lake: Path) -> dict[str, pl.DataFrame]:
    """What is stored, by table, as a sorted multiset of event identities."""
    manifest = open_manifest(str(lake / "manifest.sqlite"), read_only=True)
    try:
        snapshot = manifest.snapshot()
        return {
            table: stored_identities(snapshot, lake, table).frame("rows").sort("high", "low")
            for table in snapshot.tables()
        }
    finally:
        manifest.close()

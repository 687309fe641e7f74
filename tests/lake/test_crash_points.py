"""A process killed (SIGKILL) at every named point, at several moments: the lake holds each event once, and no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from crash_child import BATCHES, events, replayed
from support import LIKE, POST

from lake.errors import LakeError
from lake.manifest import open_manifest
from lake.rebuild import rebuild
from lake.replay_file import settle
from lake.retire import find_strays, remove_orphans
from lake.steps import CRASHPOINT_VARIABLE, CommitStep, hook_from_environment, no_hook
from lake.store import LakeStore
from tests.support.steps import INGEST_STEPS, SWAP_STEPS

CHILD = Path(__file__).with_name("crash_child.py")


def run_child(lake: Path, url: str, work: str, crash: str | None = None) -> int:
    environment = {**os.environ, "PYTHONPATH": str(CHILD.parents[2])}
    environment.pop(CRASHPOINT_VARIABLE, None)
    if crash:
        environment[CRASHPOINT_VARIABLE] = crash
    result = subprocess.run(
        [sys.executable, str(CHILD), str(lake), url, work], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode in (0, -signal.SIGKILL), result.stderr
    return result.returncode


def stored(lake: Path, url: str) -> dict[str, list[tuple[str, int]]]:
    """(did, time) of every live row, read with nothing but pyarrow and the file list."""
    manifest = open_manifest(url)
    found = {}
    for table in (POST, LIKE):
        rows = []
        for file in manifest.snapshot().files(table):
            read = pq.read_table(lake / file.path, columns=["did", "time"], partitioning=None)
            assert read.num_rows == file.rows
            rows += [(row["did"], int(row["time"].timestamp() * 1e6)) for row in read.to_pylist()]
        found[table] = sorted(rows)
    manifest.close()
    return found


def sent() -> dict[str, list[tuple[str, int]]]:
    found: dict[str, list[tuple[str, int]]] = {POST: [], LIKE: []}
    for batch in range(BATCHES):
        for name, rows in events(batch).items():
            found[{"post": POST, "like": LIKE}[name]] += [(str(row["did"]), int(str(row["time_us"]))) for row in rows]
    return {table: sorted(rows) for table, rows in found.items()}


def test_every_point_is_tested() -> None:
    assert set(CommitStep) == {*INGEST_STEPS, *SWAP_STEPS}


@pytest.mark.parametrize("ordinal", [1, 2, 3])
@pytest.mark.parametrize("step", sorted(INGEST_STEPS))
def test_ingest_survives(tmp_path: Path, step: CommitStep, ordinal: int) -> None:
    lake, url = tmp_path / "lake", str(tmp_path / "manifest.db")
    assert run_child(lake, url, "ingest", f"{step}:{ordinal}") == -signal.SIGKILL, "the point did not fire"
    before = stored(lake, url) if Path(url).exists() else {POST: [], LIKE: []}
    assert len(before[POST]) % 5 == 0
    assert len(before[LIKE]) == 2 * len(before[POST]), "a batch is visible in part"
    assert run_child(lake, url, "ingest") == 0
    assert stored(lake, url) == sent()
    manifest, store = open_manifest(url), LakeStore(lake)
    assert all(hour.closes for hour in manifest.reconciliation(0, 1 << 62))
    assert not list((lake / ".tmp").iterdir())
    remove_orphans(store, manifest, 1 << 62)
    assert find_strays(store, manifest, 1 << 62).orphans == ()
    assert stored(lake, url) == sent()
    manifest.close()


@pytest.mark.parametrize("ordinal", [1, 2])
@pytest.mark.parametrize("step", sorted(SWAP_STEPS))
def test_maintenance_survives(tmp_path: Path, step: CommitStep, ordinal: int) -> None:
    lake, url = tmp_path / "lake", str(tmp_path / "manifest.db")
    assert run_child(lake, url, "ingest") == 0
    assert run_child(lake, url, "maintain", f"{step}:{ordinal}") == -signal.SIGKILL, "the point did not fire"
    assert stored(lake, url) == sent()
    assert run_child(lake, url, "maintain") == 0
    assert stored(lake, url) == sent()
    manifest, store = open_manifest(url), LakeStore(lake)
    snapshot = manifest.snapshot()
    assert snapshot.superseding(POST, source="account") == []
    assert sum(file.erased for file in snapshot.files(POST)) == BATCHES
    remove_orphans(store, manifest, 1 << 62)
    on_disk = {path for path, _ in store.walk()}
    assert on_disk == {file.path for table in snapshot.tables() for file in snapshot.files(table)}
    manifest.close()


REPLAY_STEPS = [step for step in SWAP_STEPS if step is not CommitStep.FILE_UNLINKED]


@pytest.mark.parametrize("step", [*REPLAY_STEPS, None])
def test_a_rebuild_knows_which_replays_were_swapped_in(tmp_path: Path, step: CommitStep | None) -> None:
    """The replaced files are all on disk still; between the swap and its note is the one moment that nothing can tell."""
    lake, url = tmp_path / "lake", str(tmp_path / "manifest.db")
    assert run_child(lake, url, "ingest") == 0
    # The first transaction of the process claims its partitions.
    ordinal = 2 if step is CommitStep.MANIFEST_OPEN else 1
    died = run_child(lake, url, "replay", f"{step}:{ordinal}" if step else None)
    assert died == (-signal.SIGKILL if step else 0), "the point did not fire"
    swapped = step in (CommitStep.SWAP_COMMITTED, None)
    old = sent()
    new = old | {LIKE: sorted((str(row["did"]), int(str(row["time_us"]))) for row in replayed())}
    assert stored(lake, url) == (new if swapped else old)
    store = LakeStore(lake)

    lost_at_once, lost_later = str(tmp_path / "at-once.db"), str(tmp_path / "later.db")
    for again in (lost_at_once, lost_later):
        if again is lost_later:
            # What every maintenance run does first.
            manifest = open_manifest(url)
            settle(store, manifest)
            manifest.close()
        manifest = open_manifest(again, create=True)
        found = rebuild(store, manifest)
        assert all(hour.closes for hour in manifest.reconciliation(0, 1 << 62))
        manifest.close()
        known = swapped and (again is lost_later or step is None)
        assert stored(lake, again) == (new if known else old)
        # Named although it may not have been swapped in: run again, it does no harm.
        begun = step in (CommitStep.SWAP_FILES_DURABLE, CommitStep.MANIFEST_OPEN, CommitStep.SWAP_COMMITTED)
        assert found.undecided == ((LIKE,) if begun and not known else ())

    for again in (lost_at_once, lost_later):
        # The positions came back too: ingest has nothing to do, and the replay, done (again), leaves the same lake.
        assert run_child(lake, again, "ingest") == 0
    assert run_child(lake, lost_at_once, "replay") == 0
    assert stored(lake, lost_at_once) == new


def test_the_variable_is_checked() -> None:
    assert hook_from_environment({}) is no_hook
    for text in ("no-such-point:1", "file-synced:0", "file-synced:x"):
        with pytest.raises(LakeError, match="Unset EXPLORER_CRASHPOINT"):
            hook_from_environment({CRASHPOINT_VARIABLE: text})

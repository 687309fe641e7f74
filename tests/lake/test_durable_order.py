"""The order of the durable steps, as the operating system is told: synced before renamed, folders before the manifest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support import HOUR, LIKE, POST, START, Writer, commit_row, lake_rows

from lake.gap_file import NAME as GAPS
from lake.gap_file import save_gaps
from lake.manifest import Gap, open_manifest
from lake.manifest.sqlite import SqliteManifest
from lake.replay import Staging, plan_replay, replace
from lake.replay_file import NAME as REPLAYS
from lake.roll import roll_hour
from lake.steps import CommitStep
from lake.store import LakeStore


class Recorder:
    """What was synced, renamed and made, in order, by path; steps of the manifest among it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, str]] = []
        fsync, rename, mkdir = os.fsync, os.rename, os.mkdir

        def synced(descriptor: int) -> None:
            fsync(descriptor)
            self.events.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))

        def renamed(source: Any, target: Any, *rest: Any, **named: Any) -> None:
            rename(source, target, *rest, **named)
            self.events.append(("rename", f"{source} {target}"))

        def made(path: Any, *rest: Any, **named: Any) -> None:
            mkdir(path, *rest, **named)
            self.events.append(("mkdir", str(path)))

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "rename", renamed)
        monkeypatch.setattr(os, "mkdir", made)

    def hook(self, step: CommitStep) -> None:
        """Notes what the manifest does."""
        self.events.append(("step", step.value))

    def at(self, kind: str, what: str, after: int = -1) -> int:
        """Where that happened first after a place; fails if it did not."""
        return next(n for n, event in enumerate(self.events) if n > after and event == (kind, what))

    def placed(self, store: LakeStore, path: str | Path) -> tuple[int, int]:
        """Where the file got its name and where that was durable; its content was before."""
        final = str(store.root / path)
        (found,) = [n for n, (kind, what) in enumerate(self.events) if kind == "rename" and what.endswith(f" {final}")]
        temporary = self.events[found][1].split(" ")[0]
        assert self.at("sync", temporary) < found
        return found, self.at("sync", str(Path(final).parent), found)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def lake(tmp_path: Path, recorder: Recorder) -> tuple[LakeStore, SqliteManifest, Writer]:
    store = LakeStore(tmp_path / "lake")
    manifest = open_manifest(str(tmp_path / "meta" / "manifest.db"), create=True, hook=recorder.hook)
    assert isinstance(manifest, SqliteManifest)
    return store, manifest, Writer(store, manifest)


def test_a_commit_is_durable_before_the_manifest_says_so(tmp_path: Path, recorder: Recorder) -> None:
    store, manifest, writer = lake(tmp_path, recorder)
    recorder.events.clear()
    writer.write(
        recorder.hook,
        post=[commit_row(POST, who, START + who * HOUR) for who in range(3)],
        like=[commit_row(LIKE, 1, START)],
    )
    opened = recorder.at("step", "manifest-open")
    files = [file for table in (POST, LIKE) for file in manifest.snapshot().files(table)]
    assert len(files) == 4
    for file in files:
        assert recorder.placed(store, file.path)[1] < opened
    made = [what for kind, what in recorder.events if kind == "mkdir" and ".tmp" not in what]
    # Table, date and hour of each file; what a power cut would take along with its folder was not committed.
    assert len(made) >= 8
    for folder in made:
        if folder != str(store.root):
            assert recorder.at("mkdir", folder) < recorder.at(
                "sync", str(Path(folder).parent), recorder.at("mkdir", folder)
            )
            assert recorder.at("sync", str(Path(folder).parent), recorder.at("mkdir", folder)) < opened


def test_a_merge_is_durable_before_it_replaces(tmp_path: Path, recorder: Recorder) -> None:
    store, manifest, writer = lake(tmp_path, recorder)
    for who in range(2):
        writer.write(post=[commit_row(POST, who, START + who)])
    recorder.events.clear()
    rolled = roll_hour(store, manifest, POST, START, hook=recorder.hook)
    assert rolled.file is not None
    assert recorder.placed(store, rolled.file.path)[1] < recorder.at("step", "manifest-open")


def test_a_replay_is_noted_before_and_after_its_swap(tmp_path: Path, recorder: Recorder) -> None:
    store, manifest, writer = lake(tmp_path, recorder)
    events = [commit_row(POST, who, START + who) for who in range(2)]
    writer.write(post=events)
    plan = plan_replay(manifest, POST, START, START + HOUR)
    staging = Staging(store, plan)
    recorder.events.clear()
    staging.add(lake_rows(POST, events, 0, 0), {0: 2})
    progress = Path(".replay") / plan.id / "progress.json"
    (piece,) = [path.relative_to(store.root) for path in (store.root / ".replay" / plan.id).glob("*.parquet")]
    # What counts as read is staged.
    assert recorder.placed(store, piece)[0] < recorder.placed(store, progress)[0]
    assert recorder.placed(store, progress)[1]
    recorder.events.clear()
    replace(store, manifest, staging, hook=recorder.hook)
    (file,) = manifest.snapshot().files(POST)
    opened, swapped = recorder.at("step", "manifest-open"), recorder.at("step", "swap-committed")
    note = str(store.root / REPLAYS)
    before, after = [n for n, (kind, what) in enumerate(recorder.events) if kind == "rename" and what.endswith(note)]
    assert recorder.placed(store, file.path)[1] < before
    for renamed in (before, after):
        temporary = recorder.events[renamed][1].split(" ")[0]
        assert [n for n, event in enumerate(recorder.events[:renamed]) if event == ("sync", temporary)]
    assert before < recorder.at("sync", str(store.root), before) < opened < swapped < after
    assert recorder.at("sync", str(store.root), after)


def test_gaps_are_written_down_whole(tmp_path: Path, recorder: Recorder) -> None:
    store, manifest, _ = lake(tmp_path, recorder)
    store.root.mkdir(exist_ok=True)
    manifest.add_gap(Gap("one", "host", START, START + 1, "jump", "", START))
    save_gaps(store, manifest)
    assert recorder.placed(store, GAPS)[1]


def test_the_manifest_syncs_every_commit_and_its_own_folder(tmp_path: Path, recorder: Recorder) -> None:
    _, manifest, _ = lake(tmp_path, recorder)
    assert recorder.at("sync", str(tmp_path / "meta"))
    assert manifest._query("PRAGMA synchronous") == [(2,)], "FULL"
    assert manifest._query("PRAGMA journal_mode") == [("wal",)]


def test_what_is_synced_is_what_was_asked_for(tmp_path: Path, recorder: Recorder) -> None:
    """The recorder itself: without it the other tests could not fail."""
    with pytest.raises(StopIteration):
        recorder.at("sync", str(tmp_path))
    with pytest.raises(ValueError, match="unpack"):
        recorder.placed(LakeStore(tmp_path), "x")

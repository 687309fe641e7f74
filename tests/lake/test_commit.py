"""What a commit leaves behind when it fails: files only where they may be live, and a name that tells a repetition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import HOUR, POST, START, Writer, commit_row, lake_rows, tid

from lake import commit
from lake.commit import LATE_US, batch_id, commit_batch, witnessed_since
from lake.errors import CommitOutcomeUnknown, CommitRefused, ManifestUnavailable
from lake.fold import read_ending_rows
from lake.manifest import Advance, Manifest, open_manifest
from lake.store import LakeStore


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return open_manifest(str(tmp_path / "manifest.db"), create=True)


def on_disk(store: LakeStore) -> list[str]:
    return sorted(path for path, _ in store.walk())


def live(manifest: Manifest) -> list[str]:
    return sorted(file.path for file in manifest.snapshot().files(POST))


def test_files_stay_while_nobody_knows_whether_they_are_live(
    store: LakeStore, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(store, manifest)
    batch = writer.batch({POST: [commit_row(POST, 1, START)]})
    monkeypatch.setattr(commit, "_LOOK_UP_PAUSE_S", 0)
    applied = manifest.commit

    def lost(what: Any) -> int:
        applied(what)
        raise CommitOutcomeUnknown("the connection is gone")

    asked: list[str] = []

    def unreachable(what: str) -> None:
        """At last it answers that it has no such commit, which is still under way."""
        asked.append(what)
        if len(asked) <= commit._LOOK_UPS:
            raise ManifestUnavailable("nobody answers")

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "commit", lost)
        patch.setattr(manifest, "outcome", unreachable)
        with pytest.raises(CommitOutcomeUnknown):
            commit_batch(store, manifest, batch)
    assert on_disk(store) == live(manifest) != []
    assert commit_batch(store, manifest, batch).version == 1
    assert on_disk(store) == live(manifest)


def test_an_interrupt_after_the_commit_removes_nothing(
    store: LakeStore, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Writer(store, manifest).batch({POST: [commit_row(POST, 1, START)]})
    applied = manifest.commit

    def interrupted(what: Any) -> int:
        applied(what)
        raise KeyboardInterrupt

    monkeypatch.setattr(manifest, "commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        commit_batch(store, manifest, batch)
    assert on_disk(store) == live(manifest) != []


def test_a_refused_commit_leaves_no_file(store: LakeStore, manifest: Manifest) -> None:
    zombie = Writer(store, manifest)
    Writer(store, manifest, name="w2")
    with pytest.raises(CommitRefused):
        zombie.write(post=[commit_row(POST, who, START + who * HOUR) for who in range(3)])
    assert on_disk(store) == live(manifest) == []


NUMBERS = st.integers(0, 3)
ADVANCES = st.builds(Advance, st.sampled_from("ab"), NUMBERS, NUMBERS, NUMBERS, NUMBERS)


@given(st.lists(ADVANCES, max_size=3), st.lists(ADVANCES, max_size=3))
def test_the_name_of_a_batch_tells_what_it_advances_under_which_epoch(one: list[Advance], other: list[Advance]) -> None:
    def facts(advances: list[Advance]) -> list[tuple[object, ...]]:
        return sorted((a.topic, a.partition, a.expected, a.next, a.epoch) for a in advances)

    assert (batch_id(one) == batch_id(other)) == (facts(one) == facts(other))
    assert batch_id(one[::-1]) == batch_id(one)


@pytest.mark.parametrize(
    ("behind", "since"),
    [(0, 0), (-HOUR, 0), (HOUR, HOUR), (LATE_US, LATE_US), (LATE_US + 1, LATE_US), (400 * 24 * HOUR, LATE_US)],
)
def test_who_looks_for_endings_looks_a_week_back_at_most(behind: int, since: int) -> None:
    """The rev is the account's word: were it believed further, one row would make every reader search all history."""
    rows = lake_rows(POST, [commit_row(POST, 2, START + 5), commit_row(POST, 1, START, rev=tid(START - behind))])
    assert witnessed_since(rows) == START - since


def test_endings_are_found_in_every_row_group(store: LakeStore, manifest: Manifest) -> None:
    writer = Writer(store, manifest)
    writer.write(post=[commit_row(POST, 1, START)])
    (file,) = manifest.snapshot().files(POST)
    groups = [
        [commit_row(POST, 2, START + 1)],
        [commit_row(POST, 3, START + 2, "delete", START), commit_row(POST, 4, START + 3)],
        [commit_row(POST, 5, START + 4)],
        [commit_row(POST, 6, START + 5, key_us=START, resync=True)],
    ]
    with store.writer(POST, START, "groups", kind="rolled", rows=5) as written:
        for group in groups:
            written.write(lake_rows(POST, group))
    found = read_ending_rows(store, replace(file, path=written.path))
    assert found.column("operation").to_pylist() == ["delete", "create"], "the deletion and the create of a re-download"
    assert found.column("resync").to_pylist() == [False, True]

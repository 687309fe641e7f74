"""Merging: every row once, in however many passes, and a footer that stands for all that went in."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import HOUR, POST, START, Writer, commit_row, tid

from lake.manifest import Manifest, open_manifest
from lake.rebuild import rebuild
from lake.roll import roll_hour
from lake.store import LakeStore


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return open_manifest(str(tmp_path / "manifest.db"), create=True)


@pytest.mark.parametrize("max_rows", [1, 2, 3, 5, 100])
def test_rows_at_the_edge_of_two_passes_are_there_once(store: LakeStore, manifest: Manifest, max_rows: int) -> None:
    writer = Writer(store, manifest)
    # Many at the same microsecond, which no edge may part or lose.
    times = [0, 1, 1, 1, 2, 3, 3, 4, 4, 4, 4, 9]
    for part in (range(5), range(5, 12)):
        writer.write(post=[commit_row(POST, who, START + times[who]) for who in part])
    rolled = roll_hour(store, manifest, POST, START, max_rows=max_rows)
    assert rolled.file is not None
    assert rolled.file.rows == len(times)
    assert sorted(store.read(rolled.file.path, ["kafka_offset"]).column(0).to_pylist()) == list(range(len(times)))


def test_a_file_stands_for_all_that_went_into_it_however_often_it_was_merged(
    store: LakeStore, manifest: Manifest, tmp_path: Path
) -> None:
    writer = Writer(store, manifest)
    small, rolled = [], []
    for who in range(3):
        writer.write(post=[commit_row(POST, who, START + who)])
        small += [file.path for file in manifest.snapshot().files(POST) if file.kind == "small"]
        done = roll_hour(store, manifest, POST, START)
        assert done.file is not None
        rolled.append(done.file.path)
    footer = store.footer(rolled[-1])
    assert set(footer["replaces"]) == {*small, *rolled[:-1]}
    assert footer["counts"] == [[3, 0, 3, 0]]
    assert footer["spans"] == [["bluesky." + POST, 0, 0, 2, 3]]
    assert footer["advances"] == [["bluesky." + POST, 0, 0, 3]]
    # The files in between are gone, the first ones are not: the last still stands for them.
    store.unlink(rolled[:-1])
    found = rebuild(store, open_manifest(str(tmp_path / "again.db"), create=True))
    assert (found.merged, set(found.replaced), found.rows) == ((), set(small), 3)


@pytest.mark.parametrize("first", ["creates", "deletion", "late"])
def test_what_is_left_to_do_and_how_far_back_to_look_outlives_a_merge(
    store: LakeStore, manifest: Manifest, first: str
) -> None:
    """Whichever of the files has it: a deletion that is not applied yet, a row that was made long before."""
    writer = Writer(store, manifest)
    batches = {
        "creates": [commit_row(POST, 1, START + 5)],
        "deletion": [commit_row(POST, 2, START + 6, "delete", START)],
        "late": [commit_row(POST, 3, START + 7, rev=tid(START - 5 * HOUR))],
    }
    for name in (first, *(name for name in batches if name != first)):
        writer.write(post=batches[name])
    rolled = roll_hour(store, manifest, POST, START)
    (file,) = manifest.snapshot().files(POST)
    assert rolled.merged == 3
    assert (file.pending, file.supersedes, file.since_us) == (True, 1, START - 5 * HOUR)
    assert store.footer(file.path)["since_us"] == file.since_us

"""Backups are whole at every moment, follow what was erased, and restore to the same lake."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lake.manifest import Manifest, open_manifest
from lake.retire import unlink_retired
from lake.roll import roll_hour
from lake.store import LakeStore
from lake.verify import verify
from pipeline import backup
from pipeline.backup import BackupError, back_up
from tests.lake.support import LIKE, START, Writer, commit_row


class Lake:
    """A small lake with a writer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder / "manifest.sqlite")
        self.manifest: Manifest = open_manifest(self.url, create=True)
        self.store = LakeStore(str(folder))
        self.writer = Writer(self.store, self.manifest)
        self.written = 0

    def write(self, count: int = 5) -> None:
        """Some further likes of the first hour, in a file of their own."""
        rows = [commit_row(LIKE, number, START + number) for number in range(self.written, self.written + count)]
        self.writer.write(like=rows)
        self.written += count

    def merge(self) -> None:
        """One file instead of the small ones, which vanish at once."""
        roll_hour(self.store, self.manifest, LIKE, START)
        unlink_retired(self.store, self.manifest, time.time_ns() // 1000 + 1)


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    made = Lake(tmp_path / "lake")
    made.write()
    made.write()
    yield made
    made.manifest.close()


def rows_of(folder: Path) -> int:
    """Rows of a restored lake; it must be without fault, byte for byte."""
    manifest = open_manifest(str(folder / "manifest.sqlite"), read_only=True)
    try:
        found = verify(LakeStore(str(folder)), manifest, deep=True, strays_older_than_us=0)
        assert found.findings == ()
        return found.rows
    finally:
        manifest.close()


def test_a_backup_is_the_lake_and_copies_only_what_is_new(lake: Lake, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    first = back_up(lake.url, lake.folder, target)
    assert (first.rows, first.files, first.copied, first.removed) == (10, 2, 2, 0)
    lake.write()
    second = back_up(lake.url, lake.folder, target)
    assert (second.rows, second.files, second.copied) == (15, 3, 1)
    assert rows_of(target) == 15
    lake.merge()
    third = back_up(lake.url, lake.folder, target)
    assert (third.files, third.copied, third.removed) == (1, 1, 3)
    shutil.copytree(target, tmp_path / "restored")
    assert rows_of(tmp_path / "restored") == 15


def test_a_writer_goes_on_from_a_restored_lake(lake: Lake, tmp_path: Path) -> None:
    back_up(lake.url, lake.folder, tmp_path / "backup")
    shutil.copytree(tmp_path / "backup", tmp_path / "restored")
    restored = Lake(tmp_path / "restored")
    try:
        restored.written = lake.written
        restored.write()
    finally:
        restored.manifest.close()
    assert rows_of(tmp_path / "restored") == 15


def test_files_that_are_merged_away_meanwhile_make_it_look_again(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, calls = backup.copy_database, []

    def copy_then_merge(source: Path, target: Path) -> None:
        copy(source, target)
        if not calls:
            lake.merge()
        calls.append(source)

    monkeypatch.setattr(backup, "copy_database", copy_then_merge)
    done = back_up(lake.url, lake.folder, tmp_path / "backup")
    assert len(calls) == 2
    assert (done.rows, done.files) == (10, 1)
    assert rows_of(tmp_path / "backup") == 10


def test_a_damaged_lake_leaves_the_old_backup_as_it_was(lake: Lake, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    back_up(lake.url, lake.folder, target)
    lake.write()
    newest = max(lake.folder.rglob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    newest.unlink()
    with pytest.raises(BackupError, match=newest.name):
        back_up(lake.url, lake.folder, target)
    assert rows_of(target) == 10


def test_a_file_that_was_cut_short_is_copied_again(lake: Lake, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    back_up(lake.url, lake.folder, target)
    torn = next(target.rglob("*.parquet"))
    torn.write_bytes(torn.read_bytes()[:100])
    assert back_up(lake.url, lake.folder, target).copied == 1
    assert rows_of(target) == 10


def test_what_somebody_else_put_there_stays(lake: Lake, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    target.mkdir()
    (target / "notes.parquet").write_text("mine")
    back_up(lake.url, lake.folder, target)
    assert (target / "notes.parquet").read_text() == "mine"


@pytest.mark.parametrize(("manifest", "below"), [("postgresql://db/lake", "backup"), ("here", "lake/backup")])
def test_what_cannot_be_backed_up_is_refused(lake: Lake, tmp_path: Path, manifest: str, below: str) -> None:
    url = lake.url if manifest == "here" else manifest
    with pytest.raises(BackupError) as caught:
        back_up(url, lake.folder, tmp_path / below)
    assert caught.value.remedy
    assert not (tmp_path / below).exists()

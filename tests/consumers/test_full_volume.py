"""A volume without room: whoever writes stops, says so and goes on when there is room; nothing is lost, no torn file believed."""

from __future__ import annotations

import os
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consumers.config import MaintenanceConfig
from consumers.decode import decode
from consumers.maintenance import MaintenanceService
from consumers.tally import DeadLetterTally
from lake.convert import to_lake
from lake.errors import DiskFull
from lake.file_writer import FileWriter
from lake.manifest import HOUR_US, Manifest, open_manifest
from lake.replay import Staging, plan_replay, replace
from lake.store import LakeStore
from lake.verify import verify
from pipeline.kafka import KafkaSettings
from tests.consumers.conftest import Lake, wait_until
from tests.consumers.local import commit, records
from tests.consumers.support import START_US, events, live_paths, produce, rows_in, rows_on_disk, start_at_end

LIKE = "app.bsky.feed.like"
NEVER = 1 << 62


class Volume:
    """A small file system of its own where we may mount one, else a folder in which syncing a file fails on demand."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.path.mkdir()
        self._patch = patch
        command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(path)]
        self.real = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0

    def fill(self, left: int = 4096) -> None:
        """Leaves room for `left` bytes."""
        if not self.real:

            def full(writer: FileWriter) -> None:
                raise OSError(28, "No space left on device")

            self._patch.setattr(FileWriter, "sync", full)
            return
        with (self.path / ".ballast").open("wb") as ballast:
            status = os.statvfs(self.path)
            for _ in range((status.f_bavail * status.f_bsize - left) // 4096):
                ballast.write(bytes(4096))

    def free(self) -> None:
        """Makes room again."""
        self._patch.undo()
        (self.path / ".ballast").unlink(missing_ok=True)

    def close(self) -> None:
        if self.real:
            subprocess.run(["umount", "-l", str(self.path)], check=True)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with pytest.MonkeyPatch.context() as patch:
        made = Volume(tmp_path / "volume", patch)
        yield made
        made.close()


@pytest.fixture
def store(volume: Volume) -> LakeStore:
    return LakeStore(volume.path / "lake")


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    opened = open_manifest(str(tmp_path / "manifest.sqlite"), create=True)
    yield opened
    opened.close()


def sound(store: LakeStore, manifest: Manifest) -> bool:
    """Every live file is whole, and every other Parquet file in the folders can be read too or is not there."""
    for path in store.root.glob("*/date=*/hour=*/*.parquet"):
        pq.ParquetFile(path)
    return verify(store, manifest, deep=True, strays_older_than_us=NEVER).findings == ()


@pytest.mark.parametrize("beside", [True, False], ids=["manifest on the volume", "manifest elsewhere"])
def test_the_writer_waits_for_room(topics: KafkaSettings, volume: Volume, tmp_path: Path, beside: bool) -> None:
    folder = volume.path if beside else tmp_path
    manifest = open_manifest(str(folder / "lake-manifest.sqlite"), create=True)
    start_at_end(topics, manifest)
    root = volume.path / "lake"
    lake = Lake(root, topics, manifest, LakeStore(root), f"full-{tmp_path.name}-{beside}")
    made = events(3_000, seed=61)
    config = lake.config(retry_seconds=0.1, report_seconds=0.1, outage_seconds=0.5)
    with lake.running(lake.service(config)):
        produce(topics, made[:1_000])
        lake.wait_for_rows(1_000)
        volume.fill()
        produce(topics, made[1_000:])
        wait_until(lambda: "full" in str(lake.reports[-1]["holding"]), 30, lambda: str(lake.reports[-1]))
        # Longer than an outage may last: a full disk is waited out.
        number = len(lake.reports)
        wait_until(lambda: len(lake.reports) > number + 12, 30)
        assert sound(lake.store, manifest)
        volume.free()
        lake.wait_for_rows(len(made))
        wait_until(lambda: lake.reports[-1]["holding"] == "", 10)
    assert Counter(rows_in(root, live_paths(manifest))) == Counter((event.table, event.identity) for event in made)
    assert sound(lake.store, manifest)
    manifest.close()


def test_maintenance_waits_for_room(volume: Volume, store: LakeStore, manifest: Manifest) -> None:
    made = events(2_000, span_us=3 * HOUR_US, seed=62)
    for start in range(0, 2_000, 500):
        commit(store, manifest, made[start : start + 500])
    before = manifest.snapshot().version
    config = MaintenanceConfig(
        unlink_after_seconds=0, close_after_seconds=0, erase_seconds=0, rollup_seconds=0, clean_seconds=0
    )
    service = MaintenanceService(config, manifest, store, lambda facts: None)
    volume.fill()
    service.run_once(threading.Event())
    assert service.counts.failures >= 1
    assert manifest.snapshot().version == before
    assert sound(store, manifest)
    assert not list((store.root / ".tmp").iterdir())
    volume.free()
    service.run_once(threading.Event())
    assert service.counts.hours_rolled
    assert Counter(rows_on_disk(store.root)) == Counter((event.table, event.identity) for event in made)
    assert sound(store, manifest)


def test_a_replay_goes_on_when_there_is_room(volume: Volume, store: LakeStore, manifest: Manifest) -> None:
    made = events(4_000, seed=63)
    commit(store, manifest, made)
    plan = plan_replay(manifest, LIKE, START_US, START_US + HOUR_US)
    found = records(plan.topic, made)
    rows = pa.concat_tables([to_lake(LIKE, frame) for frame in decode(found, LIKE).frames])
    staging, tally = Staging(store, plan), DeadLetterTally(store.root, plan.id)
    if volume.real:
        volume.fill()
        with pytest.raises(DiskFull, match="is full") as told:
            staging.add(rows, {0: len(found)})
        assert "Free space" in told.value.remedy
        assert staging.positions() == {0: 0}
        with pytest.raises(DiskFull):
            tally.add({START_US + n * HOUR_US: n for n in range(300)}, {0: 1})
        volume.free()
    staging.add(rows, {0: len(found)})
    before = manifest.snapshot().version
    volume.fill()
    with pytest.raises(DiskFull):
        replace(store, manifest, staging)
    assert manifest.snapshot().version == before
    assert sound(store, manifest)
    volume.free()
    done = replace(store, manifest, staging)
    assert [(hour.before, hour.after, hour.dropped) for hour in done.hours] == [(rows.num_rows, rows.num_rows, 0)]
    assert Counter(rows_in(store.root, live_paths(manifest))) == Counter((e.table, e.identity) for e in made)

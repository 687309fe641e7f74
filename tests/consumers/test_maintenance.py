"""Maintenance on a lake that a real writer fills: hours become one file, deletions leave no byte, nothing else changes."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest

from consumers.config import MaintenanceConfig
from consumers.maintenance import LOCK, EventClock, MaintenanceService
from lake.manifest import HOUR_US
from tests.consumers.conftest import Lake
from tests.consumers.support import START_US, events, live_paths, produce, rows_on_disk


def maintenance(lake: Lake, **changes: Any) -> MaintenanceService:
    config = {
        "unlink_after_seconds": 0.0, "orphan_after_seconds": 0.0, "close_after_seconds": 0.0, "erase_seconds": 0.0,
        "clean_seconds": 0.0, "late_seconds": 0.0, **changes,
    }  # fmt: skip
    return MaintenanceService(MaintenanceConfig(**config), lake.manifest, lake.store, lake.reports.append)


def write(lake: Lake, *parts: Any) -> None:
    with lake.running(lake.service(lake.config(batch_age_seconds=0.2))):
        total = lake.rows()
        for part in parts:
            produce(lake.kafka, part)
            total += len(part)
            lake.wait_for_rows(total)


def test_closed_hours_become_one_file_and_open_ones_stay_bounded(lake: Lake) -> None:
    made = events(2_000, span_us=3 * HOUR_US)
    write(lake, *(made[start : start + 200] for start in range(0, 2_000, 200)))
    before = len(live_paths(lake.manifest))
    maintenance(lake, small_files=2).run_once(threading.Event())
    files = [file for table in lake.manifest.snapshot().tables() for file in lake.manifest.snapshot().files(table)]
    closed = [file for file in files if file.hour_us < START_US + 2 * HOUR_US]
    assert {file.kind for file in closed} == {"rolled"}
    assert max(Counter((file.table, file.hour_us) for file in closed).values()) == 1
    assert max(Counter((file.table, file.hour_us) for file in files).values()) <= 2
    assert len(files) < before
    # Retired files are gone from the folders, so what lies there is the lake, nothing more and nothing less.
    assert Counter(rows_on_disk(lake.root)) == Counter((event.table, event.identity) for event in made)
    assert all(total.closes for total in lake.manifest.reconciliation(START_US, START_US + 4 * HOUR_US))


def test_late_events_are_merged_by_a_later_run(lake: Lake) -> None:
    made = events(900, span_us=3 * HOUR_US)
    late = events(50, seed=9, span_us=HOUR_US // 2)
    write(lake, made)
    service = maintenance(lake)
    service.run_once(threading.Event())
    write(lake, late)
    maintenance(lake, late_seconds=3600.0).run_once(threading.Event())
    assert "small" in {file.kind for file in hour_files(lake, START_US)}
    service.run_once(threading.Event())
    service.run_once(threading.Event())
    assert {file.kind for file in hour_files(lake, START_US)} == {"rolled"}
    assert Counter(rows_on_disk(lake.root)) == Counter((event.table, event.identity) for event in made + late)


def hour_files(lake: Lake, hour_us: int) -> list[Any]:
    snapshot = lake.manifest.snapshot()
    return [file for table in snapshot.tables() for file in snapshot.files(table, hour_us, hour_us + HOUR_US)]


def test_orphans_of_crashed_commits_are_removed_and_foreign_files_are_not(lake: Lake) -> None:
    write(lake, events(300))
    (path, *_) = live_paths(lake.manifest)
    orphan = (lake.root / path).with_name("small-writer-9-abc-0.parquet")
    orphan.write_bytes(b"torn")
    foreign = orphan.with_name("notes.txt")
    foreign.write_text("mine")
    service = maintenance(lake)
    service.run_once(threading.Event())
    assert not orphan.exists()
    assert foreign.exists()
    assert service.counts.orphans_removed == 1


def test_retention_takes_whole_hours_and_the_books_still_close(lake: Lake) -> None:
    write(lake, events(900, span_us=3 * HOUR_US))
    # Everything that ended two hours ago or more goes.
    maintenance(lake, retention_days=2 / 24).run_once(threading.Event())
    snapshot = lake.manifest.snapshot()
    kept = {file.hour_us for table in snapshot.tables() for file in snapshot.files(table)}
    assert START_US not in kept
    totals = lake.manifest.reconciliation(START_US, START_US + 4 * HOUR_US)
    assert sum(total.removed for total in totals) > 0
    assert all(total.closes for total in totals)


def test_two_maintenance_processes_do_not_run_at_once(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    write(lake, events(100))
    with lake.manifest.hold(LOCK, "somebody else"):
        service = maintenance(lake)
        service.run_once(threading.Event())
    assert service.counts.files_merged == service.counts.files_unlinked == 0


def test_the_event_clock_follows_events_and_runs_on_while_they_pause(lake: Lake) -> None:
    write(lake, events(100, span_us=HOUR_US))
    snapshot = lake.manifest.snapshot()
    newest = max(snapshot.totals(table).max_time_us or 0 for table in snapshot.tables())
    clock = EventClock(close_after_us=60_000_000)
    now_us = START_US + 100 * HOUR_US
    assert clock.closed_before(lake.manifest, 10.0, now_us) == newest - HOUR_US - 60_000_000 + 1
    assert clock.closed_before(lake.manifest, 70.0, now_us) == newest - HOUR_US + 1
    # Events from the future do not close the hours of the present: the newest of the others counts.
    write(lake, events(10, seed=5, start_us=START_US + 3 * HOUR_US, span_us=60_000_000))
    assert EventClock(0).closed_before(lake.manifest, 0.0, newest + 1) == newest - HOUR_US + 1
    assert EventClock(0).closed_before(lake.manifest, 0.0, START_US - 9 * HOUR_US) == 1 - HOUR_US

"""Replay-and-replace: hours are made anew in one version, beside live ingest, and nothing erased comes back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from support import HOUR, POST, START, Writer, account_row, commit_row, did, lake_rows, tid

from lake.convert import lake_schema
from lake.erase import erase
from lake.errors import CommitRefused
from lake.manifest import Manifest, TopicPartition, open_manifest
from lake.replay import Range, Staging, plan_replay, replace, staged_replays
from lake.roll import roll_hour
from lake.store import LakeStore

TOPIC = "bluesky." + POST


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return open_manifest(str(tmp_path / "manifest.db"), create=True)


@pytest.fixture
def writer(store: LakeStore, manifest: Manifest) -> Writer:
    return Writer(store, manifest)


def texts(store: LakeStore, manifest: Manifest) -> list[str | None]:
    files = manifest.snapshot().files(POST)
    return sorted((text for file in files for text in store.read(file.path).column("text").to_pylist()), key=str)


def original(count: int = 4) -> list[dict[str, object]]:
    return [commit_row(POST, who, START + who * HOUR // 2, text=f"old {who}") for who in range(count)]


def stage(store: LakeStore, manifest: Manifest, rows: list[dict[str, object]], first: int = 0) -> Staging:
    """Reads all messages of the first two hours again, decoded to `rows`."""
    plan = plan_replay(manifest, POST, START, START + 2 * HOUR)
    staging = Staging(store, plan)
    staging.add(lake_rows(POST, rows, 0, first), {0: first + len(rows)})
    return staging


def test_hours_are_replaced_in_one_version(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    writer.write(post=original())
    before = manifest.snapshot()
    again = [row | {"text": f"new {who}"} for who, row in enumerate(original())]
    staging = stage(store, manifest, again)
    dry = replace(store, manifest, staging, dry_run=True)
    assert dry.version is None
    assert [(hour.before, hour.after, hour.added, hour.dropped) for hour in dry.hours] == [(2, 2, 0, 0)] * 2
    assert manifest.snapshot().version == before.version
    done = replace(store, manifest, staging)
    assert done.version == before.version + 1
    assert texts(store, manifest) == ["new 0", "new 1", "new 2", "new 3"]
    assert [file.kind for file in manifest.snapshot().files(POST)] == ["rolled", "rolled"]
    assert [store.read(file.path).num_rows for file in before.files(POST)] == [2, 2], "older readers keep their files"
    assert manifest.offsets()[TopicPartition(TOPIC, 0)].next_offset == 4
    assert all(hour.closes for hour in manifest.reconciliation(START, START + 2 * HOUR))
    staging.discard()
    assert list(staged_replays(store)) == []


def test_rows_found_for_the_first_time_and_rows_gone_are_reported_and_reconciled(
    store: LakeStore, manifest: Manifest, writer: Writer
) -> None:
    writer.write(post=original())
    rows = [row for who, row in enumerate(original()) if who != 1]
    staging = stage(store, manifest, [*rows, commit_row(POST, 9, START + 5, text="dead letter of old")])
    done = replace(store, manifest, staging, dead_letters={START: 0})
    assert [(hour.added, hour.dropped) for hour in done.hours] == [(1, 1), (0, 0)]
    assert all(hour.closes for hour in manifest.reconciliation(START, START + 2 * HOUR))


def test_live_ingest_goes_on_meanwhile(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    writer.write(post=original())
    staging = stage(store, manifest, [row | {"text": "new"} for row in original()])
    writer.write(post=[commit_row(POST, 50, START + 3, text="live")])
    replace(store, manifest, staging)
    writer.write(post=[commit_row(POST, 51, START + 4, text="live too")])
    assert texts(store, manifest) == ["live", "live too", *["new"] * 4]


def test_nothing_erased_comes_back(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    rows = original(3)
    rows.append(commit_row(POST, 1, START + HOUR, "delete", START + HOUR // 2))
    writer.write(post=rows, account=[account_row(2, START + 9 * HOUR, "deleted")])
    for hour in (0, 1):
        roll_hour(store, manifest, POST, START + hour * HOUR)
    erase(store, manifest)
    assert texts(store, manifest) == [None, None, None, "old 0"]
    done = replace(store, manifest, stage(store, manifest, rows))
    assert texts(store, manifest) == [None, None, None, "old 0"]
    assert [hour.erased for hour in done.hours] == [1, 1]


def test_repeats_are_dropped_across_hours(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    writer.write(post=original())
    copy = original()[0] | {"time_us": START + HOUR + 7, "text": "second copy of 0"}
    staging = stage(store, manifest, [*original(), copy])
    replace(store, manifest, staging)
    assert texts(store, manifest) == ["old 0", "old 1", "old 2", "old 3"]


def test_an_interrupted_replay_goes_on(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    writer.write(post=original())
    plan = plan_replay(manifest, POST, START, START + 2 * HOUR)
    first = Staging(store, plan)
    assert first.positions() == {0: 0}
    first.add(lake_rows(POST, original()[:2], 0, 0), {0: 2})
    with pytest.raises(CommitRefused, match="Go on reading"):
        replace(store, manifest, first)
    second = Staging(store, plan)
    assert second.positions() == {0: 2}
    # The last piece comes twice, as after a crash between the rows and the progress.
    second.add(lake_rows(POST, original()[2:], 0, 2), {0: 4})
    second.add(lake_rows(POST, original()[1:], 0, 1), {0: 4})
    assert second.rows(START, lake_schema(POST)).num_rows == 2
    replace(store, manifest, second)
    assert texts(store, manifest) == ["old 0", "old 1", "old 2", "old 3"]


def test_a_change_of_the_files_meanwhile_is_refused(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    writer.write(post=original())
    staging = stage(store, manifest, original())

    def roll_now(step: object) -> None:
        if step == "swap-files-durable" and manifest.snapshot().version == 1:
            writer.write(post=[commit_row(POST, 60, START + 1)])
            roll_hour(store, manifest, POST, START)

    with pytest.raises(CommitRefused, match="not live"):
        replace(store, manifest, staging, hook=roll_now)
    replace(store, manifest, staging)
    assert len(texts(store, manifest)) == 5
    assert did(60) in {row["did"] for f in manifest.snapshot().files(POST) for row in store.read(f.path).to_pylist()}


def test_a_deletion_that_only_the_replay_can_read_is_applied(
    store: LakeStore, manifest: Manifest, writer: Writer
) -> None:
    """What the old code took for a creation is a deletion of a record whose hour is not replayed."""
    writer.write(post=[commit_row(POST, 1, START + 5 * HOUR, text="to be deleted")])
    writer.write(post=[commit_row(POST, 2, START, text="misread"), commit_row(POST, 3, START + 1, text="kept")])
    for hour in (0, 5):
        roll_hour(store, manifest, POST, START + hour * HOUR)
    plan = plan_replay(manifest, POST, START, START + HOUR)
    staging = Staging(store, plan)
    deletion = commit_row(POST, 1, START, "delete", START + 5 * HOUR, rev=tid(START + 6 * HOUR, 1))
    staging.add(lake_rows(POST, [deletion, commit_row(POST, 3, START + 1, text="kept")], 0, 1), {0: 3})
    replace(store, manifest, staging)
    assert len(manifest.snapshot().superseding(POST, START + 5 * HOUR)) == 1, "answers are told at once"
    assert erase(store, manifest).rewritten == 1
    assert texts(store, manifest) == [None, None, "kept"]


def test_an_hour_that_had_no_rows_at_all(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    """Everything of the hour was a dead letter once: the caller knows the offsets and adds hour and ranges itself."""
    writer.write(post=original(2))
    plan = plan_replay(manifest, POST, START, START + HOUR)
    plan = dataclasses.replace(plan, hours=(START, START + 5 * HOUR), ranges=(Range(0, 0, 3),))
    staging = Staging(store, plan)
    found = commit_row(POST, 7, START + 5 * HOUR, text="readable now")
    staging.add(lake_rows(POST, [*original(2), found], 0, 0), {0: 3})
    done = replace(store, manifest, staging, dead_letters={START + 5 * HOUR: -1})
    assert [(hour.before, hour.after) for hour in done.hours] == [(2, 2), (0, 1)]
    assert texts(store, manifest) == ["old 0", "old 1", "readable now"]


def test_partitions_that_reach_the_same_offset_are_both_staged(store: LakeStore, manifest: Manifest) -> None:
    writers = [Writer(store, manifest, partition, f"w{partition}") for partition in (0, 1)]
    events = [[commit_row(POST, 10 * part + n, START + n, text=f"{part} {n}") for n in range(2)] for part in (0, 1)]
    for part, one in enumerate(writers):
        one.write(post=events[part])
    staging = Staging(store, plan_replay(manifest, POST, START, START + HOUR))
    for part in (0, 1):
        staging.add(lake_rows(POST, events[part], part, 0), {part: 2})
    replace(store, manifest, staging)
    assert texts(store, manifest) == ["0 0", "0 1", "1 0", "1 1"]


def test_repeats_of_every_file_of_the_next_hour_are_dropped(
    store: LakeStore, manifest: Manifest, writer: Writer
) -> None:
    """The replay finds rows in hour 0 whose other copies lie in two files of hour 1, which is not replayed."""
    first, second = (commit_row(POST, who, START + HOUR + who, text=f"kept {who}") for who in (1, 2))
    writer.write(post=[commit_row(POST, 0, START, text="hour 0")])
    writer.write(post=[first])
    writer.write(post=[second])
    plan = dataclasses.replace(plan_replay(manifest, POST, START, START + HOUR), ranges=(Range(0, 0, 3),))
    staging = Staging(store, plan)
    copies = [first | {"time_us": START + 5}, second | {"time_us": START + 6}]
    staging.add(lake_rows(POST, [commit_row(POST, 0, START, text="hour 0"), *copies], 0, 0), {0: 3})
    replace(store, manifest, staging)
    assert texts(store, manifest) == ["hour 0", "kept 1", "kept 2"]

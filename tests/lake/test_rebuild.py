"""Verify names what is wrong with a lake; rebuild makes a lost manifest again from the files alone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support import HOUR, LIKE, POST, START, Writer, account_row, commit_row, lake_rows, tid

from lake.dedupe import DedupeWindow
from lake.erase import erase
from lake.errors import LakeError
from lake.gap_file import save_gaps
from lake.manifest import Gap, Manifest, TopicPartition, open_manifest
from lake.manifest.sql import SqlManifest
from lake.rebuild import rebuild
from lake.replay import Range, Staging, plan_replay, replace
from lake.replay_file import NAME, ReplayNote, begin, load_replays, settle
from lake.retire import drop_hours, find_strays, remove_orphans, unlink_retired
from lake.roll import roll_hour
from lake.steps import CommitStep, no_hook
from lake.store import LakeStore
from lake.verify import verify

NEVER = 1 << 62


class Crashed(Exception):  # noqa: N818 - an event, not an error
    """Stands for a process that ended here."""


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return open_manifest(str(tmp_path / "manifest.db"), create=True)


@pytest.fixture
def writer(store: LakeStore, manifest: Manifest) -> Writer:
    return Writer(store, manifest)


def fill(writer: Writer, batches: int = 3) -> None:
    for batch in range(batches):
        at = START + batch * 1000
        writer.write(
            post=[commit_row(POST, who, at + who + hour * HOUR) for who in range(4) for hour in range(2)],
            like=[commit_row(LIKE, who, at + who) for who in range(4)],
        )


def rows(store: LakeStore, manifest: Manifest) -> dict[str, list[str]]:
    snapshot = manifest.snapshot()
    return {
        table: sorted(
            str(sorted(row.items())) for file in snapshot.files(table) for row in store.read(file.path).to_pylist()
        )
        for table in snapshot.tables()
    }


def rebuilt(store: LakeStore, tmp_path: Path) -> Manifest:
    manifest = open_manifest(str(tmp_path / "again.db"), create=True)
    rebuild(store, manifest)
    return manifest


def crash_at(point: CommitStep) -> Callable[[CommitStep], None]:
    def hook(step: CommitStep) -> None:
        if step is point:
            raise Crashed

    return hook


def leave_orphans(monkeypatch: pytest.MonkeyPatch, store: LakeStore) -> None:
    """From now on files of refused or failed commits stay, as after a SIGKILL."""
    monkeypatch.setattr(store, "unlink", lambda paths: list(paths))


def test_a_sound_lake_has_no_findings(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    fill(writer)
    roll_hour(store, manifest, POST, START)
    done: list[tuple[int, int]] = []
    for deep in (False, True):
        found = verify(
            store, manifest, deep=deep, strays_older_than_us=NEVER, progress=lambda at, total: done.append((at, total))
        )
        assert found.findings == ()
        assert (found.files, found.rows) == (7, 36)
    assert done[-1] == (7, 7)


@pytest.mark.parametrize(
    ("damage", "deep", "problem"),
    [
        (lambda file: file.unlink(), False, "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-10]), False, "bytes, the manifest says"),
        (lambda file: file.write_bytes(b"x" * file.stat().st_size), False, "cannot be read"),
        (lambda file: file.write_bytes(file.read_bytes()[:50] + b"?" + file.read_bytes()[51:]), True, "digest"),
    ],
)
def test_damage_is_named(
    store: LakeStore,
    manifest: Manifest,
    writer: Writer,
    damage: Callable[[Path], object],
    deep: bool,
    problem: str,
) -> None:
    fill(writer, 1)
    victim = manifest.snapshot().files(LIKE)[0].path
    damage(store.absolute(victim))
    (finding,) = verify(store, manifest, deep=deep, strays_older_than_us=NEVER).findings
    assert finding.subject == victim
    assert problem in finding.problem
    assert "backup" in finding.remedy


def test_files_beyond_the_offsets_are_noticed(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    fill(writer, 1)
    manifest.rewind("bluesky." + LIKE, 0, 2)
    findings = verify(store, manifest, strays_older_than_us=NEVER).findings
    assert ["offset 3" in finding.problem for finding in findings] == [True]


def resealed(manifest: Manifest, path: str, **facts: int) -> None:
    """Gives the manifest other facts of a file than are true."""
    assert isinstance(manifest, SqlManifest)
    with manifest._transaction() as cursor:
        for name, value in facts.items():
            cursor.execute(f"UPDATE files SET {name} = ? WHERE path = ?", (value, path))


@pytest.mark.parametrize(
    ("facts", "deep", "problem"),
    [
        ({"rows": 5}, False, "has 4 rows, the manifest says 5"),
        ({"min_time_us": START - 1}, True, "other times than the manifest says"),
        ({"max_time_us": START + 77}, True, "other times than the manifest says"),
        ({"erased": 2}, True, "has 0 erased rows, the manifest says 2"),
        ({"hour_us": START + HOUR}, False, "does not lie in the folder"),
    ],
)
def test_wrong_facts_are_named(
    store: LakeStore, manifest: Manifest, writer: Writer, facts: dict[str, int], deep: bool, problem: str
) -> None:
    fill(writer, 1)
    victim = manifest.snapshot().files(LIKE)[0].path
    resealed(manifest, victim, **facts)
    assert verify(store, manifest, strays_older_than_us=NEVER).findings == () or not deep
    (finding,) = verify(store, manifest, deep=deep, strays_older_than_us=NEVER).findings
    assert (finding.subject, problem in finding.problem) == (victim, True)


def test_an_event_in_two_files_is_named(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    event = commit_row(POST, 1, START + HOUR - 5)
    writer.write(post=[event, commit_row(POST, 2, START)])
    # A window that knows nothing, as a defect of ours would be.
    writer.window = DedupeWindow(
        LakeStore(store.root / "nowhere"), open_manifest(str(store.root / "nothing.db"), create=True)
    )
    writer.write(post=[event | {"time_us": START + HOUR + 5}])
    assert verify(store, manifest, strays_older_than_us=NEVER).findings == ()
    (finding,) = verify(store, manifest, deep=True, strays_older_than_us=NEVER).findings
    paths = [file.path for file in manifest.snapshot().files(POST)]
    assert finding.subject == paths[1]
    assert finding.problem == f"holds 1 events that {paths[0]} holds too"
    assert "lake rebuild" in finding.remedy


def test_offsets_that_are_nowhere_are_counted(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    fill(writer, 1)
    assert verify(store, manifest, strays_older_than_us=NEVER).unaccounted == {}
    topic, at = "bluesky." + POST, writer.positions["bluesky." + POST, 0]
    manifest.seek(topic, 0, at.next_offset + 30, at.epoch)
    assert verify(store, manifest, strays_older_than_us=NEVER).unaccounted == {topic: 30}
    # Twenty of them are known to have left the broker.
    gone = f"broker {topic} 0 {at.next_offset} {at.next_offset + 20}"
    manifest.add_gap(Gap(gone, "kafka", START, START + 1, "broker_retention", "", START))
    assert verify(store, manifest, strays_older_than_us=NEVER).unaccounted == {topic: 10}


def test_strays_are_told_apart(
    store: LakeStore, manifest: Manifest, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(writer, 1)
    with monkeypatch.context() as patch:
        leave_orphans(patch, store)
        with pytest.raises(Crashed):
            writer.write(crash_at(CommitStep.FILES_DURABLE), like=[commit_row(LIKE, 1, START + 99)])
    note = store.root / POST / "notes.txt"
    note.write_text("somebody's")
    strays = find_strays(store, manifest, NEVER)
    assert len(strays.orphans) == 1
    assert strays.foreign == (f"{POST}/notes.txt",)
    assert find_strays(store, manifest, 0).orphans == ()
    before = rows(store, manifest)
    remove_orphans(store, manifest, NEVER)
    assert find_strays(store, manifest, NEVER).orphans == ()
    assert note.exists()
    assert rows(store, manifest) == before


def test_retention_drops_whole_hours(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    fill(writer, 1)
    assert drop_hours(store, manifest, POST, START + HOUR - 1) == 0
    assert drop_hours(store, manifest, POST, START + HOUR) == 4
    assert all(hour.closes for hour in manifest.reconciliation(START, START + 2 * HOUR))
    assert unlink_retired(store, manifest, NEVER) == 1
    assert not (store.root / POST / "date=2026-01-01" / "hour=00").exists()
    assert drop_hours(store, manifest, POST, START + HOUR) == 0


def test_a_lost_manifest_comes_back(store: LakeStore, manifest: Manifest, writer: Writer, tmp_path: Path) -> None:
    fill(writer)
    roll_hour(store, manifest, POST, START)
    writer.write(post=[commit_row(POST, 7, START + 500)], account=[account_row(2, START + 5 * HOUR, "deleted")])
    roll_hour(store, manifest, POST, START)
    erase(store, manifest)
    writer.write(like=[commit_row(LIKE, 3, START + 700), commit_row(LIKE, 1, START + 800, "delete", START + 1)])
    again = rebuilt(store, tmp_path)
    assert rows(store, again) == rows(store, manifest)
    positions = {key: position.next_offset for key, position in manifest.offsets().items() if position.next_offset}
    assert {key: position.next_offset for key, position in again.offsets().items()} == positions
    assert verify(store, again, deep=True, strays_older_than_us=NEVER).findings == ()
    assert all(hour.closes for hour in again.reconciliation(START, START + 9 * HOUR))
    assert len(again.snapshot().superseding(LIKE)) == 1
    fill(Writer(store, again), 4)
    assert len(rows(store, again)[POST]) == 33, "events delivered again are known"


def test_a_rebuild_leaves_out_what_never_was_committed(
    store: LakeStore, manifest: Manifest, writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash left one of two files of a commit; the batch was read again and committed in other pieces."""
    leave_orphans(monkeypatch, store)
    events = [commit_row(POST, who, START + who + hour * HOUR) for who in range(4) for hour in range(2)]
    renamed = iter(range(100))

    def second_file(step: CommitStep) -> None:
        if step is CommitStep.FILE_RENAMED and next(renamed) == 0:
            raise Crashed

    with pytest.raises(Crashed):
        writer.write(second_file, post=events)
    first = rebuilt(store, tmp_path)
    assert rows(store, first) == {}
    assert first.offsets() == {}
    for event in events:
        writer.write(post=[event])
    again = open_manifest(str(tmp_path / "second.db"), create=True)
    rebuild(store, again)
    assert rows(store, again) == rows(store, manifest)


def test_a_whole_orphan_and_its_repetition_are_merged(
    store: LakeStore, manifest: Manifest, writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [commit_row(POST, who, START + who) for who in range(6)]
    with monkeypatch.context() as patch:
        leave_orphans(patch, store)
        with pytest.raises(Crashed):
            writer.write(crash_at(CommitStep.FILES_DURABLE), post=events)
    writer.write(post=events[:2])
    writer.write(post=events[2:])
    writer.write(account=[account_row(1, START + HOUR, "deleted")])
    roll_hour(store, manifest, POST, START)
    erase(store, manifest)
    again = rebuilt(store, tmp_path)
    assert rows(store, again) == rows(store, manifest), "the orphan's copy of an erased row must not win"
    assert verify(store, again, deep=True, strays_older_than_us=NEVER).findings == ()


def test_an_orphan_of_a_roll_changes_nothing(
    store: LakeStore, manifest: Manifest, writer: Writer, tmp_path: Path
) -> None:
    fill(writer)
    with pytest.raises(Crashed):
        roll_hour(store, manifest, POST, START, hook=crash_at(CommitStep.SWAP_FILES_DURABLE))
    again = rebuilt(store, tmp_path)
    assert rows(store, again) == rows(store, manifest)
    writer.write(post=[commit_row(POST, 9, START + 900)])
    roll_hour(store, manifest, POST, START)
    once_more = open_manifest(str(tmp_path / "third.db"), create=True)
    rebuild(store, once_more)
    assert rows(store, once_more) == rows(store, manifest)


def test_gaps_come_back_from_the_file_beside_the_lake(
    store: LakeStore, manifest: Manifest, writer: Writer, tmp_path: Path
) -> None:
    fill(writer, 1)
    gaps = [
        Gap("kafka 1", "kafka", START, START + 9, "broker_retention", "offsets 0 to 9", START + 10),
        Gap("open", "wss://a.example", None, START + 5, "cursor_too_old", "é", START + 11, 1, None),
    ]
    for gap in gaps:
        manifest.add_gap(gap)
        save_gaps(store, manifest)
    assert find_strays(store, manifest, NEVER).foreign == ()
    again = open_manifest(str(tmp_path / "again.db"), create=True)
    assert rebuild(store, again).gaps == 2
    assert sorted(again.gaps(0, NEVER), key=lambda gap: gap.id) == gaps
    (store.root / ".gaps.json").write_text("{")
    third = open_manifest(str(tmp_path / "third.db"), create=True)
    with pytest.raises(LakeError, match="damaged") as stopped:
        rebuild(store, third)
    assert "backup" in stopped.value.remedy
    assert third.snapshot().version == 0


def replayed_twice_over(store: LakeStore, manifest: Manifest, hook: Callable[[CommitStep], None] = no_hook) -> None:
    """Replays both hours with code that reads times otherwise: what was in the first hour moves to the second."""
    plan = plan_replay(manifest, POST, START, START + 2 * HOUR)
    staging = Staging(store, plan)
    events = [
        commit_row(POST, who, START + HOUR + who, key_us=START + who, rev=tid(START + who, who)) for who in range(3)
    ]
    staging.add(lake_rows(POST, [*events, commit_row(POST, 9, START + HOUR)], 0, 0), {0: 4})
    replace(store, manifest, staging, hook=hook)


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("unlinked", [0, 1, 2])
def test_the_hours_of_a_replay_come_back_together(
    store: LakeStore, manifest: Manifest, writer: Writer, tmp_path: Path, unlinked: int, noted: bool
) -> None:
    writer.write(post=[*(commit_row(POST, who, START + who) for who in range(3)), commit_row(POST, 9, START + HOUR)])
    old = [file.path for file in manifest.snapshot().files(POST)]
    replayed_twice_over(store, manifest)
    if not noted:
        # By a release that took no notes, or a note that somebody removed.
        (store.root / NAME).unlink()
    # The manifest was lost while maintenance removed what had been replaced.
    store.unlink(old[2 - unlinked :])
    again = rebuilt(store, tmp_path)
    hours = [len(store.read(file.path)) for file in again.snapshot().files(POST)]
    # Each event is there once; with a note, or with all of the replaced files gone, where the replay put it.
    assert hours == ([4] if noted or unlinked == 2 else [3, 1])
    assert again.offsets()[TopicPartition("bluesky." + POST, 0)].next_offset == 4


def test_a_replay_that_left_nothing_is_not_undone(
    store: LakeStore, manifest: Manifest, writer: Writer, tmp_path: Path
) -> None:
    """Every message of the first hour is a dead letter for today's code; the commit had a file in the second hour too."""
    writer.write(post=[commit_row(POST, 1, START), commit_row(POST, 9, START + HOUR)])
    plan = plan_replay(manifest, POST, START, START + HOUR)
    staging = Staging(store, plan)
    staging.add(lake_rows(POST, [], 0, 0), {0: 1})
    replace(store, manifest, staging, dead_letters={START: 1})
    again = rebuilt(store, tmp_path)
    assert rows(store, again) == rows(store, manifest)
    assert len(rows(store, again)[POST]) == 1
    assert again.offsets()[TopicPartition("bluesky." + POST, 0)].next_offset == 2


def found_in_an_empty_hour(store: LakeStore, manifest: Manifest, hook: Callable[[CommitStep], None] = no_hook) -> None:
    """Replays an hour in which everything was a dead letter: nothing is replaced."""
    plan = dataclasses.replace(
        plan_replay(manifest, POST, START + HOUR, START + 2 * HOUR), hours=(START + HOUR,), ranges=(Range(0, 1, 2),)
    )
    staging = Staging(store, plan)
    staging.add(lake_rows(POST, [commit_row(POST, 9, START + HOUR)], 0, 1), {0: 2})
    replace(store, manifest, staging, dead_letters={START + HOUR: -1}, hook=hook)


def test_a_replay_that_replaced_nothing_is_known_for_ever(
    store: LakeStore, manifest: Manifest, writer: Writer, tmp_path: Path
) -> None:
    writer.write(post=[commit_row(POST, 1, START)])
    with pytest.raises(Crashed):
        found_in_an_empty_hour(store, manifest, crash_at(CommitStep.SWAP_FILES_DURABLE))
    early = open_manifest(str(tmp_path / "early.db"), create=True)
    assert rebuild(store, early).undecided == (POST,)
    assert len(rows(store, early)[POST]) == 1
    found_in_an_empty_hour(store, manifest)
    assert settle(store, manifest) == 1
    assert rows(store, rebuilt(store, tmp_path)) == rows(store, manifest)
    assert len(rows(store, manifest)[POST]) == 2


def test_a_second_replay_of_the_same_plan_is_told_from_the_first(
    store: LakeStore, manifest: Manifest, writer: Writer, tmp_path: Path
) -> None:
    writer.write(post=[*(commit_row(POST, who, START + who) for who in range(3)), commit_row(POST, 9, START + HOUR)])
    plan = plan_replay(manifest, POST, START, START + 2 * HOUR)
    staging = Staging(store, plan)
    again = [commit_row(POST, who, START + who, text="better") for who in range(3)]
    staging.add(lake_rows(POST, [*again, commit_row(POST, 9, START + HOUR, text="better")], 0, 0), {0: 4})
    replace(store, manifest, staging)
    with pytest.raises(Crashed):
        replace(store, manifest, staging, hook=crash_at(CommitStep.SWAP_FILES_DURABLE))
    second = [path for path, _ in store.walk() if manifest.file(path) is None and "rolled" in path]
    found = open_manifest(str(tmp_path / "again.db"), create=True)
    assert rebuild(store, found).incomplete == tuple(sorted(second))
    assert rows(store, found) == rows(store, manifest)
    # And the crashed one, done again, is settled under the name that its note has.
    replace(store, manifest, staging)
    assert [note.committed for note in load_replays(store)] == [True, True]


def test_an_orphan_of_a_roll_does_not_stand_against_a_replay(
    store: LakeStore, manifest: Manifest, writer: Writer, tmp_path: Path
) -> None:
    """Both stand for the same commits; copied from disk to disk, files have lost their times."""
    writer.write(post=[*(commit_row(POST, who, START + who) for who in range(3)), commit_row(POST, 9, START + HOUR)])
    with pytest.raises(Crashed):
        roll_hour(store, manifest, POST, START, hook=crash_at(CommitStep.SWAP_FILES_DURABLE))
    plan = plan_replay(manifest, POST, START, START + HOUR)
    staging = Staging(store, plan)
    staging.add(lake_rows(POST, [commit_row(POST, who, START + who, text="better") for who in range(3)], 0, 0), {0: 3})
    replace(store, manifest, staging)
    for path, _ in store.walk():
        os.utime(store.absolute(path), (1, 2 if "rolled-roll-" in path else 1))
    assert rows(store, rebuilt(store, tmp_path)) == rows(store, manifest)


def test_a_note_stands_back_where_what_it_names_cannot_be_read(
    store: LakeStore, manifest: Manifest, writer: Writer, tmp_path: Path
) -> None:
    writer.write(post=[*(commit_row(POST, who, START + who) for who in range(3)), commit_row(POST, 9, START + HOUR)])
    before = rows(store, manifest)
    replayed_twice_over(store, manifest)
    (torn,) = [file.path for file in manifest.snapshot().files(POST)]
    store.absolute(torn).write_bytes(b"PAR1 torn")
    found = open_manifest(str(tmp_path / "again.db"), create=True)
    assert rebuild(store, found).damaged == (torn,)
    assert rows(store, found) == before, "the replaced files are better than none"


def test_a_note_means_the_file_it_was_taken_of(
    store: LakeStore, manifest: Manifest, writer: Writer, tmp_path: Path
) -> None:
    writer.write(post=[commit_row(POST, who, START + who) for who in range(3)])
    (live,) = [file.path for file in manifest.snapshot().files(POST)]
    begin(store, ReplayNote("of another life", POST, {live: "0" * 64}, [], committed=True))
    assert rows(store, rebuilt(store, tmp_path)) == rows(store, manifest)


def test_notes_are_kept_while_they_matter(store: LakeStore, manifest: Manifest, writer: Writer, tmp_path: Path) -> None:
    writer.write(post=[*(commit_row(POST, who, START + who) for who in range(3)), commit_row(POST, 9, START + HOUR)])
    with pytest.raises(Crashed):
        replayed_twice_over(store, manifest, crash_at(CommitStep.SWAP_FILES_DURABLE))
    assert settle(store, manifest) == 1, "it may be under way"
    assert [note.committed for note in load_replays(store)] == [False]
    remove_orphans(store, manifest, NEVER)
    assert settle(store, manifest) == 0
    with pytest.raises(Crashed):
        replayed_twice_over(store, manifest, crash_at(CommitStep.SWAP_COMMITTED))
    assert [note.committed for note in load_replays(store)] == [False]
    assert settle(store, manifest) == 1
    assert [note.committed for note in load_replays(store)] == [True]
    assert find_strays(store, manifest, NEVER).foreign == ()
    unlink_retired(store, manifest, NEVER)
    assert settle(store, manifest) == 0
    assert rows(store, rebuilt(store, tmp_path)) == rows(store, manifest)
    (store.root / NAME).write_text("{")
    with pytest.raises(LakeError, match="damaged") as stopped:
        rebuild(store, open_manifest(str(tmp_path / "third.db"), create=True))
    assert "remove it" in stopped.value.remedy


def test_a_replay_that_was_never_swapped_in_is_left_out(
    store: LakeStore, manifest: Manifest, writer: Writer, tmp_path: Path
) -> None:
    writer.write(post=[*(commit_row(POST, who, START + who) for who in range(3)), commit_row(POST, 9, START + HOUR)])
    with pytest.raises(Crashed):
        replayed_twice_over(store, manifest, crash_at(CommitStep.SWAP_FILES_DURABLE))
    again = rebuilt(store, tmp_path)
    assert rows(store, again) == rows(store, manifest)


def test_an_event_in_two_neighbouring_hours_is_kept_once(
    store: LakeStore, manifest: Manifest, writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash left the file of one hour; read again, the event came from a host that witnessed it in the next hour."""
    event = commit_row(POST, 1, START + HOUR - 5, text="once")
    with monkeypatch.context() as patch:
        leave_orphans(patch, store)
        with pytest.raises(Crashed):
            writer.write(crash_at(CommitStep.FILES_DURABLE), post=[event])
    writer.write(post=[event | {"time_us": START + HOUR + 5}])
    again = rebuilt(store, tmp_path)
    assert len(rows(store, again)[POST]) == 1


def test_a_torn_file_is_reported_and_passed_over(
    store: LakeStore, manifest: Manifest, writer: Writer, tmp_path: Path
) -> None:
    fill(writer, 1)
    torn = manifest.snapshot().files(LIKE)[0].path
    store.absolute(torn).write_bytes(b"PAR1 torn")
    again = open_manifest(str(tmp_path / "again.db"), create=True)
    report = rebuild(store, again)
    assert report.damaged == (torn,)
    assert report.files == 2


def test_only_an_empty_manifest_is_filled(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    with pytest.raises(LakeError, match="not empty"):
        rebuild(store, manifest)

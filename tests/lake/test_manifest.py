"""One contract for both manifests: what is committed is visible at once and together, and nothing else ever is."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lake.errors import (
    CommitOutcomeUnknown,
    CommitRefused,
    DiskFull,
    LockHeld,
    ManifestUnavailable,
    ManifestVersionError,
    SnapshotExpired,
)
from lake.manifest import (
    Advance,
    Commit,
    Gap,
    HourCount,
    Manifest,
    NewFile,
    Position,
    SmallFiles,
    Span,
    Swap,
    TopicPartition,
    coalesce_spans,
    open_manifest,
)
from lake.manifest.schema import SCHEMA_VERSION
from lake.manifest.sqlite import SqliteManifest

HOUR = 3_600_000_000
LIKE = "app.bsky.feed.like"
TOPIC = "bluesky.app.bsky.feed.like"
P0 = TopicPartition(TOPIC, 0)

Open = Callable[..., Manifest]


def new_file(name: str, hour: int = 0, rows: int = 10, **other: object) -> NewFile:
    start = hour * HOUR
    spans = (Span(TOPIC, 0, 0, rows - 1, rows),)
    return replace(NewFile(name, LIKE, start, rows, 100, start, start + 5, "00", spans=spans), **other)


def advance(expected: int, after: int, epoch: int = 1, partition: int = 0) -> Advance:
    return Advance(TOPIC, partition, expected, after, epoch)


def commit(number: int, *files: NewFile, epoch: int = 1) -> Commit:
    """The commit that moves partition 0 from 10·number to 10·number + 10."""
    return Commit(f"c{number}", (advance(10 * number, 10 * number + 10, epoch),), files)


def paths(manifest: Manifest, version: int | None = None, **bounds: int) -> list[str]:
    return [file.path for file in manifest.snapshot(version).files(LIKE, **bounds)]


def test_an_empty_lake(manifest: Manifest) -> None:
    snapshot = manifest.snapshot()
    assert (snapshot.version, snapshot.created_us, snapshot.tables(), snapshot.files(LIKE)) == (0, 0, [], [])
    assert snapshot.total_rows(LIKE) == 0
    assert manifest.offsets() == {}


def test_a_claim_starts_at_zero_and_raises_the_epoch(manifest: Manifest) -> None:
    other = TopicPartition(TOPIC, 1)
    assert manifest.claim([P0, other], "a") == {P0: Position(0, 1), other: Position(0, 1)}
    assert manifest.claim([P0], "b") == {P0: Position(0, 2)}
    assert manifest.offsets([TOPIC]) == {P0: Position(0, 2), other: Position(0, 1)}
    assert manifest.offsets(["bluesky.other"]) == {}


def test_a_commit_moves_offsets_and_shows_files_together(manifest: Manifest) -> None:
    manifest.claim([P0], "a")
    version = manifest.commit(commit(0, new_file("x")))
    snapshot = manifest.snapshot()
    assert snapshot.version == version == 1
    assert snapshot.created_us > 0
    assert [file.path for file in snapshot.files(LIKE)] == ["x"]
    assert snapshot.tables() == [LIKE]
    assert manifest.offsets()[P0].next_offset == 10
    assert manifest.spans("x") == (Span(TOPIC, 0, 0, 9, 10),)
    live = manifest.file("x")
    assert live is not None
    assert (live.rows, live.kind, live.added_version, live.pending) == (10, "small", 1, False)


def test_the_same_commit_again_changes_nothing(manifest: Manifest) -> None:
    manifest.claim([P0], "a")
    first = manifest.commit(commit(0, new_file("x")))
    assert manifest.commit(commit(0, new_file("x"))) == first
    assert manifest.snapshot().version == first
    assert manifest.outcome("c0") == first
    assert manifest.outcome("c1") is None


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (advance(0, 10, epoch=1), "the zombie's epoch"),
        (advance(5, 10, epoch=2), "another offset than the manifest's"),
        (advance(0, 10, epoch=3), "an epoch nobody was given"),
        (advance(0, 10, epoch=2, partition=7), "an unknown partition"),
    ],
)
def test_a_commit_that_is_not_the_owners_is_refused_whole(manifest: Manifest, step: Advance, why: str) -> None:
    good = TopicPartition(TOPIC, 1)
    manifest.claim([P0, good], "a")
    manifest.claim([P0], "b")
    with pytest.raises(CommitRefused, match=r"Drop the batch"):
        manifest.commit(
            Commit("z", (Advance(TOPIC, 1, 0, 4, 1), step), (new_file("x"),), (HourCount(TOPIC, 0, 1, 0, 1, 0),))
        )
    assert manifest.snapshot().version == 0, why
    assert manifest.offsets() == {P0: Position(0, 2), good: Position(0, 1)}
    assert manifest.outcome("z") is None
    assert manifest.reconciliation(0, HOUR) == []
    assert manifest.known_paths() == set()


def test_an_offset_never_moves_back(manifest: Manifest) -> None:
    manifest.claim([P0], "a")
    with pytest.raises(CommitRefused, match="back"):
        manifest.commit(Commit("c", (advance(0, -1),), ()))
    manifest.seek(TOPIC, 0, 50, 1)
    with pytest.raises(CommitRefused):
        manifest.seek(TOPIC, 0, 49, 1)
    with pytest.raises(CommitRefused):
        manifest.seek(TOPIC, 0, 60, 2)
    assert manifest.offsets()[P0] == Position(50, 1)


def test_an_operator_may_rewind_and_fences_the_owner(manifest: Manifest) -> None:
    manifest.claim([P0], "a")
    manifest.commit(commit(0))
    manifest.rewind(TOPIC, 0, 0)
    assert manifest.offsets()[P0] == Position(0, 2)
    assert manifest.snapshot().positions() == {P0: 0}
    with pytest.raises(CommitRefused):
        manifest.commit(commit(1))
    with pytest.raises(CommitRefused, match="does not know"):
        manifest.rewind(TOPIC, 9, 0)


def test_a_path_enters_once(manifest: Manifest) -> None:
    manifest.claim([P0], "a")
    manifest.commit(commit(0, new_file("x")))
    with pytest.raises(CommitRefused, match="already"):
        manifest.commit(commit(1, new_file("x")))
    assert manifest.offsets()[P0].next_offset == 10


def test_a_swap_replaces_files_and_old_versions_stay_readable(manifest: Manifest) -> None:
    manifest.claim([P0], "a")
    manifest.commit(commit(0, new_file("a"), new_file("b")))
    before = manifest.commit(commit(1, new_file("c", hour=1)))
    after = manifest.swap(Swap("s", ("a", "b"), (new_file("ab", rows=20, kind="rolled"),), "roll"))
    assert paths(manifest) == ["ab", "c"]
    assert paths(manifest, before) == ["a", "b", "c"]
    assert paths(manifest, 1) == ["a", "b"]
    assert paths(manifest, 0) == []
    assert manifest.offsets()[P0].next_offset == 20
    assert manifest.file("a") is None
    assert [info.version for info in manifest.versions()] == [after, before, 1]
    newest = manifest.versions(1)[0]
    assert (newest.reason, newest.files_added, newest.files_retired, newest.rows_added, newest.rows_retired) == (
        "roll",
        1,
        2,
        20,
        20,
    )
    assert manifest.swap(Swap("s", ("a", "b"), (), "roll")) == after


def test_a_swap_of_a_file_that_is_gone_is_refused_whole(manifest: Manifest) -> None:
    manifest.claim([P0], "a")
    manifest.commit(commit(0, new_file("a"), new_file("b")))
    manifest.swap(Swap("s1", ("a",), (new_file("a2"),), "roll"))
    with pytest.raises(CommitRefused, match="not live"):
        manifest.swap(Swap("s2", ("b", "a"), (new_file("ab"),), "roll"))
    assert paths(manifest) == ["a2", "b"]
    assert manifest.snapshot().version == 2


def test_retired_files_are_forgotten_after_they_were_unlinked(manifest: Manifest) -> None:
    manifest.claim([P0], "a")
    manifest.commit(commit(0, new_file("a")))
    old = manifest.snapshot()
    manifest.swap(Swap("s", ("a",), (new_file("b"),), "roll"))
    assert [file.path for file in old.files(LIKE)] == ["a"]
    retired = manifest.files_to_unlink(1 << 62)
    assert [(file.path, file.retired_version) for file in retired] == [("a", 2)]
    assert manifest.files_to_unlink(retired[0].retired_us) == []
    assert manifest.known_paths() == {"a", "b"}
    assert manifest.forget(["a", "b", "unknown"]) == 1
    assert manifest.known_paths() == {"b"}
    with pytest.raises(SnapshotExpired):
        old.files(LIKE)
    with pytest.raises(SnapshotExpired):
        manifest.snapshot(1)
    with pytest.raises(SnapshotExpired):
        manifest.snapshot(99)
    assert paths(manifest) == ["b"]


def test_work_for_maintenance_is_found_without_looking_at_rolled_files(manifest: Manifest) -> None:
    assert manifest.small_files() == []
    assert manifest.newest_time_us(1 << 62) is None
    manifest.claim([P0], "w")
    manifest.commit(commit(0, new_file("a"), new_file("b"), new_file("c", 3), new_file("d", 2, kind="rolled")))
    assert manifest.small_files() == [SmallFiles(LIKE, 0, 2), SmallFiles(LIKE, 3 * HOUR, 1)]
    assert manifest.newest_time_us(1 << 62) == 3 * HOUR + 5
    assert manifest.newest_time_us(3 * HOUR + 4) == 2 * HOUR + 5
    manifest.swap(Swap("s", ("a", "b", "c"), (new_file("e", kind="rolled"),), "roll"))
    assert manifest.small_files() == []
    assert manifest.newest_time_us(1 << 62) == 2 * HOUR + 5


def test_files_are_listed_by_time(manifest: Manifest) -> None:
    manifest.claim([P0], "a")
    manifest.commit(commit(0, *(new_file(f"h{hour}", hour) for hour in (2, 0, 1))))
    assert paths(manifest) == ["h0", "h1", "h2"]
    assert paths(manifest, start_us=HOUR) == ["h1", "h2"]
    assert paths(manifest, start_us=HOUR + 5, end_us=2 * HOUR) == ["h1"]
    assert paths(manifest, start_us=HOUR + 6, end_us=2 * HOUR) == []
    assert paths(manifest, start_us=HOUR, end_us=2 * HOUR + 1) == ["h1", "h2"]
    # Within an hour its own least and greatest time decide.
    manifest.commit(commit(1, new_file("late", 2, min_time_us=2 * HOUR + 3)))
    assert paths(manifest, start_us=HOUR + 6, end_us=2 * HOUR + 3) == ["h2"]
    assert paths(manifest, start_us=HOUR + 6, end_us=2 * HOUR + 4) == ["h2", "late"]
    totals = manifest.snapshot().totals(LIKE)
    assert (totals.rows, totals.bytes, totals.files, totals.min_time_us, totals.max_time_us) == (
        40,
        400,
        4,
        0,
        2 * HOUR + 5,
    )


def test_superseding_files_are_listed_until_they_are_applied(manifest: Manifest) -> None:
    manifest.claim([P0], "a")
    manifest.commit(commit(0, new_file("h0", 0, kind="rolled"), new_file("h9", 9, supersedes=3, kind="rolled")))
    pending = manifest.snapshot()
    assert [(file.path, file.pending) for file in pending.superseding(LIKE)] == [("h9", True)]
    assert [file.path for file in pending.superseding("app.bsky.feed.post", source=LIKE)] == ["h9"]
    manifest.swap(Swap("s", (), (), "erase", applied=("h9",)))
    assert manifest.snapshot().superseding(LIKE) == []
    assert [file.path for file in pending.superseding(LIKE)] == ["h9"]
    manifest.commit(commit(1, new_file("late", 5)))
    # A late small file may hold rows that h9 ended long ago: h9 counts again until the late file was rolled.
    assert [(file.path, file.pending) for file in manifest.snapshot().superseding(LIKE)] == [("h9", False)]
    assert manifest.snapshot().superseding(LIKE, start_us=6 * HOUR) == []
    manifest.swap(Swap("s2", ("late",), (new_file("late2", 5, kind="rolled"),), "roll"))
    assert manifest.snapshot().superseding(LIKE) == []


@pytest.mark.parametrize(("since", "found"), [(3, ["ends"]), (4, ["ends"]), (5, [])])
def test_a_small_file_wants_applied_endings_from_an_hour_before_its_oldest_row_on(
    manifest: Manifest, since: int, found: list[str]
) -> None:
    manifest.claim([P0], "a")
    manifest.commit(commit(0, new_file("ends", 3, supersedes=1, pending=False, kind="rolled")))
    assert manifest.snapshot().superseding(LIKE) == []
    manifest.commit(commit(1, new_file("late", 9, since_us=since * HOUR + 5)))
    assert [file.path for file in manifest.snapshot().superseding(LIKE)] == found


def test_positions_of_a_version_outlive_its_files(manifest: Manifest) -> None:
    manifest.claim([P0, TopicPartition(TOPIC, 1)], "a")
    for number in range(4):
        manifest.commit(commit(number))
    manifest.commit(Commit("p1", (Advance(TOPIC, 1, 0, 7, 1),), ()))
    assert manifest.snapshot(2).positions() == {P0: 20}
    assert manifest.snapshot().positions([TOPIC]) == {P0: 40, TopicPartition(TOPIC, 1): 7}
    assert manifest.thin(1 << 62) == 3
    assert manifest.snapshot().positions() == {P0: 40, TopicPartition(TOPIC, 1): 7}
    with pytest.raises(SnapshotExpired, match="kept are of 5"):
        manifest.snapshot(2).positions()
    assert manifest.version_info(2) is None
    assert manifest.offsets()[P0].next_offset == 40


def test_old_versions_have_positions_after_their_files_are_gone(manifest: Manifest) -> None:
    other = TopicPartition(TOPIC, 1)
    manifest.claim([P0, other], "a")
    manifest.commit(commit(0, new_file("a")))
    manifest.commit(Commit("p1", (Advance(TOPIC, 1, 0, 7, 1),), ()))
    manifest.commit(commit(1, new_file("b")))
    manifest.swap(Swap("s", ("a", "b"), (new_file("ab", rows=20),), "roll"))
    manifest.forget(["a", "b"])
    with pytest.raises(SnapshotExpired):
        manifest.snapshot(2)
    assert manifest.positions(1) == {P0: 10}
    assert manifest.positions(2) == {P0: 10, other: 7}
    assert manifest.positions(2, ["bluesky.other"]) == {}
    assert manifest.positions(4) == {P0: 20, other: 7}
    info = manifest.version_info(3)
    assert info is not None
    assert (info.id, info.reason, info.rows_added) == ("c1", "ingest", 10)


def test_thinning_keeps_only_versions_whose_positions_belong_together(manifest: Manifest) -> None:
    """Of two partitions that move in turn, the last version of a period knows both; the one before would lack one."""
    other = TopicPartition(TOPIC, 1)
    manifest.claim([P0, other], "a")
    for number in range(3):
        manifest.commit(commit(number))
        manifest.commit(Commit(f"p{number}", (Advance(TOPIC, 1, number, number + 1, 1),), ()))
    manifest.thin(1 << 62)
    assert [info.version for info in manifest.versions()] == [6]
    assert manifest.positions(6) == {P0: 30, other: 3}
    with pytest.raises(SnapshotExpired, match="6"):
        manifest.positions(5)


def test_gaps(manifest: Manifest) -> None:
    gap = Gap("g", "host", 10, 20, "cursor too old", "detail", 99, 1, None)
    open_ended = Gap("h", "host", None, 5, "start", "", 99)
    assert manifest.add_gap(gap)
    assert not manifest.add_gap(replace(gap, detail="again"))
    manifest.commit(Commit("c", (), (), gaps=(open_ended, gap)))
    assert manifest.gaps(0, 100) == [open_ended, gap] or manifest.gaps(0, 100) == [gap, open_ended]
    assert manifest.snapshot().gaps(19, 30) == [gap]
    assert manifest.gaps(20, 30) == []
    assert manifest.gaps(5, 10) == []
    assert manifest.gaps(-5, 0) == [open_ended]


def test_reconciliation_adds_up_and_notices_what_is_missing(manifest: Manifest) -> None:
    manifest.claim([P0], "a")
    first = replace(commit(0, new_file("a", rows=7)), counts=(HourCount(TOPIC, 0, 10, 2, 7, 1),))
    manifest.commit(first)
    manifest.commit(replace(commit(1, new_file("b", rows=10)), counts=(HourCount(TOPIC, 0, 10, 0, 10, 0),)))
    (hour,) = manifest.reconciliation(0, HOUR)
    assert (hour.topic, hour.table, hour.consumed, hour.duplicates, hour.rows, hour.dead_letters, hour.live_rows) == (
        TOPIC,
        LIKE,
        20,
        2,
        17,
        1,
        17,
    )
    assert hour.closes
    manifest.swap(Swap("lost", ("b",), (new_file("b2", rows=9),), "roll"))
    assert not manifest.reconciliation(0, HOUR)[0].closes
    manifest.swap(Swap("gone", ("a", "b2"), (), "retention", removed=((TOPIC, 0, 17),)))
    assert manifest.reconciliation(0, HOUR)[0].closes
    assert manifest.reconciliation(HOUR, 2 * HOUR) == []


def test_two_writers_never_block_each_other_for_good(open_again: Open) -> None:
    commits = 25
    partitions = [TopicPartition(TOPIC, number) for number in range(4)]
    setup = open_again()
    setup.claim(partitions, "a")
    errors: list[BaseException] = []

    def work(partition: int) -> None:
        manifest = open_again()
        try:
            for number in range(commits):
                step = Advance(TOPIC, partition, number, number + 1, 1)
                manifest.commit(Commit(f"{partition}-{number}", (step,), (new_file(f"{partition}-{number}"),)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert setup.snapshot().version == 4 * commits
    assert {position.next_offset for position in setup.offsets().values()} == {commits}
    assert len(paths(setup)) == 4 * commits


def test_racing_owners_commit_each_offset_once(open_again: Open) -> None:
    """Two writers think they own the partition: whatever the order, one of them wins each step."""
    setup = open_again()
    winners: list[str] = []
    barrier = threading.Barrier(2)

    def work(name: str) -> None:
        manifest = open_again()
        barrier.wait()
        epoch = manifest.claim([P0], name)[P0].epoch
        barrier.wait()
        try:
            manifest.commit(Commit(name, (advance(0, 10, epoch),), (new_file(name),)))
        except CommitRefused:
            return
        winners.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert paths(setup) == winners


def test_upkeep_changes_nothing_that_is_read(open_again: Open) -> None:
    writer, reader = open_again(), open_again(create=False, read_only=True)
    writer.claim([P0], "a")
    writer.commit(commit(0, new_file("x")))
    snapshot = reader.snapshot()
    open_again().checkpoint()
    writer.commit(commit(1, new_file("y")))
    assert [file.path for file in snapshot.files(LIKE)] == ["x"]
    assert paths(reader) == ["x", "y"]


def test_a_change_waits_for_another_as_long_as_it_was_told(open_again: Open) -> None:
    one, two = open_again(), open_again(busy_timeout_s=0.2)
    two.claim([P0], "a")
    with one._transaction() as cursor:  # type: ignore[attr-defined]
        cursor.execute("UPDATE state SET version = version WHERE id = 1")
        with pytest.raises(ManifestUnavailable):
            two.commit(commit(0, new_file("x")))
        waiting = threading.Thread(target=lambda: open_again().commit(commit(0, new_file("x"))))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
    waiting.join()
    assert paths(two) == ["x"]


def test_a_named_lock_has_one_holder(open_again: Open) -> None:
    one, two = open_again(), open_again()
    with one.hold("maintain", "host 1"):
        with two.hold("writer-1", "host 2"):
            pass
        with pytest.raises(LockHeld, match="host 1"), two.hold("maintain", "host 2"):
            pass
    with two.hold("maintain", "host 2"):
        pass


@pytest.mark.parametrize("applied", [True, False])
def test_a_lost_answer_is_told_apart_from_a_refusal(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, applied: bool
) -> None:
    manifest.claim([P0], "a")
    original = type(manifest)._commit_transaction

    def lose(self: Manifest, cursor: object) -> None:
        original(self, cursor) if applied else cursor.execute("ROLLBACK")  # type: ignore[attr-defined]
        if "Sqlite" in type(self).__name__:
            raise sqlite3.OperationalError("disk I/O error")
        import psycopg

        raise psycopg.OperationalError("server closed the connection unexpectedly")

    with monkeypatch.context() as patch:
        patch.setattr(type(manifest), "_commit_transaction", lose)
        with pytest.raises(CommitOutcomeUnknown):
            manifest.commit(commit(0, new_file("x")))
    assert manifest.outcome("c0") == (1 if applied else None)
    assert manifest.commit(commit(0, new_file("x"))) == 1
    assert paths(manifest) == ["x"]


def test_a_reader_cannot_change_anything(open_again: Open) -> None:
    open_again().claim([P0], "a")
    reader = open_again(create=False, read_only=True)
    assert reader.offsets()[P0] == Position(0, 1)
    with pytest.raises(ManifestUnavailable):
        reader.commit(commit(0))


def test_a_missing_manifest_says_what_to_do(manifest_url: str) -> None:
    with pytest.raises(ManifestUnavailable, match=r"(?s)No manifest at .*Start the writer once"):
        open_manifest(manifest_url)


def test_a_newer_manifest_is_refused(manifest_url: str, open_again: Open) -> None:
    open_again()
    if manifest_url.startswith("postgresql"):
        import psycopg

        with psycopg.connect(manifest_url, autocommit=True) as connection:
            connection.execute("UPDATE meta SET value = %s", (SCHEMA_VERSION + 1,))
    else:
        raw = sqlite3.connect(manifest_url)
        raw.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
        raw.close()
    with pytest.raises(ManifestVersionError, match="newer one"):
        open_again()


def test_the_url_shows_no_password(manifest: Manifest) -> None:
    assert "postgres@" not in manifest.url


def test_some_other_sqlite_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE mine (x)")
    raw.commit()
    raw.close()
    with pytest.raises(ManifestVersionError, match="something else"):
        open_manifest(str(path), create=True)
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at as one by the library")
    with pytest.raises(ManifestUnavailable, match="rebuild"):
        open_manifest(str(tmp_path / "text.db"), create=True)


def test_a_full_volume_of_the_manifest_is_a_full_disk(tmp_path: Path) -> None:
    manifest = open_manifest(str(tmp_path / "manifest.db"), create=True)
    assert isinstance(manifest, SqliteManifest)
    manifest.claim([P0], "w")
    with manifest._pool.lease() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages}")
    many = commit(0, *(new_file(f"{number:0500}") for number in range(200)))
    with pytest.raises(DiskFull, match="volume of the manifest") as told:
        manifest.commit(many)
    assert isinstance(told.value, ManifestUnavailable)
    assert manifest.outcome(many.id) is None
    assert manifest.offsets()[P0].next_offset == 0
    with manifest._pool.lease() as connection:
        connection.execute("PRAGMA max_page_count=1000000")
    assert manifest.commit(many) == 1
    manifest.close()


def test_a_closed_manifest_says_so(tmp_path: Path) -> None:
    manifest = open_manifest(str(tmp_path / "m.db"), create=True)
    manifest.close()
    with pytest.raises(Exception, match="closed"):
        manifest.offsets()


def test_spans_of_one_partition_become_one() -> None:
    spans = [Span("t", 1, 5, 9, 3), Span("t", 0, 0, 4, 5), Span("t", 1, 20, 29, 10)]
    assert coalesce_spans(spans) == (Span("t", 0, 0, 4, 5), Span("t", 1, 5, 29, 13))


def test_a_reader_waits_for_a_manifest_that_is_being_made(tmp_path: Path) -> None:
    path = tmp_path / "manifest.sqlite"
    path.touch()
    maker = threading.Timer(0.3, lambda: open_manifest(str(path), create=True).close())
    maker.start()
    try:
        reader = open_manifest(str(path), read_only=True)
        assert reader.snapshot().tables() == []
        reader.close()
    finally:
        maker.join()
    path.unlink()
    path.touch()
    with pytest.raises(ManifestVersionError, match="version 0"):
        open_manifest(str(path), read_only=True, busy_timeout_s=0.1)

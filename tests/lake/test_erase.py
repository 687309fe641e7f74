"""What has ended leaves every file: found by grepping the bytes, in every order of events and of maintenance."""

from __future__ import annotations

import itertools
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import HOUR, LIKE, POST, START, Writer, account_row, cid, commit_row, did, lake_rows, sync_row, tid

from lake import account_index, ended_keys
from lake.dedupe import DedupeWindow
from lake.erase import Unfinished, erase
from lake.errors import FileDamaged
from lake.fold import content_columns, current, ended, endings_of, read_endings
from lake.manifest import Manifest, open_manifest
from lake.roll import roll_hour
from lake.store import LakeStore

SECRET = "a sentence that nobody else wrote"


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return open_manifest(str(tmp_path / "manifest.db"), create=True)


@pytest.fixture
def writer(store: LakeStore, manifest: Manifest) -> Writer:
    return Writer(store, manifest)


def live_rows(store: LakeStore, manifest: Manifest, table: str) -> list[dict[str, object]]:
    files = manifest.snapshot().files(table)
    return [row for file in files for row in store.read(file.path).to_pylist()]


def answer(store: LakeStore, manifest: Manifest, table: str = POST) -> list[str]:
    """The texts that a current answer shows."""
    snapshot = manifest.snapshot()
    files = snapshot.files(table)
    if not files:
        return []
    since = min(file.since_us for file in files)
    rows = pa.concat_tables([store.read(file.path) for file in files])
    return sorted(current(rows, read_endings(store, snapshot, table, since)).column("text").to_pylist())


def bytes_of_live_files(store: LakeStore, manifest: Manifest) -> bytes:
    """Every column value of every live file, decompressed: what grep would see."""
    found = []
    for table in manifest.snapshot().tables():
        for file in manifest.snapshot().files(table):
            rows = pq.read_table(store.absolute(file.path), partitioning=None)
            found.append(repr(rows.to_pylist()).encode())
            found.append(store.absolute(file.path).read_bytes())
    return b"\n".join(found)


def post(who: int, at: int, text: str = SECRET, **other: object) -> dict[str, object]:
    return commit_row(POST, who, at, text=text, **other)


def delete(who: int, at: int, key_us: int) -> dict[str, object]:
    return commit_row(POST, who, at, "delete", key_us)


def settle(store: LakeStore, manifest: Manifest, *, keep_edits: bool = False) -> None:
    """What maintenance does: roll every hour, erase."""
    for table in manifest.snapshot().tables():
        for hour in sorted({file.hour_us for file in manifest.snapshot().files(table)}):
            roll_hour(store, manifest, table, hour, keep_edits=keep_edits)
    assert erase(store, manifest, keep_edits=keep_edits).complete


LATER = START + 30 * HOUR
ENDINGS = {
    "delete": {"post": [delete(1, LATER, START + 1)]},
    "delete in the same hour": {"post": [delete(1, START + 2, START + 1)]},
    "account": {"account": [account_row(1, LATER, "deleted")]},
    "sync": {"sync": [sync_row(1, LATER)]},
    "update": {"post": [post(1, LATER, "new text", operation="update", key_us=START + 1)]},
    "resync": {"post": [post(1, LATER, "new text", resync=True, key_us=START + 1)]},
}


@pytest.mark.parametrize("order", ["create first", "rolled between", "late create", "late create after erasure"])
@pytest.mark.parametrize("name", ENDINGS)
def test_what_has_ended_is_in_no_answer_and_then_in_no_file(
    store: LakeStore, manifest: Manifest, writer: Writer, name: str, order: str
) -> None:
    create = [post(1, START + 1), post(2, START + 1, "another's words")]
    ending = ENDINGS[name]
    if order == "create first":
        writer.write(post=create)
        assert SECRET in answer(store, manifest)
        writer.write(**ending)
    elif order == "rolled between":
        writer.write(post=create)
        roll_hour(store, manifest, POST, START)
        writer.write(**ending)
    else:
        writer.write(**ending)
        if order == "late create after erasure":
            settle(store, manifest)
        writer.write(post=create)
    shown = ["another's words"] + (["new text"] if name in ("update", "resync") else [])
    assert answer(store, manifest) == shown
    settle(store, manifest)
    assert answer(store, manifest) == shown
    everything = bytes_of_live_files(store, manifest)
    assert SECRET.encode() not in everything
    assert cid(f"1 {START + 1}").encode() not in everything
    tombstones = [row for row in live_rows(store, manifest, POST) if row["erased"]]
    reason = {"resync": "update", "delete in the same hour": "delete"}.get(name, name)
    assert [(row["did"], row["operation"], row["erased"]) for row in tombstones] == [(did(1), "create", reason)]
    assert all(tombstones[0][column] is None for column in content_columns(POST))
    assert sum(file.erased for file in manifest.snapshot().files(POST)) == 1
    assert manifest.snapshot().superseding(POST) == []
    assert all(hour.closes for hour in manifest.reconciliation(START, LATER + HOUR))
    assert erase(store, manifest).rewritten == 0


def test_an_erased_event_that_is_delivered_again_stays_out(
    store: LakeStore, manifest: Manifest, writer: Writer
) -> None:
    writer.write(post=[post(1, START + 1), delete(1, START + 5, START + 1)])
    settle(store, manifest)
    restarted = Writer(store, manifest, name="w2")
    restarted.write(post=[post(1, START + 1), post(3, START + 7, "new")])
    assert answer(store, manifest) == ["new"]


def test_edits_keep_their_history_by_setting_until_a_delete(
    store: LakeStore, manifest: Manifest, writer: Writer
) -> None:
    writer.write(post=[post(1, START + 1), post(1, START + 9, "second", operation="update", key_us=START + 1)])
    settle(store, manifest, keep_edits=True)
    rows = live_rows(store, manifest, POST)
    assert [(row["text"], row["erased"]) for row in sorted(rows, key=lambda r: str(r["time"]))] == [
        (SECRET, "edit"),
        ("second", None),
    ]
    assert answer(store, manifest) == ["second"]
    assert sum(file.erased for file in manifest.snapshot().files(POST)) == 0
    writer.write(post=[delete(1, START + 2 * HOUR, START + 1)])
    settle(store, manifest, keep_edits=True)
    assert SECRET.encode() not in bytes_of_live_files(store, manifest)
    assert b"second" not in bytes_of_live_files(store, manifest)


def test_a_record_made_again_after_its_delete_is_current(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    writer.write(
        post=[post(1, START + 1), delete(1, START + 2, START + 1), post(1, START + 3, "again", key_us=START + 1)]
    )
    assert answer(store, manifest) == ["again"]
    settle(store, manifest)
    assert answer(store, manifest) == ["again"]


def test_an_account_that_came_back_keeps_what_it_wrote_then(
    store: LakeStore, manifest: Manifest, writer: Writer
) -> None:
    writer.write(post=[post(1, START + 1), post(1, START + 9, "back again")])
    writer.write(account=[account_row(1, START + 5, "deleted"), account_row(1, START + 7, None, active=True)])
    assert answer(store, manifest) == ["back again"]
    settle(store, manifest)
    assert answer(store, manifest) == ["back again"]
    assert SECRET.encode() not in bytes_of_live_files(store, manifest)


def test_a_suspended_account_is_not_erased(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    writer.write(post=[post(1, START + 1)])
    writer.write(account=[account_row(1, START + 5, "suspended")])
    settle(store, manifest)
    assert [row["erased"] for row in live_rows(store, manifest, POST)] == [None]


def test_deleting_an_account_empties_every_table_but_its_state(
    store: LakeStore, manifest: Manifest, writer: Writer
) -> None:
    handle = {**account_row(1, START + 2, None), "kind": "identity", "handle": "someone.example"}
    writer.write(
        post=[post(1, START + 1)],
        like=[commit_row(LIKE, 1, START + 1)],
        identity=[handle],
        sync=[sync_row(1, START)],
        account=[account_row(1, LATER, "deleted")],
    )
    settle(store, manifest)
    everything = bytes_of_live_files(store, manifest)
    assert b"someone.example" not in everything
    assert b"AA==" not in everything
    assert {row["status"] for row in live_rows(store, manifest, "account")} == {"deleted"}
    assert live_rows(store, manifest, LIKE)[0]["subject_did"] is None


def test_a_pass_that_is_cut_short_goes_on_later(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    for hour in range(4):
        writer.write(post=[post(1, START + hour * HOUR)])
        roll_hour(store, manifest, POST, START + hour * HOUR)
    writer.write(account=[account_row(1, LATER, "deleted")])
    budget = itertools.count()
    first = erase(store, manifest, go_on=lambda: next(budget) < 2)
    assert (first.complete, first.rewritten) == (False, 2)
    assert answer(store, manifest) == []
    second = erase(store, manifest)
    assert (second.complete, second.rewritten, second.applied) == (True, 2, 1)
    assert SECRET.encode() not in bytes_of_live_files(store, manifest)


def test_a_pass_goes_on_with_the_files_it_has_not_looked_into(
    store: LakeStore, manifest: Manifest, writer: Writer
) -> None:
    for hour in range(4):
        writer.write(post=[post(1, START + hour * HOUR), post(2, START + hour * HOUR + 1)])
        roll_hour(store, manifest, POST, START + hour * HOUR)
    writer.write(account=[account_row(1, LATER, "deleted")])
    unfinished, budget = Unfinished(), itertools.count()
    first = erase(store, manifest, unfinished=unfinished, go_on=lambda: next(budget) < 3)
    assert (first.complete, first.looked_at, first.rewritten) == (False, 3, 3)
    # Another deletion meanwhile: it is applied to what is still to be looked into, and else by the next pass.
    writer.write(account=[account_row(2, LATER + 1, "deleted")])
    second = erase(store, manifest, unfinished=unfinished)
    assert (second.complete, second.looked_at, second.rewritten, second.applied) == (True, 1, 1, 1)
    assert manifest.snapshot().superseding(POST, source="account") != []
    assert answer(store, manifest) == []
    third = erase(store, manifest, unfinished=unfinished)
    assert (third.complete, third.rewritten, third.applied) == (True, 3, 1)
    assert SECRET.encode() not in bytes_of_live_files(store, manifest)


def test_a_lagging_host_cannot_bring_a_deleted_record_back(
    store: LakeStore, manifest: Manifest, writer: Writer
) -> None:
    """Another host witnesses the create five hours after the delete was erased: its rev is older all the same."""
    writer.write(post=[delete(1, START + 10, START + 1)])
    settle(store, manifest)
    late = post(1, START + 5 * HOUR, rev=tid(START + 1, 1), key_us=START + 1)
    writer.write(post=[late])
    assert answer(store, manifest) == []
    files = manifest.snapshot().superseding(POST, START + 5 * HOUR)
    assert len(files) == 1, "answers are told about the file with the delete"
    settle(store, manifest)
    assert SECRET.encode() not in bytes_of_live_files(store, manifest)


@pytest.mark.parametrize("days", [8, 60, 399])
@pytest.mark.parametrize("noted", [False, True])
@pytest.mark.parametrize("name", ["delete", "sync", "update", "odd key"])
def test_what_was_ended_long_ago_stays_out_however_late_it_comes(
    store: LakeStore, manifest: Manifest, writer: Writer, days: int, noted: bool, name: str
) -> None:
    """A host that lags by weeks witnesses the create when its end was applied and its content erased long ago."""
    odd = {"rkey": "self"} if name == "odd key" else {}
    ending = {"post": [delete(1, LATER, START + 1) | odd]} if odd else ENDINGS[name]
    writer.write(**ending)
    writer.write(post=[post(7, LATER + 1, "another's words")])
    settle(store, manifest)
    if noted:
        noted_files = ended_keys.missing(store, manifest.snapshot())
        assert [ended_keys.build(store, file) for file in noted_files] == [8] * len(noted_files)
        assert ended_keys.missing(store, manifest.snapshot()) == []
    arrives = LATER + days * 24 * HOUR
    late = [
        post(1, arrives, rev=tid(START + 1, 1), key_us=START + 1) | odd,
        post(2, arrives, "never ended", rev=tid(START + 1, 2), key_us=START + 1) | odd,
        post(1, arrives + 1, "made anew"),
    ]
    writer.write(post=late)
    shown = ["another's words", "made anew", "never ended"] + (["new text"] if name == "update" else [])
    assert answer(store, manifest) == shown
    assert SECRET.encode() not in bytes_of_live_files(store, manifest), "not even for the hour before maintenance"
    settle(store, manifest)
    assert answer(store, manifest) == shown
    assert all(hour.closes for hour in manifest.reconciliation(0, 1 << 62))
    # Beyond the horizon, a setting, nothing is looked up.
    beyond = Writer(store, manifest, name="w2")
    beyond.window = DedupeWindow(store, manifest, late_us=7 * 24 * HOUR)
    beyond.write(post=[post(1, arrives + 25 * HOUR, "too late", rev=tid(START + 1, 1), key_us=START + 1) | odd])
    assert "too late" in [row["text"] for row in live_rows(store, manifest, POST)]


def test_side_files_of_ends_go_with_their_files(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    writer.write(post=[post(1, START + 1), delete(1, START + 2, START + 1)])
    settle(store, manifest)
    (file,) = ended_keys.missing(store, manifest.snapshot())
    ended_keys.build(store, file)
    assert ended_keys.sweep(store, manifest.snapshot()) == 0
    writer.write(post=[post(2, START + 3, "later")])
    settle(store, manifest)
    assert ended_keys.sweep(store, manifest.snapshot()) == 1
    (store.root / ended_keys.FOLDER / f"{manifest.snapshot().files(POST)[0].sha256}.npy").write_bytes(b"torn")
    restarted = Writer(store, manifest, name="w2")
    late = post(1, START + 30 * 24 * HOUR, rev=tid(START + 1, 1), key_us=START + 1)
    restarted.write(post=[late])
    assert answer(store, manifest) == ["later"], "a torn side file is as good as none"


def test_a_record_key_that_is_no_tid(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    create = post(1, START + 1) | {"rkey": "self"}
    kept = post(2, START + 1, "kept") | {"rkey": "self"}
    writer.write(post=[create, kept])
    writer.write(post=[delete(1, LATER, START + 1) | {"rkey": "self"}])
    assert answer(store, manifest) == ["kept"]
    settle(store, manifest)
    assert SECRET.encode() not in bytes_of_live_files(store, manifest)
    assert answer(store, manifest) == ["kept"]


def test_without_a_rev_the_later_time_is_newer() -> None:
    rows = lake_rows(POST, [post(1, START + 1) | {"rev": None}, post(1, START + 9, key_us=START + 1)])
    endings = endings_of([lake_rows(POST, [delete(1, START + 5, START + 1) | {"rev": None}])])
    assert ended(rows, endings).to_list() == ["delete", None]


def test_the_state_of_nobody_ends_nothing() -> None:
    rows = lake_rows(POST, [post(1, START)])
    assert endings_of().empty
    assert ended(rows, endings_of()).to_list() == [None]
    assert isinstance(ended(rows, endings_of()), pl.Series)


def test_tombstones_do_not_lie_where_their_content_did(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    """Posts are sorted by language: a tombstone left in its place would tell which it was."""
    posts = [post(who, START + who, langs=["de" if who < 25 else "ja"]) for who in range(50)]
    writer.write(post=posts, account=[account_row(9, LATER, "deleted")])
    settle(store, manifest)
    rows = live_rows(store, manifest, POST)
    assert [row["did"] for row in rows if row["erased"]] == [did(9)]
    assert rows[-1]["erased"] == "account"
    assert [row["langs"] for row in rows[:-1]] == [["de"]] * 24 + [["ja"]] * 25


def test_tombstones_of_one_pass_lie_in_order_of_arrival(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    """In the order that their posts had among the others they would tell which of them were in one language."""
    writer.write(post=[post(who, START + who, langs=["ja" if who % 2 else "de"]) for who in range(50)])
    roll_hour(store, manifest, POST, START)
    writer.write(account=[account_row(who, LATER, "deleted") for who in range(10, 20)])
    assert erase(store, manifest).rewritten == 1
    rows = live_rows(store, manifest, POST)
    assert [row["kafka_offset"] for row in rows if row["erased"]] == list(range(10, 20))
    assert [row["erased"] for row in rows[40:]] == ["account"] * 10


def test_files_without_a_row_of_an_account_are_not_opened(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    for hour in range(4):
        writer.write(post=[post(hour % 2, START + hour * HOUR)])
        roll_hour(store, manifest, POST, START + hour * HOUR)
    files = sorted(manifest.snapshot().files(POST), key=lambda file: file.hour_us)
    for file in files:
        account_index.build(store, file)
    writer.write(account=[account_row(1, LATER, "deleted")])
    store.absolute(files[0].path).write_bytes(b"no Parquet file")
    done = erase(store, manifest)
    assert (done.complete, done.looked_at, done.rewritten) == (True, 4, 2)
    files = sorted(manifest.snapshot().files(POST), key=lambda file: file.hour_us)
    assert [file.erased for file in files] == [0, 1, 0, 1]
    writer.write(account=[account_row(who, LATER, "deleted") for who in range(2, 300)])
    with pytest.raises(FileDamaged):
        erase(store, manifest)


def test_likes_keep_the_order_of_arrival(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    writer.write(like=[commit_row(LIKE, who, START + who) for who in range(50)])
    settle(store, manifest)
    assert [row["kafka_offset"] for row in live_rows(store, manifest, LIKE)] == list(range(50))

"""A model of the lake and the rules that work on both; `test_lake_machine` runs it on each manifest.

The model is a log of messages per partition and a fold in plain Python. After every rule the lake, read with nothing but
pyarrow and the manifest's file list, has to equal it.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import HOUR, POST, START, Writer, account_row, commit_row, did, lake_rows, sync_row, tid

from lake import ended_keys
from lake.erase import Unfinished, erase
from lake.errors import CommitRefused, DiskFull, SnapshotExpired
from lake.fold import content_columns, current, read_endings
from lake.manifest import TopicPartition, open_manifest
from lake.rebuild import rebuild
from lake.replay import Staging, plan_replay, replace
from lake.replay_file import settle
from lake.retire import remove_orphans, unlink_retired
from lake.roll import roll_hour
from lake.steps import CommitStep
from lake.store import LakeStore
from lake.verify import verify
from schemas.identity import row_identity
from schemas.topics import TABLE_TOPICS
from tests.support.steps import INGEST_STEPS, SWAP_STEPS

NEVER = 1 << 62
TABLES = (POST, "account", "sync")
PARTITIONS = (0, 1)
Event = dict[str, Any]

HOURS = st.integers(0, 2)
MINUTES = st.integers(0, 50)
ACCOUNTS = st.integers(0, 5)
KEYS = st.integers(0, 2)
ORDINALS = st.sampled_from([1, 1, 2])


class Killed(BaseException):
    """Ends the work of a process without letting it clean up."""


class MortalStore(LakeStore):
    """A store whose process may be dead: then nothing is removed any more."""

    dead = False

    def unlink(self, paths: Any) -> list[str]:
        return [] if self.dead else super().unlink(paths)


class LakeMachine(RuleBasedStateMachine):
    """Deliver, redeliver, rebalance, crash, lose answers, fill the disk, roll, erase, replay, rebuild, restart, read slowly.

    The two partitions are consumed by two writers, each at its own pace: their events interleave in any order.
    """

    new_manifest_url: Callable[[], str]
    fired: set[str]

    @initialize()
    def begin(self) -> None:
        self.crash: tuple[CommitStep, int] | None = None
        self.full: CommitStep | None = None
        self.doing = ""
        self.folder = Path(tempfile.mkdtemp(prefix="lake-machine-"))
        self.store = MortalStore(self.folder / "lake")
        self.manifest = open_manifest(type(self).new_manifest_url(), create=True, hook=self.hook)
        self.log: dict[tuple[str, int], list[Event]] = {(t, p): [] for t in TABLES for p in PARTITIONS}
        self.writers = {p: Writer(self.store, self.manifest, p, f"w{p}") for p in PARTITIONS}
        self.zombies: list[Writer] = []
        self.readers: list[tuple[int, dict[tuple[str, ...], str | None]]] = []
        self.unlinked = False
        self.unfinished = Unfinished()
        self.sent: list[tuple[str, Event]] = []
        self.settled = True
        self.ticks = 0
        for who in range(6):
            self.write_record(who, who % 3, who % 2, who, "create")
        self.change_account(5, 0, 30, "suspended")
        for partition in PARTITIONS:
            self.ingest(partition, 2, None, 1)

    def teardown(self) -> None:
        if hasattr(self, "manifest"):
            self.manifest.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    # --- what happens on the network --------------------------------------------------------------------------------

    def send(self, table: str, event: Event) -> None:
        """Appends to the partition of the account, as Kafka does."""
        who = next(number for number in range(6) if did(number) == event["did"])
        self.log[table, who % len(PARTITIONS)].append(event)
        self.sent.append((table, event))

    def moment(self, hour: int, minute: int) -> int:
        # No two events at the same microsecond: revs differ, as in a repository.
        self.ticks += 1
        return START + hour * HOUR + minute * 60_000_000 + self.ticks

    @rule(who=ACCOUNTS, key=KEYS, hour=HOURS, minute=MINUTES, operation=st.sampled_from(["create", "update", "delete"]))
    def write_record(self, who: int, key: int, hour: int, minute: int, operation: str) -> None:
        at = self.moment(hour, minute)
        text = {} if operation == "delete" else {"text": f"content-{at}-end"}
        self.send(POST, commit_row(POST, who, at, operation, START + key, **text))

    @rule(who=ACCOUNTS, hour=HOURS, minute=MINUTES, status=st.sampled_from(["deleted", "suspended", None]))
    def change_account(self, who: int, hour: int, minute: int, status: str | None) -> None:
        self.send("account", account_row(who, self.moment(hour, minute), status, active=status is None))

    @rule(who=ACCOUNTS, hour=HOURS, minute=MINUTES)
    def sync(self, who: int, hour: int, minute: int) -> None:
        at = self.moment(hour, minute)
        self.send("sync", sync_row(who, at))
        self.send(
            POST, commit_row(POST, who, at + 1, text=f"content-{at}-end", resync=True, key_us=START, rev=tid(at, who))
        )

    @rule(who=ACCOUNTS, key=KEYS, hour=HOURS, minute=MINUTES, days=st.sampled_from([6, 8, 30]))
    def write_for_a_lagging_host(self, who: int, key: int, hour: int, minute: int, days: int) -> None:
        """A record that a host witnesses long after it was written, and perhaps ended."""
        written = self.moment(hour, minute)
        at = written + days * 24 * HOUR
        self.send(
            POST,
            commit_row(POST, who, at, key_us=START + key, rev=tid(written, who), text=f"content-{at}-end"),
        )

    @precondition(lambda self: self.sent)
    @rule(choice=st.randoms(use_true_random=False), later=st.sampled_from([None, HOUR, 120 * HOUR]))
    def redeliver(self, choice: Any, later: int | None) -> None:
        """The same event again: as it was, or witnessed by another host up to an hour later, or by one that is days behind."""
        table, event = choice.choice(self.sent)
        prompt = "rev" in event and event["time_us"] // HOUR - _made_us(event) // HOUR <= 1
        if later and table != "account" and (later == HOUR or prompt):
            moved = event["time_us"] + choice.randrange(later)
            if later == HOUR:
                moved = min(moved, event["time_us"] // HOUR * HOUR + 2 * HOUR - 1)
            event = event | {"time_us": moved, "source_host": "other"}
        self.send(table, event)

    # --- what the processes do --------------------------------------------------------------------------------------

    def hook(self, step: CommitStep) -> None:
        if self.full is step:
            self.fired.add(f"disk-full-{step}")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.crash is not None and step is self.crash[0]:
            self.crash = (step, self.crash[1] - 1)
            if self.crash[1] == 0:
                self.fired.add(f"{self.doing}:{step.value}")
                self.store.dead = True
                raise Killed

    def survive(self, doing: str, step: CommitStep | None, work: Callable[[], Any], ordinal: int = 1) -> bool:
        """Does `work` in a process that may be killed; whether it ended by itself."""
        self.doing = doing
        self.crash = None if step is None else (step, ordinal)
        try:
            work()
        except Killed:
            return False
        finally:
            self.crash = None
            self.store.dead = False
        return True

    def restart(self, partition: int) -> None:
        self.writers[partition] = Writer(self.store, self.manifest, partition, f"w{partition}")

    def next_batch(self, writer: Writer, most: int) -> dict[str, list[Event]]:
        found = {}
        for table in TABLES:
            at = writer.positions[TopicPartition(TABLE_TOPICS[table], writer.partition)].next_offset
            events = self.log[table, writer.partition][at : at + most]
            if events:
                found[table] = events
        return found

    @rule(
        partition=st.sampled_from(PARTITIONS),
        most=st.integers(1, 6),
        step=st.sampled_from((None, None, *INGEST_STEPS)),
        ordinal=ORDINALS,
    )
    def ingest(self, partition: int, most: int, step: CommitStep | None, ordinal: int) -> None:
        writer = self.writers[partition]
        batch = self.next_batch(writer, most)
        if batch:
            self.settled = False
            if not self.survive("ingest", step, lambda: writer.write(self.hook, **batch), ordinal):
                self.restart(partition)

    @rule(partition=st.sampled_from(PARTITIONS), applied=st.booleans())
    def lose_the_answer(self, partition: int, applied: bool) -> None:
        writer = self.writers[partition]
        batch = self.next_batch(writer, 3)
        if not batch:
            return
        self.settled = False
        original = self.manifest._commit_transaction  # type: ignore[attr-defined]

        def lose(cursor: Any) -> None:
            self.manifest._commit_transaction = original  # type: ignore[attr-defined]
            self.fired.add(f"answer-lost-{applied}")
            original(cursor) if applied else cursor.execute("ROLLBACK")
            raise type(self).connection_error

        self.manifest._commit_transaction = lose  # type: ignore[attr-defined]
        writer.write(**batch)

    connection_error: BaseException

    @rule(partition=st.sampled_from(PARTITIONS))
    def rebalance(self, partition: int) -> None:
        """Another process takes the partition; the old one does not know yet."""
        self.zombies.append(self.writers[partition])
        self.restart(partition)

    @precondition(lambda self: self.zombies)
    @rule()
    def zombie_commits(self) -> None:
        zombie = self.zombies.pop()
        batch = self.next_batch(zombie, 4)
        if batch:
            try:
                zombie.write(**batch)
            except CommitRefused:
                self.fired.add("zombie-refused")
            else:
                raise AssertionError("a zombie committed")

    @rule(
        table=st.sampled_from(TABLES),
        hour=st.integers(0, 4),
        kind=st.sampled_from(["small", "rolled"]),
        step=st.sampled_from((None, *SWAP_STEPS)),
    )
    def roll(self, table: str, hour: int, kind: Any, step: CommitStep | None) -> None:
        self.survive(
            kind,
            step,
            lambda: roll_hour(
                self.store, self.manifest, table, START + hour * HOUR, kind=kind, max_rows=3, hook=self.hook
            ),
        )

    @rule(step=st.sampled_from((None, *SWAP_STEPS)), ordinal=ORDINALS, files=st.none() | st.integers(0, 3))
    def erase(self, step: CommitStep | None, ordinal: int, files: int | None) -> None:
        left = iter(range(files)) if files is not None else None
        survived = self.survive(
            "erase",
            step,
            lambda: erase(
                self.store,
                self.manifest,
                workers=1,
                unfinished=self.unfinished,
                go_on=lambda: left is None or next(left, None) is not None,
                hook=self.hook,
            ),
            ordinal,
        )
        if not survived:
            self.unfinished = Unfinished()

    @rule()
    def settle(self) -> None:
        """A whole maintenance run: what has ended is gone from the files then."""
        settle(self.store, self.manifest)
        for table in self.manifest.snapshot().tables():
            for hour in sorted({file.hour_us for file in self.manifest.snapshot().files(table)}):
                roll_hour(self.store, self.manifest, table, hour)
        assert erase(self.store, self.manifest).complete
        self.settled = True

    @rule()
    def note_ends(self) -> None:
        """Maintenance writes the side files by which ends are found later."""
        snapshot = self.manifest.snapshot()
        ended_keys.sweep(self.store, snapshot)
        for file in ended_keys.missing(self.store, snapshot):
            ended_keys.build(self.store, file)

    @rule(
        hour=st.integers(0, 3),
        hours=st.integers(1, 3),
        step=st.sampled_from((None, *SWAP_STEPS)),
        ordinal=ORDINALS,
        dry=st.booleans(),
    )
    def replay(self, hour: int, hours: int, step: CommitStep | None, ordinal: int, dry: bool) -> None:
        plan = plan_replay(self.manifest, POST, START + hour * HOUR, START + (hour + hours) * HOUR)
        if not plan.hours:
            return
        staging = Staging(self.store, plan)
        for part in plan.ranges:
            # Today's code gives rows that can be told from those of the first time.
            events = [
                event | {"source_host": f"replay-{self.ticks}"}
                for event in self.log[POST, part.partition][part.first : part.end]
            ]
            staging.add(lake_rows(POST, events, part.partition, part.first), {part.partition: part.end})
        self.ticks += 1
        if not dry:
            self.settled = False
        self.survive(
            "replay", step, lambda: replace(self.store, self.manifest, staging, dry_run=dry, hook=self.hook), ordinal
        )
        staging.discard()

    @rule(step=st.sampled_from((None, CommitStep.FILE_UNLINKED)))
    def unlink(self, step: CommitStep | None) -> None:
        self.unlinked = True
        self.survive("unlink", step, lambda: unlink_retired(self.store, self.manifest, NEVER, hook=self.hook))

    @rule(
        step=st.sampled_from((CommitStep.FILE_WRITTEN, CommitStep.FILE_SYNCED)),
        what=st.sampled_from(("ingest", "roll", "erase")),
    )
    def fill_the_disk(self, step: CommitStep, what: str) -> None:
        """Whatever writes meets a full disk: nothing changes, and doing it again when there is room succeeds."""
        writer = self.writers[0]
        batch = self.next_batch(writer, 4)
        work: dict[str, Callable[[], Any]] = {
            "ingest": lambda: writer.write(self.hook, **batch),
            "roll": lambda: [
                roll_hour(self.store, self.manifest, POST, START + hour * HOUR, hook=self.hook) for hour in range(4)
            ],
            "erase": lambda: erase(self.store, self.manifest, workers=1, hook=self.hook),
        }
        before = self.manifest.snapshot().version
        self.full = step
        refused = False
        try:
            work[what]()
        except DiskFull:
            refused = True
            assert self.manifest.snapshot().version == before
            assert not list((self.folder / "lake" / ".tmp").iterdir())
        finally:
            self.full = None
        self.settled = self.settled and what != "ingest"
        if refused:
            # Otherwise nothing had to be written (all were repeats), and what was consumed is not consumed again.
            work[what]()

    @rule()
    def clean_up(self) -> None:
        settle(self.store, self.manifest)
        remove_orphans(self.store, self.manifest, NEVER)

    @rule()
    def lose_the_manifest(self) -> None:
        """Rebuilt from the files, the lake holds the same rows, and goes on where it was or re-reads what it has."""
        before, current, hosts = self.lake(), set(self.expected()), self.replayed()
        self.manifest.close()
        self.manifest = open_manifest(type(self).new_manifest_url(), create=True, hook=self.hook)
        undecided = rebuild(self.store, self.manifest).undecided
        self.fired.add("rebuilt")
        assert undecided or self.replayed() == hosts, "a replay was undone, or one won that was not swapped in"
        after = self.lake()
        for identity, text in before.items():
            # What has ended may be emptied in one file and not yet in the other that the rebuild could choose.
            assert after[identity] == text or not {after[identity], text} & current
        self.zombies.clear()
        self.readers.clear()
        self.unfinished = Unfinished()
        self.unlinked = False
        self.settled = False
        for partition in PARTITIONS:
            self.restart(partition)

    @rule()
    def begin_to_read(self) -> None:
        """A slow reader takes the newest version and its file list."""
        self.readers = [*self.readers[-2:], (self.manifest.snapshot().version, self.lake())]

    @precondition(lambda self: self.readers)
    @rule()
    def go_on_reading(self) -> None:
        """It sees the very rows it began with, unless the files were unlinked, which it is told."""
        version, seen = self.readers.pop()
        try:
            assert self.lake(version) == seen
        except SnapshotExpired:
            assert self.unlinked
        else:
            self.fired.add("old-version-read")

    # --- what must hold ---------------------------------------------------------------------------------------------

    def rows(self, table: str, version: int | None = None) -> Iterator[dict[str, Any]]:
        for file in self.manifest.snapshot(version).files(table):
            read = pq.read_table(self.folder / "lake" / file.path, partitioning=None)
            assert read.num_rows == file.rows
            yield from read.to_pylist()

    def replayed(self) -> dict[tuple[str, str], str]:
        """Which posts came from which replay, by account and rev."""
        return {
            (row["did"], row["rev_tid"]): row["source_host"]
            for row in self.rows(POST)
            if row["source_host"].startswith("replay")
        }

    def lake(self, version: int | None = None) -> dict[tuple[str, ...], str | None]:
        """Identity → text, and the proof that no identity is there twice."""
        found = {}
        for table in TABLES:
            for row in self.rows(table, version):
                row |= {
                    "rkey": str(row.get("rkey_tid")),
                    "rev": str(row.get("rev_tid")),
                    "relay_seq": row.get("relay_seq"),
                    "relay_time": row.get("relay_time"),
                }
                identity = row_identity(row)
                assert identity not in found, f"{identity} is in the lake twice"
                found[identity] = row.get("text")
        return found

    def consumed(self) -> dict[tuple[str, ...], Event]:
        """Identity → the event as first consumed, by the manifest's offsets."""
        offsets = {key: position.next_offset for key, position in self.manifest.offsets().items()}
        found: dict[tuple[str, ...], Event] = {}
        for (table, partition), events in self.log.items():
            for event in events[: offsets.get(TopicPartition(TABLE_TOPICS[table], partition), 0)]:
                row = {
                    "relay_seq": None,
                    "relay_time": None,
                    "rkey": None,
                    "rev": None,
                    "operation": None,
                    "collection": None,
                }
                row |= event
                row["rkey"], row["rev"] = _number(row["rkey"]), _number(row["rev"])
                found.setdefault(row_identity(row), event)
        return found

    @invariant()
    def every_consumed_event_is_there_once(self) -> None:
        if hasattr(self, "manifest"):
            assert self.lake().keys() == self.consumed().keys()

    @invariant()
    def answers_are_current(self) -> None:
        if not hasattr(self, "manifest"):
            return
        snapshot = self.manifest.snapshot()
        shown: list[str] = []
        # Each hour for itself, as somebody asks who wants no more than that.
        for _, group in itertools.groupby(snapshot.files(POST), lambda file: file.hour_us):
            files = list(group)
            since = min(file.since_us for file in files)
            rows = pa.concat_tables([self.store.read(file.path) for file in files])
            shown += current(rows, read_endings(self.store, snapshot, POST, since)).column("text").to_pylist()
        assert sorted(shown) == sorted(self.expected())

    @invariant()
    def what_was_erased_left_no_byte(self) -> None:
        if not hasattr(self, "manifest") or not self.settled:
            return
        alive = set(self.expected())
        for row in self.rows(POST):
            if row["operation"] != "delete" and row["text"] not in alive:
                assert row["erased"], row
                assert all(row[name] is None for name in content_columns(POST))

    @invariant()
    def the_books_close(self) -> None:
        if hasattr(self, "manifest"):
            assert [hour for hour in self.manifest.reconciliation(0, NEVER) if not hour.closes] == []
            assert verify(self.store, self.manifest, strays_older_than_us=0).findings == ()

    def expected(self) -> list[str]:
        """The texts of all current posts, folded one event at a time."""
        events = list(self.consumed().values())
        posts = [event for event in events if event["kind"] == "commit"]
        return [
            post["text"]
            for post in posts
            if post["operation"] != "delete"
            and not any(_replaces(other, post) for other in posts)
            and not any(_purges(event, post) for event in events)
        ]


def _number(text: str | None) -> str | None:
    if text is None:
        return "None"
    value = 0
    for character in text:
        value = value * 32 + "234567abcdefghijklmnopqrstuvwxyz".index(character)
    return str(value)


def _made_us(event: Event) -> int:
    return int(str(_number(event["rev"]))) >> 10


def _replaces(other: Event, post: Event) -> bool:
    same = (other["did"], other["rkey"]) == (post["did"], post["rkey"])
    ends = other["operation"] in ("update", "delete") or other["resync"]
    return bool(same and ends and other["rev"] > post["rev"])


def _purges(event: Event, post: Event) -> bool:
    if event["did"] != post["did"]:
        return False
    if event["kind"] == "account":
        return event["status"] == "deleted" and bool(post["time_us"] <= event["time_us"])
    return event["kind"] == "sync" and bool(post["rev"] < event["rev"])


def url_maker(folder: Path) -> Callable[[], str]:
    """URLs of ever new SQLite manifests."""
    numbers = iter(range(1 << 30))
    return lambda: str(folder / f"manifest-{next(numbers)}.db")

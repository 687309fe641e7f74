"""For random events of accounts, what /v1/authors counts equals a plain Python count, whatever maintenance did to the files and
whatever became of the index of accounts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.activity import Actor, share_of
from api.authors import AuthorPlan, run_author
from api.current import CurrentState
from api.engine import Engine
from api.records import RecordPlan, View, run_records
from api.relation import Lake
from api.snapshots import scan
from api.times import format_time
from lake import account_index
from lake.account_index import AccountIndex
from lake.bloom import FilterIndex
from lake.verify import verify
from tests.api.lake_builder import POST, START_US, LakeBuilder, did
from tests.api.test_filters_property import current

LIKE, PROFILE = "app.bsky.feed.like", "app.bsky.actor.profile"
COLLECTIONS = (POST, POST, LIKE, "com.example.one", "com.example.two", "com.example.one")
PEOPLE = 6


def some_events(builder: LakeBuilder, rng: random.Random, count: int) -> None:
    """Records of several collections with edits, deletions, downloads again, account states and syncs, over a day and more."""
    records = [event for event in builder.events if event["kind"] == "commit" and event["operation"] != "delete"]
    for number in range(count):
        builder.tick(rng.choice([0, 0.5, 30, 120, 1200]))
        author = did(rng.randrange(PEOPLE))
        choice = rng.random()
        if choice < 0.12 and records:
            builder.delete(rng.choice(records)["uri"])
        elif choice < 0.2 and records:
            old = rng.choice(records)
            records.append(record(builder, old["collection"], old["did"], "update", rkey=old["rkey"]))
        elif choice < 0.24:
            builder.tick(1)
            status = rng.choice(["deleted", "deactivated", "takendown", "throttled", None, None])
            builder.account(author, active=status is None, status=status)
        elif choice < 0.26:
            builder.sync(author)
        elif choice < 0.28:
            builder.identity(author, f"name{number}.example.com")
        elif choice < 0.36:
            records.append(record(builder, PROFILE, author, rkey="self", resync=rng.random() < 0.3))
        else:
            rkey = {"rkey": f"odd-{number}"} if rng.random() < 0.1 else {}
            records.append(record(builder, rng.choice(COLLECTIONS), author, resync=rng.random() < 0.05, **rkey))
        if number % 60 == 59:
            builder.commit()
    builder.commit()


def record(
    builder: LakeBuilder, collection: str, author: str, operation: str = "create", **values: Any
) -> dict[str, Any]:
    """A record of a table or, of a collection that has none, of the table `other`."""
    if collection == POST:
        return builder.post(author, "some text", operation=operation, **values)
    table = "other" if collection.startswith("com.") else collection
    return builder.record(table, author, operation, collection=collection, **values)


def index(builder: LakeBuilder) -> None:
    for file in account_index.missing(builder.root, builder.manifest.snapshot()):
        account_index.build(builder.store, file)


def fresh(builder: LakeBuilder, rng: random.Random) -> None:
    some_events(builder, rng, 150)


def rolled(builder: LakeBuilder, rng: random.Random) -> None:
    some_events(builder, rng, 150)
    builder.maintain(erasing=False)


def indexed(builder: LakeBuilder, rng: random.Random) -> None:
    rolled(builder, rng)
    index(builder)


def erased_and_indexed(builder: LakeBuilder, rng: random.Random) -> None:
    some_events(builder, rng, 150)
    builder.maintain()
    index(builder)


def grown(builder: LakeBuilder, rng: random.Random) -> None:
    """What the index knows, and behind it small files with what ends some of it."""
    some_events(builder, rng, 100)
    builder.maintain()
    index(builder)
    some_events(builder, rng, 60)


def outrun(builder: LakeBuilder, rng: random.Random) -> None:
    """Merged and erased again since the index was made: some files have a side file, the side files of others are of no file."""
    grown(builder, rng)
    builder.maintain()


def damaged(builder: LakeBuilder, rng: random.Random) -> None:
    """As indexed, with a byte of every second side file changed."""
    indexed(builder, rng)
    for path in sorted((builder.root / account_index.FOLDER).iterdir())[::2]:
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)


LAKES = (fresh, rolled, indexed, erased_and_indexed, grown, outrun, damaged)


class World:
    """One random lake with its truth."""

    def __init__(self, root: Path, make: Callable[[LakeBuilder, random.Random], None], seed: int) -> None:
        self.builder = LakeBuilder(root)
        self.builder.tick(9 * 3600)
        make(self.builder, random.Random(seed))
        self.events = [event for event in self.builder.events if event["kind"] == "commit"]
        self.standing = {
            (row["collection"], row["kafka_offset"])
            for collection in {event["collection"] for event in self.events}
            for row in current(self.builder.events, collection)
        }
        self.engine = Engine([self.builder.root], threads=1, memory_mb=512, spill_mb=256, spill_dir=root / "spill")
        root = self.builder.root
        self.lake = Lake(root, CurrentState(root, 2**20), FilterIndex(root), AccountIndex(root))
        self.snapshot = self.builder.manifest.snapshot()

    def author(self, who: str, start_us: int | None, end_us: int | None) -> dict[str, Any] | None:
        """What the API says of an account."""
        actor = Actor(who, start_us, end_us)
        tables = [table for table in self.snapshot.tables() if table not in ("identity", "account", "sync")]
        shares = [share_of(self.lake, scan(self.snapshot, table, start_us, end_us), actor) for table in tables]
        with self.engine.session() as session:
            return run_author(session, self.lake, AuthorPlan(self.snapshot, actor, shares, daily=True))

    def counted(self, who: str, start_us: int | None, end_us: int | None) -> dict[str, dict[str, Any]]:
        """Its activity, counted event by event."""
        found: dict[str, dict[str, Any]] = {}
        for event in self.events:
            if (
                event["did"] != who
                or (start_us is not None and event["time_us"] < start_us)
                or (end_us is not None and event["time_us"] >= end_us)
            ):
                continue
            row = found.setdefault(
                event["collection"],
                {"creates": 0, "updates": 0, "deletes": 0, "current": 0, "first": event["time_us"], "days": Counter()},
            )
            row[f"{event['operation']}s"] += 1
            row["current"] += (event["collection"], event["kafka_offset"]) in self.standing
            row["last"] = event["time_us"]
            if event["operation"] == "create":
                row["days"][format_time(event["time_us"])[:10]] += 1
        return found

    def close(self) -> None:
        self.engine.close()
        self.builder.close()


@pytest.fixture(scope="module", params=LAKES, ids=lambda make: make.__name__)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"), request.param, LAKES.index(request.param))
    yield made
    made.close()


MOMENTS = st.none() | st.integers(34, 90).map(lambda number: START_US + number * 900_000_000)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(who=st.integers(0, PEOPLE).map(did), start_us=MOMENTS, end_us=MOMENTS)
def test_activity_equals_a_plain_count(world: World, who: str, start_us: int | None, end_us: int | None) -> None:
    expected = world.counted(who, start_us, end_us)
    found = world.author(who, start_us, end_us)
    if found is None:
        assert not expected
        assert not any(
            event["did"] == who and event["kind"] in ("account", "identity") for event in world.builder.events
        )
        return
    rows = {row.pop("collection"): row for row in found["activity"]}
    days = {collection: row.pop("days") for collection, row in expected.items()}
    for row in expected.values():
        row |= {name: format_time(row[name]) for name in ("first", "last")}
    assert rows == expected
    by_day: dict[str, Counter[str]] = {}
    for collection, counts in days.items():
        for day, count in counts.items():
            by_day.setdefault(day, Counter())[collection] += count
    assert {row["day"]: row["creates"] for row in found["daily"]} == by_day
    assert [row["day"] for row in found["daily"]] == sorted(by_day)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pages_of_records_of_accounts_equal_a_plain_filter(world: World, data: st.DataObject) -> None:
    people = data.draw(st.lists(st.integers(0, PEOPLE).map(did), min_size=1, max_size=2, unique=True))
    collection = data.draw(st.sampled_from(sorted({event["collection"] for event in world.events})))
    view, newest_first = data.draw(st.sampled_from(View)), data.draw(st.booleans())
    table = "other" if collection.startswith("com.") else collection
    expected = [
        event["kafka_offset"]
        for event in world.events
        if event["did"] in people
        and event["collection"] == collection
        and (view is View.LOG or (collection, event["kafka_offset"]) in world.standing)
    ]
    limit = data.draw(st.sampled_from([1, 5, 1000]))
    found: list[int] = []
    cursor = None
    while True:
        plan = RecordPlan(
            scan=scan(world.snapshot, table, None, None),
            collection=collection,
            view=view,
            authors=tuple(people),
            rkey=None,
            rkey_value=None,
            operations=(),
            start_us=None,
            end_us=None,
            newest_first=newest_first,
            limit=limit,
            cursor=cursor,
            seconds=60,
        )
        with world.engine.session() as session:
            page, rows = run_records(session, world.lake, plan)
        found += [row["provenance"]["offset"] for row in rows]
        cursor = page.next
        if cursor is None:
            break
    assert found == (expected[::-1] if newest_first else expected)


def test_the_index_spares_reading_where_there_is_one(world: World, request: pytest.FixtureRequest) -> None:
    shares = [
        share_of(world.lake, scan(world.snapshot, table, None, None), Actor(did(1), None, None))
        for table in (POST, LIKE, "other")
    ]
    known = sum(len(share.known) for share in shares)
    make = request.node.callspec.params["world"]
    if make in (fresh, rolled):
        assert known == 0
    if make in (indexed, erased_and_indexed):
        assert known > 0
        assert not any(share.rest.files for share in shares)
    if make is grown:
        assert known > 0
        assert all(file.kind == "small" for share in shares for file in share.rest.files)


def test_what_was_replaced_is_swept_and_side_files_are_no_strays(tmp_path: Path) -> None:
    builder = LakeBuilder(tmp_path)
    kept, gone = builder.post(did(1), "stays"), builder.post(did(1), "goes")
    builder.tick(3600)
    builder.commit()
    builder.maintain()
    index(builder)
    (before,) = builder.manifest.snapshot().files(POST)
    builder.delete(gone["uri"])
    builder.account(did(2), active=False, status="deleted")
    builder.commit()
    builder.maintain()
    files = builder.manifest.snapshot().files(POST)
    assert before.sha256 not in {file.sha256 for file in files}
    accounts = AccountIndex(builder.root)
    assert [accounts.activity(file, did(1)) for file in files] == [None] * len(files), "not what the old file had"
    assert account_index.sweep(builder.root, builder.manifest.snapshot()) == 1
    assert not list((builder.root / account_index.FOLDER).glob(f"{before.sha256}*"))
    index(builder)
    standing = [part.standing for file in files for part in accounts.activity(file, did(1)) or ()]
    assert sum(standing) == 1, kept["uri"]
    checked = verify(builder.store, builder.manifest, deep=True, strays_older_than_us=2**62)
    assert (checked.findings, checked.strays.orphans, checked.strays.foreign) == ((), (), ())
    builder.close()

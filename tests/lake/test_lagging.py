"""Events that another host delivers hours or days after the first: dropped if the first copy was prompt, at no cost to the rest."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import HOUR, LIKE, POST, START, Writer, account_row, commit_row, lake_rows, sync_row, tid

from lake.dedupe import _ASKED, DedupeWindow
from lake.lagging import earlier_homes, made_hours
from lake.manifest import Manifest, open_manifest
from lake.replay import Staging, plan_replay, replace
from lake.roll import roll_hour
from lake.store import LakeStore

DAY = 24 * HOUR
MADE = START + 10 * HOUR


@pytest.fixture
def manifest(tmp_path: Any) -> Manifest:
    return open_manifest(str(tmp_path / "manifest.db"), create=True)


@pytest.fixture
def writer(store: LakeStore, manifest: Manifest) -> Writer:
    return Writer(store, manifest)


def relay_time(time_us: int) -> str:
    return str(np.datetime64(time_us, "us")) + "Z"


def rows_of(manifest: Manifest, table: str) -> int:
    return manifest.snapshot().total_rows(table)


EVENTS = {
    POST: commit_row(POST, 1, MADE),
    LIKE: commit_row(LIKE, 1, MADE),
    "odd key": commit_row(POST, 1, MADE) | {"rkey": "self"},
    "account": account_row(1, MADE, "suspended") | {"relay_time": relay_time(MADE)},
    "sync": sync_row(1, MADE),
}


@pytest.mark.parametrize("rolled", [False, True])
@pytest.mark.parametrize("later", [HOUR, 2 * HOUR - 1, 2 * HOUR, 3 * HOUR + 7, 6 * DAY + 23 * HOUR])
@pytest.mark.parametrize("name", EVENTS)
def test_a_copy_from_a_host_that_is_behind_is_dropped(
    store: LakeStore, manifest: Manifest, writer: Writer, name: str, later: int, rolled: bool
) -> None:
    table = POST if name == "odd key" else name
    event = EVENTS[name]
    writer.write(**{short(table): [event]})
    if rolled:
        roll_hour(store, manifest, table, MADE)
    copy = event | {"time_us": event["time_us"] + later, "source_host": "other"}
    check_dropped(writer, table, copy)


def check_dropped(writer: Writer, table: str, copy: dict[str, Any]) -> None:
    """The lake has one row, of the same event as `copy`, and keeps to it."""
    manifest = writer.manifest
    # After a restart, and by a writer that has had these hours in hand.
    for again in (Writer(writer.store, manifest), writer):
        again.positions = manifest.claim(list(again.positions), "again")
        again.write(**{short(table): [copy]})
        assert rows_of(manifest, table) == 1
    # What only looks like it stays: the same account and key, another rev.
    other = copy | {"rev": tid(MADE + 1, 1), "relay_seq": 77, "relay_time": relay_time(MADE + 1)}
    writer.positions = manifest.claim(list(writer.positions), "again")
    writer.write(**{short(table): [other]})
    assert rows_of(manifest, table) == 2


def short(table: str) -> str:
    return {POST: "post", LIKE: "like"}.get(table, table)


@pytest.mark.parametrize("count", [3, _ASKED + 1])
def test_a_host_that_repeats_everything_hours_later(
    store: LakeStore, manifest: Manifest, writer: Writer, count: int
) -> None:
    events = [commit_row(POST, who, MADE + who) for who in range(count)]
    writer.write(post=events)
    roll_hour(store, manifest, POST, MADE)
    # In two batches, and with something new in between.
    late = [event | {"time_us": event["time_us"] + 5 * HOUR} for event in events]
    new = commit_row(POST, count, MADE + 5 * HOUR, rev=tid(MADE + 3, 500))
    writer.write(post=late[: count // 2])
    writer.write(post=[*late[count // 2 :], new])
    writer.write(post=[new | {"time_us": new["time_us"] + 1}])
    assert rows_of(manifest, POST) == count + 1


def test_what_is_added_to_an_earlier_hour_is_known_there(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    events = [commit_row(POST, who, MADE + who) for who in range(2)]
    writer.write(post=events[:1])
    late = [event | {"time_us": event["time_us"] + 5 * HOUR} for event in events]
    # As if so many other hours had been touched that this one left the memory.
    writer.window._hours.clear()
    writer.write(post=late[:1])
    assert (POST, MADE) in writer.window._earlier
    writer.write(post=events[1:])
    writer.window._hours.clear()
    writer.write(post=late[1:])
    assert rows_of(manifest, POST) == 2


class CountingStore(LakeStore):
    """Counts the files that were opened."""

    opened = 0

    def open(self, path: str, dictionaries: list[str] | None = None) -> Any:
        self.opened += 1
        return super().open(path, dictionaries)


def test_rows_of_a_host_that_keeps_up_cost_no_read(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    for hour in range(8):
        writer.write(post=[commit_row(POST, who, START + hour * HOUR + who) for who in range(20)])
        roll_hour(store, manifest, POST, START + hour * HOUR)
    counting = CountingStore(store.root)
    window = DedupeWindow(counting, manifest)
    at = START + 8 * HOUR
    window.split(POST, lake_rows(POST, [commit_row(POST, 50, at)]))
    near = counting.opened
    assert near == 1, "the hour before"
    window.split(POST, lake_rows(POST, [commit_row(POST, 51, at, rev=tid(at - HOUR, 5))]))
    # Made long before, and with keys that no file of that time has.
    window.split(POST, lake_rows(POST, [commit_row(POST, 52, at, rev=tid(START + HOUR, 5))]))
    assert counting.opened == near
    window.split(POST, lake_rows(POST, [commit_row(POST, 3, at, key_us=START + HOUR + 3, rev=tid(START + HOUR, 9))]))
    assert counting.opened == near + 1


def test_a_copy_is_prompt_within_an_hour_of_its_making(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    event = commit_row(POST, 1, MADE)
    writer.write(post=[event | {"time_us": MADE + 5 * HOUR}])
    writer.write(post=[event | {"time_us": MADE + HOUR}])
    assert rows_of(manifest, POST) == 1


@pytest.mark.parametrize("rolled", [False, True])
@pytest.mark.parametrize("later", [HOUR, 2 * HOUR, 3 * HOUR + 7, 6 * DAY + 23 * HOUR])
@pytest.mark.parametrize("name", EVENTS)
def test_a_prompt_copy_that_follows_a_late_one_is_dropped(
    store: LakeStore, manifest: Manifest, writer: Writer, name: str, later: int, rolled: bool
) -> None:
    """What the producer asks of the next host after one that was behind: all that this one had not come to, and more."""
    table = POST if name == "odd key" else name
    event = EVENTS[name]
    writer.write(**{short(table): [event | {"time_us": event["time_us"] + later, "source_host": "behind"}]})
    if rolled:
        roll_hour(store, manifest, table, MADE + later)
    check_dropped(writer, table, event)


def test_a_later_file_is_read_once_and_a_new_one_is_noticed(
    store: LakeStore, manifest: Manifest, writer: Writer
) -> None:
    events = [commit_row(POST, who, MADE + who) for who in range(6)]
    late = [event | {"time_us": event["time_us"] + 5 * HOUR} for event in events]
    writer.write(post=late[:2])
    writer.window._store = counting = CountingStore(store.root)
    writer.window._late._store = counting
    writer.write(post=events[:1])
    writer.write(post=[events[1], commit_row(POST, 7, MADE)])
    assert counting.opened == 2, "when they were made, and which they are"
    writer.write(post=late[2:4])
    writer.write(post=events[2:])
    assert rows_of(manifest, POST) == 4 + 1 + 2


def test_memory_for_late_rows_is_bounded(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    events = [commit_row(POST, who, MADE + who) for who in range(64)]
    for first in range(0, 64, 8):
        later = (2 + first // 8) * HOUR
        writer.write(post=[event | {"time_us": event["time_us"] + later} for event in events[first : first + 8]])
    window = DedupeWindow(store, manifest, max_rows=8 * 24)
    new = commit_row(POST, 64, MADE)
    for _ in range(2):
        assert [part.rows.num_rows for part in window.split(POST, lake_rows(POST, [*events, new]))] == [1]
        assert 0 < window._late.rows <= 24
    window.forget()
    assert (window._late.rows, len(window._late._files)) == (0, 0)


def test_memory_for_earlier_hours_is_bounded(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    events = [commit_row(POST, who, START + hour * HOUR + who) for hour in range(12) for who in range(8)]
    writer.write(post=events)
    window = DedupeWindow(store, manifest, max_rows=8 * 40)
    late = [event | {"time_us": event["time_us"] + 40 * HOUR} for event in events]
    assert sum(hour.rows.num_rows for hour in window.split(POST, lake_rows(POST, late))) == 0
    assert sum(hour.rows() for hour in window._earlier.values()) <= 40
    window.forget()
    assert not window._earlier


def test_a_replay_does_not_bring_back_what_was_dropped(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    event = commit_row(POST, 1, MADE, text="first")
    other = commit_row(POST, 2, MADE + 5 * HOUR)
    copy = event | {"time_us": MADE + 5 * HOUR, "text": "copy"}
    writer.write(post=[event, commit_row(POST, 3, MADE + 5 * HOUR), copy, other])
    assert rows_of(manifest, POST) == 3
    for start in (MADE, MADE + 5 * HOUR):
        plan = plan_replay(manifest, POST, start, MADE + 6 * HOUR)
        staging = Staging(store, plan)
        events = [event, commit_row(POST, 3, MADE + 5 * HOUR), copy, other]
        staging.add(lake_rows(POST, events[plan.ranges[0].first :], 0, plan.ranges[0].first), {0: plan.ranges[0].end})
        replace(store, manifest, staging)
        assert texts(store, manifest).count("first") == 1
        assert "copy" not in texts(store, manifest)
        assert rows_of(manifest, POST) == 3


def test_a_replay_keeps_one_of_a_late_and_a_prompt_copy(store: LakeStore, manifest: Manifest, writer: Writer) -> None:
    event = commit_row(POST, 1, MADE, text="prompt")
    beside = commit_row(POST, 2, MADE)
    copy = event | {"time_us": MADE + 5 * HOUR, "text": "late"}
    events = [copy, beside, event]
    writer.write(post=events)
    writer.write(post=[])
    assert sorted(texts(store, manifest)) == sorted(["late", *texts_of(beside)])
    for start, end, expected in ((MADE, HOUR, "late"), (MADE + 5 * HOUR, HOUR, "late"), (MADE, 6 * HOUR, "prompt")):
        plan = plan_replay(manifest, POST, start, start + end)
        staging = Staging(store, plan)
        staging.add(lake_rows(POST, events[plan.ranges[0].first :], 0, plan.ranges[0].first), {0: plan.ranges[0].end})
        replace(store, manifest, staging)
        assert sorted(texts(store, manifest)) == sorted([expected, *texts_of(beside)])


def texts_of(*events: Any) -> list[str]:
    return list(lake_rows(POST, list(events)).column("text").to_pylist())


def texts(store: LakeStore, manifest: Manifest) -> list[str]:
    files = manifest.snapshot().files(POST)
    return [text for file in files for text in store.read(file.path, ["text"]).column("text").to_pylist()]


@given(lag=st.integers(0, 6 * DAY), offset=st.integers(-HOUR, HOUR), minute=st.integers(0, HOUR - 1))
def test_wherever_a_prompt_copy_lies_it_is_looked_for(lag: int, offset: int, minute: int) -> None:
    """The hour of a copy that was witnessed within an hour of its making is compared in any case, or one of the earlier homes."""
    hour_us = START + 8 * DAY
    made = hour_us + minute - lag
    # With clocks that are an hour apart, a copy may have been witnessed before it was made; of late rows that is covered too.
    first = made + (offset if lag >= 2 * HOUR else abs(offset))
    home = first - first % HOUR
    found = [hour for hour, places in earlier_homes(hour_us, np.array([made - made % HOUR])) if places.tolist() == [0]]
    assert abs(home - hour_us) <= HOUR or home in found
    assert all(hour < hour_us - HOUR for hour in found), "what is compared in any case"


def test_rows_that_do_not_tell_when_they_were_made_count_as_made_now() -> None:
    posts = lake_rows(POST, [commit_row(POST, 1, MADE) | {"rev": "no tid"}, commit_row(POST, 1, MADE, rev=tid(START))])
    assert made_hours(POST, posts).tolist() == [MADE, START]
    said = [None, "yesterday", relay_time(START + 5), "2026-01-01T03:00:00+02:00", "0001-01-01T00:00:00Z"]
    states = lake_rows("account", [account_row(1, MADE, None) | {"relay_time": text} for text in said])
    found = made_hours("account", states).tolist()
    assert found[:4] == [MADE, MADE, START, START + HOUR]
    assert found[4] <= 0, "so long ago that nobody looks"


COPIES = st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 50)), min_size=4, max_size=16)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 5)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("roll"), st.integers(0, 200)),
        st.tuples(st.just("replay"), st.integers(0, 200)),
    ),
    max_size=10,
)


@settings(max_examples=60, deadline=None)
@given(copies=COPIES, lag=st.sampled_from([HOUR, 2 * HOUR, 5 * HOUR + 1, 6 * DAY]), changes=CHANGES)
def test_late_and_prompt_copies_in_any_order_are_one_row(
    copies: list[tuple[int, bool, int]], lag: int, changes: list[tuple[str, int]]
) -> None:
    """One host is behind, another repeats everything; in between rows are rolled, replayed, and the writer is restarted."""
    log = [
        commit_row(POST, who, made + minute * 60_000_000 + late * lag, key_us=made, rev=tid(made, who))
        for who, late, minute, made in ((*copy, MADE + copy[0] * HOUR) for copy in copies)
    ]
    with TemporaryDirectory() as folder:
        store, manifest = LakeStore(Path(folder) / "lake"), open_manifest(f"{folder}/manifest.db", create=True)
        writer = Writer(store, manifest)
        done = 0
        for what, number in [*changes, ("write", len(log))]:
            hours = sorted({file.hour_us for file in manifest.snapshot().files(POST)})
            if what == "write":
                writer.write(post=log[done : done + number])
                done = min(done + number, len(log))
            elif what == "restart":
                writer = Writer(store, manifest)
            elif hours and what == "roll":
                roll_hour(store, manifest, POST, hours[number % len(hours)])
            elif hours:
                start, length = hours[number % len(hours)], 1 + number // len(hours) * HOUR
                plan = plan_replay(manifest, POST, start, start + length)
                staging = Staging(store, plan)
                for part in plan.ranges:
                    staging.add(lake_rows(POST, log[part.first : part.end], 0, part.first), {0: part.end})
                replace(store, manifest, staging)
            found = [
                who
                for file in manifest.snapshot().files(POST)
                for who in store.read(file.path, ["did"]).column("did").to_pylist()
            ]
            assert len(found) == len(set(found)) == len({who for who, _, _ in copies[:done]})
        manifest.close()

"""Event identity: every part of it counts, the hours beside count, and memory is bounded without forgetting anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import HOUR, LIKE, POST, START, Writer, account_row, commit_row, did, lake_rows, sync_row, tid

from lake.dedupe import DedupeWindow, identity_hashes
from lake.manifest import Manifest, open_manifest
from lake.store import LakeStore
from schemas.identity import row_identity


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return open_manifest(str(tmp_path / "manifest.db"), create=True)


@pytest.fixture
def window(store: LakeStore, manifest: Manifest) -> DedupeWindow:
    return DedupeWindow(store, manifest)


def new_rows(window: DedupeWindow, table: str, events: list[dict[str, Any]]) -> list[int]:
    """The places in `events` of those that are new; they are remembered."""
    kept = []
    for hour in window.split(table, lake_rows(table, events)):
        window.add(table, hour.hour_us, hour.hashes)
        assert hour.consumed == hour.rows.num_rows + hour.duplicates
        kept += hour.rows.column("kafka_offset").to_pylist()
    return sorted(kept)


POST_EVENT = commit_row(POST, 1, START)
ACCOUNT = account_row(1, START, "deleted")


@pytest.mark.parametrize(
    ("table", "event", "change"),
    [
        (POST, POST_EVENT, {"did": did(2)}),
        (POST, POST_EVENT, {"rkey": tid(START + 1)}),
        (POST, POST_EVENT, {"rkey": "text key"}),
        (POST, POST_EVENT | {"rkey": "one"}, {"rkey": "two"}),
        (POST, POST_EVENT, {"rev": tid(START + 1)}),
        (POST, POST_EVENT | {"rev": "one"}, {"rev": "two"}),
        (POST, POST_EVENT, {"operation": "update"}),
        ("other", POST_EVENT | {"collection": "com.example.a"}, {"collection": "com.example.b"}),
        ("account", ACCOUNT, {"did": did(2)}),
        ("account", ACCOUNT, {"relay_seq": 5}),
        ("account", ACCOUNT | {"relay_seq": 0, "relay_time": "a"}, {"relay_time": "b"}),
        ("account", ACCOUNT | {"relay_seq": None, "relay_time": "a"}, {"relay_time": "b"}),
        ("sync", sync_row(1, START), {"did": did(2)}),
        ("sync", sync_row(1, START), {"rev": tid(START + 1)}),
    ],
)
def test_each_part_of_an_identity_tells_events_apart(
    window: DedupeWindow, table: str, event: dict[str, Any], change: dict[str, Any]
) -> None:
    assert new_rows(window, table, [event, event | change, event]) == [0, 1]
    assert new_rows(window, table, [event | change, event]) == []


@pytest.mark.parametrize(
    ("table", "event", "change"),
    [
        (POST, POST_EVENT, {"source_host": "other", "seq": 77, "received_us": 1, "text": "another", "resync": True}),
        ("account", ACCOUNT, {"relay_time": "elsewhen", "status": "takendown"}),
        ("account", ACCOUNT | {"relay_seq": 0, "relay_time": "a"}, {"relay_seq": None}),
        ("sync", sync_row(1, START), {"relay_seq": 77}),
    ],
)
def test_nothing_else_does(window: DedupeWindow, table: str, event: dict[str, Any], change: dict[str, Any]) -> None:
    assert new_rows(window, table, [event]) == [0]
    assert new_rows(window, table, [event | change]) == []


@pytest.mark.parametrize("loaded", [True, False], ids=["in memory", "from the files"])
@pytest.mark.parametrize("moved", [-HOUR, -1, 0, 1, HOUR])
def test_a_copy_up_to_an_hour_earlier_or_later_is_known(
    store: LakeStore, manifest: Manifest, moved: int, loaded: bool
) -> None:
    writer = Writer(store, manifest)
    events = [
        commit_row(POST, who, START + 5 * HOUR + minute) for who, minute in enumerate((0, 1, HOUR // 2, HOUR - 1))
    ]
    writer.write(post=events)
    window = writer.window if loaded else DedupeWindow(store, manifest)
    copies = [event | {"time_us": event["time_us"] + moved} for event in events]
    assert new_rows(window, POST, copies) == []


def test_of_equal_rows_the_first_is_kept_wherever_it_lies(window: DedupeWindow) -> None:
    rng = np.random.default_rng(5)
    events = [commit_row(LIKE, int(who), START + int(who)) for who in rng.integers(0, 300, 2_000)]
    seen: set[tuple[str, ...]] = set()
    expected = []
    for place, event in enumerate(events):
        identity = row_identity({"relay_seq": None, "relay_time": None, **event})
        if identity not in seen:
            expected.append(place)
        seen.add(identity)
    assert new_rows(window, LIKE, events) == expected


def test_rows_of_many_small_batches_stay_known(window: DedupeWindow) -> None:
    events = [commit_row(POST, who, START + who) for who in range(80)]
    for event in events:
        assert new_rows(window, POST, [event]) == [0]
    assert new_rows(window, POST, events) == []
    assert window.rows == 80


def test_memory_is_bounded_and_what_left_it_is_read_again(store: LakeStore, manifest: Manifest) -> None:
    writer = Writer(store, manifest)
    writer.window = DedupeWindow(store, manifest, max_rows=60)
    events = [[commit_row(POST, who, START + hour * HOUR + who) for who in range(20)] for hour in range(9)]
    for hour in events:
        writer.write(post=hour)
        assert writer.window.rows <= 60
    for hour in events:
        assert new_rows(writer.window, POST, hour) == []


def test_what_is_not_committed_is_not_known(window: DedupeWindow) -> None:
    rows = lake_rows(POST, [POST_EVENT])
    for _ in range(2):
        (hour,) = window.split(POST, rows)
        assert hour.rows.num_rows == 1
    window.add(POST, hour.hour_us, hour.hashes)
    window.forget()
    (hour,) = window.split(POST, rows)
    assert hour.rows.num_rows == 1, "the lake is asked again, and has nothing"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=12))
def test_hashes_agree_with_the_contracts_identity(picks: list[tuple[int, int, int, bool]]) -> None:
    events = [
        commit_row(POST, who, START + rev, "delete" if gone else "create", START + key)
        | ({"rkey": f"key {key}"} if key == 2 else {})
        for who, key, rev, gone in picks
    ]
    rows: pa.Table = lake_rows(POST, events)
    identities = [row_identity({"relay_seq": None, "relay_time": None, **event}) for event in events]
    hashes = identity_hashes(POST, rows).tolist()
    assert len(set(hashes)) == len(set(identities))
    assert len(set(zip(hashes, identities, strict=True))) == len(set(identities))

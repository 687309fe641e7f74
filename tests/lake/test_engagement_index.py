"""Side files that say how often posts are named: what was counted is what is read, and damage makes nothing too low."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake import engagement_bounds, named_keys
from lake.engagement_bounds import UNKNOWN, read_bounds, read_head, update
from lake.manifest import HOUR_US, LiveFile
from lake.named_keys import DamagedError, may_name, named_of, read, units_of
from lake.named_places import file_id
from tests.api.lake_builder import POST, LakeBuilder, did

LIKE = "app.bsky.feed.like"
KEYS = st.one_of(
    st.integers(0, 2**63 - 1), st.integers(2**60, 2**60 + 2**36), st.sampled_from([0, 2**20 - 1, 2**20, 2**63 - 1])
)


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[LakeBuilder]:
    made = LakeBuilder(tmp_path)
    yield made
    made.close()


def rolled(builder: LakeBuilder, table: str) -> list[LiveFile]:
    return [file for file in builder.manifest.snapshot().files(table) if file.kind == "rolled"]


def index(builder: LakeBuilder) -> tuple[int, bool]:
    snapshot = builder.manifest.snapshot()
    for file in named_keys.missing(builder.root, snapshot):
        named_keys.build(builder.store, file)
    return update(builder.store, snapshot, lambda: True)


def fill(builder: LakeBuilder, likes: int = 30) -> list[str]:
    """Posts of two hours, of which the first ones are liked more, and one whose key is no TID."""
    posts = [builder.post(did(number % 3), f"text {number}") for number in range(8) if builder.tick(700)]
    posts.append(builder.post(did(4), "odd", rkey="self"))
    for number in range(likes):
        builder.tick()
        builder.record(LIKE, did(number), subject_uri=posts[number % 4]["uri"], subject_cid=posts[number % 4]["cid"])
    builder.record(LIKE, did(99), subject_uri=posts[8]["uri"])
    builder.commit()
    builder.maintain()
    return [post["uri"] for post in posts]


@settings(deadline=None)
@given(tids=st.lists(KEYS, max_size=60))
def test_named_keys_are_read_as_they_were_counted(tmp_path_factory: pytest.TempPathFactory, tids: list[int]) -> None:
    counts = Counter(tid >> 20 for tid in tids)
    named = named_of(*np.unique(units_of(np.array(tids, np.int64)), return_counts=True))
    path = tmp_path_factory.mktemp("named") / "x.named"
    path.write_bytes(named_keys._encoded(named))
    found = named_keys._open(path, body=True)
    assert dict(zip(found.units.tolist(), found.counts.tolist(), strict=True)) == counts
    hours = Counter[int]()
    for unit, count in counts.items():
        hours[unit // named_keys.HOUR_UNITS] += count
    for head in (found.head, named_keys._open(path, body=False).head):
        assert dict(zip(head.hours.tolist(), head.names.tolist(), strict=True)) == hours
    for number, hour in enumerate(found.head.hours.tolist()):
        mine = found.of_hour(number)
        assert {unit // named_keys.HOUR_UNITS for unit in found.units[mine].tolist()} == {hour}
        assert found.head.most[number] == max(found.counts[mine])


def test_a_flipped_bit_anywhere_lowers_nothing(builder: LakeBuilder, caplog: pytest.LogCaptureFixture) -> None:
    fill(builder)
    index(builder)
    (likes,), posts = rolled(builder, LIKE)[-1:], rolled(builder, POST)[0]
    folder = builder.root / named_keys.FOLDER
    named, head = read(builder.root, likes), read_head(builder.root, posts)
    assert named is not None
    assert head is not None
    bounds = read_bounds(builder.root, posts, head)
    assert bounds is not None
    absent = np.array([5 << 40], np.int64)
    assert may_name(builder.root, [likes], absent) == []
    path = folder / f"{likes.sha256}.named"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(DamagedError):
            read(builder.root, likes)
        assert may_name(builder.root, [likes], named.units[:1] << 20) == [likes]
    path.write_bytes(whole)
    path = folder / f"{posts.sha256}.bounds"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        assert read_bounds(builder.root, posts, head) is None, place
    assert "is damaged and not used" in caplog.text
    path.write_bytes(b"")
    assert read_head(builder.root, posts) is None


def test_bounds_say_how_often_each_row_is_named(builder: LakeBuilder) -> None:
    fill(builder)
    index(builder)
    found: Counter[int] = Counter()
    for file in rolled(builder, POST):
        head = read_head(builder.root, file)
        assert head is not None
        likes, reposts, replies = read_bounds(builder.root, file, head) or ()
        found.update(likes.tolist())
        assert set(reposts.tolist()) | set(replies.tolist()) <= {0, UNKNOWN}
    assert found == {8: 2, 7: 2, 0: 4, UNKNOWN: 1}


def test_bounds_are_made_anew_when_much_is_not_covered(builder: LakeBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = fill(builder)
    made = len(rolled(builder, POST))
    assert index(builder) == (made, True)
    assert index(builder) == (0, True)
    assert update(builder.store, builder.manifest.snapshot(), lambda: False) == (0, True)
    builder.tick(HOUR_US / 1e6)
    for number in range(10):
        builder.tick()
        builder.record(LIKE, did(number), subject_uri=uris[0])
    builder.commit()
    builder.maintain()
    assert index(builder) == (0, True), "a few more are added by whoever asks"
    monkeypatch.setattr(engagement_bounds, "_STALE_LEAST", 5)
    snapshot = builder.manifest.snapshot()
    assert update(builder.store, snapshot, lambda: False) == (0, False)
    assert update(builder.store, snapshot, lambda: True) == (1, True), "only the hour that they are about"
    assert index(builder) == (0, True)


def test_side_files_go_with_their_files(builder: LakeBuilder) -> None:
    uris = fill(builder)
    index(builder)
    folder = builder.root / named_keys.FOLDER
    before = {path.name for path in folder.iterdir()}
    assert named_keys.sweep(builder.root, builder.manifest.snapshot()) == 0
    assert engagement_bounds.sweep(builder.root, builder.manifest.snapshot()) == 0
    builder.tick()
    builder.delete(uris[0])
    builder.commit()
    builder.maintain()
    snapshot = builder.manifest.snapshot()
    gone = named_keys.sweep(builder.root, snapshot) + engagement_bounds.sweep(builder.root, snapshot)
    assert gone == len(before - {path.name for path in folder.iterdir()}) >= 2
    index(builder)
    files = {f"{file.sha256}.named" for table in named_keys.NAMING for file in snapshot.files(table)}
    assert {path.name for path in folder.iterdir()} == files | {f"{f.sha256}.bounds" for f in rolled(builder, POST)}


def test_a_damaged_side_file_is_removed_by_the_next_run(builder: LakeBuilder) -> None:
    fill(builder)
    for file in named_keys.missing(builder.root, builder.manifest.snapshot()):
        named_keys.build(builder.store, file)
    likes = rolled(builder, LIKE)[-1]
    path = builder.root / named_keys.FOLDER / f"{likes.sha256}.named"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    update(builder.store, builder.manifest.snapshot(), lambda: True)
    assert not path.exists()
    assert named_keys.missing(builder.root, builder.manifest.snapshot()) == [likes]
    for file in rolled(builder, POST):
        head = read_head(builder.root, file)
        assert head is not None
        assert file_id(likes) not in head.covered.tolist()

"""The account index says what a file has of an account or that it cannot tell, whatever happens to its side files."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import HOUR, START

from lake import account_index, account_pages
from lake.account_index import AccountIndex, Activity
from lake.convert import lake_schema
from lake.manifest import LiveFile
from lake.store import LakeStore

Row = tuple[str, str | None, str | None, str | None]
"""Account, collection, operation, why it is erased."""

_ABSENT = [f"did:plc:absent{number}" for number in range(200)]


def _write(store: LakeStore, rows: Sequence[Row], number: int = 0, table: str = "other") -> LiveFile:
    schema = lake_schema(table)
    columns = {field.name: pa.nulls(len(rows), field.type) for field in schema}
    for place, name in enumerate(("did", "collection", "operation", "erased")):
        columns[name] = pa.array([row[place] for row in rows], pa.string()).cast(schema.field(name).type)
    hour = START + number * HOUR
    columns["time"] = pa.array([hour] * len(rows), pa.timestamp("us"))
    made = store.write_table(
        pa.table(columns, schema=pa.schema([field.with_nullable(True) for field in schema])),
        table,
        hour,
        f"x{number}",
        kind="rolled",
    )
    return LiveFile(
        made.path, table, hour, made.rows, made.bytes, hour, hour, made.sha256, "rolled", 0, False, 0, 1, hour
    )


def _truth(rows: Sequence[Row], did: str) -> list[Activity]:
    """What the rows have of an account, counted one by one."""
    found = []
    mine = [row for row in rows if row[0] == did]
    for collection in sorted({row[1] for row in mine}, key=lambda name: (name is not None, name)):
        of = [row for row in mine if row[1] == collection]
        operations = Counter(row[2] for row in of)
        standing = sum(row[2] in ("create", "update") and row[3] is None for row in of)
        found.append(Activity(collection, operations["create"], operations["update"], operations["delete"], standing))
    return found


def _path(root: Path, file: LiveFile) -> Path:
    return root / account_index.FOLDER / f"{file.sha256}.accounts"


class _Snapshot:
    """The questions of a snapshot that the index asks."""

    def __init__(self, files: list[LiveFile]) -> None:
        self._files = files

    def tables(self) -> list[str]:
        return sorted({file.table for file in self._files})

    def files(self, table: str) -> list[LiveFile]:
        return [file for file in self._files if file.table == table]


_rows = st.lists(
    st.tuples(
        st.integers(0, 30).map(lambda number: f"did:plc:{number}"),
        st.sampled_from(["com.example.a", "com.example.b", 'odd"\n,[', "app.bsky.feed.post"]) | st.none(),
        st.sampled_from(["create", "update", "delete", "create"]) | st.none(),
        st.sampled_from(["delete", "edit", "account"]) | st.none(),
    ),
    min_size=1,
    max_size=200,
)


@settings(max_examples=80, deadline=None)
@given(rows=_rows, page=st.sampled_from([1, 64]))
def test_it_counts_what_the_file_has(rows: list[Row], page: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = LakeStore(tmp_path_factory.mktemp("lake"))
    file = _write(store, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(account_pages, "_PAGE_ACCOUNTS", page)
        account_index.build(store, file)
    index = AccountIndex(store.root)
    for did in {row[0] for row in rows}:
        assert list(index.activity(file, did) or ()) == _truth(rows, did)
    for did in _ABSENT:
        assert index.activity(file, did) == ()
    assert index.may_hold([file], _ABSENT) == []
    assert index.may_hold([file], [*_ABSENT, rows[0][0]]) == [file]


def test_more_kinds_than_there_are_numbers_leave_some_accounts_to_the_file(tmp_path: Path) -> None:
    rows: list[Row] = [
        (f"did:plc:{number}", "com.example.a", "create", None) for number in range(1, 301) for _ in range(number)
    ]
    store = LakeStore(tmp_path)
    file = _write(store, rows)
    account_index.build(store, file)
    index = AccountIndex(tmp_path)
    found = [index.activity(file, f"did:plc:{number}") for number in range(1, 301)]
    assert found.count(None) == 300 - 255
    for number, parts in enumerate(found, 1):
        assert parts is None or list(parts) == [Activity("com.example.a", number, 0, 0, number)]
        assert index.of([file], [f"did:plc:{number}"]) == [(file, parts)]
    assert index.of([file], ["did:plc:1", "did:plc:2", *_ABSENT]) in (
        [(file, tuple(Activity("com.example.a", count, 0, 0, count) for count in (1, 2)))],
        [(file, None)],
    )


def test_accounts_that_are_identified_alike_are_left_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alike(did: str) -> int:
        return int(did.rpartition(":")[2]) % 10 << 40

    for module in (account_index, account_pages):
        monkeypatch.setattr(module, "hash_of", alike)
    rows: list[Row] = [(f"did:plc:{number}", "com.example.a", "create", None) for number in (*range(30), 31, 35, 45)]
    store = LakeStore(tmp_path)
    file = _write(store, [row for row in rows if row[0][-1] not in "67"])
    account_index.build(store, file)
    index = AccountIndex(tmp_path)
    for digit in range(10):
        assert index.activity(file, f"did:plc:{digit}") == (() if digit in (6, 7) else None)
    alone = _write(store, [*rows[:9], *rows[:5]], 1)
    account_index.build(store, alone)
    for digit in range(9):
        count = 2 if digit < 5 else 1
        assert index.activity(alone, f"did:plc:{digit}") == (Activity("com.example.a", count, 0, 0, count),)


@pytest.fixture
def indexed(tmp_path: Path) -> tuple[LakeStore, LiveFile, list[Row]]:
    """A file of accounts of several kinds, with its side file, whose directory has two pieces."""
    store = LakeStore(tmp_path)
    rows: list[Row] = [
        (f"did:plc:{number}", f"com.example.{number % 40}", operation, None)
        for number in range(1500)
        for operation in itertools.islice(itertools.cycle(["create", "delete"]), number % 3 + 1)
    ]
    file = _write(store, rows)
    account_index.build(store, file)
    return store, file, rows


@pytest.mark.parametrize("first_read", [64, 8192])
def test_damage_anywhere_is_noticed_and_tells_nothing_wrong(
    indexed: tuple[LakeStore, LiveFile, list[Row]],
    first_read: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(account_pages, "_FIRST_READ", first_read)
    store, file, rows = indexed
    index = AccountIndex(store.root)
    path = _path(store.root, file)
    whole = path.read_bytes()
    dids = [f"did:plc:{number}" for number in range(0, 1500, 71)]
    truth = {did: _truth(rows, did) for did in dids} | {did: [] for did in _ABSENT[:10]}

    def look() -> int:
        """How many accounts it cannot tell of."""
        found = {did: index.activity(file, did) for did in truth}
        assert all(parts is None or list(parts) == truth[did] for did, parts in found.items())
        return list(found.values()).count(None)

    assert look() == 0
    assert not caplog.records
    noticed = 0
    places = [*range(40), *range(40, len(whole), 61), *range(len(whole) - 8, len(whole))]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        noticed += look() > 0
    assert noticed > len(places) // 4
    for length in (*range(20), *range(20, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        noticed += look()
        path.write_bytes(whole[:length] + bytes(len(whole) - length))
        look()
    path.write_bytes(b"")
    assert look() == len(truth)
    piece = slice(16, 16 + 136)
    path.write_bytes(whole[: piece.start] + whole[piece.stop : piece.stop + 136] + whole[piece.stop :])
    assert look() > 0, "whole, but in the place of another"
    path.write_bytes(whole[:3] + b"\x01" + whole[4:])
    assert look() == len(truth)
    assert "is damaged and not used" in caplog.text
    path.unlink()
    caplog.clear()
    assert look() == len(truth)
    path.mkdir()
    assert look() == len(truth)
    assert caplog.records, "not there is no damage, but what cannot be read is"


def test_bytes_of_two_neighbours_are_no_account() -> None:
    page = b"xABCD" + b"Exxxx" + b"ABCDE" + bytes([1, 2, 3])
    assert account_pages._kind_of(page, b"ABCDE") == 3
    assert account_pages._kind_of(page, b"BCDEx") is None


def test_the_index_follows_the_files_of_the_lake(tmp_path: Path) -> None:
    store = LakeStore(tmp_path)
    rows: list[Row] = [("did:plc:a", "com.example.a", "create", None)]
    old, new = _write(store, rows, 0), _write(store, rows, 1, "app.bsky.feed.like")
    small = LiveFile(*(getattr(new, name) if name != "kind" else "small" for name in LiveFile.__slots__))
    index = AccountIndex(tmp_path)
    assert account_index.missing(tmp_path, _Snapshot([old, new, small])) == [new, old]  # type: ignore[arg-type]
    assert index.may_hold([old, new], _ABSENT[:1]) == [old, new]
    for file in (old, new):
        assert account_index.build(store, file) == _path(tmp_path, file).stat().st_size
    assert account_index.missing(tmp_path, _Snapshot([old, new])) == []  # type: ignore[arg-type]
    assert index.may_hold([small, old, new], _ABSENT[:1]) == [small], "what a small file has is not known"
    left_behind = tmp_path / account_index.FOLDER / f"{old.sha256}.tmp"
    left_behind.write_bytes(b"half")
    assert account_index.sweep(tmp_path, _Snapshot([new])) == 2  # type: ignore[arg-type]
    assert not left_behind.exists()
    assert not _path(tmp_path, old).exists()
    assert index.may_hold([old, new], _ABSENT[:1]) == [old]


def test_a_file_without_rows_has_nobody(tmp_path: Path) -> None:
    store = LakeStore(tmp_path)
    file = _write(store, [])
    account_index.build(store, file)
    assert AccountIndex(tmp_path).activity(file, "did:plc:a") == ()

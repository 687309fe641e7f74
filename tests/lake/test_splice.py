"""A file without what ended, put together from the old one's bytes, is what reading and writing all of it gives."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support import HOUR, LIKE, POST, START, account_row, lake_rows

from lake import layout
from lake.bloom import FilterIndex
from lake.chunks import CannotSpliceError, read_parts
from lake.convert import EDIT, ERASED, lake_schema
from lake.dictionaries import joined
from lake.emptying import Ended, find_ended, together, without_ended
from lake.errors import FileDamaged
from lake.file_writer import WrittenFile
from lake.fold import Endings, content_columns, endings_of
from lake.layout import ARRIVAL, sort_keys
from lake.manifest import LiveFile
from lake.paths import sha256_of
from lake.splice import find_in_groups, splice
from lake.store import LakeStore
from lake.thrift import read_struct
from schemas.tables import TABLES

_NAMES = itertools.count()
_REASONS = ("delete", "update", "account", "sync")
Found = list[tuple[int, Ended | None]]


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several row groups, and bloom filters, in files of some hundred rows."""
    monkeypatch.setattr(layout, "_ROLLED_GROUP_ROWS", 60)
    monkeypatch.setattr(layout, "_LEAST_POST_ROWS", 16)
    monkeypatch.setattr(layout, "_POST_GROUPS", 8)
    monkeypatch.setattr(layout, "_BLOOM_FROM_ROWS", 1)
    monkeypatch.setitem(layout._LOOKED_UP, LIKE, {"did": 0.1, "subject_rkey_tid": 0.02})


def random_rows(table: str, count: int, seed: int) -> pa.Table:
    """Rows in which every text, key and digest of a content column occurs once, or is null."""
    random = np.random.default_rng(seed)
    content = set(content_columns(table))
    kept = {
        "time": START + np.sort(random.integers(0, HOUR, count)),
        "did": [f"did:plc:{number:024d}" for number in random.integers(0, 9, count)],
        "kind": ["commit"] * count,
        "operation": [("create", "update", "delete")[number] for number in random.choice(3, count, p=(0.8, 0.1, 0.1))],
        "collection": [table] * count,
        "kafka_partition": np.sort(random.integers(0, 3, count)),
        "kafka_offset": np.arange(count),
        "resync": [False] * count,
    }
    mark = random.random(count)
    erased = [EDIT if at < 0.1 else "delete" if at < 0.2 else None for at in mark]
    columns = []
    for field in lake_schema(table):
        if field.name == ERASED:
            values: Any = erased
        elif field.name in kept:
            values = kept[field.name]
        else:
            share = random.choice([0.0, 0.5, 1.0], p=(0.25, 0.5, 0.25))
            values = [_value(field, row, random) if random.random() < share else None for row in range(count)]
        if field.name in content:
            values = [None if why == "delete" else value for value, why in zip(values, erased, strict=True)]
        columns.append(
            pa.array(values, pa.int64() if pa.types.is_timestamp(field.type) else field.type).cast(field.type)
        )
    rows = pa.table(columns, schema=lake_schema(table))
    return rows if sort_keys(table) == ARRIVAL else rows.take(pa.array(random.permutation(count)))


def _value(field: pa.Field, row: int, random: np.random.Generator) -> Any:
    kind = field.type
    if pa.types.is_list(kind):
        return [f"<{field.name}:{row}:{number}>" for number in range(int(random.integers(0, 3)))]
    if pa.types.is_string(kind):
        return f"<{field.name}:{row}>"
    if pa.types.is_fixed_size_binary(kind):
        return random.bytes(32)
    if pa.types.is_boolean(kind):
        return bool(random.integers(0, 2))
    # As milliseconds the years 2004 to 2039.
    return int(random.integers(1 << 40, 1 << 41))


def written(store: LakeStore, table: str, rows: pa.Table) -> LiveFile:
    """A rolled file of the lake."""
    return _live(store.write_table(rows, table, START, f"n{next(_NAMES)}", kind="rolled"), table)


def _live(file: WrittenFile, table: str) -> LiveFile:
    return LiveFile(
        path=file.path,
        table=table,
        hour_us=START,
        rows=file.rows,
        bytes=file.bytes,
        min_time_us=file.min_time_us,
        max_time_us=file.max_time_us,
        sha256=file.sha256,
        kind="rolled",
        supersedes=0,
        pending=False,
        erased=file.erased,
        added_version=1,
        since_us=START,
    )


def random_ended(store: LakeStore, file: LiveFile, share: float, groups: float, seed: int) -> Found:
    """Some rows of some row groups, each with a reason that it may have."""
    random = np.random.default_rng(seed)
    marks = store.read(file.path, [ERASED]).column(ERASED).to_pylist()
    found: Found = []
    before = 0
    for rows in _groups(store, file):
        may = [row for row in range(rows) if marks[before + row] in (None, EDIT)]
        picked = [row for row in may if random.random() < share] if random.random() < groups else []
        reasons = [
            EDIT if marks[before + row] is None and random.random() < 0.2 else random.choice(_REASONS) for row in picked
        ]
        ended = Ended(np.array(picked, np.int64), pl.Series("reason", reasons, pl.String)) if picked else None
        found.append((rows, ended))
        before += rows
    return found


def _groups(store: LakeStore, file: LiveFile) -> list[int]:
    metadata = pq.read_metadata(store.absolute(file.path))
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def spliced(store: LakeStore, file: LiveFile, found: Found) -> LiveFile | None:
    """The file that `splice` makes."""
    content = splice(store, file, found)
    if content is None:
        return None
    with store.writer(file.table, START, f"n{next(_NAMES)}", kind="rolled", rows=file.rows, rewritten=True) as writer:
        writer.splice(content)
        writer.footer["test"] = "kept"
    return _live(writer.result(), file.table)


def rewritten(store: LakeStore, file: LiveFile, found: Found) -> pa.Table:
    """What reading and writing everything gives."""
    ended = together(found)
    assert ended is not None
    pieces = without_ended(joined(file.table, [store.read_merging(file.path)]), ended, file.table)
    return pa.concat_tables([piece.cast(lake_schema(file.table)) for piece in pieces])


def readings(store: LakeStore, file: LiveFile) -> Iterator[tuple[str, pa.Table]]:
    """The file as several programs read it."""
    path, schema = store.absolute(file.path), lake_schema(file.table)
    yield "pyarrow", store.read(file.path)
    yield "pyarrow with dictionaries", store.read_merging(file.path).cast(schema)
    with duckdb.connect() as connection:
        scan = f"FROM read_parquet('{path}', hive_partitioning = false)"
        yield "duckdb", pa.table(connection.sql(scan).arrow().read_all()).select(schema.names).cast(schema)
    frame = pl.read_parquet(path, hive_partitioning=False)
    yield "polars", frame.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)


def assert_same(store: LakeStore, file: LiveFile, expected: pa.Table) -> None:
    for program, rows in readings(store, file):
        for name in expected.column_names:
            assert rows.column(name).equals(expected.column(name)), (program, name)


def plain_bytes(path: Path) -> bytes:
    """All that a file has in it: the bytes themselves, and every page without its compression."""
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    footer, _ = read_struct(data[-8 - size : -8])
    found = [data]
    for group in footer[4].value.values:
        for entry in group[1].value.values:
            meta = entry[3].value
            place = meta[11].value if 11 in meta else meta[9].value
            end = place + meta[7].value
            while place < end:
                header, place = read_struct(data, place)
                body = data[place : place + header[3].value]
                plain = zstandard.ZstdDecompressor().decompress(body, max_output_size=header[2].value)
                found.append(plain)
                place += header[3].value
            assert place == end
    return b"\n".join(found)


def secrets(table: str, rows: pa.Table) -> list[bytes]:
    """What `grep` would look for: each text, digest and key of the content columns of rows."""
    found: list[bytes] = []
    for name in content_columns(table):
        for value in rows.column(name).to_pylist():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, str):
                    found.append(one.encode())
                elif isinstance(one, bytes):
                    found.append(one)
                elif name.endswith("_rkey_tid") and one is not None:
                    found.append(int(one).to_bytes(8, "little"))
    return found


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    # Rows come of a seed, which is no simpler when it is smaller.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(
    table=st.sampled_from(sorted(set(TABLES) - {"account"}) + [POST, LIKE] * 8),
    count=st.integers(1, 320),
    share=st.sampled_from([0.02, 0.2, 1.0]),
    groups=st.sampled_from([0.3, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_every_program_reads_what_rewriting_gives_and_nothing_is_left(
    store: LakeStore, table: str, count: int, share: float, groups: float, seed: int
) -> None:
    rows = random_rows(table, count, seed)
    file = written(store, table, rows)
    # Twice, so that a file which was put together is taken apart again.
    for again in range(2):
        found = random_ended(store, file, share, groups, seed + again)
        ended = together(found)
        if ended is None:
            return
        before = store.read(file.path)
        expected = rewritten(store, file, found)
        new = spliced(store, file, found)
        if new is None:
            assert sort_keys(table) != ARRIVAL
            return
        assert_same(store, new, expected)
        lost = before.take(pa.array(ended.losing))
        plain = plain_bytes(store.absolute(new.path))
        assert [secret for secret in secrets(table, lost) if secret in plain] == []
        assert (new.rows, new.min_time_us, new.max_time_us) == (file.rows, file.min_time_us, file.max_time_us)
        assert (new.sha256, new.bytes) == (sha256_of(store.absolute(new.path)), store.absolute(new.path).stat().st_size)
        marks = expected.column(ERASED)
        assert new.erased == pc.sum(pc.not_equal(marks, EDIT).fill_null(False)).as_py()
        assert store.footer(new.path)["test"] == "kept"
        assert_statistics_hold(store.absolute(new.path), expected)
        file = new


def assert_statistics_hold(path: Path, rows: pa.Table) -> None:
    """Least, greatest and nulls of each column chunk are those of its rows."""
    metadata, begin = pq.read_metadata(path), 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        piece = rows.slice(begin, group.num_rows)
        begin += group.num_rows
        assert group.total_byte_size == sum(
            group.column(place).total_uncompressed_size for place in range(group.num_columns)
        )
        for place in range(group.num_columns):
            column = group.column(place)
            values = piece.column(column.path_in_schema.split(".")[0])
            if column.statistics is None or pa.types.is_list(values.type):
                continue
            assert column.statistics.null_count == values.null_count
            if column.statistics.has_min_max and column.physical_type == "BYTE_ARRAY":
                known = sorted(value.encode() for value in values.drop_null().to_pylist())
                assert (column.statistics.min.encode(), column.statistics.max.encode()) == (known[0], known[-1])
    assert begin == rows.num_rows == metadata.num_rows


def _pages(store: LakeStore, file: LiveFile) -> list[dict[str, bytes]]:
    """The bytes of each column chunk, by row group."""
    parts = read_parts(memoryview(store.absolute(file.path).read_bytes()))
    return [{chunk.column: bytes(chunk.pages) for chunk in group.chunks} for group in parts.groups]


def _only(store: LakeStore, file: LiveFile, group: int, places: Sequence[int], reason: str = "delete") -> Found:
    ended = Ended(np.array(places, np.int64), pl.Series("reason", [reason] * len(places), pl.String))
    return [(rows, ended if number == group else None) for number, rows in enumerate(_groups(store, file))]


def _with_content(table: str, count: int, seed: int = 5) -> pa.Table:
    rows = random_rows(table, count, seed)
    return rows.set_column(rows.column_names.index(ERASED), rows.schema.field(ERASED), [pa.nulls(count, pa.string())])


def test_likes_are_copied_but_for_the_columns_that_lose_something(store: LakeStore) -> None:
    rows = _with_content(LIKE, 150)
    text = rows.column("created_at_text").to_pylist()
    text[65] = None
    rows = rows.set_column(rows.column_names.index("created_at_text"), rows.schema.field("created_at_text"), [text])
    file = written(store, LIKE, rows)
    new = spliced(store, file, _only(store, file, 1, [5]))
    assert new is not None
    old, found = _pages(store, file), _pages(store, new)
    assert [found[number] == old[number] for number in range(3)] == [True, False, True]
    changed = {name for name in found[1] if found[1][name] != old[1][name]}
    lost = {name for name in content_columns(LIKE) if rows.column(name)[65].is_valid}
    assert changed == lost | {ERASED}
    assert "created_at_text" not in changed


def test_posts_are_copied_but_for_row_groups_that_lose_a_row(store: LakeStore) -> None:
    file = written(store, POST, _with_content(POST, 300))
    new = spliced(store, file, _only(store, file, 2, [3, 4]))
    assert new is not None
    old, found = _pages(store, file), _pages(store, new)
    assert [number for number in range(len(old)) if found[number] != old[number]] == [2]
    assert _groups(store, new) == [*[38] * 2, 36, *[38] * 4, 34, 2]


def test_tombstones_of_many_passes_share_one_row_group_until_it_is_as_large_as_the_others(store: LakeStore) -> None:
    file = written(store, POST, _with_content(POST, 300))
    for number in range(300):
        found = _only(store, file, number % 7, [0])
        new = spliced(store, file, found)
        if new is None:
            break
        file = new
        assert _groups(store, file)[-1] == number + 1
        assert len(_groups(store, file)) == 9
    assert number == 38
    marks = store.read(file.path, [ERASED]).column(ERASED).to_pylist()
    assert marks == [None] * 262 + ["delete"] * 38


def test_an_edit_kept_by_setting_leaves_with_its_content_and_loses_it_later(store: LakeStore) -> None:
    rows = _with_content(POST, 300)
    file = written(store, POST, rows)
    content = secrets(POST, rows.slice(38, 1))
    kept = spliced(store, file, _only(store, file, 1, [0], EDIT))
    assert kept is not None
    plain = plain_bytes(store.absolute(kept.path))
    assert content
    assert all(secret in plain for secret in content)
    assert (kept.erased, file.erased) == (0, 0)
    gone = spliced(store, kept, _only(store, kept, 8, [0]))
    assert gone is not None
    assert gone.erased == 1
    assert _groups(store, gone) == _groups(store, kept)
    plain = plain_bytes(store.absolute(gone.path))
    assert not any(secret in plain for secret in content)


def test_what_most_row_groups_lose_is_laid_out_anew(store: LakeStore) -> None:
    file = written(store, POST, _with_content(POST, 300))
    one = Ended(np.array([0]), pl.Series("reason", ["delete"]))
    few = [(rows, one if number < 3 else None) for number, rows in enumerate(_groups(store, file))]
    most = [(rows, one if number < 5 else None) for number, rows in enumerate(_groups(store, file))]
    assert splice(store, file, few) is not None
    assert splice(store, file, most) is None


def test_damage_to_bytes_that_would_only_be_copied_is_seen(store: LakeStore) -> None:
    file = written(store, LIKE, _with_content(LIKE, 150))
    path = store.absolute(file.path)
    found = _only(store, file, 1, [5])
    data = path.read_bytes()
    (chunk,) = (chunk for chunk in read_parts(memoryview(data)).groups[2].chunks if chunk.column == "cid")
    torn = bytearray(data)
    torn[chunk.begin + len(chunk.pages) // 2] ^= 1
    path.write_bytes(torn)
    with pytest.raises(FileDamaged, match="digest"):
        splice(store, file, found)
    path.unlink()
    with pytest.raises(FileDamaged):
        splice(store, file, found)


def test_files_that_are_laid_out_otherwise_are_written_anew(store: LakeStore) -> None:
    rows = _with_content(LIKE, 50)
    file = written(store, LIKE, rows)
    path, found = store.absolute(file.path), _only(store, file, 0, [1])
    assert splice(store, file, found) is not None
    for other in (
        lambda: pq.write_table(rows, path, write_page_index=True, store_schema=False),
        lambda: pq.write_table(rows.drop_columns(["seq"]), path, store_schema=False),
        lambda: pq.write_table(rows, path, store_schema=False, version="1.0"),
        lambda: pl.DataFrame(rows).write_parquet(path),
    ):
        other()
        changed = replace(file, sha256=sha256_of(path))
        assert splice(store, changed, found) is None
    for data in (b"", b"PAR1", b"PAR1" * 4, b"PAR1\0\0\0\0PAR1", b"PAR1" + b"\xff" * 20 + b"\x14\0\0\0PAR1"):
        with pytest.raises(CannotSpliceError):
            read_parts(memoryview(data))


def test_bloom_filters_know_what_is_left_and_nothing_else(store: LakeStore) -> None:
    file = written(store, LIKE, _with_content(LIKE, 50).set_column(
        lake_schema(LIKE).names.index("subject_rkey_tid"),
        lake_schema(LIKE).field("subject_rkey_tid"),
        [list(range(1000, 1050))],
    ))  # fmt: skip
    new = spliced(store, file, _only(store, file, 0, range(25)))
    assert new is not None
    index = FilterIndex(store.root)
    dids = store.read(new.path).column("did").to_pylist()
    assert all(index.may_hold([new], {"did": [did]}) for did in dids)
    assert not index.may_hold([new], {"did": ["did:plc:nobody"]})
    assert all(index.may_hold([new], {"subject_rkey_tid": [key]}) for key in range(1025, 1050))
    # Each is taken for one that is there once in fifty times.
    assert sum(bool(index.may_hold([new], {"subject_rkey_tid": [key]})) for key in range(1000, 1025)) < 8


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=st.sampled_from([POST, LIKE, "identity"]),
    seed=st.integers(0, 2**32),
    who=st.sets(st.integers(0, 12), max_size=3),
    records=st.booleans(),
    keep_edits=st.booleans(),
)
def test_what_ended_is_found_group_by_group(
    store: LakeStore, table: str, seed: int, who: set[int], records: bool, keep_edits: bool
) -> None:
    rows = random_rows(table, 150, seed)
    file = written(store, table, rows)
    endings = _endings(rows if records and table != "identity" else rows.slice(0, 0), who)
    found = find_in_groups(store, file, endings, keep_edits=keep_edits)
    assert [count for count, _ in found] == _groups(store, file)
    whole = find_ended(table, joined(table, [store.read_merging(file.path)]), endings, keep_edits=keep_edits)
    ended = together(found)
    assert (ended is None) == (whole is None)
    if ended is not None and whole is not None:
        assert ended.places.tolist() == whole.places.tolist()
        assert ended.reasons.to_list() == whole.reasons.to_list()


def _endings(rows: pa.Table, who: set[int]) -> Endings:
    accounts = lake_rows("account", [account_row(0, START + HOUR // 2, "deleted")] * len(who))
    names = pa.array([f"did:plc:{number:024d}" for number in who], pa.string())
    accounts = accounts.set_column(accounts.column_names.index("did"), accounts.schema.field("did"), [names])
    return endings_of([rows] if rows.num_rows else [], [accounts])

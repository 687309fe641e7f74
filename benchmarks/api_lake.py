"""A lake of many days for the API's benchmark: rolled hour files with their indexes, made natively at about 20,000 rows a second.

Rows are generated as lake columns (numpy and Arrow, no Python per row) and go through the lake's own sorting, erasing and
writing (`lake.merge.row_groups`, `LakeStore.writer`), its manifest and its indexes. Words follow Zipf's law in eleven
languages of the simulator; each language has a long tail of which every day uses another window, so that a rare word occurs
on about three days. Of the posts 3 % are deleted: those of the last day are still pending, spread over the two days before;
all others are erased in the files. For every post there are LIKES likes, REPOSTS reposts and FOLLOWS follows.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from benchmarks.api_rows import (
    FOLLOW,
    HOUR_US,
    LIKE,
    POST,
    REPOST,
    START_US,
    Pool,
    delete_rows,
    link_rows,
    post_rows,
)
from benchmarks.api_texts import Texts, languages
from lake import account_index, engagement_bounds, named_keys, text_index
from lake.commit import superseding_rows
from lake.convert import lake_schema
from lake.dictionaries import joined
from lake.fold import endings_of
from lake.manifest import Advance, Commit, Manifest, NewFile, Span, TopicPartition, open_manifest
from lake.merge import Merge, row_groups
from lake.store import LakeStore
from schemas.topics import TABLE_TOPICS

LIKES, REPOSTS, FOLLOWS = 2.0, 0.2, 0.2
DELETED: Final = 0.03
_PROCESSES: Final = 2
_POOL_HOURS: Final = 6
_RESUME_HOURS: Final = 24
"""Hours before a missing one that are made again in memory when a build goes on: what its likes and deletions are about."""


class Filler:
    """Fills hours of a lake, one partition per process."""

    def __init__(self, folder: Path, partition: int) -> None:
        self._store = LakeStore(folder / "lake")
        self._manifest = open_manifest(str(folder / "manifest.sqlite"))
        self._partition = partition
        self._offsets = {
            place.topic: position.next_offset
            for place, position in self._manifest.offsets().items()
            if place.partition == partition
        }
        snapshot = self._manifest.snapshot()
        self._made = {(table, file.hour_us) for table in snapshot.tables() for file in snapshot.files(table)}
        self._epochs: dict[str, int] = {}
        self._writers = [Texts(language) for language in languages()]
        self.pool: Pool | None = None
        self.earlier: list[Pool] = []

    def has(self, hour_us: int) -> bool:
        """Whether an hour was written before."""
        return all((table, hour_us) in self._made for table in (POST, LIKE, REPOST, FOLLOW))

    def hour(self, hour_us: int, rows: int, *, pending: bool) -> None:
        """Write what is missing of one hour of all tables."""
        rng = np.random.default_rng([hour_us // HOUR_US])
        posts, new = post_rows(rng, hour_us, rows, self._writers, self.pool)
        gone = int(rows * DELETED)
        if pending and self.earlier:
            older = self.earlier[int(rng.integers(0, len(self.earlier)))]
            deletes = delete_rows(rng, hour_us, older, rng.choice(len(older.tids), min(gone, len(older.tids)), False))
        else:
            early = np.flatnonzero(new.tids >> 10 < hour_us + HOUR_US // 2)
            deletes = delete_rows(rng, hour_us, new, rng.choice(early, min(gone, len(early)), False))
        everything = pa.concat_tables([posts, deletes]).sort_by("time")
        pool = new if self.pool is None else self.pool.with_more(new, _POOL_HOURS * rows)
        self._write(POST, hour_us, everything, deletes, pending)
        for table, share in ((LIKE, LIKES), (REPOST, REPOSTS), (FOLLOW, FOLLOWS)):
            self._write(table, hour_us, link_rows(table, rng, hour_us, int(rows * share), pool), None, pending)
        self.pool = pool
        self.earlier.append(Pool(new.authors[::8], new.tids[::8], new.cids[:0], new.weights[:0]))
        del self.earlier[:-48]

    def _write(self, table: str, hour_us: int, rows: pa.Table, deletes: pa.Table | None, pending: bool) -> None:
        if (table, hour_us) in self._made:
            return
        topic = TABLE_TOPICS[table]
        partition = TopicPartition(topic, self._partition)
        if table not in self._epochs:
            self._epochs[table] = self._manifest.claim([partition], "benchmark")[partition].epoch
        first = self._offsets.get(topic, 0)
        after = first + rows.num_rows
        offsets = pa.array(np.arange(first, after))
        rows = rows.set_column(rows.schema.get_field_index("kafka_offset"), "kafka_offset", offsets)
        numbers = pa.array(np.full(rows.num_rows, self._partition, np.int32))
        rows = rows.set_column(rows.schema.get_field_index("kafka_partition"), "kafka_partition", numbers)
        rows = rows.cast(lake_schema(table))
        endings = None if deletes is None or pending else endings_of([deletes], [], [])
        name = f"benchmark-{self._partition}-{first}"
        with self._store.writer(table, hour_us, name, kind="rolled", rows=rows.num_rows) as writer:
            for piece in row_groups(joined(table, [rows]), Merge(table, hour_us, "rolled", endings)):
                writer.write(piece)
        made = writer.result()
        ends = superseding_rows(table, rows)
        file = NewFile(
            made.path,
            table,
            hour_us,
            made.rows,
            made.bytes,
            made.min_time_us,
            made.max_time_us,
            made.sha256,
            "rolled",
            ends,
            (Span(topic, self._partition, first, after - 1, rows.num_rows),),
            pending and ends > 0,
            made.erased,
        )
        advance = Advance(topic, self._partition, first, after, self._epochs[table])
        self._manifest.commit(Commit(f"{table}-{self._partition}-{first}", (advance,), (file,)))
        self._offsets[topic] = after

    def close(self) -> None:
        """Close the manifest."""
        self._manifest.close()


def _fill(folder: str, partition: int, first_day: int, end_day: int, last_day: int, rows: int) -> None:
    os.nice(10)
    pa.set_cpu_count(1)
    filler = Filler(Path(folder), partition)
    hours = range(first_day * 24, end_day * 24)
    missing = next((hour for hour in hours if not filler.has(START_US + hour * HOUR_US)), hours.stop)
    for hour in hours[max(0, missing - _RESUME_HOURS - hours.start) :]:
        started = time.monotonic()
        filler.hour(START_US + hour * HOUR_US, rows, pending=hour // 24 == last_day)
        if hour % 24 == 0:
            print(f"day {hour // 24}: {time.monotonic() - started:.1f} s for its first hour", flush=True)
    filler.close()


def _index(folder: str, part: int) -> None:
    """Make the side files that are missing, as maintenance does; each process those of every so many-th file."""
    os.nice(10)
    store = LakeStore(Path(folder) / "lake")
    manifest = open_manifest(str(Path(folder) / "manifest.sqlite"))
    snapshot = manifest.snapshot()
    for index in (text_index, account_index, named_keys):
        for file in sorted(index.missing(store.root, snapshot), key=lambda file: file.path):
            if file.hour_us // HOUR_US % _PROCESSES == part:
                index.build(store, file)
    manifest.close()


def _index_bytes(folder: Path) -> dict[str, int]:
    return {
        name: sum(path.stat().st_size for path in (folder / "lake" / index).glob("*"))
        for name, index in (
            ("index_bytes", text_index.FOLDER),
            ("account_bytes", account_index.FOLDER),
            ("engagement_bytes", named_keys.FOLDER),
        )
    }


def build(folder: Path, days: int, per_day: int) -> dict[str, Any]:
    """Write the lake unless `folder` has one of the same size, and the side files that it lacks; returns what it holds. Blocks for
    about 5 core seconds an hour of 96,000 posts."""
    facts_path = folder / f"facts-{days}-{per_day}.json"
    if not facts_path.exists():
        _write(folder, days, per_day)
    _run(_index, [(str(folder), number) for number in range(_PROCESSES)])
    manifest = open_manifest(str(folder / "manifest.sqlite"))
    snapshot = manifest.snapshot()
    store = LakeStore(folder / "lake")
    for index in (text_index, account_index, named_keys, engagement_bounds):
        index.sweep(store.root, snapshot)
    engagement_bounds.update(store, snapshot, lambda: True)
    facts = _facts(folder, manifest)
    manifest.close()
    facts_path.write_text(json.dumps(facts))
    return facts


def _write(folder: Path, days: int, per_day: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    open_manifest(str(folder / "manifest.sqlite"), create=True).close()
    rows = max(1, per_day // 24)
    edges = [days * number // _PROCESSES for number in range(_PROCESSES + 1)]
    _run(
        _fill,
        [
            (str(folder), number, first, end, days - 1, rows)
            for number, (first, end) in enumerate(itertools.pairwise(edges))
            if end > first
        ],
    )


def _run(body: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Run a function in a process for each of some arguments. Raises SystemExit when one fails."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=body, args=one, daemon=True) for one in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise SystemExit(f"a process that makes the lake ended with {worker.exitcode}")


def _facts(folder: Path, manifest: Manifest) -> dict[str, Any]:
    snapshot = manifest.snapshot()
    totals = {table: snapshot.totals(table) for table in snapshot.tables()}
    return {
        "rows": totals[POST].rows,
        "bytes": totals[POST].bytes,
        "files": totals[POST].files,
        "others": {table: total.rows for table, total in totals.items() if table != POST},
        "all_bytes": sum(total.bytes for total in totals.values()),
        **_index_bytes(folder),
    }

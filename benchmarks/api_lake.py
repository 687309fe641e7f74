"""A lake of many days for the API's benchmark: rolled hour files with text index, made natively at about 20,000 rows a second.

Rows are generated as lake columns (numpy and Arrow, no Python per row) and go through the lake's own sorting, erasing and
writing (`lake.merge.row_groups`, `LakeStore.writer`), its manifest and its text index. Words follow Zipf's law in eleven
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
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lake import text_index
from lake.commit import superseding_rows
from lake.convert import lake_schema
from lake.dictionaries import joined
from lake.fold import endings_of
from lake.manifest import Advance, Commit, Manifest, NewFile, Span, TopicPartition, open_manifest
from lake.merge import Merge, row_groups
from lake.store import LakeStore
from schemas.topics import TABLE_TOPICS
from simulator.vocabulary import build_vocabularies

POST: Final = "app.bsky.feed.post"
LIKE: Final = "app.bsky.feed.like"
REPOST: Final = "app.bsky.feed.repost"
FOLLOW: Final = "app.bsky.graph.follow"
HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
START_US: Final = 1_790_000_000_000_000 // DAY_US * DAY_US
AUTHORS: Final = 500_000
LIKES, REPOSTS, FOLLOWS = 2.0, 0.2, 0.2
DELETED: Final = 0.03
_PROCESSES: Final = 2
_POOL_HOURS: Final = 6
_TAIL_STEP: Final = 0.4
"""Share of the window of rare words that a day replaces."""

Numbers = npt.NDArray[np.int64]


# --- words ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Language:
    """Words by falling frequency: those of the simulator, then a window of `window` rare ones, another one each day."""

    tag: str
    share: float
    glue: str
    known: tuple[str, ...]
    window: int

    def tail(self, number: int) -> str:
        """The rare word of a number."""
        rng = np.random.default_rng([number, *self.tag.encode()])
        return "".join(self.known[place] for place in rng.integers(120, len(self.known), 2))

    def first_rare(self, day: int) -> int:
        """Number of the first rare word of a day's window."""
        return int(day * self.window * _TAIL_STEP)


@cache
def languages() -> tuple[Language, ...]:
    """All languages; the shares add up to one."""
    found = build_vocabularies()
    total = sum(one.share for one in found)
    return tuple(
        Language(
            one.tag,
            one.share / total,
            one.glue.decode(),
            tuple(word.decode() for word in one.words),
            40_000 if one.share > 0.1 else 8_000,
        )
        for one in found
    )


def rare_word(day: int, tag: str = "en", place: float = 0.5) -> str:
    """A word that some dozen posts of a day (and one or two before or after it) hold; `place` 0 is the most frequent."""
    language = next(one for one in languages() if one.tag == tag)
    return language.tail(language.first_rare(day) + int(place * (language.window - 1)))


def known_word(rank: int, tag: str = "en") -> str:
    """A word of every hour; rank 0 is the most frequent."""
    return next(one for one in languages() if one.tag == tag).known[rank]


class Texts:
    """Writes texts of one language; keeps the window of one day."""

    def __init__(self, language: Language) -> None:
        self.language = language
        ranks = np.arange(len(language.known) + language.window)
        self._cumulative = np.cumsum(1 / (ranks + 2.7) ** 1.07)
        self._cumulative /= self._cumulative[-1]
        self._day = -1
        self._tails: dict[int, str] = {}
        self._words = pa.array([], pa.string())

    def write(self, rng: np.random.Generator, day: int, rows: int) -> pa.Array:
        """That many texts of a day."""
        if day != self._day:
            first = self.language.first_rare(day)
            numbers = range(first, first + self.language.window)
            self._tails = {number: self._tails.get(number) or self.language.tail(number) for number in numbers}
            self._words = pa.array([*self.language.known, *self._tails.values()], pa.string())
            self._day = day
        lengths = np.clip(rng.lognormal(2.2, 0.8, rows), 1, 45).astype(np.int32)
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        picks = np.searchsorted(self._cumulative, rng.random(int(offsets[-1])))
        lists = pa.ListArray.from_arrays(pa.array(offsets), self._words.take(pa.array(picks)))
        texts = pc.binary_join(lists, self.language.glue)
        ends = pa.array([".", "!", "?", "", "…", " 😂"]).take(pa.array(rng.integers(0, 6, rows)))
        whole = pc.binary_join_element_wise(texts, ends, "")
        return pc.if_else(pa.array(rng.random(rows) < 0.6), pc.utf8_capitalize(whole), whole)


# --- rows -------------------------------------------------------------------------------------------------------------


@cache
def accounts() -> pa.Array:
    """The DIDs."""
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz234567", np.uint8)
    names = letters[np.random.default_rng(5).integers(0, 32, (AUTHORS, 24))]
    return pa.array([f"did:plc:{name.tobytes().decode()}" for name in names])


@dataclass
class Pool:
    """Posts that can be liked and answered: accounts as places in `accounts()`, TIDs, CIDs, and how popular each is."""

    authors: Numbers
    tids: Numbers
    cids: npt.NDArray[np.uint8]
    weights: npt.NDArray[np.float64]

    def pick(self, rng: np.random.Generator, count: int) -> Numbers:
        """Places of some posts, popular ones more often."""
        cumulative = np.cumsum(self.weights)
        return np.searchsorted(cumulative, rng.random(count) * cumulative[-1])

    def with_more(self, more: Pool, most: int) -> Pool:
        """With the posts of one more hour; those before become half as popular, the oldest leave."""
        return Pool(
            np.concatenate([self.authors, more.authors])[-most:],
            np.concatenate([self.tids, more.tids])[-most:],
            np.concatenate([self.cids, more.cids])[-most:],
            np.concatenate([self.weights / 2, more.weights])[-most:],
        )


def _digests(values: npt.NDArray[np.uint8]) -> pa.Array:
    return pa.Array.from_buffers(pa.binary(32), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _random_cids(rng: np.random.Generator, rows: int) -> npt.NDArray[np.uint8]:
    return rng.integers(0, 256, (rows, 32), np.uint8)


def _dids(places: Numbers) -> pa.Array:
    return accounts().take(pa.array(places))


def _active(rng: np.random.Generator, rows: int) -> Numbers:
    return (AUTHORS * rng.random(rows) ** 3).astype(np.int64)


def _where(chosen: npt.NDArray[np.bool_], values: pa.Array) -> pa.Array:
    """`values` (one per chosen row) in their rows, null elsewhere."""
    places = pa.array(np.cumsum(chosen) - 1, mask=~chosen)
    return values.take(places)


def _lists(chosen: npt.NDArray[np.bool_], values: pa.Array) -> pa.Array:
    """Lists of one value in the chosen rows, empty lists elsewhere."""
    offsets = np.concatenate(([0], np.cumsum(chosen))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _record(
    table: str, rng: np.random.Generator, hour_us: int, rows: int
) -> tuple[dict[str, pa.Array], Numbers, Numbers]:
    """The columns that records of every kind have; also times and TIDs."""
    times = np.sort(rng.integers(hour_us, hour_us + HOUR_US, rows))
    tids = (times - rng.integers(200_000, 2_000_000, rows) << 10) | rng.integers(0, 1024, rows)
    columns = {
        "time": pa.array(times).cast(pa.timestamp("us")),
        "kind": pa.array(["commit"]).take(pa.array(np.zeros(rows, np.int64))),
        "operation": pa.array(["create"]).take(pa.array(np.zeros(rows, np.int64))),
        "collection": pa.array([table]).take(pa.array(np.zeros(rows, np.int64))),
        "rkey_tid": pa.array(tids),
        "rev_tid": pa.array(tids + rng.integers(0, 1 << 20, rows)),
        "source_host": pa.array(["wss://jetstream.example"]).take(pa.array(np.zeros(rows, np.int64))),
        "protocol": pa.array(["v2"]).take(pa.array(np.zeros(rows, np.int64))),
        "seq": pa.array(times // 100),
        "received": pa.array(times + rng.integers(20_000, 200_000, rows)).cast(pa.timestamp("us")),
        "replayed": pa.array(np.zeros(rows, np.bool_)),
        "resync": pa.array(np.zeros(rows, np.bool_)),
        "record_type": pa.array([table]).take(pa.array(np.zeros(rows, np.int64))),
        "created_at": pa.array((tids >> 10) // 1000).cast(pa.timestamp("ms")),
    }
    return columns, times, tids


def _uri(stem: str, chosen: npt.NDArray[np.bool_], pool: Pool, places: Numbers) -> dict[str, pa.Array]:
    count = len(places)
    return {
        f"{stem}_did": _where(chosen, _dids(pool.authors[places])),
        f"{stem}_collection": _where(chosen, pa.array([POST]).take(pa.array(np.zeros(count, np.int64)))),
        f"{stem}_rkey_tid": _where(chosen, pa.array(pool.tids[places])),
    }


def _posts(
    rng: np.random.Generator, hour_us: int, rows: int, writers: list[Texts], pool: Pool | None
) -> tuple[pa.Table, Pool]:
    columns, _, tids = _record(POST, rng, hour_us, rows)
    authors, cids = _active(rng, rows), _random_cids(rng, rows)
    columns |= {"did": _dids(authors), "cid": _digests(cids)}
    shares = np.cumsum([one.language.share for one in writers])
    spoken = np.minimum(np.searchsorted(shares, rng.random(rows)), len(writers) - 1)
    day = (hour_us - START_US) // DAY_US
    order = np.argsort(spoken, kind="stable")
    counts = np.bincount(spoken, minlength=len(writers))
    texts = pa.concat_arrays([one.write(rng, int(day), int(count)) for one, count in zip(writers, counts, strict=True)])
    places = np.empty(rows, np.int64)
    places[order] = np.arange(rows)
    texts = texts.take(pa.array(places))
    tags = pa.array([f"tag{number}" for number in range(20_000)])
    tagged = rng.random(rows) < 0.1
    hashtags = tags.take(pa.array((20_000 * rng.random(int(tagged.sum())) ** 4).astype(np.int64)))
    columns["hashtags"] = _lists(tagged, hashtags)
    texts = pc.binary_join_element_wise(
        texts, pc.fill_null(_where(tagged, pc.binary_join_element_wise(" #", hashtags, "")), ""), ""
    )
    columns["text"] = texts
    tag_of = pa.array([one.language.tag for one in writers]).take(pa.array(spoken))
    known = rng.random(rows) < 0.97
    columns["langs"] = _lists(known, tag_of.filter(pa.array(known)))
    kind = rng.random(rows)
    pictured, linked = kind < 0.22, (kind >= 0.22) & (kind < 0.32)
    blobs = _hex(rng, int(pictured.sum()), 26)
    pictures = pc.binary_join_element_wise(
        '{"$type":"app.bsky.embed.images","images":[{"alt":"","aspectRatio":{"height":1500,"width":2000},"image":{"$type":"blob",'
        '"ref":{"$link":"bafkrei',
        blobs,
        '"},"mimeType":"image/jpeg","size":412345}}]}',
        "",
    )
    hosts = pa.array([f"host{number}.example" for number in range(5_000)])
    count = int(linked.sum())
    host = hosts.take(pa.array((5_000 * rng.random(count) ** 4).astype(np.int64)))
    links = pc.binary_join_element_wise("https://", host, "/", _hex(rng, count, 8), "")
    cards = pc.binary_join_element_wise(
        '{"$type":"app.bsky.embed.external","external":{"description":"","title":"","uri":"', links, '"}}', ""
    )
    columns["embed_json"] = pc.coalesce(_where(pictured, pictures), _where(linked, cards))
    columns["embed_type"] = pc.coalesce(
        _where(pictured, pa.array(["app.bsky.embed.images"] * int(pictured.sum()))),
        _where(linked, pa.array(["app.bsky.embed.external"] * count)),
    )
    columns["media_kind"] = _where(pictured, pa.array(["images"] * int(pictured.sum())))
    columns["media_count"] = _where(pictured, pa.array(np.ones(int(pictured.sum()), np.int64)))
    columns["links"] = _lists(linked, links)
    columns["domains"] = _lists(linked, host)
    if pool is not None:
        answers = rng.random(rows) < 0.4
        parents = pool.pick(rng, int(answers.sum()))
        for stem in ("reply_parent", "reply_root"):
            columns |= _uri(stem, answers, pool, parents)
            columns[f"{stem}_cid"] = _where(answers, _digests(pool.cids[parents]))
        quotes = ~answers & (rng.random(rows) < 0.06)
        columns |= _uri("quote", quotes, pool, pool.pick(rng, int(quotes.sum())))
    return _table(POST, columns, rows), Pool(authors, tids, cids, rng.pareto(1.2, rows) + 0.05)


def _hex(rng: np.random.Generator, rows: int, size: int) -> pa.Array:
    """Random hexadecimal texts of 2 * size characters."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)[rng.integers(0, 16, (rows, 2 * size))]
    offsets = np.arange(rows + 1, dtype=np.int32) * 2 * size
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(digits)))


def _links(table: str, rng: np.random.Generator, hour_us: int, rows: int, pool: Pool) -> pa.Table:
    columns, _, _ = _record(table, rng, hour_us, rows)
    columns |= {"did": _dids(_active(rng, rows)), "cid": _digests(_random_cids(rng, rows))}
    if table == FOLLOW:
        columns["subject"] = _dids(_active(rng, rows))
    else:
        places = pool.pick(rng, rows)
        columns |= _uri("subject", np.ones(rows, np.bool_), pool, places)
        columns["subject_cid"] = _digests(pool.cids[places])
    return _table(table, columns, rows)


def _deletes(rng: np.random.Generator, hour_us: int, pool: Pool, places: Numbers) -> pa.Table:
    rows = len(places)
    columns, times, _ = _record(POST, rng, hour_us + HOUR_US // 2, rows)
    times = np.minimum(times, hour_us + HOUR_US - 1)
    columns["time"] = pa.array(times).cast(pa.timestamp("us"))
    columns["operation"] = pa.array(["delete"] * rows)
    columns["did"] = _dids(pool.authors[places])
    columns["rkey_tid"] = pa.array(pool.tids[places])
    columns["rev_tid"] = pa.array(times << 10)
    for name in ("record_type", "created_at"):
        del columns[name]
    return _table(POST, columns, rows)


def _table(table: str, columns: dict[str, Any], rows: int) -> pa.Table:
    schema = lake_schema(table)
    arrays = [
        columns[field.name].cast(field.type) if field.name in columns else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


# --- files ------------------------------------------------------------------------------------------------------------


class Filler:
    """Fills hours of a lake, one partition per process."""

    def __init__(self, folder: Path, partition: int) -> None:
        self._store = LakeStore(folder / "lake")
        self._manifest = open_manifest(str(folder / "manifest.sqlite"))
        self._partition = partition
        self._offsets: dict[str, int] = {}
        self._epochs: dict[str, int] = {}
        self._writers = [Texts(language) for language in languages()]
        self.pool: Pool | None = None
        self.earlier: list[Pool] = []

    def hour(self, hour_us: int, rows: int, *, pending: bool) -> None:
        """Write one hour of all tables."""
        rng = np.random.default_rng([hour_us // HOUR_US])
        posts, new = _posts(rng, hour_us, rows, self._writers, self.pool)
        gone = int(rows * DELETED)
        if pending and self.earlier:
            older = self.earlier[int(rng.integers(0, len(self.earlier)))]
            deletes = _deletes(rng, hour_us, older, rng.choice(len(older.tids), min(gone, len(older.tids)), False))
        else:
            early = np.flatnonzero(new.tids >> 10 < hour_us + HOUR_US // 2)
            deletes = _deletes(rng, hour_us, new, rng.choice(early, min(gone, len(early)), False))
        everything = pa.concat_tables([posts, deletes]).sort_by("time")
        pool = new if self.pool is None else self.pool.with_more(new, _POOL_HOURS * rows)
        self._write(POST, hour_us, everything, deletes, pending)
        for table, share in ((LIKE, LIKES), (REPOST, REPOSTS), (FOLLOW, FOLLOWS)):
            self._write(table, hour_us, _links(table, rng, hour_us, int(rows * share), pool), None, pending)
        self.pool = pool
        self.earlier.append(Pool(new.authors[::8], new.tids[::8], new.cids[:0], new.weights[:0]))
        del self.earlier[:-48]

    def _write(self, table: str, hour_us: int, rows: pa.Table, deletes: pa.Table | None, pending: bool) -> None:
        topic = TABLE_TOPICS[table]
        partition = TopicPartition(topic, self._partition)
        if table not in self._epochs:
            self._epochs[table] = self._manifest.claim([partition], "benchmark")[partition].epoch
        first = self._offsets.get(table, 0)
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
        self._offsets[table] = after
        if table == POST:
            live = self._manifest.file(made.path)
            assert live is not None
            text_index.build(self._store, live)

    def close(self) -> None:
        """Close the manifest."""
        self._manifest.close()


def _fill(folder: str, partition: int, first_day: int, end_day: int, last_day: int, rows: int) -> None:
    os.nice(10)
    pa.set_cpu_count(1)
    filler = Filler(Path(folder), partition)
    for hour in range(first_day * 24, end_day * 24):
        started = time.monotonic()
        filler.hour(START_US + hour * HOUR_US, rows, pending=hour // 24 == last_day)
        if hour % 24 == 0:
            print(f"day {hour // 24}: {time.monotonic() - started:.1f} s for its first hour", flush=True)
    filler.close()


def build(folder: Path, days: int, per_day: int) -> dict[str, Any]:
    """Write the lake unless `folder` has one of the same size; returns what it holds. Blocks for about 4 core seconds an hour
    of 96,000 posts."""
    facts_path = folder / f"facts-{days}-{per_day}.json"
    if facts_path.exists():
        return dict(json.loads(facts_path.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    open_manifest(str(folder / "manifest.sqlite"), create=True).close()
    rows = max(1, per_day // 24)
    edges = [days * number // _PROCESSES for number in range(_PROCESSES + 1)]
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_fill, args=(str(folder), number, first, end, days - 1, rows))
        for number, (first, end) in enumerate(itertools.pairwise(edges))
        if end > first
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise SystemExit(f"a process that writes the lake ended with {worker.exitcode}")
    manifest = open_manifest(str(folder / "manifest.sqlite"))
    facts = _facts(folder, manifest)
    manifest.close()
    facts_path.write_text(json.dumps(facts))
    return facts


def _facts(folder: Path, manifest: Manifest) -> dict[str, Any]:
    snapshot = manifest.snapshot()
    totals = {table: snapshot.totals(table) for table in snapshot.tables()}
    index = sum(path.stat().st_size for path in (folder / "lake" / text_index.FOLDER).iterdir())
    return {
        "rows": totals[POST].rows,
        "bytes": totals[POST].bytes,
        "files": totals[POST].files,
        "others": {table: total.rows for table, total in totals.items() if table != POST},
        "all_bytes": sum(total.bytes for total in totals.values()),
        "index_bytes": index,
    }

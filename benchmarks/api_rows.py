"""Rows of posts, likes, reposts, follows and deletions as lake columns, made natively for `benchmarks.api_lake`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.api_texts import Texts
from lake.convert import lake_schema

POST: Final = "app.bsky.feed.post"
LIKE: Final = "app.bsky.feed.like"
REPOST: Final = "app.bsky.feed.repost"
FOLLOW: Final = "app.bsky.graph.follow"
HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
START_US: Final = 1_790_000_000_000_000 // DAY_US * DAY_US
_AUTHORS: Final = 500_000

Numbers = npt.NDArray[np.int64]


@cache
def accounts() -> pa.Array:
    """The DIDs."""
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz234567", np.uint8)
    names = letters[np.random.default_rng(5).integers(0, 32, (_AUTHORS, 24))]
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
        places: Numbers = np.searchsorted(cumulative, rng.random(count) * cumulative[-1])
        return places

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
    return (_AUTHORS * rng.random(rows) ** 3).astype(np.int64)


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


def post_rows(
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


def link_rows(table: str, rng: np.random.Generator, hour_us: int, rows: int, pool: Pool) -> pa.Table:
    columns, _, _ = _record(table, rng, hour_us, rows)
    columns |= {"did": _dids(_active(rng, rows)), "cid": _digests(_random_cids(rng, rows))}
    if table == FOLLOW:
        columns["subject"] = _dids(_active(rng, rows))
    else:
        places = pool.pick(rng, rows)
        columns |= _uri("subject", np.ones(rows, np.bool_), pool, places)
        columns["subject_cid"] = _digests(pool.cids[places])
    return _table(table, columns, rows)


def delete_rows(rng: np.random.Generator, hour_us: int, pool: Pool, places: Numbers) -> pa.Table:
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

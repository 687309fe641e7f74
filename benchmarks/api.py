"""The API over days of posts: latencies of searches, counts and lookups, exports, and many clients at once.

Run: `python -m benchmarks.api [--days N] [--posts-per-day N] [--requests N] [--clients N] [--data FOLDER]`. Synthetic posts (seed
1, words with Zipf frequencies, 3 % deleted and still pending) are written as one file an hour through the lake's own functions; the
service runs in a process of its own with its default settings but for rate limits. Toward, on 30 days of 2.3 M posts: one-day text
search p95 0.5 s, 30 days 10 s, common words 0.1 s, simple lookups 0.2 s, export 1 M rows/s of Parquet, 50 clients without error.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl

POST = "app.bsky.feed.post"
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
START_US = 1_790_000_000_000_000 // DAY_US * DAY_US
AUTHORS = 200_000
DELETED = 0.03


def main(arguments: Sequence[str]) -> None:
    """Print the inputs and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=1)
    parser.add_argument("--posts-per-day", type=int, default=500_000)
    parser.add_argument("--requests", type=int, default=15)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--data", type=Path, default=None, help="folder that keeps the lake for another run")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = options.data or Path(name)
        facts = build(folder, options.days, options.posts_per_day)
        print(
            f"inputs: {facts['rows']:,} post rows over {options.days} day(s), {facts['bytes'] / 1e6:,.0f} MB in",
            f"{facts['files']} files, mean text {facts['text_bytes']:.0f} bytes, {DELETED:.0%} deleted and pending;",
            f"{multiprocessing.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        )
        with Service(folder) as service, httpx.Client(base_url=service.url, timeout=600) as client:
            measure(client, options.days, options.requests)
            export(client)
            crowd(service.url, options.clients, options.requests)


# --- the lake ---------------------------------------------------------------------------------------------------------


def build(folder: Path, days: int, per_day: int) -> dict[str, Any]:
    """Write the lake unless `folder` has one of the same size; returns what it holds."""
    from lake.commit import Batch, Part, commit_batch
    from lake.convert import to_lake
    from lake.manifest import Advance, TopicPartition, open_manifest
    from lake.store import LakeStore

    facts_path = folder / f"facts-{days}-{per_day}.json"
    if facts_path.exists():
        return dict(json.loads(facts_path.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    manifest = open_manifest(str(folder / "manifest.sqlite"), create=True)
    store = LakeStore(folder / "lake")
    topic = f"bluesky.{POST}"
    epoch = manifest.claim([TopicPartition(topic, 0)], "benchmark")[TopicPartition(topic, 0)].epoch
    offset = text_bytes = 0
    rows = max(1, per_day // 24)
    for hour in range(days * 24):
        frame = posts(rng, START_US + hour * HOUR_US, rows, offset)
        text_bytes += int(frame["text"].str.len_bytes().sum())
        part = Part(POST, topic, START_US + hour * HOUR_US, to_lake(POST, frame))
        commit_batch(store, manifest, Batch("bench", [part], [Advance(topic, 0, offset, offset + frame.height, epoch)]))
        offset += frame.height
    totals = manifest.snapshot().totals(POST)
    facts = {"rows": totals.rows, "bytes": totals.bytes, "files": totals.files, "text_bytes": text_bytes / totals.rows}
    manifest.close()
    facts_path.write_text(json.dumps(facts))
    return facts


def vocabulary() -> list[str]:
    """20,000 made-up words, the frequent ones short."""
    letters = np.random.default_rng(7)
    syllables = [
        "ka",
        "ro",
        "mi",
        "ten",
        "sol",
        "ba",
        "ri",
        "lu",
        "no",
        "ves",
        "da",
        "ku",
        "hi",
        "zan",
        "pe",
        "猫",
        "空",
    ]
    return [
        "".join(letters.choice(syllables, 1 + min(4, number.bit_length() // 4))) + str(number % 7)
        for number in range(1, 20_001)
    ]


_WORDS = vocabulary()
_ZIPF = np.cumsum(1 / np.arange(1, len(_WORDS) + 1) ** 1.05)
_LANGS = [["en"], ["ja"], ["pt"], ["de"], ["es"], ["en", "es"], []]


def posts(rng: np.random.Generator, start_us: int, rows: int, offset: int) -> pl.DataFrame:
    """Decoded Avro rows of one hour: creates, and deletes of the share DELETED of them."""
    from schemas.records import EVENT_FIELDS

    deletes = int(rows * DELETED)
    lengths = rng.integers(3, 22, rows)
    picks = np.searchsorted(_ZIPF, rng.random(int(lengths.sum())) * _ZIPF[-1])
    words = np.array(_WORDS, dtype=object)[picks]
    ends = np.cumsum(lengths)
    texts = [" ".join(words[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
    times = np.sort(rng.integers(start_us, start_us + HOUR_US, rows))
    # TIDs are microseconds and ten bits of clock id.
    numbers = (times << 10) | rng.integers(0, 1024, rows)
    tids = pl.Series([tid(int(number)) for number in numbers])
    dids = pl.Series([f"did:plc:{number:024d}" for number in (rng.zipf(1.3, rows) % AUTHORS)])
    gone = np.sort(rng.choice(rows, deletes, replace=False))
    created = pl.from_epoch(pl.Series(times // 1000), "ms").dt.strftime("%Y-%m-%dT%H:%M:%S.%3fZ")
    langs = pl.Series([_LANGS[number] for number in rng.integers(0, len(_LANGS), rows)], dtype=pl.List(pl.String))
    common = {
        "kind": "commit",
        "collection": POST,
        "source_host": "ws://benchmark",
        "protocol": "v2",
        "replayed": False,
        "resync": False,
    }
    creates = pl.DataFrame(
        {"time_us": times, "did": dids, "rkey": tids, "rev": tids, "text": texts, "created_at": created, "langs": langs}
    ).with_columns(operation=pl.lit("create"), record_type=pl.lit(POST), cid=pl.Series([cid(rng) for _ in range(rows)]))
    removed = pl.DataFrame(
        {
            "time_us": np.minimum(times[gone] + 60_000_000, start_us + HOUR_US - 1),
            "did": dids.gather(gone),
            "rkey": tids.gather(gone),
            "rev": pl.Series([tid(int(number) + (120_000_000 << 10)) for number in numbers[gone]]),
        }
    ).with_columns(operation=pl.lit("delete"))
    frame = pl.concat([creates, removed], how="diagonal").sort("time_us")
    frame = frame.with_columns(
        **{name: pl.lit(value) for name, value in common.items()},
        received_us=pl.col("time_us") + 100_000,
        kafka_partition=pl.lit(0, pl.Int32),
        kafka_offset=pl.int_range(offset, offset + frame.height, dtype=pl.Int64),
    )
    missing = [field.name for field in EVENT_FIELDS[POST] if field.name not in frame.columns]
    return frame.with_columns(**{name: pl.lit(None, pl.String) for name in missing if name not in _TYPED}).with_columns(
        **{name: pl.lit(None, kind) for name, kind in _TYPED.items() if name in missing}
    )


_TYPED = {
    **dict.fromkeys(
        ("links", "domains", "hashtags", "mentions", "alt_texts", "self_labels", "tags"), pl.List(pl.String)
    ),
    "media_count": pl.Int64,
    "seq": pl.Int64,
}
_ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"
_CID_ALPHABET = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz234567", np.uint8)


def tid(number: int) -> str:
    """The text of a TID."""
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(60, -1, -5))


def cid(rng: np.random.Generator) -> str:
    """A random CID of the usual form."""
    return "bafyrei" + _CID_ALPHABET[rng.integers(0, 32, 51)].tobytes().decode() + "a"


# --- the service ------------------------------------------------------------------------------------------------------


def serve(folder: str, answer: Connection) -> None:
    """Body of the service's process: says its port, runs until told to stop."""
    from api.config import ApiSettings
    from api.service import ApiService

    settings = ApiSettings.model_validate(
        {
            "port": 0,
            "state_dir": Path(folder) / "state",
            "queue_length": 200,
            "queue_seconds": 120,
            "queries_per_client": 1000,
            "access": {"requests_per_minute": 0, "bytes_per_day": 0},
        }
    )
    service = ApiService(settings, str(Path(folder) / "lake"), str(Path(folder) / "manifest.sqlite"), lambda _: None)
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(stop,))
    thread.start()
    service.ready.wait(60)
    answer.send(service.port)
    answer.recv()
    stop.set()
    thread.join()


class Service:
    """The service in a process of its own."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(str(folder), other))

    def __enter__(self) -> Service:
        self._process.start()
        self.url = f"http://127.0.0.1:{self._pipe.recv()}"
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join(30)


# --- what is measured -------------------------------------------------------------------------------------------------


def timed(name: str, requests: int, call: Callable[[int], None]) -> None:
    """Print median and 95th percentile of some calls, after one to warm up."""
    call(0)
    seconds = []
    for number in range(requests):
        started = time.perf_counter()
        call(number + 1)
        seconds.append(time.perf_counter() - started)
    seconds.sort()
    slow = seconds[min(len(seconds) - 1, round(0.95 * len(seconds)))]
    print(f"{name:<58} p50 {statistics.median(seconds) * 1000:8.1f} ms   p95 {slow * 1000:8.1f} ms")


def get(client: httpx.Client, path: str, **parameters: Any) -> dict[str, Any]:
    """A JSON answer; fails the benchmark when it is an error."""
    answer = client.get(path, params=parameters)
    answer.raise_for_status()
    return dict(answer.json())


def whole_search(client: httpx.Client, **parameters: Any) -> int:
    """All pages of a search; the number of results."""
    found, cursor = 0, None
    while True:
        body = get(client, "/v1/search", limit=1000, **parameters, **({"cursor": cursor} if cursor else {}))
        found += body["meta"]["count"]
        cursor = body["meta"]["next_cursor"]
        if cursor is None:
            return found


def measure(client: httpx.Client, days: int, requests: int) -> None:
    """Latencies of one client."""
    common, middle, rare = _WORDS[1], _WORDS[300], _WORDS[15_000]
    last = {"start": (START_US + (days - 1) * DAY_US) // 1, "end": START_US + days * DAY_US}
    day = {name: iso(value) for name, value in last.items()}
    uri = get(client, "/v1/search", limit=1)["results"][0]["uri"]
    timed("liveness", requests, lambda _: get(client, "/health/live") and None)
    timed("statistics of the lake", requests, lambda _: get(client, "/v1/stats") and None)
    timed("one post by uri", requests, lambda _: get(client, f"/v1/posts/{uri}") and None)
    timed("search, newest 50, no filter", requests, lambda _: get(client, "/v1/search") and None)
    timed(
        f"search, newest 50, common word {common!r}",
        requests,
        lambda _: get(client, "/v1/search", text=common) and None,
    )
    timed(
        "search, newest 50, two words",
        requests,
        lambda _: get(client, "/v1/search", text=f"{common} {middle}") and None,
    )
    slow = max(3, requests // 5)
    timed(
        "search, one day to its end, rare word", slow, lambda _: whole_search(client, text=rare + "x", **day) and None
    )
    timed(
        f"search, {days} day(s) to the end, rare word", slow, lambda _: whole_search(client, text=rare + "x") and None
    )
    timed(
        f"search, {days} day(s) to the end, rare phrase",
        slow,
        lambda _: whole_search(client, text=f'"{rare} {rare}"') and None,
    )
    timed(
        "counts, one day by hour, common word", slow, lambda _: get(client, "/v1/counts", text=common, **day) and None
    )
    timed(f"counts, {days} day(s), no filter", slow, lambda _: get(client, "/v1/counts") and None)
    timed(f"aggregate by language, {days} day(s)", slow, lambda _: get(client, "/v1/aggregate", by="lang") and None)


def iso(micros: int) -> str:
    """RFC 3339."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(micros // 1_000_000))


def export(client: httpx.Client) -> None:
    """Rows a second of an export of everything, from the request to the finished file."""
    for fields in (["uri", "time", "did", "text"], None):
        started = time.perf_counter()
        body = {"format": "parquet", "compression": "zstd"} | ({"fields": fields} if fields else {})
        info = client.post("/v1/exports", json=body).raise_for_status().json()
        while info["state"] in ("queued", "running"):
            time.sleep(0.05)
            info = client.get(f"/v1/exports/{info['id']}").json()
        seconds = time.perf_counter() - started
        names = ",".join(fields) if fields else "18 default columns"
        size = f"{info['rows']:,} rows, {info['bytes'] / 1e6:.0f} MB"
        print(f"export to Parquet, {names}: {size}, {info['rows'] / seconds:,.0f} rows/s ({info['state']})")
        client.delete(f"/v1/exports/{info['id']}")


def crowd(url: str, clients: int, requests: int) -> None:
    """Mixed requests of many clients at once: errors by status, and latencies."""
    seconds: list[float] = []
    statuses: Counter[int] = Counter()
    lock = threading.Lock()

    def one(number: int) -> None:
        rng = np.random.default_rng(number)
        with httpx.Client(base_url=url, timeout=600) as client:
            for _ in range(max(1, requests // 5)):
                path, parameters = [
                    ("/v1/search", {"text": _WORDS[int(rng.integers(1, 50))]}),
                    ("/v1/search", {"author": f"did:plc:{int(rng.integers(1, 100)):024d}"}),
                    ("/v1/stats", {}),
                    (
                        "/v1/counts",
                        {
                            "text": _WORDS[int(rng.integers(1, 2000))],
                            "start": iso(START_US),
                            "end": iso(START_US + HOUR_US * 6),
                        },
                    ),
                ][int(rng.integers(0, 4))]
                started = time.perf_counter()
                status = client.get(path, params=parameters).status_code
                with lock:
                    seconds.append(time.perf_counter() - started)
                    statuses[status] += 1

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(clients)))
    seconds.sort()
    print(
        f"{clients} clients at once, {len(seconds)} mixed requests in {time.perf_counter() - started:.1f} s:",
        f"statuses {dict(statuses)}, p50 {statistics.median(seconds) * 1000:.0f} ms,",
        f"p95 {seconds[round(0.95 * (len(seconds) - 1))] * 1000:.0f} ms",
    )


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

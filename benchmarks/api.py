"""The API over days of posts: latencies of searches, counts and lookups, exports, and many clients at once, beside their targets.

Run: `python -m benchmarks.api [--days N] [--posts-per-day N] [--requests N] [--clients N] [--data FOLDER] [--only NAME ...]`.
The lake is the one of `benchmarks.api_lake`, kept in `--data` for further runs; the service runs in a process of its own with
its default settings but for rate limits. The targets are those of 30 days of 2.3 M posts on 2 cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.api_lake import build
from benchmarks.api_rows import DAY_US, HOUR_US, START_US
from benchmarks.api_texts import known_word, rare_word, unindexed

MIXES = ("lookups", "search", "engagement", "counts", "explain", "export", "starvation", "crowd")


def main(arguments: Sequence[str]) -> None:
    """Print the inputs and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=1)
    parser.add_argument("--posts-per-day", type=int, default=500_000)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--data", type=Path, default=None, help="folder that keeps the lake for another run")
    parser.add_argument("--only", nargs="*", choices=MIXES, default=MIXES, help="what to measure")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = options.data or Path(name)
        facts = build(folder, options.days, options.posts_per_day)
        others = ", ".join(f"{rows:,} {table.rpartition('.')[2]}s" for table, rows in facts["others"].items())
        print(
            f"inputs: {facts['rows']:,} rows of posts over {options.days} day(s), {facts['bytes'] / 1e6:,.0f} MB in",
            f"{facts['files']} files, text index {facts['index_bytes'] / facts['bytes']:.1%} of that; {others};",
            f"all tables {facts['all_bytes'] / 1e9:.1f} GB,",
            f"account index {facts['account_bytes'] / facts['all_bytes']:.1%} of that,",
            f"engagement index {facts['engagement_bytes'] / facts['all_bytes']:.1%};",
            f"{multiprocessing.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        )
        with Service(folder) as service, httpx.Client(base_url=service.url, timeout=600) as client:
            bench = Bench(client, service.url, options.days, options.requests, options.clients)
            for name in options.only:
                getattr(bench, name)()
                print(f"memory of the service after {name}: {service.memory()}", flush=True)


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

    def memory(self) -> str:
        """Resident memory of the process, now and at most."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        values = dict(line.split(":", 1) for line in status.splitlines() if line.startswith(("VmRSS", "VmHWM")))
        return " at most ".join(f"{int(values[name].split()[0]) / 1024:,.0f} MB" for name in ("VmRSS", "VmHWM"))


# --- what is measured -------------------------------------------------------------------------------------------------


def iso(micros: int) -> str:
    """RFC 3339."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(micros // 1_000_000))


def report(name: str, seconds: list[float], target: float | None) -> None:
    """Print median and 95th percentile, and whether the latter reaches the target."""
    seconds = sorted(seconds)
    slow = seconds[min(len(seconds) - 1, round(0.95 * (len(seconds) - 1)))]
    judged = "" if target is None else f"   target {target:g} s {'reached' if slow <= target else 'MISSED'}"
    print(
        f"{name:<60} n {len(seconds):3d}  p50 {statistics.median(seconds):7.3f} s  p95 {slow:7.3f} s{judged}",
        flush=True,
    )


class Bench:
    """The measurements, each of which prints its figures."""

    def __init__(self, client: httpx.Client, url: str, days: int, requests: int, clients: int) -> None:
        self._client = client
        self._url = url
        self._days = days
        self._requests = requests
        self._clients = clients
        self._last = self._day(days - 1)

    @staticmethod
    def _day(number: int) -> dict[str, str]:
        return {"start": iso(START_US + number * DAY_US), "end": iso(START_US + (number + 1) * DAY_US)}

    def _get(self, path: str, **parameters: Any) -> dict[str, Any]:
        answer = self._client.get(path, params=parameters)
        answer.raise_for_status()
        return dict(answer.json())

    def _timed(self, name: str, target: float | None, calls: Sequence[Callable[[], Any]]) -> None:
        """Time each call once, after the first has warmed things up."""
        calls[0]()
        seconds = []
        for call in calls:
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        report(name, seconds, target)

    def _searches(self, texts: Sequence[str], **more: Any) -> list[Callable[[], Any]]:
        return [lambda text=text: self._get("/v1/search", text=text, **more) for text in texts]  # type: ignore[misc]

    def lookups(self) -> None:
        """Answers about one thing."""
        newest = self._get("/v1/search", limit=200)["results"]
        uris = [newest[number * 3]["uri"] for number in range(self._requests)]
        dids = [newest[number * 3 + 1]["did"] for number in range(self._requests)]
        self._timed("liveness", 0.2, [lambda: self._get("/health/live")] * self._requests)
        self._timed("statistics of the lake", 0.2, [lambda: self._get("/v1/stats")] * self._requests)
        self._timed("one post by uri", 0.2, [lambda u=u: self._get(f"/v1/posts/{u}") for u in uris])  # type: ignore[misc]
        self._timed("one author", 0.2, [lambda d=d: self._get(f"/v1/authors/{d}") for d in dids])  # type: ignore[misc]
        self._timed(
            "an author's newest 50 posts",
            0.2,
            [lambda d=d: self._get("/v1/search", author=d) for d in dids],  # type: ignore[misc]
        )

    def search(self) -> None:
        """Searches by text, newest first."""
        some = self._requests
        common = [known_word(rank) for rank in range(some)]
        self._timed("newest 50, no filter", 0.1, [lambda: self._get("/v1/search")] * some)
        self._timed("newest 50, common words", 0.1, self._searches(common))
        self._timed("newest 50, two common words", 0.1, self._searches([f"{w} {common[0]}" for w in common[1:]]))
        last = self._days - 1
        middle = [known_word(8_999 - rank * 30) for rank in range(some)]
        rare = [rare_word(last, place=0.2 + 0.03 * number) for number in range(some)]
        absent = [f"zz{number}quux" for number in range(some)]
        mixed = [*common[: some // 4], *middle[: some // 4], *rare[: some // 4], *absent[: some // 4]]
        self._timed("one day: words of all frequencies", 0.5, self._searches(mixed, **self._last))
        self._timed(
            "one day: words of every hour, whole day read", 0.5, self._searches(middle, limit=1000, **self._last)
        )
        few = max(3, some // 4)
        self._timed(
            f"{self._days} days: rare words",
            1,
            self._searches([rare_word(d % self._days, place=0.7) for d in range(some)]),
        )
        self._timed(f"{self._days} days: words that do not occur", 1, self._searches(absent))
        phrases = [f'"{rare_word(d % self._days, place=0.1)} {known_word(d)}"' for d in range(some)]
        self._timed(f"{self._days} days: rare phrases", 1, self._searches(phrases))
        wide = [rare_word(d % self._days, "ja", 0.7) for d in range(some)]
        self._timed(f"{self._days} days: rare Japanese words", 1, self._searches(wide))
        short = [unindexed(400 + d) for d in range(few)]
        self._timed(f"{self._days} days: everything read (pieces too short to index)", 10, self._searches(short))
        self._timed(f"{self._days} days: words of every hour, 1,000 rows", 10, self._searches(middle[:few], limit=1000))
        self._timed(f"{self._days} days: oldest 50, common words", 0.1, self._searches(common, sort="oldest"))

    def engagement(self) -> None:
        """Filters and orders by likes."""
        for days in sorted({1, min(7, self._days), self._days}):
            when = {"start": iso(START_US + (self._days - days) * DAY_US), "end": self._last["end"]}
            for more in ({"min_likes": 50}, {"sort": "engaged"}, {"sort": "engaged", "text": known_word(50)}):
                name = f"{days} days: " + " ".join(f"{key}={value}" for key, value in more.items())
                self._timed(name, 30, [lambda m=more, w=when: self._get("/v1/search", **m, **w)] * 3)  # type: ignore[misc]

    def counts(self) -> None:
        """Counts and aggregates."""
        started = time.perf_counter()
        self._get("/v1/counts")
        print(
            f"{'first counts over all days (makes the roll-ups if missing)':<60} {time.perf_counter() - started:.3f} s"
        )
        some = self._requests
        self._timed(f"counts, {self._days} days, no filter", 0.3, [lambda: self._get("/v1/counts")] * some)
        self._timed(f"counts, {self._days} days, lang=ja", 0.3, [lambda: self._get("/v1/counts", lang="ja")] * some)
        self._timed(
            "counts, one day by hour, common word",
            None,
            [lambda: self._get("/v1/counts", text=known_word(30), **self._last)] * 3,
        )
        self._timed(
            f"counts, {self._days} days, rare word", None, [lambda: self._get("/v1/counts", text=rare_word(0))] * 3
        )
        self._timed(
            "aggregate by language, one day", None, [lambda: self._get("/v1/aggregate", by="lang", **self._last)] * 3
        )

    def explain(self) -> None:
        """What explain expects beside what the same query takes."""
        for days in sorted({1, min(7, self._days), self._days}):
            when = {"start": iso(START_US + (self._days - days) * DAY_US), "end": self._last["end"]}
            for path, more in (
                ("search", {"text": unindexed(400)}),
                ("counts", {"text": known_word(30)}),
                ("counts", {"lang": "ja"}),
            ):
                told = self._get("/v1/explain", target=path, **more, **when)
                started = time.perf_counter()
                answer = self._client.get(f"/v1/{path}", params={**more, **when})
                taken = time.perf_counter() - started
                ratio = told["expected_seconds"] / taken
                judged = "within 3 x" if 1 / 3 <= ratio <= 3 else "MISSED"
                print(
                    f"explain {path} {days} days {more}: expected {told['expected_seconds']:.2f} s, took {taken:.2f} s"
                    f" (status {answer.status_code}): {judged}",
                    flush=True,
                )

    def export(self) -> None:
        """Rows a second of exports, from the request to the finished file."""
        all_days = {} if self._days <= 3 else {"start": iso(START_US), "end": iso(START_US + 3 * DAY_US)}
        for form, compression, fields, target in (
            ("parquet", "none", ["uri", "time", "did", "text"], 1_000_000),
            ("parquet", "zstd", ["uri", "time", "did", "text"], 1_000_000),
            ("parquet", "zstd", None, None),
            ("csv", "zstd", ["uri", "time", "did", "text"], None),
            ("ndjson", "zstd", ["uri", "time", "did", "text"], None),
        ):
            body = {"format": form, "compression": compression, **all_days} | ({"fields": fields} if fields else {})
            started = time.perf_counter()
            info = self._client.post("/v1/exports", json=body).raise_for_status().json()
            while info["state"] in ("queued", "running"):
                time.sleep(0.05)
                info = self._client.get(f"/v1/exports/{info['id']}").json()
            rate = info["rows"] / (time.perf_counter() - started)
            names = ",".join(fields) if fields else "18 default columns"
            judged = "" if target is None else f"   target {target:,} {'reached' if rate >= target else 'MISSED'}"
            size = f"{info['rows']:,} rows, {info['bytes'] / 1e6:.0f} MB"
            print(
                f"export to {form} ({compression}), {names}: {size}, {rate:,.0f} rows/s ({info['state']}){judged}",
                flush=True,
            )
            self._client.delete(f"/v1/exports/{info['id']}")

    def starvation(self) -> None:
        """Light answers while heavy queries of others run all the time."""
        stop = threading.Event()
        statuses: Counter[int] = Counter()

        def heavy(number: int) -> None:
            with httpx.Client(base_url=self._url, timeout=600) as client:
                while not stop.is_set():
                    text = unindexed(500 + number)
                    statuses[client.get("/v1/counts", params={"text": text}).status_code] += 1

        threads = [threading.Thread(target=heavy, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        self.lookups()
        self._timed("newest 50, common words", None, self._searches([known_word(n) for n in range(self._requests)]))
        stop.set()
        for thread in threads:
            thread.join()
        print(f"beside 4 clients with counts over {self._days} days, statuses {dict(statuses)}")

    def crowd(self) -> None:
        """Mixed requests of many clients at once: errors by status, and latencies."""
        seconds: list[float] = []
        statuses: Counter[int] = Counter()
        lock = threading.Lock()

        def mix(number: int) -> Iterator[tuple[str, dict[str, Any]]]:
            rng = np.random.default_rng(number)
            for _ in range(max(1, self._requests // 5)):
                yield (
                    ("/v1/search", {"text": known_word(int(rng.integers(1, 50)))}),
                    ("/v1/search", {"text": rare_word(int(rng.integers(0, self._days)))}),
                    ("/v1/search", {"author": f"did:plc:{'a' * 24}"}),
                    ("/v1/stats", {}),
                    ("/v1/counts", {"text": known_word(9), "start": iso(START_US), "end": iso(START_US + HOUR_US * 6)}),
                )[int(rng.integers(0, 5))]

        def one(number: int) -> None:
            with httpx.Client(base_url=self._url, timeout=600) as client:
                for path, parameters in mix(number):
                    started = time.perf_counter()
                    status = client.get(path, params=parameters).status_code
                    with lock:
                        seconds.append(time.perf_counter() - started)
                        statuses[status] += 1

        with ThreadPoolExecutor(self._clients) as pool:
            list(pool.map(one, range(self._clients)))
        judged = "reached" if set(statuses) == {200} else "MISSED"
        report(f"{self._clients} clients at once, mixed requests", seconds, None)
        print(f"statuses {dict(statuses)}: no error {judged}")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

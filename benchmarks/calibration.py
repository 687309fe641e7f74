"""How close the simulator is to the real network: generated beside reference figures, and what making and serving costs.

Run: `python -m benchmarks.calibration [--events N] [--serve N] [--seed N] [--random-cids]`. The reference figures are those of
section 12 of the project's Jetstream reference: a production sample of 152 events of legacy v1 and 154 of v2 (2026-07-04), the
statistics of 64,000 events of the same day, and a public corpus of a billion events for the compression. Speeds are in CPU time,
so that other load on the machine changes them little.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx
import zstandard
from websockets.asyncio.client import connect

from simulator.config import SimulatorSettings
from simulator.events import IDENTITY, KIND_NAMES, SYNC
from simulator.generator import Generator
from simulator.service import SimulatorService
from simulator.wire import v1_frame

START_US = 1_783_175_888_000_000
RATE = 350
V1_BYTES = {
    "all": 552, "app.bsky.feed.post": 846, "app.bsky.feed.repost": 569, "app.bsky.feed.like": 529, "app.bsky.graph.follow": 394,
    "account": 205, "delete": 197, "identity": 193,
}  # fmt: skip
SHARES = {
    "create": 95.5, "delete": 3.9, "update": 0.6, "identity": 0.06,
    "app.bsky.feed.like": 69.0, "app.bsky.feed.post": 11.0, "app.bsky.feed.repost": 10.0, "app.bsky.graph.follow": 6.0,
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Print inputs, figures and reference; the status is 1 when a size is more than 10 % off or compression outside 3.5 to 4.5."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--serve", type=int, default=300_000, help="events served through a socket; 0 leaves that out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--random-cids", action="store_true", help="draw CIDs instead of computing the real ones (faster)"
    )
    options = parser.parse_args(arguments)
    settings = SimulatorSettings(seed=options.seed, content_cids=not options.random_cids)
    print(
        f"inputs: {options.events:,} events at {RATE}/s of simulated time, seed {options.seed}, {settings.accounts:,} accounts, "
        f"{'random' if options.random_cids else 'real'} CIDs, zstd level 3"
    )
    good = generate(settings, options.events)
    if options.serve:
        with tempfile.TemporaryDirectory() as folder:
            serve(settings, Path(folder), options.serve)
    return 0 if good else 1


def generate(settings: SimulatorSettings, events: int) -> bool:
    """Generate, measure, print; False when a figure is out of its bounds."""
    generator = Generator(settings)
    step = int(1024 / RATE * 1e6)
    packers = {
        "v1": zstandard.ZstdCompressor(level=3).compressobj(),
        "v2": zstandard.ZstdCompressor(level=3).compressobj(),
    }
    raw, packed = Counter[str](), Counter[str]()
    sizes, numbers, shares = Counter[str](), Counter[str](), Counter[str]()
    made, spent, now = 0, 0.0, START_US
    while made < events:
        before = time.process_time()
        batch = generator.batch(1024, now, now + step)
        spent += time.process_time() - before
        made += len(batch)
        now += step
        v1 = []
        for frame, seq, time_us, kind, table in zip(
            batch.frames, batch.seqs, batch.times, batch.kinds, batch.tables, strict=True
        ):
            shares[KIND_NAMES[kind] if kind >= IDENTITY else ("", "create", "update", "delete")[kind]] += 1
            shares[table] += table not in ("identity", "account", "sync")
            if kind != SYNC:
                text = v1_frame(frame, seq, time_us, cursor=False)
                v1.append(text)
                name = {2: "update", 3: "delete"}.get(kind, table)
                for key in ("all", name):
                    sizes[key] += len(text)
                    numbers[key] += 1
        for wire, texts in (("v1", v1), ("v2", batch.frames)):
            data = b"\n".join(texts) + b"\n"
            raw[wire] += len(data) - len(texts)
            packed[wire] += len(packers[wire].compress(data))
    for wire, packer in packers.items():
        packed[wire] += len(packer.flush())
    return report(raw, packed, sizes, numbers, shares, made, spent)


def report(
    raw: Counter[str],
    packed: Counter[str],
    sizes: Counter[str],
    numbers: Counter[str],
    shares: Counter[str],
    made: int,
    spent: float,
) -> bool:
    """Print the comparison; False when a size is more than 10 % off or a compression outside 3.5 to 4.5."""
    good = True
    print(
        f"{'mean bytes of a v1 event (no cursor member, as the sample)':62}{'generated':>11}{'reference':>11}{'off':>8}"
    )
    rows = [(name, sizes[name] / numbers[name], float(reference)) for name, reference in V1_BYTES.items()]
    for name, mean, reference in [*rows, ("all, v2", raw["v2"] / made, 631.0)]:
        off = mean / reference - 1
        good &= abs(off) <= 0.10
        print(f"  {name:60}{mean:11.0f}{reference:11.0f}{off:8.1%}")
    print(f"{'share of all events, %':62}{'generated':>11}{'reference':>11}")
    for name, reference in SHARES.items():
        print(f"  {name:60}{100 * shares[name] / made:11.2f}{reference:11.2f}")
    known = sum(name.startswith(("app.bsky.", "chat.bsky.")) for name in shares)
    print(f"  {'collections with a table of their own that occurred':60}{known:11}{19:11}")
    print(f"{'one zstd file of all frames, times smaller':62}{'generated':>11}{'reference':>11}")
    for wire in ("v1", "v2"):
        ratio = raw[wire] / packed[wire]
        good &= 3.5 <= ratio <= 4.5
        print(f"  {wire:60}{ratio:11.2f}{'3.5 - 4.5':>11}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"generator: {made / spent:,.0f} events per second of one core ({made:,} events, {spent:.1f} s); "
        f"peak memory {memory:.0f} MB"
    )
    return good


def serve(settings: SimulatorSettings, folder: Path, events: int) -> None:
    """Serve a history through a socket to a client in the same process, and print how fast each wire can be read."""
    hours = events / 3600 / RATE
    served = settings.model_copy(
        update={
            "data_dir": folder,
            "port": 0,
            "history_rate": float(RATE),
            "history_hours": hours,
            "rate": 0.0,
            "cache_megabytes": 1024,
        }
    )
    service = SimulatorService(served, lambda _: None)
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(stop,))
    thread.start()
    try:
        service.listening.wait(60)
        base = f"127.0.0.1:{service.port}"
        status = httpx.get(f"http://{base}/_simulator/status").json()
        while not status["ready"]:
            time.sleep(0.1)
            status = httpx.get(f"http://{base}/_simulator/status").json()
        hidden = status["counts"].get("sync", {}).get("events", 0)
        stored = sum(path.stat().st_size for path in (folder / "log").iterdir())
        print(f"log on disk: {stored / status['generated']:.0f} bytes per event")
        print("served through one socket, server and client sharing one Python process:")
        v2 = "/xrpc/network.bsky.jetstream.subscribeEvents?cursor=1"
        for name, path, count in (
            ("v2", v2, status["generated"]),
            ("v2, zstd", f"{v2}&zstdDictionary={status['dictionary']}", status["generated"]),
            ("v1", "/subscribe?cursor=1", status["generated"] - hidden),
        ):
            spent = asyncio.run(_read(f"ws://{base}{path}", count))
            print(f"  {name:10} {count:,} events, {count / spent:,.0f} per CPU second of both")
    finally:
        stop.set()
        thread.join()


async def _read(url: str, count: int) -> float:
    before = time.process_time()
    async with connect(
        url, compression=None, max_size=2**25, max_queue=None, ping_interval=None, close_timeout=1
    ) as client:
        for _ in range(count):
            await client.recv(decode=False)
    return time.process_time() - before


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

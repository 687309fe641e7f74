"""The lake: bytes per event by collection, compaction of an hour, erasure of an account, commits of four writer processes.

Run: `python -m benchmarks.lake [--events N] [--hours N] [--writers N]`. One hour of `--events` simulator events (seed 1) is
encoded to Avro, converted, committed in small files and rolled; then a usual account and the busiest are erased from `--hours`
copies of that hour. Toward: at most 85 bytes per event; 15 s and 1 GB for rolling an hour of the whole network (`--events
1300000`); an account erased from 24 hours in 10 s; commits at p95 in 50 ms with four writers.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

HOUR = 3_600_000_000
START = 1_790_000_000_000_000 // HOUR * HOUR
PARTITIONS = 6
BATCH = 20_000
BATCH_OF_WRITER = 2_000
PAUSE = 0.1
ERASED_FROM = ("app.bsky.feed.like", "app.bsky.feed.post", "app.bsky.feed.repost", "app.bsky.graph.follow")
"""The tables that hold nine tenths of the bytes, and nearly all of what an account does."""


def main(arguments: Sequence[str]) -> None:
    """Print the inputs and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=340_000, help="8.1 M a day, what the lab planned for")
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--commits", type=int, default=40)
    parser.add_argument(
        "--data", type=Path, default=None, help="folder that keeps the generated events for another run"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = options.data or folder / "events"
        if not (data / "facts.json").exists():
            generate(data, options.events, folder / "simulator")
        facts = json.loads((data / "facts.json").read_text())
        print(
            f"inputs: {facts['events']:,} events of the simulator (seed 1) in one hour, mean v2 frame"
            f" {facts['json_bytes'] / facts['events']:.0f} bytes, small files of at most {BATCH:,} events"
        )
        fill(data, folder / "lake")
        _in_child(roll, str(folder / "lake"))
        sizes(folder / "lake", facts)
        _in_child(fill_hours, str(data), str(folder / "erase"), options.hours)
        _in_child(erase_accounts, str(folder / "erase"), options.hours)
        for tables in (1, 20):
            commits(folder / f"commits-{tables}", options.writers, options.commits, tables)


def generate(data: Path, count: int, folder: Path) -> None:
    """One hour of events as decoded Avro columns, a Parquet file per table."""
    from consumers.decode import _container_head, _read
    from producers.wire_v2 import decode
    from schemas.avro_schemas import latest
    from schemas.codec import EventEncoder
    from schemas.topics import TOPICS
    from simulator.config import SimulatorSettings
    from simulator.ledger import Ledger
    from simulator.network import Network

    network = Network(SimulatorSettings(data_dir=folder, history_hours=0, accounts=200_000))
    step, at = HOUR * 512 // count, START
    while at < START + HOUR:
        network.live(512, at, min(at + step, START + HOUR - 1))
        at += step
    network.close()
    encoder = EventEncoder("jetstream.example", "v2")
    bodies, partitions, size, done = defaultdict(list), defaultdict(list), 0, 0
    stamp = 0
    for number, event in enumerate(Ledger(folder).events()):
        frame: Any = decode(event.raw)
        # Frames that are read from the socket together share their time of receipt.
        stamp = frame.time_us + 150_000 if number % 8 == 0 else stamp
        if hasattr(frame, "record"):
            topic, body = encoder.commit(
                frame.time_us, frame.did, frame.operation, frame.collection, frame.rkey, frame.rev, frame.cid,
                frame.seq, stamp, False, False, frame.envelope_json, frame.record,
            )  # fmt: skip
        else:
            topic, body = encoder.upstream(
                frame.kind, frame.time_us, frame.did, frame.seq, stamp, False, False, frame.envelope_json, frame.payload
            )
        bodies[topic].append(body)
        partitions[topic].append(zlib.crc32(frame.did.encode()) % PARTITIONS)
        size += len(event.raw)
        done += 1
    data.mkdir(parents=True, exist_ok=True)
    for topic, found in bodies.items():
        head = _container_head(latest(TOPICS[topic].schema).text)
        frames = [
            _read(head, len(found[at : at + 100_000]), found[at : at + 100_000]) for at in range(0, len(found), 100_000)
        ]
        rows = pl.concat(frames).with_columns(pl.Series("kafka_partition", partitions[topic], pl.Int64))
        rows = rows.with_columns(kafka_offset=pl.int_range(pl.len()).over("kafka_partition"))
        rows.write_parquet(data / f"{TOPICS[topic].table}.parquet", compression="zstd", compression_level=1)
    (data / "facts.json").write_text(json.dumps({"events": done, "json_bytes": size}))


def fill(data: Path, root: Path) -> None:
    """Converts and commits everything in small files."""
    from lake.convert import to_lake
    from lake.manifest import open_manifest
    from lake.store import LakeStore

    manifest, store = open_manifest(str(root / "manifest.db"), create=True), LakeStore(root)
    converting = rows = 0.0
    started = time.perf_counter()
    for file in sorted(data.glob("*.parquet")):
        decoded = pl.read_parquet(file)
        for at in range(0, decoded.height, BATCH):
            before = time.process_time()
            part = to_lake(file.stem, decoded.slice(at, BATCH))
            converting += time.process_time() - before
            rows += part.num_rows
            commit(store, manifest, file.stem, START, part)
    seconds = time.perf_counter() - started
    print(f"Avro columns -> lake columns        {rows / converting:>10,.0f} rows/s and core")
    print(f"Avro columns -> committed           {rows / seconds:>10,.0f} rows/s of wall time, one process")
    manifest.close()


def commit(store: Any, manifest: Any, table: str, hour_us: int, rows: pa.Table, partition: int | None = None) -> float:
    """Commits rows as the next messages of their partitions; returns the seconds it took."""
    from lake.commit import Batch, Part, commit_batch
    from lake.manifest import Advance, HourCount, TopicPartition
    from schemas.topics import TABLE_TOPICS

    topic = TABLE_TOPICS[table]
    numbers = rows.column("kafka_partition").unique().to_pylist()
    known = manifest.offsets([topic])
    missing = [TopicPartition(topic, number) for number in numbers if TopicPartition(topic, number) not in known]
    known |= manifest.claim(missing, "bench") if missing else {}
    advances = []
    for number in numbers:
        at = known[TopicPartition(topic, number)]
        count = pc.sum(pc.equal(rows.column("kafka_partition"), number)).as_py()
        advances.append(Advance(topic, number, at.next_offset, at.next_offset + count, at.epoch))
    counts = (HourCount(topic, hour_us, rows.num_rows, 0, rows.num_rows, 0),)
    started = time.perf_counter()
    commit_batch(
        store, manifest, Batch(f"bench{partition or 0}", [Part(table, topic, hour_us, rows)], advances, counts)
    )
    return time.perf_counter() - started


def roll(root: str) -> None:
    """Rolls every table of the hour in a process of its own, so that its memory can be told."""
    from lake.manifest import open_manifest
    from lake.roll import roll_hour
    from lake.store import LakeStore

    manifest, store = open_manifest(str(Path(root) / "manifest.db")), LakeStore(root)
    small = sum(file.bytes for table in manifest.snapshot().tables() for file in manifest.snapshot().files(table))
    started, before = time.perf_counter(), time.process_time()
    rows = merged = 0
    for table in manifest.snapshot().tables():
        done = roll_hour(store, manifest, table, START)
        rows, merged = rows + done.rows, merged + done.merged
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"small files                         {small / rows:>10.1f} bytes per event in {merged} files")
    print(
        f"compaction of {rows:,} events    {seconds:>10.1f} s of wall time ({cpu:.1f} s of CPU, {rows / seconds:,.0f} rows/s),"
        f" {peak:,.0f} MB at most"
    )


def sizes(root: Path, facts: dict[str, int]) -> None:
    """Bytes per event after compaction."""
    from lake.manifest import open_manifest

    snapshot = open_manifest(str(root / "manifest.db")).snapshot()
    totals = {table: snapshot.totals(table) for table in snapshot.tables()}
    size, rows = sum(t.bytes for t in totals.values()), sum(t.rows for t in totals.values())
    saved = 1 - size / facts["json_bytes"]
    print(f"rolled files                        {size / rows:>10.1f} bytes per event, {saved:.1%} below the JSON")
    for table, total in sorted(totals.items(), key=lambda item: -item[1].bytes)[:8]:
        print(f"  {table:34}{total.bytes / total.rows:>10.1f} bytes per event, {total.rows:>9,} events")


def fill_hours(data: str, root: str, hours: int) -> None:
    """Rolled copies of the hour, of the tables that hold nearly everything an account does."""
    from lake.convert import to_lake
    from lake.manifest import open_manifest
    from lake.roll import roll_hour
    from lake.store import LakeStore

    manifest, store = open_manifest(str(Path(root) / "manifest.db"), create=True), LakeStore(root)
    for table in ERASED_FROM:
        decoded = pl.read_parquet(Path(data) / f"{table}.parquet")
        for hour in range(hours):
            shift = hour * HOUR
            moved = decoded.with_columns(pl.col("time_us") + shift, pl.col("received_us") + shift)
            commit(store, manifest, table, START + shift, to_lake(table, moved))
            roll_hour(store, manifest, table, START + shift)


def erase_accounts(root: str, hours: int) -> None:
    """Deletes a usual account that acts in every hour, then the busiest of all, and then a thousand more at once."""
    from lake import account_index
    from lake.manifest import open_manifest
    from lake.store import LakeStore

    manifest, store = open_manifest(str(Path(root) / "manifest.db")), LakeStore(root)
    totals = [manifest.snapshot().totals(table) for table in ERASED_FROM]
    rows, size = sum(total.rows for total in totals), sum(total.bytes for total in totals)
    print(f"erasure from {hours} hours, {rows:,} rows of {len(ERASED_FROM)} tables in {size / 1e6:,.0f} MB:")
    likes = store.read(manifest.snapshot().files(ERASED_FROM[0])[0].path, ["did"])
    counted = pl.Series(likes.column("did").to_pylist()).value_counts(sort=True)
    accounts = counted.get_column(counted.columns[0])
    busiest, usual = accounts[:1001].to_list(), accounts[len(accounts) // 2]
    for file in account_index.missing(store.root, manifest.snapshot()):
        account_index.build(store, file)
    _report_floor(store, manifest)
    first = START + hours * HOUR
    print(
        f"  likes an hour: {counted['count'][len(accounts) // 2]} of the middle account, {counted['count'][0]} of the busiest"
    )
    _erase(store, manifest, first, [usual], "an account in the middle")
    _erase(store, manifest, first + HOUR, busiest[:1], "the busiest account")
    _erase(store, manifest, first + 2 * HOUR, busiest[1:], f"{len(busiest) - 1:,} more accounts")


def _report_floor(store: Any, manifest: Any) -> None:
    """What the bytes alone take: every file read, digested, written again and synced, without looking at a row."""
    import hashlib
    import os

    started, before, size = time.perf_counter(), time.process_time(), 0
    copy = store.root / "floor"
    for table in ERASED_FROM:
        for file in manifest.snapshot().files(table):
            content = store.absolute(file.path).read_bytes()
            hashlib.sha256(content).digest()
            with copy.open("wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            size += len(content)
    copy.unlink()
    print(
        f"  floor (bytes copied, not decoded) {time.perf_counter() - started:>10.1f} s"
        f" ({time.process_time() - before:.1f} s of CPU), {size / 1e6:,.0f} MB"
    )


def _erase(store: Any, manifest: Any, time_us: int, accounts: list[str], who: str) -> None:
    from lake.convert import to_lake
    from lake.erase import erase

    fields = {
        "time_us": time_us,
        "kind": "account",
        "source_host": "x",
        "protocol": "v2",
        "received_us": time_us,
        "replayed": False,
        "resync": False,
        "active": False,
        "status": "deleted",
        "kafka_partition": 0,
    }
    gone = pl.DataFrame([{**fields, "did": did, "kafka_offset": place} for place, did in enumerate(accounts)])
    commit(store, manifest, "account", time_us, to_lake("account", gone))
    started, before = time.perf_counter(), time.process_time()
    done = erase(store, manifest)
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"  {who:34}{seconds:>10.1f} s ({cpu:.1f} s of CPU): {done.rows:,} rows in {done.rewritten} of"
        f" {done.looked_at} files; {peak:,.0f} MB at most"
    )


def commits(root: Path, writers: int, count: int, tables: int) -> None:
    """Writer processes that commit to one SQLite manifest, each a batch of 2,000 rows over some tables and then a pause.

    A batch's time is told in two parts. Files: rows encoded, every file and folder synced. Commit: the manifest's transaction,
    with the wait for those of the other writers; only this part keeps another writer waiting.
    """
    from lake.manifest import open_manifest

    open_manifest(str(root / "manifest.db"), create=True).close()
    context = multiprocessing.get_context("spawn")
    with context.Pool(writers) as pool:
        parts = pool.starmap(_write_commits, [(str(root), number, count, tables) for number in range(writers)])
    found = [taken for part in parts for taken in part]
    what = f"{writers} writers, {tables} file{'s' if tables > 1 else ''} a batch"
    for name, position in (("files", 0), ("commit", 1)):
        taken = sorted(both[position] * 1000 for both in found)
        cuts = statistics.quantiles(taken, n=20)
        print(
            f"{what}: {name:8}p50 {cuts[9]:6.1f} ms, p95 {cuts[18]:6.1f} ms, max {taken[-1]:6.1f} ms"
            f" ({len(taken)} batches of {BATCH_OF_WRITER:,} rows, {PAUSE * 1000:.0f} ms between two of a writer)"
        )


def _write_commits(root: str, number: int, count: int, tables: int) -> list[tuple[float, float]]:
    from lake.commit import Batch, Part, commit_batch
    from lake.convert import lake_schema
    from lake.manifest import Advance, TopicPartition, open_manifest
    from lake.store import LakeStore
    from schemas.topics import TABLE_TOPICS

    manifest, store = open_manifest(str(Path(root) / "manifest.db")), LakeStore(root)
    names = [name for name in sorted(TABLE_TOPICS) if name.startswith("app.bsky.")]
    names = ["app.bsky.feed.like"] if tables == 1 else names[:tables]
    size = BATCH_OF_WRITER // len(names)
    claimed = manifest.claim([TopicPartition(TABLE_TOPICS[name], number) for name in names], f"bench{number}")
    taken, inner = [], [0.0]
    original = manifest.commit

    def timed(change: Any) -> int:
        before = time.perf_counter()
        version = original(change)
        inner[0] = time.perf_counter() - before
        return version

    manifest.commit = timed  # type: ignore[method-assign]
    for at in range(count):
        parts, advances = [], []
        for name in names:
            columns: dict[str, Any] = {field.name: pa.nulls(size, field.type) for field in lake_schema(name)}
            columns["time"] = pa.array(range(START + at, START + at + size)).cast(pa.timestamp("us"))
            columns["did"] = pa.array([f"did:plc:{number}{row:023d}" for row in range(size)])
            columns["operation"] = pa.array(["create"] * size)
            columns["resync"] = pa.array([False] * size)
            columns["kafka_partition"] = pa.array([number] * size, pa.int32())
            columns["kafka_offset"] = pa.array(range(at * size, (at + 1) * size))
            parts.append(Part(name, TABLE_TOPICS[name], START, pa.table(columns, schema=lake_schema(name))))
            epoch = claimed[TopicPartition(TABLE_TOPICS[name], number)].epoch
            advances.append(Advance(TABLE_TOPICS[name], number, at * size, (at + 1) * size, epoch))
        before = time.perf_counter()
        commit_batch(store, manifest, Batch(f"bench{number}", parts, advances))
        taken.append((time.perf_counter() - before - inner[0], inner[0]))
        time.sleep(PAUSE)
    manifest.close()
    return taken


def _in_child(work: Any, *arguments: Any) -> None:
    sys.stdout.flush()
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} failed")


if __name__ == "__main__":
    main(sys.argv[1:])

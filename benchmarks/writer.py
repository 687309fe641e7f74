"""Writer speed on one core: records of a real broker to rows committed in the lake. Toward 200,000 rows/s.

Run: `python -m benchmarks.writer [--events N] [--profile]`. Events come from the simulator's generator (seeded, all distinct),
go through the product's encoder into an embedded Kafka, and are then caught up by the product's writer service in a process
pinned to one core with single-threaded libraries; the broker runs on whatever is left.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str]) -> None:
    """Print the inputs and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=400_000)
    parser.add_argument(
        "--batch-rows", type=int, default=None, help="rows per commit; the product's default unless given"
    )
    parser.add_argument("--profile", action="store_true", help="print where the time of the writer's thread goes")
    parser.add_argument(
        "--peer",
        default=None,
        metavar="PYTHON",
        help="also run Quix Streams, installed for this interpreter, on one topic",
    )
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        write(json.loads(options.child))
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        from pipeline.local_broker import LocalBroker

        broker = LocalBroker(Path(folder) / "kafka")
        stop, ready = threading.Event(), threading.Event()
        thread = threading.Thread(
            target=broker.run, args=(stop,), kwargs={"on_ready": lambda _: ready.set(), "timeout": 60}
        )
        thread.start()
        stack.callback(thread.join, 60)
        stack.callback(stop.set)
        if not ready.wait(60):
            raise SystemExit("the broker did not start")
        size, counts = fill(broker.settings(), options.events, Path(folder) / "simulator")
        print(
            f"inputs: {options.events:,} distinct events of the simulator (seed 1), mean value {size:.0f} bytes, embedded Kafka"
        )
        child = {
            "bootstrap": broker.settings().bootstrap,
            "lake": str(Path(folder) / "lake"),
            "events": options.events,
            "batch_rows": options.batch_rows,
            "profile": options.profile,
            "topics": None,
        }
        run_child(child)
        if options.peer is not None:
            likes = counts[PEER_TOPIC]
            print(f"one topic, {PEER_TOPIC}, {likes:,} records, beside a peer:")
            run_child({**child, "lake": str(Path(folder) / "likes"), "events": likes, "topics": [PEER_TOPIC]})
            run_peer(options.peer, broker.settings().bootstrap, likes, Path(folder) / "peer")


PEER_TOPIC = "bluesky.app.bsky.feed.like"


def run_child(child: dict[str, Any]) -> None:
    """Run the product's writer in a process of its own."""
    subprocess.run(
        [sys.executable, "-m", "benchmarks.writer", "--child", json.dumps(child)],
        env={**os.environ, "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1"},
        check=True,
        timeout=600,
    )


def run_peer(python: str, bootstrap: str, rows: int, folder: Path) -> None:
    """Run Quix Streams on the same topic of the same broker: Avro in, Parquet per partition out, offsets in Kafka."""
    options = {
        "bootstrap": bootstrap,
        "topic": PEER_TOPIC,
        "schema": str(Path(__file__).parents[1] / "schemas" / "avro" / "app.bsky.feed.like.v1.avsc"),
        "rows": rows,
        "batch_rows": 100_000,
        "folder": str(folder),
        "state": str(folder.with_name("peer-state")),
    }
    ended = subprocess.run(
        [python, str(Path(__file__).with_name("peer_quix.py")), json.dumps(options)],
        check=True,
        timeout=600,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = json.loads(ended.stdout.strip().splitlines()[-1])
    size = sum(file.stat().st_size for file in folder.rglob("*.parquet"))
    print(
        f"peer: Quix Streams' LocalFileSink   {rows:>10,} rows in {found['files']} files, {size / rows:.1f} bytes a row (snappy)"
    )
    print(f"first message -> last file          {rows / found['wall']:>10,.0f} rows/s of wall time")
    print(f"                                    {rows / found['cpu']:>10,.0f} rows/s of CPU time")


def fill(kafka: Any, count: int, folder: Path) -> tuple[float, Counter[str]]:
    """Publish `count` events; returns the mean size of a value in bytes, and how many went to each topic."""
    from pipeline.kafka import make_admin, make_producer
    from pipeline.topics import apply_topics
    from producers.wire_v2 import decode
    from schemas.codec import EventEncoder
    from schemas.framing import SingleObjectFraming
    from schemas.topics import TOPICS
    from simulator.config import SimulatorSettings
    from simulator.ledger import Ledger
    from simulator.network import Network

    admin = make_admin(kafka)
    apply_topics(admin)
    network = Network(SimulatorSettings(data_dir=folder, history_hours=0, accounts=50_000))
    start = time.time_ns() // 1000 - 3_600_000_000
    # Some events are no records (accounts, identities): a share, however many are asked for.
    while network.log.position < count + count // 100 + 1000:
        network.live(1024, start, start + 1_000_000)
        start += 1_000_000
    network.close()
    producer = make_producer(kafka, **{"queue.buffering.max.messages": 1_000_000})
    encoder, framing = EventEncoder("bench", "v2"), SingleObjectFraming()
    done = size = 0
    counts: Counter[str] = Counter()
    for event in Ledger(folder).events():
        frame: Any = decode(event.raw)
        if not hasattr(frame, "record"):
            continue
        topic, body = encoder.commit(
            frame.time_us, frame.did, frame.operation, frame.collection, frame.rkey, frame.rev, frame.cid,
            frame.seq, frame.time_us, False, False, frame.envelope_json, frame.record,
        )  # fmt: skip
        value = framing.frame(TOPICS[topic].schema, body)
        producer.produce(topic, value, frame.did.encode(), timestamp=frame.time_us // 1000)
        size += len(value)
        counts[topic] += 1
        done += 1
        if done % 1000 == 0:
            producer.poll(0)
        if done == count:
            break
    if done < count or producer.flush(60):
        raise SystemExit(f"only {done} of {count} events could be published")
    return size / done, counts


def write(options: Mapping[str, Any]) -> None:
    """Catch up, in a process of its own on one core."""
    core = sorted(os.sched_getaffinity(0))[0]
    os.sched_setaffinity(0, {core})
    import pyarrow as pa

    pa.set_cpu_count(1)
    from consumers.config import WriterConfig
    from consumers.service import WriterService
    from lake.manifest import open_manifest
    from lake.steps import CommitStep
    from lake.store import LakeStore
    from pipeline.kafka import KafkaSettings, consumer_properties, make_consumer, make_producer

    kafka = KafkaSettings(bootstrap=options["bootstrap"])
    manifest = open_manifest(str(Path(options["lake"]) / "manifest.sqlite"), create=True)
    changes = {} if options["batch_rows"] is None else {"batch_rows": options["batch_rows"]}
    config = WriterConfig(group=f"bench-{len(options['topics'] or [])}", **changes)
    stop = threading.Event()
    first: list[tuple[float, float, float]] = []
    commits: list[tuple[float, float, float]] = []

    def hook(step: CommitStep) -> None:
        if step is CommitStep.MANIFEST_COMMITTED:
            commits.append((time.perf_counter(), time.process_time(), time.thread_time()))

    def report(facts: Mapping[str, object]) -> None:
        if facts["rows"] == options["events"]:
            stop.set()

    service = WriterService(
        config,
        manifest,
        LakeStore(options["lake"]),
        partial(make_consumer, kafka),
        partial(make_producer, kafka),
        report,
        properties_factory=partial(consumer_properties, kafka),
        hook=hook,
        **({} if options["topics"] is None else {"topics": tuple(options["topics"])}),
    )
    # Joining a group takes seconds that have nothing to do with speed: the clock starts with the first partitions.
    from consumers import writer as module

    assigned = module.Writer.assigned

    def noting(self: Any, partitions: Any) -> Any:
        offsets = assigned(self, partitions)
        if not first:
            first.append((time.perf_counter(), time.process_time(), time.thread_time()))
        return offsets

    module.Writer.assigned = noting  # type: ignore[method-assign]
    profiler = cProfile.Profile(time.thread_time) if options["profile"] else None
    if profiler is not None:
        profiler.enable()
    service.run(stop)
    if profiler is not None:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    snapshot = manifest.snapshot()
    rows = sum(snapshot.total_rows(table) for table in snapshot.tables())
    files = [file for table in snapshot.tables() for file in snapshot.files(table)]
    wall, cpu, own = (after - before for before, after in zip(first[0], commits[-1], strict=True))
    print(f"        commits of {config.batch_rows:,} rows at most, one core, single-threaded libraries")
    print(
        f"committed                           {rows:>10,} rows in {len(files)} files, "
        f"{sum(f.bytes for f in files) / rows:.1f} bytes a row"
    )
    print(f"assignment -> last commit           {rows / wall:>10,.0f} rows/s of wall time")
    print(f"                                    {rows / cpu:>10,.0f} rows/s of CPU time")
    print(
        f"CPU time a row                      {own / rows * 1e6:>10.2f} us in the writer's thread, "
        f"{(cpu - own) / rows * 1e6:.2f} us in others"
    )
    if len(commits) > 2:
        # The first commit pays for imports and for memory that is asked for once.
        rows_of_first = manifest.versions(limit=len(commits))[-1].rows_added
        cpu = commits[-1][1] - commits[0][1]
        print(f"sustained, after the first commit   {(rows - rows_of_first) / cpu:>10,.0f} rows/s of CPU time")
    manifest.close()


if __name__ == "__main__":
    main(sys.argv[1:])

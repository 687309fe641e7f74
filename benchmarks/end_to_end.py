"""Socket to committed Parquet: simulator, broker, producer and writer as processes of this machine, a whole history at full speed.

The rate counts from the first event sent to the last committed; the start of producer and writer before it is told apart.

The simulator's history is made before the clock starts; from then on all processes share the cores, the simulator's sending
included, which a real host would do elsewhere.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import psutil

from pipeline.stack import Stack

NAMES = ("broker", "simulator", "producer", "writer")


def cpu_seconds(stack: Stack) -> dict[str, tuple[float, int]]:
    """User and system seconds, and resident bytes, of each process with its children."""
    used = {}
    for name in NAMES:
        pid = stack.supervisor.pid(name)
        if pid is None:
            continue
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        times = [process.cpu_times() for process in processes]
        used[name] = (sum(t.user + t.system for t in times), sum(process.memory_info().rss for process in processes))
    return used


def settled(stack: Stack) -> bool:
    """Whether the reports, which are a second old, say what the manifest says."""
    writer = stack.report("writer")
    return bool(writer.get("rows") == stack.committed_rows() and stack.report("producer").get("acknowledged"))


def main() -> int:
    """Print events/s from the first event sent to the last commit, what became of all events, and what each process used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_200_000, help="events in the simulator's history")
    parser.add_argument("--limit", type=int, default=600, help="seconds to wait for the last commit")
    options = parser.parse_args()
    rate = 100.0
    hours = options.events / rate / 3600
    state = Path(tempfile.mkdtemp(prefix="explorer-end-to-end-"))
    stack = Stack(
        state,
        EXPLORER_SIMULATOR_RATE="0",
        EXPLORER_SIMULATOR_HISTORY_HOURS=f"{hours:.4f}",
        EXPLORER_SIMULATOR_HISTORY_RATE=str(rate),
        EXPLORER_SOURCE_START="oldest",
    )
    print(
        f"input: {options.events:,} events, {hours:.1f} h of history at {rate:.0f} events/s, seed of the simulator's default"
    )
    try:
        stack.start("broker", "simulator")
        stack.until(
            lambda: (stack.simulator() or {}).get("generated", 0) >= options.events * 0.99, "history made", seconds=600
        )
        generated = (stack.simulator() or {})["generated"]
        before = cpu_seconds(stack)
        started = time.monotonic()
        stack.start("writer", "producer")
        stack.until(lambda: (stack.simulator() or {}).get("sent", 0), "the first event is sent")
        sending = time.monotonic()
        print(f"producer and writer started, first event sent after {sending - started:.1f} s")
        seen, rows, first = sending, 0, None
        while not stack.drained():
            if time.monotonic() - started > options.limit:
                print(f"not drained after {options.limit} s\n{stack.explain()}", file=sys.stderr)
                return 1
            stack.tick()
            if first is None and stack.committed_rows():
                first = time.monotonic() - sending
            if time.monotonic() - seen >= 2:
                total = stack.committed_rows()
                print(
                    f"  {time.monotonic() - sending:6.1f} s  {total:>10,} rows"
                    f"  {(total - rows) / (time.monotonic() - seen):>9,.0f}/s"
                )
                seen, rows = time.monotonic(), total
        elapsed = time.monotonic() - sending
        after = cpu_seconds(stack)
        stack.until(lambda: settled(stack), "the last reports", seconds=30)
        rows = stack.committed_rows()
        producer, writer = stack.report("producer"), stack.report("writer")
        dead = producer["dead_letters"] + writer["dead_letters"]
        accounted = rows + dead + writer["duplicates"]
        size = sum(path.stat().st_size for path in stack.lake.rglob("*.parquet"))
        print(
            f"{rows:,} rows committed in {elapsed:.1f} s: {generated / elapsed:,.0f} events/s"
            f" (first commit after {first or 0:.1f} s)"
        )
        print(
            f"{rows:,} rows + {dead:,} dead letters + {writer['duplicates']:,} duplicates = {accounted:,}"
            f" of {generated:,} events: {'closes' if accounted == generated else 'DOES NOT CLOSE'}"
        )
        print(f"{size / max(rows, 1):.1f} bytes per event on disk before rolling; {os.cpu_count()} cores")
        for name, (cpu, memory) in after.items():
            spent = cpu - before.get(name, (0.0, 0))[0]
            print(
                f"  {name:<10} {spent:6.1f} CPU s  {rows / spent if spent else 0:>10,.0f} events per CPU s"
                f"  {memory / 2**20:6.0f} MiB"
            )
        return int(accounted != generated)
    finally:
        stack.stop()
        shutil.rmtree(state, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

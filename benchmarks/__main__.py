"""Run the benchmarks one after another and keep what they print: `make bench`, or `python -m benchmarks [NAME ...]`.

Every benchmark prints its inputs with its figures. Machines are shared and noisy: compare figures of one run only. The writer
runs beside a peer, which is installed on first use.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.peer import PEER, peer_interpreter

ROOT = Path(__file__).parents[1]
ORDER = ("calibration", "producer", "producer_outage", "writer", "lake", "end_to_end", "api")
LIMIT_SECONDS = 1800
LIBRARIES = ("confluent-kafka", "duckdb", "msgspec", "polars", "pyarrow", "websockets")


def available() -> list[str]:
    """The benchmarks of this folder, in the order of the pipeline."""
    names = {path.stem for path in Path(__file__).parent.glob("*.py")}
    return [name for name in ORDER if name in names]


def machine() -> str:
    """What the figures were taken on, in one line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return f"{os.cpu_count()} cores of {model}; Python {platform.python_version()}; {libraries}"


def main() -> int:
    """Run the named benchmarks (all by default); the exit status is 1 when one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*available(), []], metavar="NAME", help=" ".join(available()))
    names = parser.parse_args().names or available()
    folder = ROOT / ".local" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    print(machine(), flush=True)
    failed = []
    for name in names:
        print(f"\n== {name}", flush=True)
        started = time.monotonic()
        with (folder / f"{name}.txt").open("w") as kept:
            kept.write(machine() + "\n")
            command = [sys.executable, "-m", f"benchmarks.{name}"]
            if name == "writer":
                if peer := peer_interpreter(folder / "peer"):
                    command += ["--peer", peer]
                else:
                    note = f"the peer ({' '.join(PEER)}) is left out: the package index could not be reached"
                    print(note, flush=True)
                    kept.write(note + "\n")
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                kept.write(line)
            status = process.wait(LIMIT_SECONDS)
        print(f"== {name}: exit {status} after {time.monotonic() - started:.0f} s", flush=True)
        if status:
            failed.append(name)
    if failed:
        print(f"failed: {' '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

"""The producer while its broker is away: memory over time, and how fast it is back. Toward flat within 10 % over 10 minutes.

Run: `python -m benchmarks.producer_outage [--seconds N] [--rate N]`. Starts an embedded broker, a simulator and a producer; stops
the broker until N seconds after the producer's queue is full while the simulator goes on; then ends every connection some times.
Prints the producer's resident memory, the time from the broker's return to the first acknowledgement, and from a lost connection to
new events.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

MIB = 1024 * 1024


def main(arguments: Sequence[str]) -> None:
    """Print the inputs and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="how long the broker stays away with the queue full"
    )
    parser.add_argument("--rate", type=float, default=2000.0, help="events per second of the simulator")
    parser.add_argument("--producer", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.producer is not None:
        run_producer(json.loads(options.producer))
        return
    print(
        f"inputs: simulator {options.rate:,.0f} events/s, broker away until {options.seconds:g} s after the queue is full"
    )
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.seconds, options.rate)


def run_producer(arguments: dict[str, Any]) -> None:
    """The producer's process: reports as JSON lines."""
    from pipeline.kafka import KafkaSettings, make_consumer, make_producer
    from producers.config import ProducerSettings, SourceSettings
    from producers.service import ProducerService
    from schemas.framing import SingleObjectFraming

    kafka = KafkaSettings(bootstrap=arguments["bootstrap"])
    ProducerService(
        SourceSettings(hosts=(arguments["url"],), start="oldest"),
        ProducerSettings(cursor_interval=0.1),
        SingleObjectFraming(),
        partial(make_producer, kafka),
        partial(make_consumer, kafka),
        lambda report: print(json.dumps(report), flush=True),
    ).run(threading.Event())


class Producer:
    """The process and its newest report."""

    def __init__(self, bootstrap: str, url: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.producer_outage",
                "--producer",
                json.dumps({"bootstrap": bootstrap, "url": url}),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.report: dict[str, Any] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.report = json.loads(line)

    def memory(self) -> float:
        """Resident MiB."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / MIB

    def seconds_until(self, name: str, above: int, limit: float = 120.0) -> float:
        """How long until a number of the report exceeds `above`."""
        start = time.monotonic()
        while int(self.report.get(name) or 0) <= above:
            if time.monotonic() - start > limit:
                raise TimeoutError(f"{name} stays at {self.report.get(name)}")
            time.sleep(0.01)
        return time.monotonic() - start


def measure(folder: Path, seconds: float, rate: float) -> None:
    """Run everything and print."""
    from pipeline.kafka import make_admin
    from pipeline.local_broker import LocalBroker
    from pipeline.topics import apply_topics
    from simulator.config import SimulatorSettings
    from simulator.service import SimulatorService

    broker = LocalBroker(folder / "kafka")
    broker.start(timeout=120)
    simulator = SimulatorService(
        SimulatorSettings(data_dir=folder / "simulator", port=0, rate=rate, history_hours=0, accounts=20_000),
        lambda report: None,
    )
    stop = threading.Event()
    thread = threading.Thread(target=simulator.run, args=(stop,))
    thread.start()
    producer: Producer | None = None
    try:
        apply_topics(make_admin(broker.settings()))
        simulator.listening.wait(60)
        url = f"127.0.0.1:{simulator.port}"
        producer = Producer(broker.settings().bootstrap, f"ws://{url}")
        producer.seconds_until("acknowledged", int(rate * 3))
        print(f"memory while streaming          {producer.memory():8.1f} MiB")
        broker.stop()
        away = time.monotonic()
        while producer.report["connected"]:
            time.sleep(0.1)
        print(f"broker gone -> queue full       {time.monotonic() - away:8.1f} s, socket closed")
        samples = sample_memory(producer, seconds)
        print(f"memory with the queue full      {samples[0]:8.1f} MiB at first, {max(samples):.1f} highest")
        print(f"growth over {seconds:5.0f} s             {100 * (max(samples) / samples[0] - 1):8.1f} %")
        acknowledged = int(producer.report["acknowledged"])
        broker.start(timeout=120)
        print(f"broker back -> acknowledged     {producer.seconds_until('acknowledged', acknowledged):8.2f} s")
        time.sleep(5)
        latencies = []
        for _ in range(5):
            httpx.get(f"http://{url}/_simulator/scenario?name=crash", timeout=10)
            received = int(producer.report["received"])
            latencies.append(producer.seconds_until("received", received + int(rate * 0.2)))
            time.sleep(1)
        print(f"connection lost -> new events   {max(latencies):8.2f} s at worst of {len(latencies)}")
    finally:
        if producer is not None:
            producer.process.kill()
            producer.process.wait()
        stop.set()
        thread.join(30)
        broker.stop()


def sample_memory(producer: Producer, seconds: float) -> list[float]:
    """Resident MiB, once a second."""
    samples = []
    for _ in range(max(int(seconds), 4)):
        time.sleep(1)
        samples.append(producer.memory())
    return samples


if __name__ == "__main__":
    main(sys.argv[1:])

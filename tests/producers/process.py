"""A producer as a process of its own, for tests that kill it: `python -m tests.producers.process JSON`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.kafka import KafkaSettings, make_consumer, make_producer
from producers.config import ProducerSettings, SourceSettings
from producers.service import ProducerService
from schemas.framing import SingleObjectFraming

ROOT = Path(__file__).parents[2]


def start(bootstrap: str, source: dict[str, Any], config: dict[str, Any]) -> subprocess.Popen[str]:
    """Start one; its reports come as lines of JSON on standard output."""
    arguments = json.dumps({"bootstrap": bootstrap, "source": source, "config": config})
    return subprocess.Popen(
        [sys.executable, "-m", "tests.producers.process", arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def main(arguments: dict[str, Any]) -> None:
    """Run until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    kafka = KafkaSettings(bootstrap=arguments["bootstrap"])
    ProducerService(
        SourceSettings(**arguments["source"]),
        ProducerSettings(**arguments["config"]),
        SingleObjectFraming(),
        partial(make_producer, kafka),
        partial(make_consumer, kafka),
        lambda report: print(json.dumps(report), flush=True),
    ).run(stop)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""The end of a demo: pause the source, wait until nothing is on its way any more, compare, write it down."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from pipeline.kafka import KafkaUnreachableError
from pipeline.lag import behind, end_offsets
from pipeline.messages import read_dead_letters
from pipeline.summary import Summary, summarize
from pipeline.topics import EVENT_TOPICS
from pipeline.up import Up
from simulator.ledger import Ledger


def finish(up: Up) -> bool:
    """Drains and compares while everything still runs; prints the summary and writes `<state>/summary.json`.

    Returns whether every line closes. Waits at most `supervisor.demo_drain_seconds` for the lake to catch up, and
    compares then all the same, so that what is missing is shown.
    """
    up.say("pausing the simulator and waiting until everything sent is committed")
    up.pause_source()
    deadline = time.monotonic() + up.settings.supervisor.demo_drain_seconds
    last = int(httpx.get(f"{up.simulator_url}/_simulator/status", timeout=5.0).json()["last_seq"])
    drained = _wait(up, deadline, lambda: _published(up, last)) and _wait(up, deadline, lambda: _committed(up))
    if up.aborted:
        return False
    if not drained:
        up.say(f"still behind after {up.settings.supervisor.demo_drain_seconds:g} s; comparing what is there")
    manifest = up.manifest()
    if manifest is None:
        up.say("there is no manifest: nothing was committed")
        return False
    summary = summarize(
        Ledger(up.settings.simulator.data_dir), manifest.snapshot(), Path(up.settings.lake), read_dead_letters(up.kafka)
    )
    _write(up, summary)
    up.say(summary.text())
    if summary.closes:
        up.say(f"PASS: each of the {summary.total.sent:,} events sent is accounted for exactly once")
    return summary.closes


def _published(up: Up, last_seq: int) -> bool:
    return int(up.status("producer").get("cursor_seq") or 0) >= last_seq


def _committed(up: Up) -> bool:
    manifest = up.manifest()
    if manifest is None:
        return False
    try:
        return not behind(manifest, end_offsets(up.kafka, EVENT_TOPICS, timeout=5.0))
    except KafkaUnreachableError:
        return False  # the supervisor is starting it again; the deadline bounds the wait


def _wait(up: Up, deadline: float, condition: Callable[[], bool]) -> bool:
    while not condition():
        if up.aborted or time.monotonic() > deadline:
            return False
        up.tick()
    return True


def _write(up: Up, summary: Summary) -> None:
    path = up.settings.state / "summary.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(summary.to_json(), indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
    up.say(f"written to {path}")

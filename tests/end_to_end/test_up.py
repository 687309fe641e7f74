"""`post-explorer up` as a user runs it: the demo, its summary, the README's examples, and every way to end it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

pytestmark = pytest.mark.timeout(900)

README = Path(__file__).parents[2] / "README.md"
SMALL = {
    "EXPLORER_API_PORT": "0",
    "EXPLORER_SIMULATOR_HISTORY_HOURS": "2",
    "EXPLORER_SIMULATOR_HISTORY_RATE": "3",
    "EXPLORER_SIMULATOR_RATE": "100",
    "EXPLORER_SIMULATOR_MALFORMED_SHARE": "0.002",
    "EXPLORER_SUPERVISOR_PLAIN_INTERVAL_SECONDS": "1",
    "EXPLORER_MAINTAIN_INTERVAL_SECONDS": "2",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """One `up` process, what it printed so far, and every process it ever had below it."""

    def __init__(self, state: Path, *arguments: str, **environment: str) -> None:
        self.output = state / "up.txt"
        state.mkdir(parents=True, exist_ok=True)
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "up", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **SMALL, "EXPLORER_STATE": str(state), **environment},
            )
        self.family: set[psutil.Process] = set()

    @property
    def text(self) -> str:
        self.family |= set(psutil.Process(self.process.pid).children(recursive=True)) if self.alive else set()
        return self.output.read_text()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def until(self, condition: Callable[[], Any], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.alive, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.1)

    def wait(self, seconds: float = 240) -> int:
        deadline = time.monotonic() + seconds
        while self.alive:
            assert time.monotonic() < deadline, self.text
            _ = self.text
            time.sleep(0.1)
        return self.process.returncode

    def left(self, seconds: float) -> list[str]:
        """The processes that still run, after at most so many seconds for them to go."""
        _, alive = psutil.wait_procs(list(self.family), timeout=seconds)
        return [" ".join(process.cmdline()) for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@contextmanager
def up(state: Path, *arguments: str, **environment: str) -> Iterator[Running]:
    running = Running(state, *arguments, **environment)
    try:
        yield running
    finally:
        _ = running.text
        if running.alive:
            running.process.kill()
            running.process.wait()
        for process in running.family:
            if process.is_running():
                process.kill()


def test_the_demo_closes_its_books_twice_and_answers_the_readme(tmp_path: Path) -> None:
    ports = {"EXPLORER_API_PORT": str(free_port()), "EXPLORER_SIMULATOR_PORT": str(free_port())}
    totals = []
    for run in range(2):
        with up(tmp_path, "--demo", "--duration", "20" if run == 0 else "6", **ports) as running:
            if run == 0:
                url = f"http://127.0.0.1:{ports['EXPLORER_API_PORT']}"
                running.until(partial(posts, url))
                for example in readme_examples(url):
                    answer = httpx.get(example, timeout=30)
                    assert answer.status_code == 200, (example, answer.text)
            assert running.wait(240) == 0, running.text
            assert running.left(60) == []
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert summary["result"] == "PASS"
        assert all(line["closes"] for line in summary["tables"].values())
        totals.append(summary["total"])
    assert totals[0]["dead_letters"] > 0
    assert totals[1]["sent"] > totals[0]["sent"]
    text = (tmp_path / "up.txt").read_text()
    committed = [int(number.replace(",", "")) for number in re.findall(r"committed ([\d,]+) rows", text)]
    assert committed == sorted(committed)
    assert committed[-1] > 0


def posts(url: str) -> bool:
    try:
        answer = httpx.get(f"{url}/v1/search?text=the&limit=3", timeout=10)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200 and len(answer.json()["results"]) == 3


def readme_examples(url: str) -> list[str]:
    found = re.findall(r"^curl -s '([^']+)'", README.read_text(), re.MULTILINE)
    assert len(found) >= 3
    return [example.replace("http://127.0.0.1:8080", url) for example in found]


def started(running: Running) -> Callable[[], bool]:
    return lambda: "started: broker" in running.text and "committed" in running.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with up(tmp_path, "--live", EXPLORER_SOURCE_HOSTS=f"ws://127.0.0.1:{free_port()}") as running:
        running.until(started(running))
        running.process.send_signal(number)
        assert running.wait() == 0, running.text
        assert "stopping: producer, writer, maintain, api, broker" in running.text
        assert running.left(60) == []


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with up(tmp_path, "--demo", EXPLORER_SIMULATOR_PORT="0") as running:
        running.until(started(running))
        running.process.send_signal(signal.SIGINT)
        running.until(lambda: "pausing the simulator" in running.text)
        running.process.send_signal(signal.SIGINT)
        assert running.wait() == 130, running.text
        assert "ended at once" in running.text
        assert "does not close" not in running.text
        assert running.left(60) == []


def test_a_killed_supervisor_leaves_no_process_behind(tmp_path: Path) -> None:
    with up(tmp_path, "--live", EXPLORER_SOURCE_HOSTS=f"ws://127.0.0.1:{free_port()}") as running:
        running.until(started(running))
        _ = running.text
        assert len(running.family) >= 5
        running.process.kill()
        running.process.wait()
        assert running.left(120) == []


def test_an_unreachable_source_is_named_within_seconds_and_tried_on(tmp_path: Path) -> None:
    hosts = "ws://nowhere.invalid:6008"
    with up(tmp_path, "--live", EXPLORER_SOURCE_HOSTS=hosts) as running:
        running.until(lambda: len(re.findall(r"producer: .*nowhere\.invalid.*next attempt", running.text)) >= 2)
        assert running.alive
        running.process.send_signal(signal.SIGINT)
        assert running.wait() == 0, running.text


def test_a_live_run_that_captured_nothing_says_so(tmp_path: Path) -> None:
    with up(tmp_path, "--live", "--duration", "4", EXPLORER_SOURCE_HOSTS="ws://nowhere.invalid:6008") as running:
        assert running.wait() == 1
        assert re.search(r"nothing was captured in 4 s: .*nowhere\.invalid", running.text)


def test_two_of_them_on_one_folder_are_refused(tmp_path: Path) -> None:
    with up(tmp_path, "--live", EXPLORER_SOURCE_HOSTS=f"ws://127.0.0.1:{free_port()}") as running:
        running.until(started(running))
        second = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "up", "--live"],
            env={**os.environ, "EXPLORER_STATE": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 1
        assert f"already runs on {tmp_path} (process {running.process.pid})" in second.stderr


def test_a_broker_that_is_not_there_is_named(tmp_path: Path) -> None:
    with up(tmp_path, "--live", EXPLORER_KAFKA_BOOTSTRAP=f"127.0.0.1:{free_port()}") as running:
        assert running.wait() == 1
        assert "EXPLORER_KAFKA_BOOTSTRAP" in running.text
        assert "Traceback" not in running.text


def test_a_port_that_was_asked_for_and_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with up(tmp_path, "--live", EXPLORER_API_PORT=str(port)) as running:
            assert running.wait() == 1
            assert f"port {port} of 127.0.0.1 is used by another program" in running.text

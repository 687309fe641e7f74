"""Supervision of real child processes: restarts, ordered stops, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.supervisor import ChildEvent, ChildSpec, Supervisor, SupervisorSettings, describe_exit, restart_delay

FAST = SupervisorSettings(restart_first_seconds=0.05, restart_max_seconds=0.2, drain_seconds=60, kill_grace_seconds=0.2)


def spec(name: str, code: str) -> ChildSpec:
    return ChildSpec(name, (sys.executable, "-c", textwrap.dedent(code)))


SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(FAST, tmp_path / "logs")
    yield made
    made.kill_all()


def until(supervisor: Supervisor, condition: Callable[[list[ChildEvent]], bool]) -> list[ChildEvent]:
    seen: list[ChildEvent] = []
    deadline = time.monotonic() + 120
    while not condition(seen):
        assert time.monotonic() < deadline, seen
        seen += supervisor.poll()
        time.sleep(0.01)
    return seen


def test_a_child_that_dies_is_started_again_and_that_is_told(supervisor: Supervisor) -> None:
    supervisor.start(spec("worker", SLEEP))
    first = supervisor.pid("worker")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    seen = until(supervisor, lambda events: len(events) == 2)
    assert "signal SIGKILL" in seen[0].text
    assert seen[0].failed
    assert seen[1].text == "started again (restart 1)"
    assert supervisor.pid("worker") not in (None, first)


def test_the_wait_between_restarts_grows_to_its_limit() -> None:
    delays = [restart_delay(failures, FAST) for failures in range(1, 6)]
    assert delays == [0.05, 0.1, 0.2, 0.2, 0.2]


def test_stop_drains_and_a_stopped_child_stays_down(supervisor: Supervisor) -> None:
    supervisor.start(spec("worker", SLEEP))
    event = supervisor.stop("worker")
    assert event is not None
    assert "SIGTERM" in event.text
    assert supervisor.poll() == []
    assert supervisor.pid("worker") is None
    assert supervisor.stop("worker") is None


def test_a_child_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    supervisor = Supervisor(FAST.model_copy(update={"drain_seconds": 0.5}), tmp_path / "logs")
    supervisor.start(
        spec(
            "deaf",
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
        )
    )
    until(supervisor, lambda _: "up" in supervisor.output_path("deaf").read_text())
    event = supervisor.stop("deaf")
    assert event is not None
    assert "was killed" in event.text
    assert event.failed


def test_output_of_a_crash_is_kept(supervisor: Supervisor) -> None:
    supervisor.start(spec("worker", "raise SystemExit('last words')"))
    until(supervisor, lambda events: bool(events))
    assert "last words" in supervisor.output_path("worker").read_text()


def test_children_of_a_killed_supervisor_stop(tmp_path: Path) -> None:
    """SIGKILL gives the supervisor no chance to tidy up; the kernel tells its children."""
    child = textwrap.dedent("""
        import os, time
        from pipeline.runtime import die_with_supervisor
        die_with_supervisor(os.environ)
        print("ready", flush=True)
        time.sleep(600)
    """)
    parent = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from pipeline.supervisor import ChildSpec, Supervisor, SupervisorSettings
        supervisor = Supervisor(SupervisorSettings(), Path({str(tmp_path)!r}))
        supervisor.start(ChildSpec("child", (sys.executable, "-c", {child!r})))
        while "ready" not in supervisor.output_path("child").read_text():
            time.sleep(0.01)
        print(supervisor.pid("child"), flush=True)
        time.sleep(600)
    """)
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        pid = int(process.stdout.readline())
        assert psutil.pid_exists(pid)
        process.kill()
        process.wait()
    deadline = time.monotonic() + 120
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_exits_are_described_in_words() -> None:
    assert [describe_exit(0), describe_exit(-9), describe_exit(-200)] == [
        "exit status 0",
        "signal SIGKILL",
        "signal 200",
    ]

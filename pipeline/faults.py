"""The faults that the pipeline has to survive, each as code that does it to a running stack.

A fault is struck, holds for a while if it is of that kind, and ends; from its end the clock runs until an event that the
source emitted after it is queryable again. Nothing here restarts anything: that is the supervisor's work, as in production.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import httpx

from lake.steps import CRASHPOINT_VARIABLE, CommitStep
from pipeline.errors import SupervisionError
from pipeline.local_broker import LocalBroker
from pipeline.stack import Stack
from pipeline.supervisor import ChildSpec

PROCESS_SECONDS: Final = 15.0
BROKER_SECONDS: Final = 30.0
WRITER_STEPS: Final = tuple(step for step in CommitStep if not step.value.startswith(("swap-", "file-unlinked")))
"""The points of a commit at which the writer is killed, in turn."""
DISK_FULL: Final = "disk full"


@dataclass(frozen=True)
class Limits:
    """How long things may take. `pause` is how long a fault of some length holds, `give_up` bounds every wait."""

    pause: float
    give_up: float


Strike = Callable[[Stack, Limits, int], None]
"""Does the harm and returns when it is over (not when it is mended). The number counts the rounds from 0."""


@dataclass(frozen=True)
class Fault:
    """One kind. `asked` is the target for the time to recover, in seconds; `hits_api` excuses the API meanwhile."""

    name: str
    does: str
    asked: float
    strike: Strike
    recovered: Callable[[Stack, int], bool]
    hits_api: bool = False


# ---------------------------------------------------------------- what recovered means


def queryable(stack: Stack, since_us: int) -> bool:
    """Whether an event that the source emitted after `since_us` is in the lake."""
    return stack.newest_us() > since_us


def maintained(stack: Stack, since_us: int) -> bool:
    """Whether maintenance has finished a run that began with a new process."""
    report = stack.report("maintain")
    return report.get("pid") == stack.supervisor.pid("maintain") and float(report.get("last_run") or 0) * 1e6 > since_us


def answering(stack: Stack, since_us: int) -> bool:
    """Whether the API answers a question about the lake."""
    with suppress(httpx.HTTPError):
        return httpx.get(f"{stack.api_url}/v1/search?limit=1", timeout=2.0).status_code == 200
    return False


# ---------------------------------------------------------------- strikes


def _kill(*names: str) -> Strike:
    def strike(stack: Stack, limits: Limits, number: int) -> None:
        for name in names:
            stack.kill(name)

    return strike


def _await_source(stack: Stack, limits: Limits) -> None:
    stack.until(lambda: (stack.simulator() or {}).get("ready"), "the source answers again", seconds=limits.give_up)


def _kill_source(stack: Stack, limits: Limits, number: int) -> None:
    stack.kill("simulator")
    stack.tick()
    _await_source(stack, limits)


def _java(stack: Stack) -> int:
    pid = LocalBroker(stack.state / "kafka").status(1.0).pid
    if pid is None:
        raise SupervisionError("the broker's Java process is not there", "see the broker's log")
    return pid


def _kill_java(stack: Stack, limits: Limits, number: int) -> None:
    os.kill(_java(stack), signal.SIGKILL)


def _pause_java(stack: Stack, limits: Limits, number: int) -> None:
    _frozen(stack, _java(stack), limits.pause)


def _frozen(stack: Stack, pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        wait(stack, seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


def wait(stack: Stack, seconds: float) -> None:
    """Lets time pass while looking after the processes."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stack.tick()


def _kill_softly(name: str) -> Strike:
    def strike(stack: Stack, limits: Limits, number: int) -> None:
        pid = stack.send(name, signal.SIGTERM)
        # While it drains it still does its work: the outage begins with its end.
        stack.until(lambda: stack.supervisor.pid(name) != pid, f"{name} ends", seconds=limits.give_up)

    return strike


def _freeze(name: str) -> Strike:
    def strike(stack: Stack, limits: Limits, number: int) -> None:
        pid = stack.supervisor.pid(name)
        if pid is None:
            raise SupervisionError(f"{name} is not running", "see its log")
        _frozen(stack, pid, limits.pause)

    return strike


def _scenario(order: str) -> Strike:
    def strike(stack: Stack, limits: Limits, number: int) -> None:
        stack.control(f"scenario?name={order}")

    return strike


def _crash_at_step(stack: Stack, limits: Limits, number: int) -> None:
    """The writer's next start dies inside a commit; the one after it is sound."""
    step = WRITER_STEPS[number % len(WRITER_STEPS)]
    sound = stack.supervisor.spec("writer")
    stack.supervisor.replace(
        ChildSpec(sound.name, sound.command, {**sound.environment, CRASHPOINT_VARIABLE: f"{step.value}:1"})
    )
    before = stack.supervisor.restarts("writer")
    stack.kill("writer")
    stack.until(lambda: stack.supervisor.restarts("writer") > before, "the writer starts", seconds=limits.give_up)
    stack.supervisor.replace(sound)
    stack.until(
        lambda: stack.supervisor.pid("writer") is None, f"the writer dies at {step.value}", seconds=limits.give_up
    )


def _fill_disk(stack: Stack, limits: Limits, number: int) -> None:
    """Fills the lake's own small file system until the writer says that it holds, for a while, then makes room."""
    ballast = stack.lake / "ballast"
    try:
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(shutil.disk_usage(stack.lake).free - (1 << 20), 1))
        stack.until(lambda: stack.report("writer").get("holding"), "the writer says it holds", seconds=limits.give_up)
        wait(stack, limits.pause)
    finally:
        ballast.unlink(missing_ok=True)


# ---------------------------------------------------------------- the list

ALL: Final = ("broker", "simulator", "producer", "writer", "maintain", "api")
# In this order no process is hit twice in a row: the supervisor lets one that dies again and again wait longer and longer.
# The clock comes last, because it stays ahead.
FAULTS: Final = (
    Fault("producer killed", "SIGKILL", PROCESS_SECONDS, _kill("producer"), queryable),
    Fault("writer killed", "SIGKILL", PROCESS_SECONDS, _kill("writer"), queryable),
    Fault("broker killed", "SIGKILL, its Java dies with it", BROKER_SECONDS, _kill("broker"), queryable),
    Fault("API killed", "SIGKILL", PROCESS_SECONDS, _kill("api"), answering, hits_api=True),
    Fault("source killed", "SIGKILL, timed from its return", PROCESS_SECONDS, _kill_source, queryable),
    Fault("writer killed in a commit", "SIGKILL at each step in turn", PROCESS_SECONDS, _crash_at_step, queryable),
    Fault("broker frozen", "SIGSTOP, SIGCONT", BROKER_SECONDS, _pause_java, queryable),
    Fault("maintenance killed", "SIGKILL", PROCESS_SECONDS, _kill("maintain"), maintained),
    Fault("source resets connections", "TCP reset", PROCESS_SECONDS, _scenario("crash"), queryable),
    Fault("broker's Java killed", "SIGKILL of Java alone", BROKER_SECONDS, _kill_java, queryable),
    Fault("source frozen", "SIGSTOP, SIGCONT: half-open sockets", PROCESS_SECONDS, _freeze("simulator"), queryable),
    Fault("writer frozen", "SIGSTOP past its session timeout, SIGCONT", PROCESS_SECONDS, _freeze("writer"), queryable),
    Fault(
        "source repeats frames",
        "the last 200 frames again, 5 times",
        PROCESS_SECONDS,
        _scenario("repeat&every=100&count=5&amount=200"),
        queryable,
    ),
    Fault("broker restarted", "SIGTERM", BROKER_SECONDS, _kill_softly("broker"), queryable),
    Fault(
        "source sends broken frames",
        "50 frames nobody can read",
        PROCESS_SECONDS,
        _scenario("malformed&every=3&count=50"),
        queryable,
    ),
    Fault("source bursts", "10,000 events at once", PROCESS_SECONDS, _scenario("burst"), queryable),
    Fault(DISK_FULL, "the lake's own file system, until the writer holds", PROCESS_SECONDS, _fill_disk, queryable),
    Fault(
        "everything killed",
        "SIGKILL of all processes, as when power fails",
        BROKER_SECONDS,
        _kill(*ALL),
        queryable,
        hits_api=True,
    ),
    Fault("source's clock jumps", "a minute forward", PROCESS_SECONDS, _scenario("time-jump&amount=60"), queryable),
)

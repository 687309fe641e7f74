"""Child processes under one roof: started, watched, restarted with backoff, stopped in order, never left behind.

`up` decides what runs and in which order; this module knows only names, command lines and time. All methods belong to
the main thread: the kernel ties "die with the parent" to the thread that started the child.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, Field

from pipeline.runtime import SUPERVISOR_VARIABLE


class SupervisorSettings(BaseModel):
    """How children are restarted and how long they may take to stop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    restart_first_seconds: float = Field(0.5, gt=0, description="wait before the first restart of a child that died")
    restart_max_seconds: float = Field(30.0, gt=0, description="longest wait between restarts; each wait doubles")
    healthy_seconds: float = Field(30.0, gt=0, description="a child that lived this long starts again without a wait")
    drain_seconds: float = Field(30.0, gt=0, description="how long a process may drain after it is told to stop")
    kill_grace_seconds: float = Field(5.0, gt=0, description="further wait before a child that still runs is killed")
    simulator_ready_seconds: float = Field(
        120.0, gt=0, description="how long the simulator may take to make its history"
    )
    demo_drain_seconds: float = Field(120.0, gt=0, description="how long the demo waits for lag zero at its end")
    plain_interval_seconds: float = Field(5.0, gt=0, description="time between status lines when not on a terminal")


@dataclass(frozen=True)
class ChildSpec:
    """One process to keep running. `environment` is added to the supervisor's own."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ChildEvent:
    """Something that happened to a child, for the person who watches."""

    name: str
    text: str
    failed: bool = False


@dataclass
class _Child:
    spec: ChildSpec
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    restarts: int = 0
    restart_at: float | None = None
    stopping: bool = False


def restart_delay(failures: int, settings: SupervisorSettings) -> float:
    """Seconds to wait before start number `failures` + 1 in a row of quick deaths (`failures` ≥ 1)."""
    return float(min(settings.restart_max_seconds, settings.restart_first_seconds * 2 ** min(failures - 1, 16)))


class Supervisor:
    """Keeps a set of children running. Output of a child goes to `<log_folder>/<name>.out`, emptied at each `up`.

    `keep_open` are file descriptors that every child inherits: `up` passes its lock, so that the lock is free only
    when the last child is gone too.
    """

    def __init__(self, settings: SupervisorSettings, log_folder: Path, keep_open: Sequence[int] = ()) -> None:
        self._settings = settings
        self._log_folder = log_folder
        self._keep_open = tuple(keep_open)
        self._children: dict[str, _Child] = {}
        log_folder.mkdir(parents=True, exist_ok=True)

    def start(self, spec: ChildSpec) -> None:
        """Starts a child and keeps it running from now on. Raises OSError when the program cannot be executed."""
        child = _Child(spec)
        self._children[spec.name] = child
        self.output_path(spec.name).unlink(missing_ok=True)
        self._spawn(child)

    def poll(self) -> list[ChildEvent]:
        """Looks after all children once: notices deaths, restarts what is due. Does not block."""
        now = time.monotonic()
        events: list[ChildEvent] = []
        for child in self._children.values():
            if child.process is not None and not child.stopping:
                status = child.process.poll()
                if status is not None:
                    events.append(self._bury(child, status, now))
            if child.restart_at is not None and now >= child.restart_at and not child.stopping:
                child.restarts += 1
                self._spawn(child)
                events.append(ChildEvent(child.spec.name, f"started again (restart {child.restarts})"))
        return events

    def replace(self, spec: ChildSpec) -> None:
        """Gives a child another command or environment from its next start on."""
        self._children[spec.name].spec = spec

    def spec(self, name: str) -> ChildSpec:
        """What the next start of a child will run."""
        return self._children[name].spec

    def stop(self, name: str) -> ChildEvent | None:
        """Tells one child to drain and waits for its end, killing it past the limit. None when it was not running."""
        child = self._children.get(name)
        if child is None:
            return None
        child.stopping, child.restart_at = True, None
        process = child.process
        if process is None or process.poll() is not None:
            return None
        process.send_signal(signal.SIGTERM)
        limit = self._settings.drain_seconds + self._settings.kill_grace_seconds
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return ChildEvent(name, f"did not stop within {limit:g} s and was killed", failed=True)
        if status != 0:
            return ChildEvent(name, f"stopped with {describe_exit(status)}", failed=True)
        return ChildEvent(name, "stopped")

    def pid(self, name: str) -> int | None:
        """The process id of a running child, None while it is down."""
        child = self._children.get(name)
        if child is None or child.process is None or child.process.poll() is not None:
            return None
        return child.process.pid

    def restarts(self, name: str) -> int:
        """How often a child was started again."""
        return self._children[name].restarts if name in self._children else 0

    def names(self) -> list[str]:
        """All children in the order in which they were started."""
        return list(self._children)

    def output_path(self, name: str) -> Path:
        """The file with what a child printed outside its log, such as the last words of a crash."""
        return self._log_folder / f"{name}.out"

    def kill_all(self) -> None:
        """Kills what is left. The last resort when an orderly stop failed half-way."""
        for child in self._children.values():
            child.stopping = True
            if child.process is not None and child.process.poll() is None:
                child.process.kill()
                child.process.wait()

    def _spawn(self, child: _Child) -> None:
        child.restart_at = None
        output: IO[bytes]
        with self.output_path(child.spec.name).open("ab") as output:
            child.process = subprocess.Popen(
                child.spec.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **child.spec.environment, SUPERVISOR_VARIABLE: str(os.getpid())},
                # Ctrl-C on the terminal reaches the supervisor alone, which then stops the children in order.
                start_new_session=True,
                pass_fds=self._keep_open,
            )
        child.started = time.monotonic()

    def _bury(self, child: _Child, status: int, now: float) -> ChildEvent:
        lived = now - child.started
        child.process = None
        child.failures = 1 if lived >= self._settings.healthy_seconds else child.failures + 1
        delay = restart_delay(child.failures, self._settings)
        child.restart_at = now + delay
        return ChildEvent(
            child.spec.name,
            f"ended after {lived:.0f} s with {describe_exit(status)}; restart in {delay:g} s",
            failed=True,
        )


def describe_exit(status: int) -> str:
    """An exit status in words; negative ones are signals, as `subprocess` has it."""
    if status < 0:
        try:
            return f"signal {signal.Signals(-status).name}"
        except ValueError:
            return f"signal {-status}"
    return f"exit status {status}"


def explorer_command(*arguments: str) -> tuple[str, ...]:
    """The command line that runs `post-explorer` with the interpreter that runs now."""
    return (sys.executable, "-m", "pipeline.cli", *arguments)

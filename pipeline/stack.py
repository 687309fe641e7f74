"""The pipeline as processes of a folder of its own, led by a program: for validation, faults on purpose, benchmarks, tests.

`up` serves a person; this serves code that decides what starts, what is killed and what has to come true next.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lake.errors import LakeError
from lake.manifest import Manifest, Snapshot, open_manifest
from pipeline.errors import SupervisionError
from pipeline.kafka import KafkaSettings, KafkaUnreachableError, make_admin
from pipeline.lag import behind, end_offsets
from pipeline.local_broker import LocalBroker
from pipeline.ports import free_port
from pipeline.services import ONLY_WRITER, STOP_ORDER
from pipeline.status import read_status
from pipeline.supervisor import ChildEvent, ChildSpec, Supervisor, SupervisorSettings, explorer_command
from pipeline.topics import EVENT_TOPICS, apply_topics

HOST = "127.0.0.1"
_POLL_SECONDS = 0.05
_MARKER = ".post-explorer-trial"


def empty_folder(path: Path) -> None:
    """Makes `path` an empty folder; what an earlier trial left there is removed.

    Raises SupervisionError when it holds anything that no trial made.
    """
    if path.exists() and any(path.iterdir()) and not (path / _MARKER).exists():
        raise SupervisionError(
            f"{path} is not empty and was not made by an earlier run of this command", "name another folder"
        )
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True, exist_ok=True)
    (path / _MARKER).touch()


class Stack:
    """A broker, a simulator and whatever else is started, supervised as `post-explorer up` does it.

    `environment` holds further settings of all processes (EXPLORER_...). Nothing runs until `start`. Not thread-safe:
    children belong to the thread that started them. Use `running` or call `kill_all` at the end.
    """

    def __init__(self, state: Path, supervision: SupervisorSettings | None = None, **environment: str) -> None:
        self.state = state
        self.lake = state / "lake"
        self.manifest_path = self.lake / "manifest.sqlite"
        self.port = free_port(HOST)
        self.api_port = free_port(HOST)
        self.supervisor = Supervisor(supervision or SupervisorSettings(), state / "logs")
        self.events: list[ChildEvent] = []
        self.environment = {
            "EXPLORER_PROFILE": "demo",
            "EXPLORER_STATE": str(state),
            "EXPLORER_SIMULATOR_PORT": str(self.port),
            "EXPLORER_API_PORT": str(self.api_port),
            "EXPLORER_SOURCE_HOSTS": f"ws://{HOST}:{self.port}",
            **ONLY_WRITER,
            **environment,
        }
        self.kafka = KafkaSettings(bootstrap=f"{HOST}:1")

    @property
    def api_url(self) -> str:
        """Where the API answers once it was started."""
        return f"http://{HOST}:{self.api_port}"

    @property
    def ledger_folder(self) -> Path:
        """The simulator's data folder, for `simulator.ledger.Ledger`."""
        return self.state / "simulator"

    def start(self, *names: str, wait: bool = True) -> None:
        """Starts processes by their command. Blocks until the broker or, with `wait`, the simulator is ready.

        `broker` also applies the topics. Raises SupervisionError when one of these two ends or takes too long.
        """
        for name in names:
            command = ("broker", "run") if name == "broker" else (name,)
            log = {"EXPLORER_LOG_FILE": str(self.state / "logs" / f"{name}.log")}
            self.supervisor.start(ChildSpec(name, explorer_command(*command), {**self.environment, **log}))
            if name == "broker":
                self._await_broker()
            elif name == "simulator" and wait:
                self.until(lambda: (self.simulator() or {}).get("ready"), "the history is made", restarts=False)

    def _await_broker(self) -> None:
        broker = LocalBroker(self.state / "kafka")
        self.until(lambda: broker.status(1.0).ready, "the broker is ready", restarts=False)
        self.kafka = broker.settings()
        self.environment["EXPLORER_KAFKA_BOOTSTRAP"] = self.kafka.bootstrap
        apply_topics(make_admin(self.kafka))

    def tick(self) -> None:
        """Looks after the processes once and lets a moment pass."""
        self.events += self.supervisor.poll()
        time.sleep(_POLL_SECONDS)

    def until(self, condition: Callable[[], Any], what: str, *, seconds: float = 240, restarts: bool = True) -> None:
        """Waits for `condition` while looking after the processes.

        Raises SupervisionError with what the processes said after `seconds`, or, without `restarts`, as soon as one dies.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            self.tick()
            if not restarts and any(event.failed for event in self.events):
                raise SupervisionError(f"a process ended before this: {what}\n{self.explain()}")
            if time.monotonic() > deadline:
                raise SupervisionError(f"not within {seconds:g} s: {what}\n{self.explain()}")

    def send(self, name: str, number: signal.Signals) -> int | None:
        """Sends a signal to one process; its id, None when it is down just now."""
        pid = self.supervisor.pid(name)
        if pid is not None:
            os.kill(pid, number)
        return pid

    def kill(self, name: str) -> None:
        """SIGKILL; the supervisor starts it again."""
        self.send(name, signal.SIGKILL)

    def report(self, name: str) -> dict[str, Any]:
        """The latest status report of a process; empty before its first."""
        return read_status(self.state / "status", name) or {}

    # ------------------------------------------------------------------ the source

    def control(self, action: str) -> dict[str, Any]:
        """One order to the running simulator, such as `pause` or `scenario?name=crash`. Raises OSError when it is away."""
        with urllib.request.urlopen(f"http://{HOST}:{self.port}/_simulator/{action}", timeout=10) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def pause(self) -> None:
        """Makes the simulator generate no further events; returns when it has said so."""
        self.control("pause")

    def simulator(self) -> dict[str, Any] | None:
        """The simulator's own status, None while it does not answer."""
        try:
            return self.control("status")
        except (OSError, ValueError):
            return None

    # ------------------------------------------------------------------ the lake

    @contextmanager
    def manifest(self) -> Iterator[Manifest]:
        """The manifest, read-only, for a moment. Raises ManifestUnavailable while there is none."""
        manifest = open_manifest(str(self.manifest_path), read_only=True)
        try:
            yield manifest
        finally:
            manifest.close()

    def snapshot_facts(self, read: Callable[[Snapshot], int]) -> int:
        """What `read` finds in the newest version; 0 while there is no lake or its manifest is busy."""
        if not self.manifest_path.exists():
            return 0
        try:
            with self.manifest() as manifest:
                return read(manifest.snapshot())
        except LakeError:
            return 0

    def committed_rows(self) -> int:
        """Rows of the newest version."""
        return self.snapshot_facts(lambda version: sum(version.total_rows(table) for table in version.tables()))

    def newest_us(self) -> int:
        """Source time of the newest event that is queryable, in microseconds; 0 while there is none."""
        return self.snapshot_facts(
            lambda version: max((version.totals(table).max_time_us or 0 for table in version.tables()), default=0)
        )

    def drained(self) -> bool:
        """Whether the producer has stored the last sequence and the writer has committed all the broker holds."""
        status = self.simulator()
        if status is None or int(self.report("producer").get("cursor_seq") or 0) < status["last_seq"]:
            return False
        try:
            with self.manifest() as manifest:
                return not behind(manifest, end_offsets(self.kafka, EVENT_TOPICS, 10.0))
        except (KafkaUnreachableError, LakeError):
            return False

    # ------------------------------------------------------------------ the end

    def explain(self) -> str:
        """What the processes said, for an error message."""
        lines = [f"{event.name}: {event.text}" for event in self.events[-20:]]
        for name in self.supervisor.names():
            lines.append(f"{name}: {self.report(name)}")
            for path in (self.supervisor.output_path(name), self.state / "logs" / f"{name}.log"):
                if path.exists():
                    lines += path.read_text(errors="replace").splitlines()[-15:]
        return "\n".join(lines)

    def stop(self) -> list[ChildEvent]:
        """Stops everything in the order in which data flows; returns what did not go well."""
        events = [self.supervisor.stop(name) for name in STOP_ORDER]
        self.supervisor.kill_all()
        return [event for event in events if event is not None and event.failed]

    @contextmanager
    def running(self) -> Iterator[Stack]:
        """The stack for the length of a `with`; whatever still runs at its end is killed."""
        try:
            yield self
        finally:
            self.supervisor.kill_all()

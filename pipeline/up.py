"""`post-explorer up`: the whole pipeline as supervised processes on this machine.

Starts in the order in which each part needs the one before, shows what happens, and stops in the order in which data
flows, so that everything accepted is committed: source first, broker last.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live

from lake.errors import LakeError
from lake.manifest import Manifest, open_manifest
from pipeline import display
from pipeline.errors import SupervisionError
from pipeline.kafka import KafkaSettings, check_reachable, make_admin
from pipeline.local_broker import LocalBroker
from pipeline.overview import Overview
from pipeline.ports import Ports, choose_ports, free_port, port_is_free
from pipeline.services import ONLY_WRITER, STOP_ORDER
from pipeline.settings import Loaded, Settings
from pipeline.state_lock import locked
from pipeline.status import read_status
from pipeline.supervisor import ChildEvent, ChildSpec, Supervisor, explorer_command
from pipeline.topics import apply_topics
from schemas.errors import ExplorerError

# Where a process's report says what keeps it from its work; empty or None when nothing does.
PROBLEM_KEYS = {"producer": "problem", "writer": "holding"}
_POLL_SECONDS = 0.2
_REFRESH_SECONDS = 1.0


@dataclass(frozen=True)
class UpOptions:
    """What `up` was asked to run. `duration` in seconds counts from the moment all processes were started."""

    demo: bool
    duration: float | None = None


class Up:
    """One run of the local stack. All methods belong to the main thread; `stop` may be set from anywhere."""

    def __init__(self, loaded: Loaded, options: UpOptions, console: Console) -> None:
        self.settings: Settings = loaded.settings
        self.options = options
        self.stop = threading.Event()
        self.console = console
        self._embedded = loaded.origin("kafka.bootstrap").startswith("profile")
        self._profile = loaded.profile
        self._loaded = loaded
        self._ports = Ports({}, {}, ())
        self._environment: dict[str, str] = {}
        self._problems: dict[str, str] = {}
        self._manifest: Manifest | None = None
        self._started = time.monotonic()
        self._supervisor: Supervisor | None = None
        self._live: Live | None = None
        self.aborted = False

    @property
    def kafka(self) -> KafkaSettings:
        """How to reach the broker that this run uses."""
        return self.settings.kafka.model_copy(update={"bootstrap": self.bootstrap})

    @property
    def bootstrap(self) -> str:
        """Address of the broker that this run uses."""
        return self._environment.get("EXPLORER_KAFKA_BOOTSTRAP", self.settings.kafka.bootstrap)

    @property
    def api_url(self) -> str:
        """Where the API of this run answers."""
        return f"http://{self.settings.api.host}:{self._port('EXPLORER_API_PORT', self.settings.api.port)}"

    @property
    def simulator_url(self) -> str:
        """Where the simulator of this run answers (demo only)."""
        simulator = self.settings.simulator
        return f"http://{simulator.host}:{self._port('EXPLORER_SIMULATOR_PORT', simulator.port)}"

    def run(self, at_end: Callable[[Up], bool] | None = None) -> bool:
        """Starts everything, watches until stopped or `duration` is over, drains and stops. Blocks.

        `at_end` is called before the processes are stopped, unless the run was cut short by a second Ctrl-C, and its
        answer returned; True without it. Raises SupervisionError when the stack cannot be started.
        """
        limits = self.settings.supervisor
        # A run that was killed left children that may drain and then be killed in their turn.
        leftover_seconds = limits.drain_seconds + limits.kill_grace_seconds
        with self._signals(), locked(self.settings.state, leftover_seconds) as lock:
            self._ports = choose_ports(self._loaded, demo=self.options.demo)
            self._environment = dict(self._ports.environment)
            for remark in self._ports.remarks:
                self.say(remark)
            self.say(self._introduction())
            self._supervisor = supervisor = Supervisor(self.settings.supervisor, self.settings.log_folder, [lock])
            try:
                self._start(supervisor)
                self._watch(supervisor)
                return at_end(self) if at_end is not None else True
            except (ExplorerError, httpx.HTTPError):
                if not self.aborted:
                    raise
                return False  # the second Ctrl-C killed the process that was just asked
            finally:
                self._shut_down(supervisor)

    def say(self, text: str) -> None:
        """One line for the person who watches; it stays above the live block."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def status(self, process: str) -> dict[str, Any]:
        """The latest report of one process; empty before its first."""
        return read_status(self.settings.status_folder, process) or {}

    def manifest(self) -> Manifest | None:
        """The manifest, read-only; None until the writer has made it."""
        if self._manifest is None:
            with contextlib.suppress(LakeError):
                self._manifest = open_manifest(self.settings.manifest, read_only=True)
        return self._manifest

    def tick(self) -> None:
        """Looks after the children once and lets a moment pass; used by whoever waits while the stack runs."""
        assert self._supervisor is not None
        for event in self._supervisor.poll():
            self._tell(event)
            if event.failed and event.name == "api":
                self._move_api()
        self._tell_problems()
        time.sleep(_POLL_SECONDS)

    def pause_source(self) -> None:
        """Makes the simulator generate no further events; its connections stay open."""
        try:
            httpx.get(f"{self.simulator_url}/_simulator/pause", timeout=5.0).raise_for_status()
        except httpx.HTTPError as error:
            raise SupervisionError(
                f"the simulator at {self.simulator_url} did not pause: {error}", "see its log in the logs folder"
            ) from error

    # ------------------------------------------------------------------ starting

    def _introduction(self) -> str:
        """What is about to happen, for somebody who starts it for the first time."""
        source = "a simulated Bluesky network" if self.options.demo else "the public Bluesky Jetstream"
        duration = self.options.duration
        end = "Ctrl-C ends it" if duration is None else f"ends by itself {duration:g} s after everything runs"
        lines = [f"post-explorer: {source} → Kafka → Parquet lake → API; all data in {self.settings.state}; {end}"]
        share = self.settings.simulator.malformed_share
        if self.options.demo and share:
            lines.append(f"(the simulator breaks one frame in {1 / share:,.0f} on purpose: those are the dead letters)")
        return "\n".join(lines)

    def _start(self, supervisor: Supervisor) -> None:
        if self._embedded:
            self._start_broker(supervisor)
        self._apply_topics()
        if self.options.demo:
            self._start_simulator(supervisor)
        for name in ("writer", "producer", "maintain", "api"):
            self._child(supervisor, name)
        self._started = time.monotonic()
        self.say(f"started: {', '.join(supervisor.names())}; logs in {self.settings.log_folder}")

    def _child(self, supervisor: Supervisor, name: str, *arguments: str) -> None:
        (self.settings.status_folder / f"{name}.json").unlink(missing_ok=True)
        supervisor.start(self._spec(name, *arguments))

    def _spec(self, name: str, *arguments: str) -> ChildSpec:
        environment = {**self._environment, "EXPLORER_LOG_FILE": str(self.settings.log_folder / f"{name}.log")}
        if name == "writer" and self.settings.writer.instance_id is None:
            environment |= ONLY_WRITER
        return ChildSpec(name, explorer_command(*(arguments or (name,))), environment)

    def _move_api(self) -> None:
        """Another program took the API's port between our look and its start: the next start gets a free one."""
        host, port = self.settings.api.host, self._port("EXPLORER_API_PORT", self.settings.api.port)
        if self._ports.insisted["api.port"] or port_is_free(host, port) or self._supervisor is None:
            return
        self._environment["EXPLORER_API_PORT"] = str(free_port(host))
        self._supervisor.replace(self._spec("api"))
        self.say(f"port {port} was taken meanwhile: the API will answer at {self.api_url}")

    def _start_broker(self, supervisor: Supervisor) -> None:
        broker = LocalBroker(self.settings.broker.home, port=self.settings.broker.port)
        self.say("starting the embedded Kafka broker (the first time its jars are fetched)")
        self._child(supervisor, "broker", "broker", "run")
        deadline = time.monotonic() + self.settings.broker.ready_seconds
        while not (status := broker.status(1.0)).ready:
            self._fail_early("broker", deadline, f"was not ready within {self.settings.broker.ready_seconds:g} s")
        assert status.bootstrap is not None
        self._environment["EXPLORER_KAFKA_BOOTSTRAP"] = status.bootstrap

    def _apply_topics(self) -> None:
        check_reachable(self.kafka)
        admin = make_admin(self.kafka)
        before, after = apply_topics(admin)
        for drift in after.drifts:
            self.say(f"topics: {drift}")
        if before is not after:
            self.say(f"topics: {len(before.drifts) - len(after.drifts)} made or brought into line with schemas/topics")

    def _start_simulator(self, supervisor: Supervisor) -> None:
        simulator = self.settings.simulator
        is_new = not (simulator.data_dir / "log").exists()
        self.say("starting the simulator" + (f" ({simulator.history_hours:g} h of history first)" if is_new else ""))
        self._child(supervisor, "simulator")
        deadline = time.monotonic() + self.settings.supervisor.simulator_ready_seconds
        while True:
            with contextlib.suppress(httpx.HTTPError, ValueError):
                if httpx.get(f"{self.simulator_url}/_simulator/status", timeout=2.0).json().get("ready"):
                    return
            self._fail_early("simulator", deadline, "was not ready in time")

    def _fail_early(self, name: str, deadline: float, late: str) -> None:
        """Between two looks at a child that has to become ready: raises when it died or the time is over."""
        assert self._supervisor is not None
        if self.stop.is_set():
            raise SupervisionError("stopped before everything was started")
        if self._supervisor.pid(name) is None:
            report = self.status(name)
            output = self._supervisor.output_path(name).read_text(encoding="utf-8", errors="replace").strip()
            raise SupervisionError(
                f"{name} ended before it was ready: {report.get('error') or output or 'it said nothing'}",
                str(report.get("remedy") or f"see {self.settings.log_folder / name}.log"),
            )
        if time.monotonic() > deadline:
            raise SupervisionError(f"{name} {late}", f"see {self.settings.log_folder / name}.log")
        time.sleep(_POLL_SECONDS)

    # ------------------------------------------------------------------ watching

    def _watch(self, supervisor: Supervisor) -> None:
        interactive = self.console.is_terminal
        overview = Overview(self._profile, supervisor, self.manifest, self.status, self._urls, self.options.duration)
        next_line = 0.0
        with contextlib.ExitStack() as stack:
            if interactive:
                self._live = stack.enter_context(
                    Live(console=self.console, refresh_per_second=4, transient=False, redirect_stderr=False)
                )
            else:
                for name, url in self._urls().items():
                    self.say(f"{name}: {url}")
            while not self.stop.is_set():
                now = time.monotonic()
                if self.options.duration is not None and now - self._started >= self.options.duration:
                    break
                self.tick()
                if now < next_line:
                    continue
                if self._live is not None:
                    next_line = now + _REFRESH_SECONDS
                    self._live.update(display.block(overview.view()))
                else:
                    next_line = now + self.settings.supervisor.plain_interval_seconds
                    self.console.print(display.plain_line(overview.view()), highlight=False, soft_wrap=True)
        self._live = None

    def _urls(self) -> dict[str, str]:
        urls = {"page": f"{self.api_url}/", "API docs": f"{self.api_url}/docs", "Kafka": self.bootstrap}
        if self.options.demo:
            urls["simulator"] = self.simulator_url.replace("http://", "ws://")
        return urls

    def _tell(self, event: ChildEvent) -> None:
        why = ""
        if event.failed:
            report = self.status(event.name)
            if report.get("state") == "failed":
                why = f": {report.get('error')} ({report.get('remedy')})"
        self.say(f"{event.name} {event.text}{why}")

    def _tell_problems(self) -> None:
        """Says what keeps a process from its work (an unreachable source, a full disk) when that changes."""
        for name in PROBLEM_KEYS:
            report = self.status(name)
            problem = str(report.get(PROBLEM_KEYS[name]) or "")
            if problem != self._problems.get(name, ""):
                self._problems[name] = problem
                self.say(f"{name}: {problem or 'back to normal'}")

    # ------------------------------------------------------------------ stopping

    def _shut_down(self, supervisor: Supervisor) -> None:
        if supervisor.names():
            self.say("stopping: " + ", ".join(name for name in STOP_ORDER if name in supervisor.names()))
        try:
            for name in STOP_ORDER:
                event = supervisor.stop(name)
                if event is not None and event.failed:
                    self._tell(event)
        finally:
            supervisor.kill_all()
            if self._manifest is not None:
                self._manifest.close()
                self._manifest = None

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first signal asks for an orderly end; a second one makes the drain short by killing what is left."""

        def on_signal(number: int, frame: object) -> None:
            if self.stop.is_set() and self._supervisor is not None:
                self.aborted = True
                self._supervisor.kill_all()
            self.stop.set()

        caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, on_signal) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _port(self, variable: str, default: int) -> int:
        return int(self._environment.get(variable, default))


def captured(up: Up) -> bool:
    """For the end of a live run: False when its whole duration passed without an event. One that was stopped is fine."""
    if up.options.duration is None or up.stop.is_set():
        return True
    return int(up.status("producer").get("acknowledged") or 0) > 0

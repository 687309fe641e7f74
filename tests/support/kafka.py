"""pytest plugin: a real embedded Kafka broker for the tests of every room."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.kafka import KafkaSettings
from pipeline.local_broker import LocalBroker

SESSION_PROCESSES: set[int] = set()
"""Processes that live as long as the session on purpose; the check for left-over processes passes them over."""


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    """Connection settings of a broker with a fresh, empty data folder, shared by all tests of the session.

    Tests share it, so each uses topics and groups of its own unless it needs the real names, and none deletes those.
    """
    with running_broker(tmp_path_factory.mktemp("kafka")) as settings:
        yield settings


@contextmanager
def running_broker(folder: Path) -> Iterator[KafkaSettings]:
    """A broker over a data folder; it dies with the test process, also when that is killed."""
    broker = LocalBroker(folder)
    stop, ready, failures = threading.Event(), threading.Event(), list[BaseException]()

    def serve() -> None:
        try:
            broker.run(stop, on_ready=lambda _: ready.set(), timeout=120)
        except BaseException as error:
            failures.append(error)
            ready.set()

    thread = threading.Thread(target=serve, name="kafka-broker", daemon=True)
    thread.start()
    ready.wait()
    if failures:
        raise failures[0]
    if (pid := broker.status().pid) is not None:
        SESSION_PROCESSES.add(pid)
    try:
        yield broker.settings()
    finally:
        stop.set()
        thread.join(60)

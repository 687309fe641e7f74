"""pytest plugin: a real embedded Kafka broker for the tests of every room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.kafka import KafkaSettings
from pipeline.local_broker import LocalBroker


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    """Connection settings of a broker with a fresh, empty data folder, shared by all tests of the session.

    Tests share it, so each uses topics of its own (`unique_topic`) unless it needs the real names.
    """
    broker = LocalBroker(tmp_path_factory.mktemp("kafka"))
    broker.start(timeout=120)
    try:
        yield broker.settings()
    finally:
        broker.stop()

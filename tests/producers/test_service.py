"""The whole producer against the simulator and a real broker: topics and ledger as sets of event identities."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.kafka import KafkaSettings
from schemas.topics import CURSOR, TOPICS
from tests.producers.harness import Broker, running, wait_for
from tests.producers.source import Source

EVENTS = 3000


@pytest.fixture
def broker(kafka_broker: KafkaSettings) -> Broker:
    return Broker(kafka_broker)


@pytest.mark.parametrize("wire", ["v1", "v2"])
def test_every_event_of_the_source_reaches_its_topic(tmp_path: Path, broker: Broker, wire: str) -> None:
    source = Source(tmp_path, max_events=EVENTS, rate=50_000)
    with source.serve() as url:
        service, reports = broker.producer(url, {"protocol": wire})
        with running(service):
            wait_for(lambda: source.ledger.total() >= EVENTS, "the simulator")
            expected = source.identities(wire=wire)
            wait_for(lambda: bool(reports) and reports[-1]["acknowledged"] >= len(expected), "the acknowledgements")
    assert broker.identities() == source.identities(wire=wire)
    in_topics = Counter(name for name, *_ in broker.records(*(name for name in TOPICS if name != CURSOR)))
    assert service._mark.acknowledged == in_topics
    assert broker.dead_letters() == []
    assert broker.gaps() == []

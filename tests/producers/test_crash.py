"""Killed, stopped, starved of its broker: whatever happens to the producer, the topics hold every event of the ledger."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from pipeline.kafka import KafkaSettings, make_consumer
from pipeline.local_broker import LocalBroker
from producers.cursor_store import StoredCursors
from producers.errors import BrokerRefusedError, CursorUnreadableError, TooManyDeadLettersError
from producers.publisher import read_to_end
from schemas.topics import CURSOR
from tests.producers import process
from tests.producers.harness import Broker, running, wait_for
from tests.producers.scripted import Peer, ScriptedServer
from tests.producers.source import Source

FAST = {"cursor_interval": 0.1, "batch_seconds": 0.05}


@pytest.fixture
def broker(kafka_broker: KafkaSettings) -> Broker:
    return Broker(kafka_broker)


def position(broker: Broker) -> int:
    """The sequence of the stored cursor, 0 when there is none."""
    newest = StoredCursors(read_to_end(partial(make_consumer, broker.settings), CURSOR, 30.0)).newest
    return newest.seq or 0 if newest is not None else 0


def test_sigkill_at_any_moment_loses_nothing(tmp_path: Path, broker: Broker) -> None:
    source = Source(tmp_path, max_events=20_000, rate=4_000)
    with source.serve() as url:
        for lines in (3, 2, 4):
            child = process.start(broker.settings.bootstrap, {"hosts": [url], "start": "oldest"}, FAST)
            assert child.stdout is not None
            for _ in range(lines):
                child.stdout.readline()
            child.kill()
            child.wait()
            child.stdout.close()
        service, reports = broker.producer(url)
        wait_for(lambda: source.ledger.total() >= 20_000, "the simulator")
        last = max(event.seq for event in source.ledger.events())
        with running(service):
            wait_for(lambda: bool(reports) and reports[-1]["cursor_seq"] == last, "the last event")
    assert broker.identities() == source.identities()
    assert position(broker) == last


def test_sigterm_stores_the_last_event_as_the_cursor_and_the_next_start_repeats_only_it(
    tmp_path: Path, broker: Broker
) -> None:
    source = Source(tmp_path, max_events=5_000, rate=50_000)
    with source.serve() as url:
        wait_for(lambda: source.ledger.total() >= 5_000, "the simulator")
        last = max(event.seq for event in source.ledger.events())
        child = process.start(broker.settings.bootstrap, {"hosts": [url], "start": "oldest"}, FAST)
        assert child.stdout is not None
        while json.loads(child.stdout.readline())["cursor_seq"] != last:
            pass
        child.terminate()
        assert child.wait(30) == 0
        child.stdout.close()
        assert position(broker) == last
        service, reports = broker.producer(url)
        with running(service):
            wait_for(lambda: bool(reports) and int(str(reports[-1]["received"])) >= 1, "the repeated event")
    assert broker.identities() == source.identities()
    assert len(broker.rows()) == 5_001


@contextmanager
def own_broker(folder: Path) -> Iterator[tuple[KafkaSettings, Callable[[], None], Callable[[], None]]]:
    """A broker that the test may stop and start: its settings, and the functions that do so."""
    broker = LocalBroker(folder)
    runs: list[tuple[threading.Event, threading.Thread]] = []

    def start() -> None:
        stop, ready = threading.Event(), threading.Event()
        thread = threading.Thread(target=lambda: broker.run(stop, on_ready=lambda _: ready.set(), timeout=120))
        thread.start()
        runs.append((stop, thread))
        assert ready.wait(120)

    def stop() -> None:
        event, thread = runs[-1]
        event.set()
        thread.join(60)

    start()
    try:
        yield broker.settings(), stop, start
    finally:
        stop()


@pytest.mark.parametrize("delivery_timeout", [300.0, 5.0], ids=["waits it out", "gives up and reads again"])
def test_a_broker_that_goes_away_and_comes_back(tmp_path: Path, delivery_timeout: float) -> None:
    source = Source(tmp_path / "source", max_events=30_000, rate=2_500)
    with own_broker(tmp_path / "kafka") as (settings, stop_broker, start_broker), source.serve() as url:
        broker = Broker(settings)
        service, reports = broker.producer(url, queue_events=2_000, delivery_timeout=delivery_timeout)
        with running(service):
            wait_for(lambda: bool(reports) and int(str(reports[-1]["acknowledged"])) > 2_000, "a start")
            stop_broker()
            wait_for(lambda: not reports[-1]["connected"], "the socket to be closed when the queue is full")
            at_most = int(str(reports[-1]["acknowledged"])) + 2 * 2_000
            wait_for(lambda: source.ledger.total() >= 30_000, "the rest of the events")
            assert int(str(reports[-1]["enqueued"])) <= at_most
            start_broker()
            last = max(event.seq for event in source.ledger.events())
            wait_for(lambda: reports[-1]["cursor_seq"] == last, "the last event")
        assert broker.identities() == source.identities()
        assert broker.gaps() == []
        assert broker.dead_letters() == []


def test_an_unreadable_cursor_stops_with_an_instruction(broker: Broker) -> None:
    broker.write(CURSOR, b"some.host", b"not a cursor")
    try:
        service, _ = broker.producer("ws://127.0.0.1:1")
        with pytest.raises(CursorUnreadableError, match=r"offset \d+ cannot be read") as stopped:
            service.run(threading.Event())
        assert "cursor set" in stopped.value.remedy
    finally:
        broker.write(CURSOR, b"some.host", None)


def test_a_missing_topic_stops_with_an_instruction(tmp_path: Path) -> None:
    with own_broker(tmp_path) as (settings, _, _):
        service, _ = Broker(settings, apply=False).producer("ws://127.0.0.1:1")
        with pytest.raises(BrokerRefusedError, match="does not exist") as stopped:
            service.run(threading.Event())
        assert "topics apply" in stopped.value.remedy


def test_a_source_that_is_no_jetstream_stops_with_an_instruction(broker: Broker) -> None:
    def chatter(peer: Peer) -> None:
        peer.accept()
        peer.send(*(b"hello %d" % number for number in range(1_000)))
        peer.hold()

    server = ScriptedServer([chatter])
    with server.serve() as url:
        service, _ = broker.producer(url, dead_letter_window=200)
        with pytest.raises(TooManyDeadLettersError, match="not_json") as stopped:
            service.run(threading.Event())
        assert "dead-letters list" in stopped.value.remedy


def test_an_unreachable_source_is_named_and_tried_until_stopped(broker: Broker) -> None:
    service, reports = broker.producer(("ws://127.0.0.1:1", "ws://no-such-host.invalid"), {"backoff_longest": 0.1})
    with running(service):
        wait_for(lambda: any("no-such-host.invalid" in str(report["problem"]) for report in reports), "its report")
        wait_for(lambda: any("127.0.0.1:1" in str(report["problem"]) for report in reports), "its report")


def test_two_producers_are_harmless(tmp_path: Path, broker: Broker) -> None:
    source = Source(tmp_path, max_events=3_000, rate=10_000)
    with source.serve() as url:
        services = [broker.producer(url) for _ in range(2)]
        wait_for(lambda: source.ledger.total() >= 3_000, "the simulator")
        last = max(event.seq for event in source.ledger.events())
        with running(services[0][0]), running(services[1][0]):
            for _, reports in services:
                wait_for(lambda: bool(reports) and reports[-1]["cursor_seq"] == last, "the last event")  # noqa: B023
    assert broker.identities() == source.identities()

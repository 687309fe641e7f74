"""What the producer's tests share: a simulator in a thread, a producer in a thread, and the topics as sets of identities."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from pipeline.kafka import KafkaSettings, make_admin, make_consumer, make_producer
from pipeline.topics import apply_topics
from producers.config import ProducerSettings, SourceSettings
from producers.publisher import StoredRecord, read_to_end
from producers.service import ProducerService
from schemas.avro_schemas import schema_by_fingerprint
from schemas.bodies import DeadLetter, Gap, decode_body
from schemas.framing import SingleObjectFraming, split
from schemas.identity import Identity, commit_identity, relay_identity, row_identity, sync_identity
from schemas.topics import CURSOR, DEAD_LETTER, GAP, TOPICS
from simulator.config import SimulatorSettings
from simulator.ledger import Ledger, LedgerEvent
from simulator.service import SimulatorService

WAIT_SECONDS = 60.0


def wait_for(condition: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Return when `condition` holds; fail the test when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.05)


class Running:
    """A service in a thread: `reports` are what it said, `error` what it ended with."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=type(service).__name__)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.service.run(self.stop)
        except BaseException as error:
            self.error = error

    @property
    def ended(self) -> bool:
        """Whether it came to its end by itself or was stopped."""
        return not self._thread.is_alive()

    def join(self, seconds: float = WAIT_SECONDS) -> None:
        """Ask it to stop and wait; what it ended with is raised."""
        self.stop.set()
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the service does not stop"
        if self.error is not None:
            raise self.error


@contextmanager
def running(service: Any) -> Iterator[Running]:
    """The service running; stopped at the end, its error raised."""
    thread = Running(service)
    try:
        yield thread
    finally:
        thread.stop.set()
        thread._thread.join(WAIT_SECONDS)
    thread.join()


class Source:
    """A simulator with a log of its own."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        values: dict[str, Any] = {"port": 0, "history_hours": 0.0, "rate": 2000.0, "accounts": 500, **settings}
        self.settings = SimulatorSettings(data_dir=data_dir, **values)
        self.service = SimulatorService(self.settings, lambda report: None)
        self.ledger = Ledger(data_dir)

    @contextmanager
    def serve(self) -> Iterator[str]:
        """The simulator running; gives its URL."""
        with running(self.service) as thread:
            wait_for(lambda: self.service.listening.is_set() or thread.ended, "the simulator")
            if thread.error is not None:
                raise thread.error
            yield f"ws://127.0.0.1:{self.service.port}"

    def identities(self, *, wire: str = "v2") -> set[Identity]:
        """What a complete capture over `wire` must hold."""
        return {
            event_identity(event)
            for event in self.ledger.events()
            if wire == "v2" or (event.kind != "sync" and not event.resync)
        }


def event_identity(event: LedgerEvent) -> Identity:
    """The identity of an event of the ledger."""
    if event.kind == "commit":
        return commit_identity(
            event.did, event.collection or "", event.rkey or "", event.rev or "", event.operation or ""
        )
    if event.kind == "sync":
        return sync_identity(event.did, event.record["rev"])
    return relay_identity(event.kind, event.did, event.record.get("seq"), event.record.get("time"))


def _end(consumer: Consumer, partition: TopicPartition) -> int:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return int(consumer.get_watermark_offsets(partition, 10)[1])
        except KafkaException:
            # A topic that was just created may not have its leader yet.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class Broker:
    """The topics as a test sees them: only what was written since the test began."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        apply_topics(make_admin(settings))
        self._start = self._ends()
        self._clear_cursors()

    def producer(
        self, url: str | tuple[str, ...], source: Mapping[str, Any] | None = None, **config: Any
    ) -> tuple[ProducerService, list[Mapping[str, object]]]:
        """A producer of this broker's topics and the list that its reports go to."""
        reports: list[Mapping[str, object]] = []
        hosts = (url,) if isinstance(url, str) else url
        values: dict[str, Any] = {"start": "oldest", "backoff_first": 0.05, **(source or {})}
        service = ProducerService(
            SourceSettings(hosts=hosts, **values),
            ProducerSettings(**{"cursor_interval": 0.2, **config}),
            SingleObjectFraming(),
            partial(make_producer, self.settings),
            partial(make_consumer, self.settings),
            reports.append,
        )
        return service, reports

    def records(self, topic: str) -> list[StoredRecord]:
        """What was written to a topic since the test began."""
        return [
            record
            for record in read_to_end(partial(make_consumer, self.settings), topic, 30.0)
            if record.offset >= self._start.get((topic, record.partition), 0)
        ]

    def rows(self) -> list[dict[str, Any]]:
        """Every event in the topics, decoded."""
        rows = []
        for topic in TOPICS.values():
            if topic.table is None:
                continue
            for record in self.records(topic.name):
                assert record.value is not None
                reference, body = split(record.value)
                schema = schema_by_fingerprint(reference.value)
                assert schema is not None
                assert schema.name == topic.schema
                row = decode_body(schema, body)
                assert record.key == row["did"].encode()
                rows.append(row)
        return rows

    def identities(self) -> set[Identity]:
        """The topics as a set of event identities."""
        return {row_identity(row) for row in self.rows()}

    def dead_letters(self) -> list[DeadLetter]:
        """Everything set aside since the test began."""
        return [DeadLetter.decode(split(record.value or b"")[1]) for record in self.records(DEAD_LETTER)]

    def gaps(self) -> list[Gap]:
        """Every gap recorded since the test began."""
        return [Gap.decode(split(record.value or b"")[1]) for record in self.records(GAP)]

    def _ends(self) -> dict[tuple[str, int], int]:
        consumer: Consumer = make_consumer(self.settings, "ends")
        try:
            return {
                (topic.name, partition): _end(consumer, TopicPartition(topic.name, partition))
                for topic in TOPICS.values()
                for partition in range(topic.partitions)
            }
        finally:
            consumer.close()

    def _clear_cursors(self) -> None:
        producer = make_producer(self.settings)
        for record in read_to_end(partial(make_consumer, self.settings), CURSOR, 30.0):
            producer.produce(CURSOR, key=record.key, value=None)
        producer.flush(10)

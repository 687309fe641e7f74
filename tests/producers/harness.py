"""What the producer's tests share: services in threads, and the topics as sets of identities."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from pipeline.kafka import KafkaSettings, make_admin, make_consumer, make_producer
from pipeline.topics import apply_topics
from producers.config import ProducerSettings, SourceSettings
from producers.publisher import read_to_end
from producers.service import ProducerService
from schemas.avro_schemas import schema_by_fingerprint
from schemas.bodies import DeadLetter, Gap, decode_body
from schemas.framing import SingleObjectFraming, split
from schemas.identity import Identity, row_identity
from schemas.topics import CURSOR, DEAD_LETTER, GAP, TOPICS

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


_PREPARED: set[str] = set()


class Broker:
    """The topics as a test sees them: only what was written since the test began."""

    def __init__(self, settings: KafkaSettings, *, apply: bool = True) -> None:
        self.settings = settings
        self._start: dict[tuple[str, int], int] = {}
        if not apply:
            return
        if settings.bootstrap not in _PREPARED:
            apply_topics(make_admin(settings))
            _PREPARED.add(settings.bootstrap)
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

    def records(self, *topics: str) -> list[tuple[str, bytes | None, bytes, int]]:
        """Topic, key, value and stamp in ms of what was written since the test began, tombstones left out."""
        consumer = make_consumer(
            self.settings, "test-reader", enable_partition_eof=True, fetch_min_bytes=1, fetch_wait_max_ms=20
        )
        unread = {place for place in self._start if place[0] in topics}
        found = []
        try:
            consumer.assign([TopicPartition(*place, self._start[place]) for place in unread])
            while unread:
                for message in consumer.consume(1000, timeout=0.1):
                    error = message.error()
                    if error is not None:
                        assert error.code() == KafkaError._PARTITION_EOF, error
                        unread.discard((message.topic(), message.partition()))
                    elif message.value() is not None:
                        found.append((message.topic(), message.key(), message.value(), message.timestamp()[1]))
        finally:
            consumer.close()
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Every event in the topics, decoded."""
        rows = []
        for name, key, value, _ in self.records(*(topic.name for topic in TOPICS.values() if topic.table is not None)):
            reference, body = split(value)
            schema = schema_by_fingerprint(reference.value)
            assert schema is not None
            assert schema.name == TOPICS[name].schema
            row = decode_body(schema, body)
            assert key == row["did"].encode()
            rows.append(row)
        return rows

    def identities(self) -> set[Identity]:
        """The topics as a set of event identities."""
        return {row_identity(row) for row in self.rows()}

    def write(self, topic: str, key: bytes, value: bytes | None) -> None:
        """Put a record into a topic as it is."""
        producer = make_producer(self.settings, linger_ms=0)
        producer.produce(topic, key=key, value=value)
        assert producer.flush(10) == 0

    def dead_letters(self) -> list[DeadLetter]:
        """Everything set aside since the test began."""
        return [DeadLetter.decode(split(value)[1]) for _, _, value, _ in self.records(DEAD_LETTER)]

    def gaps(self) -> list[Gap]:
        """Every gap recorded since the test began."""
        return [Gap.decode(split(value)[1]) for _, _, value, _ in self.records(GAP)]

    def _ends(self) -> dict[tuple[str, int], int]:
        places = [TopicPartition(topic.name, number) for topic in TOPICS.values() for number in range(topic.partitions)]
        admin = make_admin(self.settings)
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            asked = admin.list_offsets({place: OffsetSpec.latest() for place in places}, request_timeout=30)
            try:
                return {(place.topic, place.partition): future.result().offset for place, future in asked.items()}
            except KafkaException:
                # A topic that was just created may not have its leader yet.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _clear_cursors(self) -> None:
        latest = {
            record.key: record.value for record in read_to_end(partial(make_consumer, self.settings), CURSOR, 30.0)
        }
        producer = make_producer(self.settings, linger_ms=0)
        for key, value in latest.items():
            if value is not None:
                producer.produce(CURSOR, key=key, value=None)
        producer.flush(10)

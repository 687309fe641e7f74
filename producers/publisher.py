"""The Kafka side of the producer, and the only module of this room that knows the client library.

Every event carries the receipt of its batch: the delivery callback, which the client holds until the broker has acknowledged
the event and calls only for one that failed. A batch is acknowledged when nobody holds its receipt any more. Counting calls
instead would cost 0.6 microseconds an event; the client's batch call cannot carry timestamps, and a barrier that flushes stalls
the socket on a slow broker. The low-water mark then tells what the stored cursor may be.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, Protocol

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from producers.config import ProducerSettings
from producers.cursor import Batch, LowWaterMark
from producers.errors import BrokerRefusedError
from schemas.framing import Framing
from schemas.topics import TOPICS

logger = logging.getLogger("explorer.producers")

ClientError = KafkaException
"""What the client raises when it refuses a call altogether; the publisher must then be reopened."""

Receipt = Callable[[Any, Any], None]
RefusedRecord = Callable[[str, bytes, bytes, str], None]
"""Told of a record that the broker will never take: topic, key, value, why."""

# Headers, key and the record's own framing come on top of the value when client and broker check a size.
_SIZE_RESERVE: Final = 8 * 1024
_OF_ONE_RECORD: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.INVALID_RECORD,
    }
)
_NOT_MENDED_BY_WAITING: Final = {
    KafkaError.UNKNOWN_TOPIC_OR_PART: "create the topics with `post-explorer topics apply`",
    KafkaError._UNKNOWN_TOPIC: "create the topics with `post-explorer topics apply`",
    KafkaError._UNKNOWN_PARTITION: "make the topics agree with `post-explorer topics apply`",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "allow this user to write to the bluesky.* topics",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "allow this user idempotent writes on the cluster",
    KafkaError.POLICY_VIOLATION: "compare the topic's settings with `post-explorer topics diff`",
}


ANY_PARTITION: Final = -1
"""Lets the client's partitioner choose by key."""

READER_GROUP: Final = "explorer-producer-reader"
"""Never commits anything; the client library wants a name."""


class StoredRecord(NamedTuple):
    """One record of a topic; `value` is None for a tombstone."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


class KafkaProducer(Protocol):
    """What is used of a Kafka client."""

    def produce(self, topic: str, value: bytes, key: str | bytes, *options: Any, **named: Any) -> None: ...
    def poll(self, timeout: float) -> int: ...
    def flush(self, timeout: float) -> int: ...
    def purge(self) -> None: ...
    def list_topics(self, topic: str | None = None, timeout: float = -1) -> Any: ...
    def __len__(self) -> int: ...


class Publisher:
    """Hands framed records to the broker and reports, by way of a LowWaterMark, which of them it holds.

    `make_producer` builds a client from librdkafka properties (underscores for dots). Not thread-safe. `produce` never blocks;
    it raises BufferError when the queue is full. Call `poll` several times a second.
    """

    def __init__(
        self,
        make_producer: Callable[..., KafkaProducer],
        framing: Framing,
        settings: ProducerSettings,
        mark: LowWaterMark,
        on_refused_record: RefusedRecord,
    ) -> None:
        self._make_producer = make_producer
        self._framing = framing
        self._settings = settings
        self._mark = mark
        self._on_refused_record = on_refused_record
        self.headers: Final = {topic.name: framing.header(topic.schema) for topic in TOPICS.values()}
        """Topic → the bytes before every body."""
        self.limits: Final = {topic.name: topic.max_message_bytes - _SIZE_RESERVE for topic in TOPICS.values()}
        """Topic → the largest value it takes."""
        self.failure: str | None = None
        """Why deliveries were given up, None while none was; `reopen` clears it."""
        self._fatal: BrokerRefusedError | None = None
        self._producer = self._open()

    def _open(self) -> KafkaProducer:
        largest = max(topic.max_message_bytes for topic in TOPICS.values())
        producer = self._make_producer(
            queue_buffering_max_messages=self._settings.queue_events,
            queue_buffering_max_kbytes=self._settings.queue_mebibytes * 1024,
            delivery_timeout_ms=int(self._settings.delivery_timeout * 1000),
            message_max_bytes=largest,
            # What `begin` relies on: successes drop the callback without calling it.
            delivery_report_only_error=True,
        )
        self.produce = producer.produce
        return producer

    def begin(self) -> tuple[Batch, Receipt]:
        """Open the next batch and return it with its receipt, the delivery callback for each of its records.

        The batch counts as acknowledged when the last reference to the receipt is gone, the caller's own included.
        """
        batch = self._mark.open()
        batch.pending = 1

        def receipt(error: Any, message: Any) -> None:
            self._undelivered(batch, error, message)

        def released(_: object) -> None:
            batch.pending -= 1

        batch.receipt = weakref.ref(receipt, released)
        return batch, receipt

    def put_aside(self, topic: str, key: str, body: bytes, on_delivery: Receipt | None = None) -> None:
        """Produce one record outside the event path (cursor, gap, dead letter), framed here. Raises BufferError when full."""
        self.produce(topic, self.headers[topic] + body, key, on_delivery=on_delivery or self._noted)

    def poll(self) -> None:
        """Take in the broker's answers without waiting. Raises BrokerRefusedError when it refuses for good."""
        self._producer.poll(0)
        if self._fatal is not None:
            raise self._fatal

    def wait(self, seconds: float) -> None:
        """Take in the broker's answers for up to `seconds`, returning when some came. Raises like `poll`."""
        self._producer.poll(seconds)
        if self._fatal is not None:
            raise self._fatal

    @property
    def queued(self) -> int:
        """Records not yet acknowledged or given up."""
        return len(self._producer)

    @property
    def has_room(self) -> bool:
        """Whether so much of a queue that was full has drained that reading again is worth while."""
        return len(self._producer) <= self._settings.queue_events // 2

    def flush(self, seconds: float) -> int:
        """Wait up to `seconds` for every answer; return how many records are still without one."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and len(self._producer):
            self._producer.flush(min(left, 0.5))
        return len(self._producer)

    def reachable(self, seconds: float) -> bool:
        """Whether a broker answers within `seconds`."""
        try:
            self._producer.list_topics(timeout=seconds)
        except KafkaException:
            return False
        return True

    def reopen(self) -> None:
        """Drop everything that is not acknowledged and start with a new client; the caller rewinds the mark first."""
        self._producer.purge()
        self._producer = self._open()
        self.failure = None

    def _noted(self, error: Any, message: Any) -> None:
        if error is not None:
            logger.warning(
                "a record for %s was not delivered: %s", message.topic(), error.str(), extra={"topic": message.topic()}
            )

    def _undelivered(self, batch: Batch, error: Any, message: Any) -> None:
        code, topic = error.code(), message.topic()
        if code in _NOT_MENDED_BY_WAITING:
            batch.pending += 1
            self._fatal = BrokerRefusedError(
                f"the broker refuses records for {topic}: {error.str()}", _NOT_MENDED_BY_WAITING[code]
            )
        elif code in _OF_ONE_RECORD:
            batch.topics[topic] -= 1
            self._on_refused_record(topic, message.key() or b"", message.value() or b"", error.str())
        else:
            # Never counted down, so that the cursor stays before this batch until the source has been read again.
            batch.pending += 1
            self.failure = f"{topic}: {error.str()}"


def trace_headers() -> list[tuple[str, str]] | None:
    """Kafka headers that carry the current trace, None when nothing is being traced."""
    if not trace.get_current_span().get_span_context().is_valid:
        return None
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return list(carrier.items())


class KafkaConsumer(Protocol):
    """What is used of a Kafka consumer, for reading a small topic once."""

    def assign(self, partitions: list[Any]) -> None: ...
    def get_watermark_offsets(self, partition: Any, timeout: float) -> tuple[int, int]: ...
    def consume(self, num_messages: int, timeout: float) -> list[Any]: ...
    def list_topics(self, topic: str, timeout: float) -> Any: ...
    def close(self) -> None: ...


def read_to_end(
    make_consumer: Callable[..., KafkaConsumer], topic: str, timeout: float, last: int | None = None
) -> Iterator[StoredRecord]:
    """Every record of `topic`, or the `last` of each partition, to the end each partition had when it was reached.

    The end is what the broker says it is (partition EOF), because compaction leaves holes that arithmetic on offsets would trip
    over. Blocks up to `timeout` seconds altogether. Raises BrokerRefusedError when the topic is missing or the broker does not
    answer in that time.
    """
    deadline = time.monotonic() + timeout
    # The topic is small and read once: what there is is wanted at once.
    consumer = make_consumer(
        READER_GROUP, enable_partition_eof=True, auto_offset_reset="earliest", fetch_min_bytes=1, fetch_wait_max_ms=20
    )
    try:
        try:
            metadata = consumer.list_topics(topic, timeout=timeout).topics[topic]
        except KafkaException as error:
            raise BrokerRefusedError(
                f"Kafka does not answer: {error.args[0].str()}",
                "start the broker (`post-explorer broker status` tells) or correct EXPLORER_KAFKA_BOOTSTRAP",
            ) from None
        if metadata.error is not None or not metadata.partitions:
            raise BrokerRefusedError(f"topic {topic} does not exist", "create it with `post-explorer topics apply`")
        unread = set(metadata.partitions)
        places = [TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in unread]
        if last is not None:
            for place in places:
                low, high = consumer.get_watermark_offsets(place, timeout=timeout)
                place.offset = max(low, high - last)
        consumer.assign(places)
        while unread:
            left = deadline - time.monotonic()
            if left <= 0:
                raise BrokerRefusedError(
                    f"topic {topic} could not be read to its end within {timeout:g} s",
                    "check the broker, or raise EXPLORER_PRODUCER_CURSOR_TIMEOUT",
                )
            for message in consumer.consume(500, timeout=min(left, 0.2)):
                failure = message.error()
                if failure is None:
                    yield StoredRecord(message.partition(), message.offset(), message.key(), message.value())
                elif failure.code() == KafkaError._PARTITION_EOF:
                    unread.discard(message.partition())
                elif not failure.retriable():
                    raise BrokerRefusedError(f"topic {topic} cannot be read: {failure.str()}", "see the broker's log")
    finally:
        consumer.close()

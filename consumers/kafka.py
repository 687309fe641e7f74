"""The consumer group seen from the writer: polling into columns, assignment, lag. Imports the Kafka client for this room.

The group only decides who reads which partition. Where reading starts is the manifest's business: every assignment is
answered with the manifest's offsets, and offsets committed to Kafka are a lag metric for people and dashboards.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from consumers.config import WriterConfig
from consumers.errors import BrokerUnusable, Rejoin, TryAgain
from consumers.native_client import NativeClient
from consumers.readers import ColumnReader, ObjectReader, Reader, columns, to_kafka
from consumers.records import Arena, TopicRecords
from lake.manifest import TopicPartition

log = logging.getLogger("explorer.consumers")

ConsumerFactory = Callable[..., confluent_kafka.Consumer]
"""`factory(group, **overrides)`: a new client; overrides are librdkafka settings."""
ProducerFactory = Callable[..., confluent_kafka.Producer]
"""`factory(**overrides)`: a new idempotent producer."""

_DENIED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError._AUTHENTICATION,
    }
)
_FATAL = frozenset({KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID, *_DENIED})


class PartitionOwner(Protocol):
    """What the membership tells its user; called from inside `GroupConsumer.poll` and `close`, on their thread."""

    def assigned(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """New partitions; returns the offset at which to read each."""

    def revoked(self, partitions: Collection[TopicPartition]) -> None:
        """Partitions about to be given away; may block to commit what is buffered, within one deadline."""

    def lost(self, partitions: Collection[TopicPartition]) -> None:
        """Partitions that belong to somebody else already; nothing of them may be committed."""

    def unreadable(self, partition: TopicPartition, low: int, high: int) -> int:
        """The broker has no record at the position asked for, only [low, high); returns where to go on."""


def consumer_overrides(config: WriterConfig) -> dict[str, Any]:
    """The librdkafka settings on which the writer's correctness and bounds rest."""
    overrides: dict[str, Any] = {
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # A position the broker does not have must be noticed, never jumped over.
        "auto.offset.reset": "error",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": int(config.session_timeout_seconds * 1000),
        "heartbeat.interval.ms": int(config.session_timeout_seconds * 1000 / 5),
        "max.poll.interval.ms": int(config.max_poll_interval_seconds * 1000),
        "queued.max.messages.kbytes": config.prefetch_bytes // 1024,
        "fetch.queue.backoff.ms": 20,
        "topic.metadata.refresh.interval.ms": 10_000,
    }
    if config.instance_id is not None:
        overrides["group.instance.id"] = config.instance_id
    return overrides


class GroupConsumer:
    """One membership in the consumer group, from subscribing to `close`. Not for use from several threads."""

    def __init__(
        self,
        consumer: confluent_kafka.Consumer,
        topics: Sequence[str],
        owner: PartitionOwner,
        client: NativeClient | None = None,
    ) -> None:
        """Subscribes at once; takes over `consumer` and `client`, which `close` closes.

        With a `client` messages are read by it, otherwise by `consumer`, as objects.
        """
        self._consumer = consumer
        self._reader: Reader = ObjectReader(consumer) if client is None else ColumnReader(consumer, client)
        self._owner = owner
        self._assigned: set[TopicPartition] = set()
        self._paused = False
        self._failure: BaseException | None = None
        self._complained: set[str] = set()
        consumer.subscribe(list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    @property
    def assigned(self) -> frozenset[TopicPartition]:
        """The partitions this member owns now."""
        return frozenset(self._assigned)

    @property
    def paused(self) -> bool:
        """Whether `pause` is in force."""
        return self._paused

    def poll(
        self, max_messages: int, timeout: float, arena: Arena, carriers: list[dict[str, str]] | None = None
    ) -> list[TopicRecords]:
        """Wait up to `timeout` seconds for up to `max_messages` messages, grouped by topic.

        Blocks longer only while an assignment or revocation is answered. Their bytes may be put into `arena`; `carriers`,
        when given, receives the trace headers found. Raises Rejoin, BrokerUnusable, and whatever the owner's callbacks raised.
        """
        records: list[TopicRecords]
        records, errors = self._call(lambda: self._reader.take(max_messages, timeout, arena, carriers))
        for error, partition in errors:
            self._on_error(error, partition)
        return records

    def pause(self) -> None:
        """Fetch nothing more until `resume`, but stay in the group; new assignments are paused as well."""
        if not self._paused:
            self._paused = True
            self._reader.pause(self._assigned)

    def resume(self) -> None:
        """Undo `pause`."""
        if self._paused:
            self._paused = False
            self._reader.resume(self._assigned)

    def note_progress(self, next_offsets: Mapping[TopicPartition, int]) -> None:
        """Tell the broker how far the manifest is, without waiting: nothing but a lag metric depends on it."""
        offsets = [
            confluent_kafka.TopicPartition(partition.topic, partition.partition, offset)
            for partition, offset in next_offsets.items()
            if partition in self._assigned
        ]
        try:
            if offsets:
                self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            log.warning("offsets were not reported to the broker", extra={"error": str(error)})

    def lag(self, next_offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Messages between `next_offsets` and the ends of the assigned partitions, as of the last fetches; asks nobody."""
        return {
            partition: max(0, self._reader.end(partition) - next_offsets.get(partition, 0))
            for partition in self._assigned
        }

    def close(self) -> None:
        """Leave the group; the owner's `revoked` is called for what is still assigned. Raises what it raised."""
        try:
            self._call(self._consumer.close)
        finally:
            self._reader.close()

    def _call(self, operation: Callable[[], Any]) -> Any:
        """Run a client call; errors of callbacks inside it surface here rather than inside the C library."""
        try:
            result = operation()
        except KafkaException as error:
            raise _unusable(error.args[0]) from error
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return result

    def _on_assign(self, consumer: confluent_kafka.Consumer, given: list[confluent_kafka.TopicPartition]) -> None:
        partitions = _from_kafka(given)
        try:
            offsets = self._owner.assigned(partitions) if partitions else {}
        except BaseException as error:
            self._failure = error
            consumer.incremental_assign([])
            return
        self._assigned |= offsets.keys()
        self._reader.assign(offsets)
        if self._paused:
            self._reader.pause(partitions)
        log.info("partitions assigned", extra={"added": len(partitions), "assigned": len(self._assigned)})

    def _on_revoke(self, consumer: confluent_kafka.Consumer, taken: list[confluent_kafka.TopicPartition]) -> None:
        self._release(taken, self._owner.revoked, "partitions revoked")

    def _on_lost(self, consumer: confluent_kafka.Consumer, taken: list[confluent_kafka.TopicPartition]) -> None:
        self._release(taken, self._owner.lost, "partitions lost")

    def _release(
        self,
        taken: list[confluent_kafka.TopicPartition],
        tell: Callable[[Collection[TopicPartition]], None],
        what: str,
    ) -> None:
        partitions = _from_kafka(taken)
        try:
            tell(partitions)
        except BaseException as error:
            self._failure = error
        self._assigned.difference_update(partitions)
        self._reader.unassign(partitions)
        log.info(what, extra={"removed": len(partitions), "assigned": len(self._assigned)})

    def _on_error(self, error: KafkaError, partition: TopicPartition) -> None:
        code = error.code()
        if code == KafkaError._AUTO_OFFSET_RESET:
            if partition in self._assigned:
                target = to_kafka([partition])[0]
                low, high = self._call(lambda: self._consumer.get_watermark_offsets(target, timeout=10.0))
                offset = self._owner.unreadable(partition, low, high)
                self._call(lambda: self._reader.seek(partition, offset))
                if self._paused:
                    self._reader.pause([partition])
        elif code == KafkaError._MAX_POLL_EXCEEDED:
            raise Rejoin("the loop did not turn within the poll interval")
        elif error.fatal() or code in _FATAL:
            raise _unusable(error)
        elif error.str() not in self._complained:
            self._complained.add(error.str())
            log.warning("the broker reports an error, going on", extra={"error": error.str(), "topic": partition.topic})


def _unusable(error: KafkaError) -> Exception:
    if error.code() == KafkaError.FENCED_INSTANCE_ID or "group.instance.id" in error.str():
        return BrokerUnusable(
            "another writer joined the group under the same instance id",
            "Give every running writer its own EXPLORER_WRITER_INSTANCE_ID, or stop the other one.",
        )
    if error.code() in _DENIED:
        return BrokerUnusable(f"the broker denies access: {error.str()}", "Check the Kafka credentials and ACLs.")
    if error.fatal() or error.code() in _FATAL:
        return BrokerUnusable(f"the Kafka client gave up: {error.str()}", "Start the writer again.")
    return Rejoin(error.str())


def _refused(error: KafkaException) -> BrokerUnusable:
    return BrokerUnusable(
        f"the broker does not answer: {error.args[0].str()}",
        "Check that it runs and that EXPLORER_KAFKA_BOOTSTRAP names it.",
    )


def _from_kafka(partitions: Sequence[confluent_kafka.TopicPartition]) -> list[TopicPartition]:
    return [TopicPartition(p.topic, p.partition) for p in partitions]


class RangeReader:
    """Reads given offsets of one topic without being a member of any group; for replays. `close` it after use."""

    def __init__(self, factory: ConsumerFactory, topic: str) -> None:
        self._topic = topic
        # The client demands a group id; without subscription and commits no group comes into being.
        self._consumer = factory(f"post-explorer-replay-{topic}", **{"enable.partition.eof": True})

    def available(self, partitions: Collection[int]) -> dict[int, tuple[int, int]]:
        """The offsets [low, high) that the broker has now, by partition. Raises BrokerUnusable after 30 s."""
        try:
            return {
                partition: self._consumer.get_watermark_offsets(
                    confluent_kafka.TopicPartition(self._topic, partition), timeout=30.0
                )
                for partition in partitions
            }
        except KafkaException as error:
            raise _refused(error) from error

    def at_time(self, time_us: int, partitions: Collection[int]) -> dict[int, int | None]:
        """The first offset of each partition whose message is not older than `time_us`; None when there is none."""
        asked = [confluent_kafka.TopicPartition(self._topic, partition, time_us // 1000) for partition in partitions]
        try:
            found = self._consumer.offsets_for_times(asked, timeout=30.0) if asked else []
        except KafkaException as error:
            raise _refused(error) from error
        return {answer.partition: answer.offset if answer.offset >= 0 else None for answer in found}

    def read(
        self, ranges: Mapping[int, tuple[int, int]], max_messages: int, idle_seconds: float
    ) -> Iterator[TopicRecords]:
        """The messages of [next, end) of each partition, in pieces; ends when every end is reached.

        Raises TryAgain when the broker delivers nothing for `idle_seconds`.
        """
        open_ends = {partition: end for partition, (start, end) in ranges.items() if start < end}
        self._consumer.assign(
            [confluent_kafka.TopicPartition(self._topic, partition, ranges[partition][0]) for partition in open_ends]
        )
        heard = time.monotonic()
        while open_ends:
            wanted = []
            for message in self._consumer.consume(max_messages, 1.0):
                error, partition, offset = message.error(), message.partition() or 0, message.offset() or 0
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise _unusable(error)
                end = open_ends.get(partition)
                if end is None:
                    continue
                heard = time.monotonic()
                if error is None and offset < end:
                    wanted.append(message)
                # Offsets have holes: the end is reached with the first message at or behind it, or with the log's end.
                if error is not None or offset >= end - 1:
                    del open_ends[partition]
                    self._consumer.pause([confluent_kafka.TopicPartition(self._topic, partition)])
            if wanted:
                yield columns(self._topic, wanted)
            elif time.monotonic() - heard > idle_seconds:
                raise TryAgain(f"{self._topic}: the broker delivered nothing for {idle_seconds:.0f} s")

    def close(self) -> None:
        """Free the client."""
        self._consumer.close()


class Publisher:
    """Publishes a few messages and waits for their acknowledgements."""

    def __init__(self, producer: confluent_kafka.Producer) -> None:
        self._producer = producer

    def publish(self, topic: str, messages: Sequence[tuple[bytes | None, bytes]], timeout: float) -> int:
        """Send (key, value) pairs, wait up to `timeout` seconds; returns how many were not acknowledged."""
        acknowledged = 0

        def on_delivery(error: KafkaError | None, _: confluent_kafka.Message) -> None:
            nonlocal acknowledged
            if error is None:
                acknowledged += 1
            else:
                log.warning("a message was not delivered", extra={"topic": topic, "error": error.str()})

        for key, value in messages:
            try:
                self._producer.produce(topic, value, key, on_delivery=on_delivery)
            except BufferError:
                self._producer.flush(timeout)
                self._producer.produce(topic, value, key, on_delivery=on_delivery)
            except KafkaException as error:
                log.warning("a message was refused", extra={"topic": topic, "error": str(error)})
        self._producer.flush(timeout)
        return len(messages) - acknowledged

    def close(self) -> None:
        """Drop what is still queued; blocks for a moment at most."""
        self._producer.purge()
        self._producer.flush(1.0)

"""Reads topics from a starting point to their present end, for commands and summaries; joins no group, commits nothing."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from confluent_kafka import (
    OFFSET_BEGINNING,
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from pipeline.kafka import KafkaSettings, KafkaUnreachableError, explain, make_consumer
from schemas.bodies import DeadLetter
from schemas.errors import ExplorerError
from schemas.framing import split
from schemas.topics import DEAD_LETTER

_BATCH = 5_000


@dataclass(frozen=True, slots=True)
class Message:
    """One record of a topic. `time_us` is the event time in microseconds, by Kafka's clock in milliseconds."""

    topic: str
    partition: int
    offset: int
    time_us: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]


def read_messages(
    settings: KafkaSettings,
    topics: Collection[str],
    *,
    since_us: int | None = None,
    follow: bool = False,
    timeout: float = 15.0,
) -> Iterator[Message]:
    """Every message of `topics` that exists when the call begins, from `since_us` on (None = all), partition by partition.

    Topics that do not exist are empty. With `follow` it goes on with new messages until the caller stops. Raises
    KafkaUnreachableError when the broker does not answer, ExplorerError when it delivers nothing for `timeout` seconds
    although messages are left.
    """
    consumer = make_consumer(settings, "post-explorer-reader", auto_offset_reset="earliest", enable_partition_eof=True)
    try:
        yield from _read(consumer, settings, topics, since_us, follow, timeout)
    except KafkaException as failure:
        reason, remedy = explain(failure.args[0], settings)
        raise KafkaUnreachableError(f"Kafka at {settings.bootstrap} cannot be used: {reason}", remedy) from failure
    finally:
        consumer.close()


def read_dead_letters(settings: KafkaSettings) -> list[DeadLetter]:
    """All dead letters there are. Errors as for `read_messages`."""
    return [
        DeadLetter.decode(split(message.value)[1])
        for message in read_messages(settings, [DEAD_LETTER])
        if message.value is not None
    ]


def _read(
    consumer: Consumer,
    settings: KafkaSettings,
    topics: Collection[str],
    since_us: int | None,
    follow: bool,
    timeout: float,
) -> Iterator[Message]:
    known = consumer.list_topics(timeout=timeout).topics
    partitions = [
        TopicPartition(topic, partition, OFFSET_BEGINNING)
        for topic in topics
        if topic in known
        for partition in known[topic].partitions
    ]
    if not partitions:
        return
    if since_us is not None:
        asked = [TopicPartition(entry.topic, entry.partition, since_us // 1000) for entry in partitions]
        partitions = consumer.offsets_for_times(asked, timeout=timeout)
    consumer.assign(partitions)
    left = {(entry.topic, entry.partition) for entry in partitions}
    quiet_since = time.monotonic()
    while left or follow:
        batch = consumer.consume(_BATCH, 0.5)
        if batch:
            quiet_since = time.monotonic()
        elif not follow and time.monotonic() - quiet_since > timeout:
            raise ExplorerError(
                f"the broker at {settings.bootstrap} delivered nothing for {timeout:g} s though messages are left",
                "check the broker (`post-explorer doctor`) and try again",
            )
        for message in batch:
            error = message.error()
            if error is None:
                kind, milliseconds = message.timestamp()
                yield Message(
                    message.topic() or "",
                    message.partition() or 0,
                    message.offset() or 0,
                    0 if kind == TIMESTAMP_NOT_AVAILABLE else milliseconds * 1000,
                    message.key(),
                    message.value(),
                    dict(message.headers() or ()),  # type: ignore[arg-type]
                )
            elif error.code() == KafkaError._PARTITION_EOF:
                left.discard((message.topic() or "", message.partition() or 0))
            else:
                raise KafkaException(error)

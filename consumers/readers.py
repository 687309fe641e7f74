"""Two ways to read what a member of the group owns: as columns, by a client beside the member, or as Python objects.

Both behave the same; the second one stays for machines where librdkafka cannot be called directly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol

import confluent_kafka
import numpy as np
from confluent_kafka import KafkaError, KafkaException

from consumers.native_client import NativeClient
from consumers.records import Arena, TopicRecords
from lake.manifest import TopicPartition

Taken = tuple[list[TopicRecords], list[tuple[KafkaError, TopicPartition]]]
"""Messages by topic, and errors with their partition (an empty topic when they are of none)."""

_ERROR: Any = confluent_kafka.Message.error
_TOPIC: Any = confluent_kafka.Message.topic
_PARTITION: Any = confluent_kafka.Message.partition
_OFFSET: Any = confluent_kafka.Message.offset
_TIMESTAMP: Any = confluent_kafka.Message.timestamp
_KEY: Any = confluent_kafka.Message.key
_VALUE: Any = confluent_kafka.Message.value


class Reader(Protocol):
    """Reads partitions that the member was given. All may raise KafkaException."""

    def assign(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Accept these partitions for the member and read each from its offset."""

    def unassign(self, partitions: Collection[TopicPartition]) -> None:
        """Give these partitions up for the member, and read them no further."""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read an assigned partition from there; it is not paused afterwards."""

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Fetch nothing of these until `resume`."""

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        """Undo `pause`."""

    def take(self, max_messages: int, timeout: float, arena: Arena, carriers: list[dict[str, str]] | None) -> Taken:
        """Wait up to `timeout` seconds for messages, while the member's callbacks are served; may block longer in them.

        Keys and values may be put into `arena`. `carriers`, when given, receives the headers of the messages that have any.
        """

    def end(self, partition: TopicPartition) -> int:
        """The offset behind the partition's last message as of the last fetch; negative while it is not known."""

    def close(self) -> None:
        """Free what is the reader's own; the member stays."""


class ObjectReader:
    """The member reads by itself, a Python object per message."""

    def __init__(self, member: confluent_kafka.Consumer) -> None:
        self._member = member

    def assign(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._member.incremental_assign(
            [confluent_kafka.TopicPartition(p.topic, p.partition, offset) for p, offset in offsets.items()]
        )

    def unassign(self, partitions: Collection[TopicPartition]) -> None:
        self._member.incremental_unassign(to_kafka(partitions))

    def seek(self, partition: TopicPartition, offset: int) -> None:
        # Not the client's seek: a fetch that is under way makes it fail.
        self.unassign([partition])
        self.assign({partition: offset})

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._member.pause(to_kafka(partitions))

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self._member.resume(to_kafka(partitions))

    def take(self, max_messages: int, timeout: float, arena: Arena, carriers: list[dict[str, str]] | None) -> Taken:
        messages: list[confluent_kafka.Message] = self._member.consume(max_messages, timeout)
        errors = errors_of(messages)
        if errors:
            messages = [message for message in messages if message.error() is None]
        by_topic: dict[str, list[confluent_kafka.Message]] = defaultdict(list)
        for topic, run in groupby(messages, _TOPIC):
            by_topic[topic].extend(run)
        if carriers is not None:
            carriers += _carriers(messages)
        return [columns(topic, found) for topic, found in by_topic.items()], errors

    def end(self, partition: TopicPartition) -> int:
        try:
            return int(self._member.get_watermark_offsets(to_kafka([partition])[0], cached=True)[1])
        except KafkaException:
            return -1

    def close(self) -> None:
        """Nothing is its own."""


class ColumnReader:
    """A client of its own reads what the member is given; the member itself only takes part in the group."""

    def __init__(self, member: confluent_kafka.Consumer, client: NativeClient) -> None:
        """Takes over `client`, which `close` closes."""
        self._member = member
        self._client = client
        self._assigned: set[TopicPartition] = set()

    def assign(self, offsets: Mapping[TopicPartition, int]) -> None:
        partitions = [confluent_kafka.TopicPartition(p.topic, p.partition, confluent_kafka.OFFSET_END) for p in offsets]
        self._member.incremental_assign(partitions)
        if offsets:
            self._member.pause(partitions)
            self._client.assign(offsets)
        self._assigned |= offsets.keys()

    def unassign(self, partitions: Collection[TopicPartition]) -> None:
        self._member.incremental_unassign(to_kafka(partitions))
        mine = self._assigned.intersection(partitions)
        self._assigned -= mine
        if mine:
            self._client.unassign(mine)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._client.unassign([partition])
        self._client.assign({partition: offset})

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._client.pause(partitions)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self._client.resume(partitions)

    def take(self, max_messages: int, timeout: float, arena: Arena, carriers: list[dict[str, str]] | None) -> Taken:
        # The member has nothing to deliver but errors. Without partitions it is what there is to wait for.
        waiting = not self._assigned
        errors = errors_of(self._member.consume(1, timeout if waiting else 0.0))
        records, own = self._client.take(max_messages, 0.0 if waiting or errors else timeout, arena, carriers)
        return records, errors + own

    def end(self, partition: TopicPartition) -> int:
        return self._client.end(partition)

    def close(self) -> None:
        self._client.close()


def errors_of(messages: Sequence[confluent_kafka.Message]) -> list[tuple[KafkaError, TopicPartition]]:
    """The errors among `messages`, with what they are about."""
    if not any(map(_ERROR, messages)):
        return []
    return [
        (error, TopicPartition(message.topic() or "", message.partition() or 0))
        for message in messages
        if (error := message.error()) is not None
    ]


def columns(topic: str, messages: list[confluent_kafka.Message]) -> TopicRecords:
    """Messages of one topic as columns."""
    # Unbound C methods mapped over the list: no Python frame per message.
    count = len(messages)
    return TopicRecords.of(
        topic,
        np.fromiter(map(_PARTITION, messages), np.int32, count),
        np.fromiter(map(_OFFSET, messages), np.int64, count),
        np.fromiter(map(itemgetter(1), map(_TIMESTAMP, messages)), np.int64, count),
        list(map(_KEY, messages)),
        list(map(_VALUE, messages)),
    )


def _carriers(messages: Sequence[confluent_kafka.Message]) -> list[dict[str, str]]:
    """The headers of the messages that have any: the first message of each produced batch."""
    return [
        {name: value.decode("ascii", "replace") for name, value in dict(headers).items() if isinstance(value, bytes)}
        for headers in (m.headers() for m in messages)
        if headers
    ]


def to_kafka(partitions: Collection[TopicPartition]) -> list[confluent_kafka.TopicPartition]:
    """As the Kafka client names them."""
    return [confluent_kafka.TopicPartition(p.topic, p.partition) for p in partitions]

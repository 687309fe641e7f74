"""`lake accept-broker`: the operator decides that a broker which lost records is right, and the lake reads from there."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from consumers.kafka import ConsumerFactory, RangeReader
from consumers.service import WRITER_TOPICS
from lake.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Acceptance:
    """One partition whose position lies behind the broker's end: `position` in the lake, [low, high) at the broker."""

    topic: str
    partition: int
    position: int
    low: int
    high: int


def ahead_of_broker(manifest: Manifest, consumer_factory: ConsumerFactory) -> list[Acceptance]:
    """The partitions for which the lake has more than the broker. Changes nothing. Raises BrokerUnusable."""
    by_topic: dict[str, dict[int, int]] = {}
    for partition, position in manifest.offsets(WRITER_TOPICS).items():
        by_topic.setdefault(partition.topic, {})[partition.partition] = position.next_offset
    found = []
    for topic, positions in sorted(by_topic.items()):
        with closing(RangeReader(consumer_factory, topic)) as reader:
            for number, (low, high) in reader.available(positions).items():
                if positions[number] > high:
                    found.append(Acceptance(topic, number, positions[number], low, high))
    return found


def accept_broker(manifest: Manifest, consumer_factory: ConsumerFactory) -> list[Acceptance]:
    """Make the lake read such partitions from what the broker has first; running writers of them are fenced.

    Events that the lake has already are dropped by identity when they come again. Raises BrokerUnusable.
    """
    accepted = ahead_of_broker(manifest, consumer_factory)
    for partition in accepted:
        manifest.rewind(partition.topic, partition.partition, partition.low)
    return accepted

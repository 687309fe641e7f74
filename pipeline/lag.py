"""How far the lake is behind the topics: manifest positions against the broker's end offsets.

The manifest is the truth about what was committed; the group's offsets in Kafka are not asked.
"""

from __future__ import annotations

from collections.abc import Collection

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin._listoffsets import OffsetSpec

from lake.manifest import Manifest
from lake.manifest import TopicPartition as LakePartition
from pipeline.kafka import KafkaSettings, KafkaUnreachableError, explain, make_admin


def end_offsets(settings: KafkaSettings, topics: Collection[str], timeout: float) -> dict[LakePartition, int]:
    """The next offset of each partition of those `topics` that exist. Blocks for at most about `timeout` seconds.

    Raises KafkaUnreachableError when the broker does not answer in time.
    """
    admin = make_admin(settings)
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    try:
        known = admin.list_topics(timeout=timeout).topics
        asked = [
            TopicPartition(topic, partition)
            for topic in topics
            if topic in known
            for partition in known[topic].partitions
        ]
        if not asked:
            return {}
        futures = admin.list_offsets(dict.fromkeys(asked, latest), request_timeout=timeout)
        return {
            LakePartition(partition.topic, partition.partition): future.result(timeout).offset
            for partition, future in futures.items()
        }
    except KafkaException as failure:
        reason, remedy = explain(failure.args[0], settings)
        raise KafkaUnreachableError(f"Kafka at {settings.bootstrap} cannot be used: {reason}", remedy) from failure


def behind(manifest: Manifest, ends: dict[LakePartition, int]) -> dict[str, int]:
    """Messages per topic that the broker has and the lake has not taken in; topics that are even are left out."""
    positions = manifest.offsets()
    lag: dict[str, int] = {}
    for partition, end in ends.items():
        position = positions.get(partition)
        missing = end - (position.next_offset if position else 0)
        if missing > 0:
            lag[partition.topic] = lag.get(partition.topic, 0) + missing
    return lag

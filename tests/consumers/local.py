"""Commits without a broker: messages as the writer polls them, straight into a lake."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from consumers.batch import Batch
from consumers.decode import released_schemas
from consumers.prepare import prepare, read_batch
from consumers.records import TopicRecords
from lake.commit import commit_batch
from lake.dedupe import DedupeWindow
from lake.manifest import Manifest, Position, TopicPartition
from lake.store import LakeStore
from tests.consumers.support import Event


def records(topic: str, made: Sequence[Event], first_offset: int = 0) -> TopicRecords:
    """The events of one topic as messages of its partition 0."""
    wanted = [event for event in made if event.topic == topic]
    return TopicRecords.of(
        topic,
        np.zeros(len(wanted), np.int32),
        np.arange(first_offset, first_offset + len(wanted), dtype=np.int64),
        np.array([event.time_us // 1000 for event in wanted], np.int64),
        [event.key for event in wanted],
        [event.value for event in wanted],
    )


def commit(store: LakeStore, manifest: Manifest, made: Sequence[Event]) -> None:
    """One commit of all of `made`, behind what the lake has."""
    topics = sorted({event.topic for event in made})
    positions: dict[TopicPartition, Position] = manifest.claim([TopicPartition(topic, 0) for topic in topics], "local")
    batch = Batch()
    for topic in topics:
        batch.add(records(topic, made, positions[TopicPartition(topic, 0)].next_offset), positions, 0.0)
    window = DedupeWindow(store, manifest)
    commit_batch(store, manifest, prepare("local", batch, read_batch(batch, released_schemas), positions, window).batch)

"""What was polled and is not committed yet, together with the offsets that committing it makes safe.

The only module that does offset arithmetic: the next position of a partition is its last offset plus one; offsets have
holes, so rows and offset ranges are separate facts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from consumers.records import TopicRecords
from lake.manifest import Advance, Position, TopicPartition


class Batch:
    """Messages of any number of topics and partitions; knows rows, bytes, age and the positions it leads to."""

    def __init__(self) -> None:
        self._records: dict[str, list[TopicRecords]] = {}
        self._next: dict[TopicPartition, int] = {}
        self.messages = 0
        self.size = 0
        self.opened_at: float | None = None

    def __len__(self) -> int:
        return self.messages

    def add(self, records: TopicRecords, positions: Mapping[TopicPartition, Position], now: float) -> None:
        """Take in polled messages; `positions` are the owned partitions, `now` is monotonic seconds.

        Messages of partitions that are not owned any more, or below the position (fetched before a seek), are ignored:
        they are the business of the new owner, or in the lake already.
        """
        records = self._wanted(records, positions)
        if not len(records):
            return
        self._records.setdefault(records.topic, []).append(records)
        last = np.full(int(records.partitions.max()) + 1, -1, np.int64)
        last[records.partitions] = records.offsets
        if (records.offsets > last[records.partitions]).any():
            # A partition's messages come in order of offset unless its reading began anew in between.
            np.maximum.at(last, records.partitions, records.offsets)
        for partition in np.flatnonzero(last >= 0).tolist():
            self._next[TopicPartition(records.topic, partition)] = int(last[partition]) + 1
        self.messages += len(records)
        self.size += records.values.total
        if self.opened_at is None:
            self.opened_at = now

    def _wanted(self, records: TopicRecords, positions: Mapping[TopicPartition, Position]) -> TopicRecords:
        floors = np.full(int(records.partitions.max(initial=0)) + 1, np.iinfo(np.int64).max, np.int64)
        for partition in np.unique(records.partitions).tolist():
            owned = positions.get(TopicPartition(records.topic, partition))
            if owned is not None:
                floors[partition] = self._next.get(TopicPartition(records.topic, partition), owned.next_offset)
        wanted = records.offsets >= floors[records.partitions]
        if wanted.all():
            return records
        return records.at(np.flatnonzero(wanted))

    def topics(self) -> Iterator[TopicRecords]:
        """All messages, one merged set of columns per topic, each partition in offset order."""
        for _, parts in sorted(self._records.items()):
            yield TopicRecords.joined(parts)

    def advances(self, positions: Mapping[TopicPartition, Position]) -> tuple[Advance, ...]:
        """The moves of the manifest's offsets that this batch's rows pay for, sorted by partition."""
        return tuple(
            Advance(
                partition.topic,
                partition.partition,
                positions[partition].next_offset,
                after,
                positions[partition].epoch,
            )
            for partition, after in sorted(self._next.items())
        )

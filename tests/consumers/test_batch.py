"""Offset arithmetic: the next position is the last offset plus one, whatever holes there are."""

from __future__ import annotations

import numpy as np

from consumers.batch import Batch
from consumers.records import TopicRecords
from lake.manifest import Advance, Position, TopicPartition


def polled(topic: str, places: list[tuple[int, int]]) -> TopicRecords:
    return TopicRecords.of(
        topic,
        np.array([partition for partition, _ in places], np.int32),
        np.array([offset for _, offset in places], np.int64),
        np.zeros(len(places), np.int64),
        [b"k"] * len(places),
        [f"{partition}@{offset}".encode() for partition, offset in places],
    )


OWNED = {
    TopicPartition("a", 0): Position(10, 3),
    TopicPartition("a", 2): Position(0, 1),
    TopicPartition("b", 0): Position(5, 9),
}


def test_a_batch_advances_every_partition_it_holds_and_no_other() -> None:
    batch = Batch()
    batch.add(polled("a", [(0, 10), (0, 12), (2, 0), (0, 17)]), OWNED, now=1.0)
    batch.add(polled("b", [(0, 5)]), OWNED, now=2.0)
    batch.add(polled("a", [(2, 9)]), OWNED, now=3.0)
    assert batch.advances(OWNED) == (Advance("a", 0, 10, 18, 3), Advance("a", 2, 0, 10, 1), Advance("b", 0, 5, 6, 9))
    assert (batch.messages, batch.opened_at, batch.size) == (
        6,
        1.0,
        sum(len(v) for v in (b"0@10", b"0@12", b"2@0", b"0@17", b"0@5", b"2@9")),
    )
    assert [(records.topic, len(records)) for records in batch.topics()] == [("a", 5), ("b", 1)]


def test_messages_of_lost_partitions_and_below_the_position_are_left_out() -> None:
    batch = Batch()
    batch.add(polled("a", [(0, 9), (1, 4), (0, 10)]), OWNED, now=1.0)
    batch.add(polled("a", [(0, 10), (0, 11)]), OWNED, now=1.0)
    assert [list(records.values) for records in batch.topics()] == [[b"0@10", b"0@11"]]
    assert batch.advances(OWNED) == (Advance("a", 0, 10, 12, 3),)
    empty = Batch()
    empty.add(polled("z", [(0, 1)]), OWNED, now=1.0)
    assert (len(empty), empty.opened_at, empty.advances(OWNED)) == (0, None, ())

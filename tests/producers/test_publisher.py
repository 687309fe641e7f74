"""Receipts: a batch is acknowledged when the client let go of every record of it, and never because one failed."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest

from pipeline.kafka import KafkaSettings, make_producer
from producers.config import ProducerSettings
from producers.cursor import LowWaterMark, Position
from producers.publisher import Publisher
from schemas.framing import SingleObjectFraming

TOPIC = "bluesky.app.bsky.feed.like"


def publisher(mark: LowWaterMark, bootstrap: str = "mock:1", **overrides: Any) -> Publisher:
    """A publisher of a broker inside the client library, or of an address where nobody answers."""
    factory = partial(make_producer, KafkaSettings(bootstrap=bootstrap), linger_ms=1)
    if bootstrap == "mock:1":
        overrides["test.mock.num.brokers"] = 1

    def refused(*_: object) -> None:
        pytest.fail("no record was refused")

    def make(**settings: Any) -> Any:
        return factory(**{**settings, **overrides})

    return Publisher(make, SingleObjectFraming(), ProducerSettings(), mark, refused)


def hand_over(publisher: Publisher, mark: LowWaterMark, records: int) -> Position:
    """One sealed batch, as a session makes it."""
    batch, receipt = publisher.begin()
    for number in range(records):
        publisher.produce(TOPIC, b"value", f"did:{number}", -1, receipt, None, 0)
    position = Position("host", "v2", records, records)
    mark.seal(batch, position)
    return position


def test_a_batch_counts_when_every_record_of_it_is_acknowledged() -> None:
    mark = LowWaterMark()
    ours = publisher(mark)
    position = hand_over(ours, mark, 1000)
    assert mark.safe_position is None
    assert ours.flush(30) == 0
    assert mark.safe_position == position
    later = hand_over(ours, mark, 1)
    assert mark.safe_position == position
    assert ours.flush(30) == 0
    assert mark.safe_position == later


def test_records_that_nobody_takes_hold_the_mark() -> None:
    mark = LowWaterMark()
    ours = publisher(mark, "127.0.0.1:1", error_cb=lambda error: None)
    hand_over(ours, mark, 10)
    ours.poll()
    assert mark.safe_position is None
    assert ours.failure is None
    # Every record fails at once, and with that the client lets go of all of them.
    ours._producer.purge()
    # The client's own thread reports the failures, which takes longer on a busy machine than one look.
    deadline = time.monotonic() + 30
    while ours.queued and time.monotonic() < deadline:
        ours.wait(0.1)
    assert ours.queued == 0
    assert ours.failure is not None
    assert mark.safe_position is None
    hand_over(ours, mark, 0)
    assert mark.safe_position is None, "a later batch passed one that failed"
    assert mark.rewind() is None


def test_a_batch_waits_for_the_caller_that_may_still_add_to_it() -> None:
    mark = LowWaterMark()
    ours = publisher(mark)
    batch, receipt = ours.begin()
    ours.produce(TOPIC, b"value", "did", -1, receipt, None, 0)
    assert ours.flush(30) == 0
    mark.seal(batch, Position("host", "v2", 1, 1))
    assert mark.safe_position is None
    del receipt
    assert mark.safe_position == Position("host", "v2", 1, 1)

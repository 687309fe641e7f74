"""What the outside does to a writer, and what it says and does then."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter, namedtuple
from functools import partial
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from consumers.acceptance import accept_broker, ahead_of_broker
from consumers.errors import BrokerLostData, BrokerUnusable, OutageTooLong, TooManyDeadLetters
from lake.errors import ManifestUnavailable
from lake.manifest import TopicPartition as Partition
from lake.steps import CommitStep
from pipeline.kafka import make_admin, make_consumer, make_producer
from tests.consumers.conftest import Lake, wait_until
from tests.consumers.support import HOUR_US, START_US, events, live_paths, produce, rows_in, start_at_end

BLOCK = "bluesky.app.bsky.graph.listblock"
"""A topic that no other test writes to."""


def matches(lake: Lake, made: list[Any]) -> bool:
    return Counter(rows_in(lake.root, live_paths(lake.manifest))) == Counter((e.table, e.identity) for e in made)


def test_a_full_disk_stops_taking_in_and_resumes_by_itself(lake: Lake) -> None:
    full = True

    def hook(step: CommitStep) -> None:
        if full and step is CommitStep.FILE_WRITTEN:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made = events(2_000)
    with lake.running(lake.service(lake.config(retry_seconds=0.1, report_seconds=0.1, outage_seconds=0.5), hook=hook)):
        produce(lake.kafka, made[:1_000])
        wait_until(lambda: bool(lake.reports) and "full" in str(lake.reports[-1]["holding"]), 30)
        produce(lake.kafka, made[1_000:])
        # Longer than an outage may last: a full disk is waited out.
        number = len(lake.reports)
        wait_until(lambda: len(lake.reports) > number + 12, 30)
        assert lake.rows() == 0
        assert not list(lake.root.glob("*/date=*/hour=*/*.parquet"))
        full = False
        lake.wait_for_rows(len(made))
        wait_until(lambda: lake.reports[-1]["holding"] == "", 10)
    assert matches(lake, made)


def test_a_disk_that_is_nearly_full_is_not_filled_up(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    free = [1000]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, free[0]))
    made = events(300)
    with lake.running(lake.service(lake.config(min_free_bytes=2000, retry_seconds=0.1, report_seconds=0.1))):
        produce(lake.kafka, made)
        wait_until(lambda: bool(lake.reports) and "1000 bytes are free" in str(lake.reports[-1]["holding"]), 30)
        assert lake.rows() == 0
        free[0] = 10**9
        lake.wait_for_rows(len(made))
    assert matches(lake, made)


def test_a_manifest_that_stays_away_ends_the_process_with_an_instruction(lake: Lake) -> None:
    class Away:
        def __getattr__(self, name: str) -> Any:
            return getattr(lake.manifest, name)

        def commit(self, commit: Any) -> int:
            raise ManifestUnavailable("The manifest does not answer.", "Wait.")

    made = events(200)
    config = lake.config(retry_seconds=0.1, outage_seconds=1.0, drain_seconds=1.0)
    produce(lake.kafka, made)
    with (
        pytest.raises(OutageTooLong, match="does not answer") as ended,
        lake.running(lake.service(config, manifest=Away())) as thread,
    ):
        thread.join(60)
    assert "stay in Kafka" in ended.value.remedy
    with lake.running(lake.service()):
        lake.wait_for_rows(len(made))
    assert matches(lake, made)


def test_a_flood_of_unreadable_messages_stops_the_writer_before_anything_is_committed(lake: Lake) -> None:
    producer = make_producer(lake.kafka)
    for number in range(300):
        producer.produce(BLOCK, b"\xc3\x01 wrong", b"did:plc:x", timestamp=START_US // 1000 + number)
    assert producer.flush(30) == 0
    config = lake.config(dead_letter_min_messages=100, dead_letter_share=0.5)
    with pytest.raises(TooManyDeadLetters, match="300 of the last 300"), lake.running(lake.service(config)) as thread:
        thread.join(60)
    assert lake.manifest.snapshot().version == 0 or not lake.manifest.reconciliation(START_US, START_US + HOUR_US)
    # The ceiling is a setting: with a higher one the same messages are set aside.
    with lake.running(lake.service(lake.config(dead_letter_share=1.0))):
        wait_until(lambda: bool(lake.reports) and lake.reports[-1]["dead_letters"] == 300, 30)


def test_records_that_the_broker_dropped_unread_become_a_gap(lake: Lake) -> None:
    made = events(600)
    produce(lake.kafka, made[:400])
    admin = make_admin(lake.kafka)
    topics = {event.topic for event in made}
    ends = {partition: p.next_offset for partition, p in lake.manifest.offsets(topics).items()}
    futures = admin.delete_records([TopicPartition(*partition, -1) for partition in ends])
    for future in futures.values():
        future.result(30)
    with lake.running(lake.service()):
        produce(lake.kafka, made[400:])
        lake.wait_for_rows(200)
        wait_until(lambda: bool(lake.reports) and lake.reports[-1]["lag"] == 0, 20)
    assert matches(lake, made[400:])
    gaps = [gap for gap in lake.manifest.gaps(0, 2**62) if gap.reason == "broker_retention"]
    assert gaps
    assert all(gap.source_host == "kafka" and gap.end_us is not None for gap in gaps)


def test_a_broker_that_lost_what_the_lake_has_stops_the_writer_until_an_operator_accepts(lake: Lake) -> None:
    partition = Partition(BLOCK, 0)
    position = lake.manifest.claim([partition], "test")[partition]
    lake.manifest.seek(BLOCK, 0, position.next_offset + 5_000, position.epoch)
    with (
        pytest.raises(BrokerLostData, match=f"{BLOCK}/0 ends at offset") as stopped,
        lake.running(lake.service()) as thread,
    ):
        thread.join(60)
    assert "accept-broker" in stopped.value.remedy
    factory = partial(make_consumer, lake.kafka)
    assert [(found.topic, found.partition) for found in ahead_of_broker(lake.manifest, factory)] == [partition]
    accept_broker(lake.manifest, factory)
    assert ahead_of_broker(lake.manifest, factory) == []
    start_at_end(lake.kafka, lake.manifest)
    with lake.running(lake.service()):
        wait_until(lambda: bool(lake.reports) and lake.reports[-1]["assigned"] != 0, 30)


def test_a_second_writer_of_the_same_instance_id_ends_the_first_with_a_reason(lake: Lake) -> None:
    config = lake.config(instance_id=f"{lake.group}-twin")

    def run_until_fenced() -> None:
        with lake.running(lake.service(config)) as first:
            wait_until(lambda: bool(lake.reports) and lake.reports[-1]["assigned"] != 0, 30)
            with lake.running(lake.service(config)):
                first.join(60)

    with pytest.raises(BrokerUnusable, match="same instance id"):
        run_until_fenced()

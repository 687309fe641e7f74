"""Topics: what differs is reported, what may be repaired is repaired, what may not be is said."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from hypothesis import given
from hypothesis import strategies as st

from pipeline.kafka import KafkaSettings, make_admin
from pipeline.topics import DriftKind, TopicState, apply_topics, compare, diff_topics, read_topics
from schemas.topics import TOPICS, Topic
from tests.support.kafka import running_broker


@pytest.fixture(scope="module")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    """A broker of their own: these tests delete every topic, which the files that share one rely on."""
    with running_broker(tmp_path_factory.mktemp("kafka-of-topics")) as settings:
        yield settings


@pytest.fixture
def admin(kafka_broker: KafkaSettings) -> Iterator[AdminClient]:
    client = make_admin(kafka_broker)
    yield client
    ours = list(read_topics(client))
    for future in (client.delete_topics(ours) if ours else {}).values():
        future.result(30)
    deadline = time.monotonic() + 30
    while read_topics(client) and time.monotonic() < deadline:  # deletions show a moment later, too
        time.sleep(0.05)


def declared(**changes: object) -> dict[str, Topic]:
    topic = Topic(
        name=f"bluesky.{uuid.uuid4().hex}",
        description="for a test",
        schema="other",
        key="did",
        partitions=2,
        retention_ms=3_600_000,
        config={"segment.ms": "600000"},
    )
    topic = dataclasses.replace(topic, **changes)  # type: ignore[arg-type]
    return {topic.name: topic}


def wait_for(admin: AdminClient, topic: str, partitions: int) -> None:
    """The broker confirms a change a moment before its own answers show it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        state = read_topics(admin).get(topic)
        if state is not None and state.partitions == partitions:
            return
        time.sleep(0.05)
    pytest.fail(f"{topic} has no {partitions} partitions")


def kinds(report_drifts: object) -> list[DriftKind]:
    return [drift.kind for drift in report_drifts]  # type: ignore[attr-defined]


def test_every_declared_topic_is_created_as_declared_and_stays(admin: AdminClient) -> None:
    there = read_topics(admin).keys() & TOPICS.keys()  # other tests of the session may have made some
    before, after = apply_topics(admin)
    assert len(before.drifts) >= len(TOPICS) - len(there)
    assert after.agrees
    assert after.unknown_settings == ()
    found = read_topics(admin)
    for name, topic in TOPICS.items():
        assert found[name].partitions == topic.partitions
        for setting, value in topic.settings.items():
            assert found[name].settings[setting] == value
    again, _ = apply_topics(admin)
    assert again.agrees


def test_drift_is_reported_first_and_then_removed(admin: AdminClient) -> None:
    topics = declared()
    [(name, topic)] = topics.items()
    assert kinds(diff_topics(admin, topics).drifts) == [DriftKind.MISSING]
    admin.create_topics([NewTopic(name, 1, config={"retention.ms": "60000"})])[name].result(30)
    wait_for(admin, name, 1)

    report = diff_topics(admin, topics)
    found = {(drift.kind, drift.setting): (drift.declared, drift.found) for drift in report.drifts}
    assert found[DriftKind.TOO_FEW_PARTITIONS, None] == ("2", "1")
    assert found[DriftKind.SETTING, "retention.ms"] == ("3600000", "60000")
    assert found[DriftKind.SETTING, "segment.ms"][0] == "600000"

    before, after = apply_topics(admin, topics)
    assert before == report
    assert after.agrees
    assert read_topics(admin)[name].partitions == topic.partitions


def test_partitions_are_never_lowered_and_foreign_topics_never_touched(admin: AdminClient) -> None:
    topics = declared()
    [name] = topics
    extra = f"bluesky.{uuid.uuid4().hex}"
    apply_topics(admin, topics)
    admin.create_partitions([NewPartitions(name, 5)])[name].result(30)
    admin.create_topics([NewTopic(extra, 1)])[extra].result(30)
    wait_for(admin, name, 5)
    wait_for(admin, extra, 1)

    before, after = apply_topics(admin, topics)
    assert kinds(before.drifts) == kinds(after.drifts) == [DriftKind.TOO_MANY_PARTITIONS, DriftKind.EXTRA]
    assert "never lowered" in str(after.drifts[0])
    assert not after.declared_agree
    assert read_topics(admin)[name].partitions == 5
    assert extra in read_topics(admin)


def test_a_setting_that_the_broker_does_not_know_is_skipped_and_named(admin: AdminClient) -> None:
    topics = declared(config={"segment.ms": "600000", "redpanda.remote.write": "false"})
    _, after = apply_topics(admin, topics)
    assert after.agrees
    assert after.unknown_settings == ("redpanda.remote.write",)
    assert diff_topics(admin, topics) == after


@given(
    partitions=st.integers(1, 12),
    found_partitions=st.integers(1, 12),
    retention=st.sampled_from(["3600000", "60000"]),
)
def test_comparison_finds_each_difference_once(partitions: int, found_partitions: int, retention: str) -> None:
    topics = declared(partitions=partitions)
    [(name, topic)] = topics.items()
    state = TopicState(found_partitions, {**topic.settings, "retention.ms": retention, "unrelated": "1"})
    report = compare(topics, {name: state})
    expected = {DriftKind.SETTING} if retention != "3600000" else set()
    if found_partitions < partitions:
        expected.add(DriftKind.TOO_FEW_PARTITIONS)
    if found_partitions > partitions:
        expected.add(DriftKind.TOO_MANY_PARTITIONS)
    assert sorted(kinds(report.drifts)) == sorted(expected)
    assert report.agrees == (not expected)


def test_numbers_that_are_written_differently_are_the_same() -> None:
    topics = declared(config={"min.cleanable.dirty.ratio": "0.1"})
    [(name, topic)] = topics.items()
    state = TopicState(2, {**topic.settings, "min.cleanable.dirty.ratio": "0.100000"})
    assert compare(topics, {name: state}).agrees

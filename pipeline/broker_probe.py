"""Asks a broker, by doing it, how it behaves where Kafka and Redpanda are known to differ.

The answers are plain JSON: run it against both and compare. What our pipeline rests on is listed as a failure if it does
not hold; the rest is only written down.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined] # its stubs forget to export it

from pipeline.kafka import KafkaSettings, check_reachable, make_admin, make_consumer, make_producer
from schemas.errors import ExplorerError

WAIT_SECONDS: Final = 30.0
HOUR_MS: Final = 3_600_000


@dataclass(slots=True)
class Findings:
    """What was seen: `behaviour` by name, and the names of what our pipeline needs but did not find."""

    behaviour: dict[str, object] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """The findings as JSON values."""
        return {"behaviour": self.behaviour, "failures": self.failures}

    def note(self, name: str, value: object, *, needed: object | None = None) -> None:
        """Writes down one behaviour; `needed` is the value our pipeline rests on, None if either will do."""
        self.behaviour[name] = value
        if needed is not None and value != needed:
            self.failures.append(f"{name}: {value!r}, needed {needed!r}")


def probe(settings: KafkaSettings) -> Findings:
    """Runs every question against the broker; takes about 10 s. Raises ExplorerError if it cannot be reached."""
    check_reachable(settings)
    findings, admin = Findings(), make_admin(settings)
    questions: list[Callable[[KafkaSettings, AdminClient, Findings], None]] = [
        _idempotent_produce,
        _timestamps,
        _transactions,
        _groups,
        _static_membership,
    ]
    for question in questions:
        try:
            question(settings, admin, findings)
        except KafkaException as error:
            findings.note(question.__name__.lstrip("_"), f"failed: {error.args[0].name()}", needed="works")
    return findings


@contextmanager
def _topic(admin: AdminClient, partitions: int = 1) -> Iterator[str]:
    name = f"probe.{uuid.uuid4().hex[:12]}"
    admin.create_topics([NewTopic(name, num_partitions=partitions, replication_factor=-1)])[name].result(WAIT_SECONDS)
    try:
        yield name
    finally:
        admin.delete_topics([name])[name].result(WAIT_SECONDS)


def _send(producer: Producer, topic: str, value: bytes, timestamp_ms: int = 0) -> str:
    """Sends one message and returns the name of its outcome."""
    outcome: list[str] = []
    producer.produce(
        topic,
        value=value,
        key=b"did:plc:probe",
        timestamp=timestamp_ms,
        on_delivery=lambda error, _: outcome.append(error.name() if error else "stored"),
    )
    producer.flush(WAIT_SECONDS)
    return outcome[0] if outcome else "no answer"


def _read(settings: KafkaSettings, topic: str, isolation: str) -> list[bytes]:
    consumer = make_consumer(settings, "probe", isolation_level=isolation, enable_partition_eof=True)
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        values: list[bytes] = []
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            message = consumer.poll(1.0)
            if message is None:
                continue
            if (error := message.error()) is None:
                values.append(message.value() or b"")
            elif error.code() == KafkaError._PARTITION_EOF:
                return values
            else:
                raise KafkaException(error)
        raise ExplorerError(f"no end of {topic} within {WAIT_SECONDS:.0f} s", "see the broker's log")
    finally:
        consumer.close()


def _idempotent_produce(settings: KafkaSettings, admin: AdminClient, findings: Findings) -> None:
    with _topic(admin) as topic:
        findings.note("idempotent_produce_zstd", _send(make_producer(settings), topic, b"x"), needed="stored")
        findings.note("read_back", _read(settings, topic, "read_committed") == [b"x"], needed=True)


def _timestamps(settings: KafkaSettings, admin: AdminClient, findings: Findings) -> None:
    now = int(time.time() * 1000)
    with _topic(admin) as topic:
        producer = make_producer(settings)
        findings.note("timestamp_in_2_hours", _send(producer, topic, b"future", now + 2 * HOUR_MS))
        findings.note("timestamp_30_days_ago", _send(producer, topic, b"old", now - 720 * HOUR_MS), needed="stored")
        findings.note("timestamp_now", _send(producer, topic, b"now", now), needed="stored")
        consumer = make_consumer(settings, "probe")
        try:
            for name, moment in (("last_hour", now - HOUR_MS), ("next_hour", now + HOUR_MS)):
                found = consumer.offsets_for_times([TopicPartition(topic, 0, moment)], timeout=WAIT_SECONDS)[0]
                findings.note(f"offset_for_time_{name}", found.offset)
        finally:
            consumer.close()


def _transactions(settings: KafkaSettings, admin: AdminClient, findings: Findings) -> None:
    with _topic(admin) as topic:
        producer = make_producer(
            settings, transactional_id=topic, transaction_timeout_ms=10_000, delivery_timeout_ms=9_000
        )
        producer.init_transactions(WAIT_SECONDS)
        for value, commit in ((b"kept", True), (b"aborted", False)):
            producer.begin_transaction()
            producer.produce(topic, value=value)
            producer.flush(WAIT_SECONDS)
            producer.commit_transaction(WAIT_SECONDS) if commit else producer.abort_transaction(WAIT_SECONDS)
        committed = [value.decode() for value in _read(settings, topic, "read_committed")]
        findings.note("read_committed_sees", committed, needed=["kept"])
        findings.note("read_uncommitted_sees", [v.decode() for v in _read(settings, topic, "read_uncommitted")])
        consumer = make_consumer(settings, "probe")
        try:
            findings.note(
                "end_offset_after_2_transactions", consumer.get_watermark_offsets(TopicPartition(topic, 0))[1]
            )
        finally:
            consumer.close()


def _groups(settings: KafkaSettings, admin: AdminClient, findings: Findings) -> None:
    group = f"probe-{uuid.uuid4().hex[:12]}"
    with _topic(admin) as topic:
        _send(make_producer(settings), topic, b"x")
        consumer = make_consumer(settings, group, auto_offset_reset="earliest")
        try:
            consumer.subscribe([topic])
            message = consumer.poll(WAIT_SECONDS)
            findings.note("group_consume", bool(message and not message.error()), needed=True)
            consumer.commit(offsets=[TopicPartition(topic, 0, 1)], asynchronous=False)
            committed = consumer.committed([TopicPartition(topic, 0)], timeout=WAIT_SECONDS)[0].offset
            findings.note("group_commit", committed, needed=1)
            listed = admin.list_consumer_groups(request_timeout=WAIT_SECONDS).result(WAIT_SECONDS)
            findings.note("group_listed", group in {entry.group_id for entry in listed.valid}, needed=True)
        finally:
            consumer.close()


def _static_membership(settings: KafkaSettings, admin: AdminClient, findings: Findings) -> None:
    """A second member with the same instance id takes over at once; the first learns that it is fenced."""
    group = f"probe-{uuid.uuid4().hex[:12]}"
    with _topic(admin) as topic:
        members = [make_consumer(settings, group, group_instance_id="one", auto_offset_reset="earliest") for _ in "ab"]
        try:
            for member in members:
                member.subscribe([topic])
                deadline = time.monotonic() + WAIT_SECONDS
                while not member.assignment() and time.monotonic() < deadline:
                    member.poll(0.1)
            findings.note("static_member_replaced", bool(members[1].assignment()), needed=True)
        finally:
            for member in reversed(members):
                member.close()

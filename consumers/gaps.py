"""Gap records from the topic `bluesky.gap`, on their way to the manifest, where coverage is answered from.

The producer notices that the source no longer had a stretch of history; the record travels through Kafka so that the
producer needs no access to the lake.
"""

from __future__ import annotations

import xxhash

from consumers.decode import BadMessage, SchemaLookup, bad_message
from consumers.records import TopicRecords
from lake.manifest import Gap, TopicPartition
from schemas import bodies
from schemas.errors import BadRecord, DeadLetterReason
from schemas.framing import split


def read_gaps(records: TopicRecords, lookup: SchemaLookup) -> tuple[list[Gap], list[BadMessage]]:
    """Decode the messages of the gap topic, one by one: there are few."""
    gaps: list[Gap] = []
    bad: list[BadMessage] = []
    for index, value in enumerate(records.values):
        try:
            reference, body = split(value or b"")
            schema = lookup(reference)
            if schema is None or schema.name != bodies.Gap.SCHEMA:
                raise BadRecord(DeadLetterReason.UNKNOWN_SCHEMA, f"schema {reference.kind} {reference.value:#x}")
            gaps.append(_gap(bodies.Gap(**bodies.decode_body(schema, body))))
        except BadRecord as error:
            bad.append(bad_message(records, index, error.reason, error.detail))
    return gaps, bad


def _gap(record: bodies.Gap) -> Gap:
    # The noticing time is left out: a producer that restarts reports the same gap again.
    identity = f"{record.host} {record.reason} {record.from_us} {record.to_us} {record.from_seq} {record.to_seq}"
    return Gap(
        id=xxhash.xxh3_128_hexdigest(identity.encode()),
        source_host=record.host,
        start_us=record.from_us,
        end_us=record.to_us,
        reason=record.reason,
        detail=record.detail,
        detected_us=record.noticed_us,
        first_seq=record.from_seq,
        last_seq=record.to_seq,
    )


def retention_gap(partition: TopicPartition, position: int, low: int, since_us: int | None, now_us: int) -> Gap:
    """The gap left when the broker dropped records [position, low) before the writer read them.

    `since_us` is the newest event time known of that table, None when it has no rows yet.
    """
    return Gap(
        id=f"broker {partition.topic} {partition.partition} {position} {low}",
        source_host="kafka",
        start_us=since_us,
        end_us=now_us,
        reason="broker_retention",
        detail=f"{partition.topic}/{partition.partition}: offsets {position} to {low - 1} had left the broker",
        detected_us=now_us,
    )

"""Avro bodies one at a time: service records (dead letters, cursors, gaps), and decoding for tools and for isolating damage.

The hot path never comes here: the producer encodes with `schemas.codec`, the writer decodes whole batches natively.
"""

from __future__ import annotations

import io
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Self

import fastavro

from schemas.avro_schemas import AvroSchema, latest, released
from schemas.errors import BadRecord, DeadLetterReason


def decode_body(schema: AvroSchema | str, body: bytes) -> dict[str, Any]:
    """Decode one bare Avro body with fastavro.

    `schema` is a released schema or the name of one (its newest release). Raises BadRecord(UNDECODABLE) when the bytes are not
    exactly one such record.
    """
    schema = latest(schema) if isinstance(schema, str) else schema
    stream = io.BytesIO(body)
    try:
        row: Any = fastavro.schemaless_reader(stream, schema.parsed, schema.parsed)
    except Exception as error:
        raise BadRecord(DeadLetterReason.UNDECODABLE, f"{schema.name}: {type(error).__name__}: {error}"[:500]) from None
    if stream.read(1):
        raise BadRecord(DeadLetterReason.UNDECODABLE, f"{schema.name}: bytes left over after the record")
    return dict(row)


class _ServiceRecord:
    """Encoding shared by the records that are not events; `SCHEMA` is the schema's name."""

    SCHEMA: str

    def encode(self) -> bytes:
        """The bare Avro body."""
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, latest(self.SCHEMA).parsed, asdict(self))  # type: ignore[call-overload]
        return stream.getvalue()

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """Read a bare Avro body of any release; BadRecord(UNDECODABLE) when it is none of this kind."""
        # No body can be taken for one of another release: a newer one has more fields at its end.
        newest, *older = sorted(
            (schema for schema in released().values() if schema.name == cls.SCHEMA), key=lambda s: -s.version
        )
        try:
            return cls(**decode_body(newest, body))
        except BadRecord:
            for schema in older:
                with suppress(BadRecord):
                    return cls(**decode_body(schema, body))
            raise


@dataclass(frozen=True, slots=True)
class DeadLetter(_ServiceRecord):
    """What could not be let in or written: `raw` is the frame (stage producer) or the Kafka value (stage writer) as it came.

    `topic`, `partition` and `offset` name the Kafka record for stage writer and are None for stage producer. Times are unix
    microseconds; None means that the value could not be read from the frame.
    """

    SCHEMA = "dead-letter"

    reason: str
    detail: str
    stage: str
    received_us: int
    source_host: str | None
    protocol: str | None
    time_us: int | None
    seq: int | None
    did: str | None
    collection: str | None
    topic: str | None
    partition: int | None
    offset: int | None
    raw: bytes


@dataclass(frozen=True, slots=True)
class Cursor(_ServiceRecord):
    """Position of one source host below which every event is acknowledged by the broker.

    `seq` is None on legacy hosts that have no sequence; `time_us` is the event time of that position. `made_us` is up to when the
    network's events had been made that the host had delivered by then; None when that is not known.
    """

    SCHEMA = "jetstream-cursor"

    host: str
    protocol: str
    seq: int | None
    time_us: int | None
    updated_us: int
    made_us: int | None = None


@dataclass(frozen=True, slots=True)
class Gap(_ServiceRecord):
    """A stretch of history that the source no longer had; None marks an end that nobody knows."""

    SCHEMA = "gap"

    host: str
    reason: str
    from_us: int | None
    to_us: int | None
    from_seq: int | None
    to_seq: int | None
    detail: str
    noticed_us: int

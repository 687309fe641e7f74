"""A dead letter tried again: after a release that understands more, or once the broker takes what it refused."""

from __future__ import annotations

import io
from typing import NamedTuple

import fastavro

from producers import wire_v1, wire_v2
from producers.dead_letters import STAGE
from producers.wire import Account, Commit, Identity, Rejected, Sync
from schemas.avro_schemas import latest, schema_by_fingerprint
from schemas.bodies import DeadLetter, decode_body
from schemas.codec import EventEncoder
from schemas.errors import BadRecord, DeadLetterReason
from schemas.framing import split
from schemas.topics import TOPICS


class Retried(NamedTuple):
    """A record ready to be framed and produced; `body` is the bare Avro body of the newest schema of `topic`."""

    topic: str
    key: str
    body: bytes
    timestamp_ms: int


def retried(letter: DeadLetter) -> Retried:
    """The event in a letter that this room set aside, marked as replayed. Pure.

    Raises BadRecord when it still is none, and ValueError for a letter of another stage.
    """
    if letter.stage != STAGE:
        raise ValueError(f"a dead letter of stage {letter.stage} is not the producer's")
    if letter.reason == DeadLetterReason.BROKER_REFUSED:
        return _refused_record(letter)
    decode = wire_v1.decode if letter.protocol == "v1" else wire_v2.decode
    event = decode(letter.raw)
    if isinstance(event, Rejected):
        raise BadRecord(event.reason, event.detail)
    encoder = EventEncoder(letter.source_host or "", letter.protocol or "v2")
    if isinstance(event, Commit):
        topic, body = encoder.commit(
            event.time_us,
            event.did,
            event.operation,
            event.collection,
            event.rkey,
            event.rev,
            event.cid,
            event.seq,
            letter.received_us,
            True,
            False,
            event.envelope_json,
            event.record,
        )
    elif isinstance(event, (Identity, Account, Sync)):
        topic, body = encoder.upstream(
            event.kind, event.time_us, event.did, event.seq, letter.received_us, True, False, event.envelope_json,
            event.payload,
        )  # fmt: skip
    else:
        raise BadRecord(DeadLetterReason.NOT_AN_EVENT, f"a frame that carries no event: {type(event).__name__}")
    if len(body) > TOPICS[topic].max_message_bytes:
        raise BadRecord(DeadLetterReason.TOO_LARGE, f"{len(body)} bytes for {topic}")
    return Retried(topic, event.did, body, event.time_us // 1000)


def _refused_record(letter: DeadLetter) -> Retried:
    reference, body = split(letter.raw)
    topic = TOPICS.get(letter.topic or "")
    if topic is None:
        raise BadRecord(DeadLetterReason.UNKNOWN_SCHEMA, f"topic {letter.topic!r} is not declared any more")
    writer = schema_by_fingerprint(reference.value) if reference.kind == "fingerprint" else latest(topic.schema)
    if writer is None:
        raise BadRecord(DeadLetterReason.UNKNOWN_SCHEMA, f"fingerprint {reference.value:016x}")
    row = decode_body(writer, body)
    newest = latest(topic.schema)
    if writer.fingerprint != newest.fingerprint:
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, newest.parsed, row)
        body = stream.getvalue()
    return Retried(topic.name, letter.did or "", body, int(row["time_us"]) // 1000)

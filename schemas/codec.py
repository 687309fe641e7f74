"""Events to Avro bodies, exactly: the envelope here, the record part in `schemas.record_codec`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Final, Literal

from schemas import binary
from schemas.binary import FALSE, LENGTH, NULL, SOME_LENGTH, TRUE, some_long, some_text
from schemas.errors import BadRecord, DeadLetterReason
from schemas.json_text import dumps, loads
from schemas.lexicons import LEXICONS, Kind
from schemas.record_codec import FITS, LOOSE_ENCODERS, OtherCodec, RecordCodec, is_text
from schemas.topics import OTHER, PREFIX, TOPICS

OPERATIONS: Final = {name: some_text(name) for name in ("create", "update", "delete")}
ABSENT: Final = "$absent"
"""Member of `extra_json` that lists members which the source lacked although the typed fields would restore them."""
_COMMIT: Final = binary.text("commit")
UpstreamKind = Literal["identity", "account", "sync"]
"""Events about an account, which carry an object of the relay; the last part of their topics' names."""
_UPSTREAM_FIELDS: dict[UpstreamKind, tuple[tuple[str, Kind], ...]] = {
    "identity": (("handle", Kind.TEXT), ("seq", Kind.INTEGER), ("time", Kind.TEXT)),
    "account": (("active", Kind.BOOLEAN), ("status", Kind.TEXT), ("seq", Kind.INTEGER), ("time", Kind.TEXT)),
    "sync": (("blocks", Kind.TEXT), ("rev", Kind.TEXT), ("seq", Kind.INTEGER), ("time", Kind.TEXT)),
}


class _Collection:
    """What is constant for the commits of one collection. Holds no state: encoders share it."""

    __slots__ = ("absent", "encode", "heads", "topic")

    def __init__(self, topic: str, collection: str, codec: RecordCodec | OtherCodec) -> None:
        self.topic = topic
        self.encode: Callable[[bytes], bytes] = codec.encode
        self.absent = codec.absent
        encoded = some_text(collection)
        self.heads = {name: _COMMIT + operation + encoded for name, operation in OPERATIONS.items()}
        """The fields kind, operation and collection, by operation."""


@cache
def _known_collections() -> dict[str, _Collection]:
    return {nsid: _Collection(PREFIX + nsid, nsid, RecordCodec(lexicon)) for nsid, lexicon in LEXICONS.items()}


@lru_cache(maxsize=1024)
def _other_collection(collection: str) -> _Collection:
    return _Collection(OTHER, collection, OtherCodec())


class EventEncoder:
    """Turns the events of one source connection into (topic, Avro body).

    Not thread-safe; keep one per connection. `protocol` is v1, v2 or archive. Times are unix microseconds. `headers` gives the
    bytes to put before the body, by topic (`schemas.framing`); none unless given.
    """

    def __init__(self, source_host: str, protocol: str, headers: Mapping[str, bytes] | None = None) -> None:
        self._host = binary.text(source_host) + binary.text(protocol)
        self._headers = headers or dict.fromkeys(TOPICS, b"")
        self._collections = _known_collections()
        self._received_us = 0
        self._note_received(0)

    def commit(
        self,
        time_us: int,
        did: str,
        operation: str,
        collection: str,
        rkey: str,
        rev: str,
        cid: str | None,
        seq: int | None,
        received_us: int,
        replayed: bool,
        resync: bool,
        envelope_json: str | None,
        record: bytes | None,
    ) -> tuple[str, bytes]:
        """Encode one record operation; `record` is its JSON text, None when the frame had none.

        Raises BadRecord: UNKNOWN_OPERATION, MISSING_RECORD (create or update without one), and the reasons of `loads`.
        """
        try:
            known = self._collections.get(collection) or _other_collection(collection)
            head = known.heads.get(operation)
            if head is None:
                raise BadRecord(DeadLetterReason.UNKNOWN_OPERATION, f"operation {operation[:40]!r}")
            if record is not None:
                record_part = known.encode(record)
            elif operation == "delete":
                record_part = known.absent
            else:
                raise BadRecord(DeadLetterReason.MISSING_RECORD, f"{operation} without a record")
            if received_us != self._received_us:
                self._note_received(received_us)
            # Written out instead of one call per field: the calls alone would cost half of the budget per event.
            did_raw, rkey_raw, rev_raw = did.encode(), rkey.encode(), rev.encode()
            cid_raw = b"" if cid is None else cid.encode()
            return known.topic, b"".join(
                (
                    self._headers[known.topic],
                    binary.long(time_us),
                    LENGTH[len(did_raw)],
                    did_raw,
                    head,
                    SOME_LENGTH[len(rkey_raw)],
                    rkey_raw,
                    SOME_LENGTH[len(rev_raw)],
                    rev_raw,
                    NULL if cid is None else SOME_LENGTH[len(cid_raw)],
                    cid_raw,
                    self._host,
                    some_long(seq),
                    self._tails[2 * replayed + resync],
                    NULL if envelope_json is None else some_text(envelope_json),
                    record_part,
                )
            )
        except UnicodeEncodeError as error:
            raise BadRecord(DeadLetterReason.UNREPRESENTABLE, f"envelope: {error}") from None

    def upstream(
        self,
        kind: UpstreamKind,
        time_us: int,
        did: str,
        seq: int | None,
        received_us: int,
        replayed: bool,
        resync: bool,
        envelope_json: str | None,
        payload: bytes,
    ) -> tuple[str, bytes]:
        """Encode an event that the relay passed on about an account; `payload` is the JSON text of the nested upstream object.

        Returns topic and body. Raises BadRecord: WRONG_TYPE (no object), UNREPRESENTABLE (a text without a UTF-8 form), and
        the reasons of `loads`.
        """
        upstream = loads(payload)
        if not isinstance(upstream, dict):
            raise BadRecord(DeadLetterReason.WRONG_TYPE, f"{kind} is {type(upstream).__name__}, not an object")
        rest = dict(upstream)
        # The upstream object repeats the event's did; only the exception is stored.
        if rest.get("did") == did:
            del rest["did"]
        elif "did" not in rest:
            rest[ABSENT] = ["did"]
        fields = []
        rev = None
        for name, field_kind in _UPSTREAM_FIELDS[kind]:
            value = rest.get(name)
            if kind == "sync" and name == "blocks":
                plain = isinstance(value, dict) and value.keys() == {"$bytes"} and is_text(value["$bytes"])
                fields.append(some_text(value["$bytes"]) if plain and value else NULL)
                if plain:
                    del rest[name]
            elif name in rest and FITS[field_kind](value):
                fields.append(LOOSE_ENCODERS[field_kind](rest.pop(name)))
                rev = value if name == "rev" else rev
            else:
                fields.append(NULL)
        if received_us != self._received_us:
            self._note_received(received_us)
        topic = PREFIX + kind
        try:
            return topic, b"".join(
                (
                    self._headers[topic],
                    binary.long(time_us),
                    binary.text(did),
                    binary.text(kind),
                    NULL * 3,
                    some_text(rev),
                    NULL,
                    self._host,
                    some_long(seq),
                    self._tails[2 * replayed + resync],
                    some_text(envelope_json),
                    NULL,
                    *fields,
                    some_text(dumps(rest)) if rest else NULL,
                )
            )
        except UnicodeEncodeError as error:
            raise BadRecord(DeadLetterReason.UNREPRESENTABLE, f"envelope: {error}") from None

    def _note_received(self, received_us: int) -> None:
        """Prepare the fields received_us, replayed and resync, which the events of one socket read share."""
        received = binary.long(received_us)
        self._tails = tuple(received + replayed + resync for replayed in (FALSE, TRUE) for resync in (FALSE, TRUE))
        self._received_us = received_us

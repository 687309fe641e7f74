"""Events to Avro bodies, exactly: what no typed field can hold goes to `extra_json` or `envelope_json`.

The fast path decodes a record with a strict msgspec type that accepts only what the typed fields hold exactly; everything else
takes the tolerant path, member by member. Both give bodies from which `schemas.rebuild` restores the source JSON value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from schemas import binary
from schemas.binary import FALSE, LENGTH, NULL, SOME_LENGTH, TRUE, some_long, some_text
from schemas.derive import derive_post
from schemas.errors import BadRecord, DeadLetterReason
from schemas.lexicons import LEXICONS, Kind, Lexicon, Member
from schemas.topics import ACCOUNT, IDENTITY, OTHER, PREFIX, SYNC

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
OPERATIONS: Final = {name: some_text(name) for name in ("create", "update", "delete")}
ABSENT: Final = "$absent"
"""Member of `extra_json` that lists members which the source lacked although the typed fields would restore them."""
_POST: Final = "app.bsky.feed.post"

Int64 = Annotated[int, Meta(ge=INT64_MIN, le=INT64_MAX)]


class _Ref(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    uri: str
    cid: str


class _Reply(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    root: _Ref
    parent: _Ref


_STRICT_TYPE: dict[Kind, Any] = {
    Kind.TEXT: str,
    Kind.DATETIME: str,
    Kind.DID: str,
    Kind.URI: str,
    Kind.INTEGER: Int64,
    Kind.BOOLEAN: bool,
    Kind.STRINGS: list[str],
    Kind.JSON: Raw,
    Kind.REF: _Ref,
    Kind.REPLY: _Reply,
}


def loads(raw: bytes | str) -> Any:
    """Parse JSON of the network tolerantly: lone surrogates and big integers pass, what no JSON value can be does not.

    Raises BadRecord: NOT_JSON, INVALID_UTF8, TOO_DEEP, NUMBER_OUT_OF_RANGE.
    """
    try:
        return _DECODER.decode(raw if isinstance(raw, str) else raw.decode())
    except UnicodeDecodeError as error:
        raise BadRecord(DeadLetterReason.INVALID_UTF8, str(error)) from None
    except RecursionError:
        raise BadRecord(DeadLetterReason.TOO_DEEP, "nested deeper than the parser's stack") from None
    except json.JSONDecodeError as error:
        raise BadRecord(DeadLetterReason.NOT_JSON, str(error)) from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise BadRecord(DeadLetterReason.NUMBER_OUT_OF_RANGE, str(error)) from None


def _constant(name: str) -> Any:
    raise BadRecord(DeadLetterReason.NOT_JSON, f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise BadRecord(DeadLetterReason.NUMBER_OUT_OF_RANGE, f"{text[:40]} exceeds a double")
    return value


_DECODER: Final = json.JSONDecoder(parse_constant=_constant, parse_float=_float, strict=True)


def dumps(value: Any) -> str:
    """Write JSON compactly; text with a lone surrogate is escaped, so that the result is always encodable."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise BadRecord(DeadLetterReason.TOO_DEEP, "nested deeper than the writer's stack") from None
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_ref(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"uri", "cid"} and all(map(_is_text, value.values()))


def _is_reply(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"root", "parent"} and all(map(_is_ref, value.values()))


def _is_int64(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and INT64_MIN <= value <= INT64_MAX


_FITS: dict[Kind, Callable[[Any], bool]] = {
    Kind.TEXT: _is_text,
    Kind.DATETIME: _is_text,
    Kind.DID: _is_text,
    Kind.URI: _is_text,
    Kind.INTEGER: _is_int64,
    Kind.BOOLEAN: lambda value: isinstance(value, bool),
    Kind.STRINGS: lambda value: isinstance(value, list) and all(map(_is_text, value)),
    Kind.JSON: lambda value: True,
    Kind.REF: _is_ref,
    Kind.REPLY: _is_reply,
}


def _strict_ref(ref: _Ref) -> bytes:
    uri = ref.uri.encode()
    cid = ref.cid.encode()
    return b"".join((SOME_LENGTH[len(uri)], uri, SOME_LENGTH[len(cid)], cid))


def _loose_ref(ref: Mapping[str, str]) -> bytes:
    return some_text(ref["uri"]) + some_text(ref["cid"])


def _raw_json(raw: Raw) -> bytes:
    body = bytes(raw)
    body.decode()  # the frame's decoder skips over a raw member without looking at its encoding
    return binary.some_utf8(body)


_COMMON_ENCODERS: dict[Kind, Callable[[Any], bytes]] = {
    Kind.TEXT: some_text,
    Kind.DATETIME: some_text,
    Kind.DID: some_text,
    Kind.URI: some_text,
    Kind.INTEGER: some_long,
    Kind.BOOLEAN: binary.some_boolean,
    Kind.STRINGS: binary.some_strings,
}
_STRICT_ENCODERS: dict[Kind, Callable[[Any], bytes]] = {
    **_COMMON_ENCODERS,
    Kind.JSON: _raw_json,
    Kind.REF: _strict_ref,
    Kind.REPLY: lambda reply: _strict_ref(reply.root) + _strict_ref(reply.parent),
}
_LOOSE_ENCODERS: dict[Kind, Callable[[Any], bytes]] = {
    **_COMMON_ENCODERS,
    Kind.JSON: lambda value: some_text(dumps(value)),
    Kind.REF: _loose_ref,
    Kind.REPLY: lambda reply: _loose_ref(reply["root"]) + _loose_ref(reply["parent"]),
}


def _derived_bytes(embed: Any, facets: Any, labels: Any, tags: Any) -> bytes:
    values = derive_post(embed, facets, labels, tags)
    return b"".join(
        some_long(value)
        if isinstance(value, int)
        else binary.some_strings(value)
        if isinstance(value, list)
        else some_text(value)
        for value in values
    )


_astuple: Final = msgspec.structs.astuple


class _RecordCodec:
    """Encodes the record part of one lexicon: `record_type`, the members, the derived fields, `extra_json`."""

    def __init__(self, lexicon: Lexicon) -> None:
        self._members = lexicon.members
        self._nulls = [NULL * len(member.fields) for member in lexicon.members]
        self._strict_encoders = [_STRICT_ENCODERS[member.kind] for member in lexicon.members]
        self._is_post = lexicon.nsid == _POST
        self._no_derived = NULL * len(lexicon.derived)
        self._index = {member.name: position for position, member in enumerate(lexicon.members)}
        self.absent = NULL * (1 + len(lexicon.fields) + 1)
        strict = msgspec.defstruct(
            "Strict",
            [
                ("record_type", str | UnsetType, msgspec.field(name="$type", default=UNSET)),
                *(
                    (
                        f"m{position}",
                        _STRICT_TYPE[member.kind] | UnsetType,
                        msgspec.field(name=member.name, default=UNSET),
                    )
                    for position, member in enumerate(lexicon.members)
                ),
            ],
            forbid_unknown_fields=True,
            gc=False,
        )
        self._decode = msgspec.json.Decoder(strict).decode
        self._type = lexicon.nsid
        self._type_bytes = some_text(lexicon.nsid)

    def encode(self, record: bytes) -> bytes:
        """The record part of the body; BadRecord when the record is no JSON value that we can keep."""
        try:
            record_type, *values = _astuple(self._decode(record))
            parts = [
                self._type_bytes
                if record_type == self._type
                else NULL
                if record_type is UNSET
                else some_text(record_type)
            ]
            for value, encode, null in zip(values, self._strict_encoders, self._nulls, strict=True):
                parts.append(null if value is UNSET else encode(value))
            if self._is_post:
                parts.append(self._derive_strict(values))
            parts.append(NULL)
            return b"".join(parts)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return self._encode_loose(loads(record))

    def _derive_strict(self, values: list[Any]) -> bytes:
        index = self._index
        embed, facets, labels, tags = (values[index[name]] for name in ("embed", "facets", "labels", "tags"))
        if embed is UNSET and facets is UNSET and labels is UNSET and tags is UNSET:
            return self._no_derived
        decode = msgspec.json.decode
        return _derived_bytes(
            None if embed is UNSET else decode(embed),
            None if facets is UNSET else decode(facets),
            None if labels is UNSET else decode(labels),
            None if tags is UNSET else tags,
        )

    def _encode_loose(self, record: Any) -> bytes:
        if not isinstance(record, dict):
            return self.absent[:-1] + some_text(dumps(record))
        rest = dict(record)
        parts = [NULL]
        if _is_text(rest.get("$type")):
            parts[0] = some_text(rest.pop("$type"))
        for member, null in zip(self._members, self._nulls, strict=True):
            parts.append(self._loose_member(member, rest) or null)
        if self._is_post:
            parts.append(
                _derived_bytes(record.get("embed"), record.get("facets"), record.get("labels"), record.get("tags"))
            )
        parts.append(some_text(dumps(rest)) if rest else NULL)
        return b"".join(parts)

    @staticmethod
    def _loose_member(member: Member, rest: dict[str, Any]) -> bytes | None:
        if member.name not in rest or not _FITS[member.kind](rest[member.name]):
            return None
        return _LOOSE_ENCODERS[member.kind](rest.pop(member.name))


class _OtherCodec:
    """Encodes a record of an unknown collection: its JSON text as it came."""

    absent = NULL * 2

    @staticmethod
    def encode(record: bytes) -> bytes:
        """The record part of the body; the frame's decoder has already checked that `record` is JSON."""
        try:
            record.decode()
        except UnicodeDecodeError as error:
            raise BadRecord(DeadLetterReason.INVALID_UTF8, str(error)) from None
        return NULL + binary.some_utf8(record)


_OTHER: Final = (OTHER, _OtherCodec())
_COMMIT: Final = binary.text("commit")
_UPSTREAM_FIELDS: dict[str, tuple[tuple[str, Kind], ...]] = {
    "identity": (("handle", Kind.TEXT), ("seq", Kind.INTEGER), ("time", Kind.TEXT)),
    "account": (("active", Kind.BOOLEAN), ("status", Kind.TEXT), ("seq", Kind.INTEGER), ("time", Kind.TEXT)),
    "sync": (("blocks", Kind.TEXT), ("rev", Kind.TEXT), ("seq", Kind.INTEGER), ("time", Kind.TEXT)),
}


class EventEncoder:
    """Turns the events of one source connection into (topic, Avro body).

    Not thread-safe; keep one per connection. `protocol` is v1, v2 or archive. Times are unix microseconds.
    """

    def __init__(self, source_host: str, protocol: str) -> None:
        self._host = binary.text(source_host) + binary.text(protocol)
        self._received = (-1, b"")
        self._codecs: dict[str, tuple[str, _RecordCodec | _OtherCodec, bytes]] = {
            nsid: (PREFIX + nsid, _RecordCodec(lexicon), some_text(nsid)) for nsid, lexicon in LEXICONS.items()
        }

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
        encoded_operation = OPERATIONS.get(operation)
        if encoded_operation is None:
            raise BadRecord(DeadLetterReason.UNKNOWN_OPERATION, f"operation {operation[:40]!r}")
        try:
            topic, codec, collection_bytes = self._codecs.get(collection) or (*_OTHER, some_text(collection))
            if record is not None:
                record_part = codec.encode(record)
            elif operation == "delete":
                record_part = codec.absent
            else:
                raise BadRecord(DeadLetterReason.MISSING_RECORD, f"{operation} without a record")
            # Written out instead of one call per field: the calls alone would cost half of the budget per event.
            did_raw, rkey_raw, rev_raw = did.encode(), rkey.encode(), rev.encode()
            return topic, b"".join(
                (
                    binary.long(time_us),
                    LENGTH[len(did_raw)],
                    did_raw,
                    _COMMIT,
                    encoded_operation,
                    collection_bytes,
                    SOME_LENGTH[len(rkey_raw)],
                    rkey_raw,
                    SOME_LENGTH[len(rev_raw)],
                    rev_raw,
                    some_text(cid),
                    self._host,
                    some_long(seq),
                    self._received[1] if self._received[0] == received_us else self._received_bytes(received_us),
                    TRUE if replayed else FALSE,
                    TRUE if resync else FALSE,
                    NULL if envelope_json is None else some_text(envelope_json),
                    record_part,
                )
            )
        except UnicodeEncodeError as error:
            raise BadRecord(DeadLetterReason.UNREPRESENTABLE, f"envelope: {error}") from None

    def identity(
        self,
        time_us: int,
        did: str,
        seq: int | None,
        received_us: int,
        replayed: bool,
        resync: bool,
        envelope_json: str | None,
        payload: bytes,
    ) -> tuple[str, bytes]:
        """Encode an identity event; `payload` is the JSON text of the nested upstream object."""
        return IDENTITY, self._upstream(
            "identity", time_us, did, seq, received_us, replayed, resync, envelope_json, payload
        )

    def account(
        self,
        time_us: int,
        did: str,
        seq: int | None,
        received_us: int,
        replayed: bool,
        resync: bool,
        envelope_json: str | None,
        payload: bytes,
    ) -> tuple[str, bytes]:
        """Encode an account event; `payload` as for `identity`."""
        return ACCOUNT, self._upstream(
            "account", time_us, did, seq, received_us, replayed, resync, envelope_json, payload
        )

    def sync(
        self,
        time_us: int,
        did: str,
        seq: int | None,
        received_us: int,
        replayed: bool,
        resync: bool,
        envelope_json: str | None,
        payload: bytes,
    ) -> tuple[str, bytes]:
        """Encode a sync event; `payload` as for `identity`."""
        return SYNC, self._upstream("sync", time_us, did, seq, received_us, replayed, resync, envelope_json, payload)

    def _received_bytes(self, received_us: int) -> bytes:
        if self._received[0] != received_us:
            self._received = (received_us, binary.long(received_us))
        return self._received[1]

    def _upstream(
        self,
        kind: str,
        time_us: int,
        did: str,
        seq: int | None,
        received_us: int,
        replayed: bool,
        resync: bool,
        envelope_json: str | None,
        payload: bytes,
    ) -> bytes:
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
                plain = isinstance(value, dict) and value.keys() == {"$bytes"} and _is_text(value["$bytes"])
                fields.append(some_text(value["$bytes"]) if plain and value else NULL)
                if plain:
                    del rest[name]
            elif name in rest and _FITS[field_kind](value):
                fields.append(_LOOSE_ENCODERS[field_kind](rest.pop(name)))
                rev = value if name == "rev" else rev
            else:
                fields.append(NULL)
        try:
            return b"".join(
                (
                    binary.long(time_us),
                    binary.text(did),
                    binary.text(kind),
                    NULL * 3,
                    some_text(rev),
                    NULL,
                    self._host,
                    some_long(seq),
                    self._received_bytes(received_us),
                    TRUE if replayed else FALSE,
                    TRUE if resync else FALSE,
                    some_text(envelope_json),
                    NULL,
                    *fields,
                    some_text(dumps(rest)) if rest else NULL,
                )
            )
        except UnicodeEncodeError as error:
            raise BadRecord(DeadLetterReason.UNREPRESENTABLE, f"envelope: {error}") from None

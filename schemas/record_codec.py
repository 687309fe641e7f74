"""The record part of an event's Avro body: typed where the value fits exactly, `extra_json` for everything else.

The fast path decodes a record with a strict msgspec type that accepts only what the typed fields hold exactly; everything else
takes the tolerant path, member by member. Both give bodies from which `schemas.rebuild` restores the source JSON value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from schemas import binary
from schemas.binary import NULL, SOME_LENGTH, some_long, some_text
from schemas.derive import derive_post
from schemas.errors import BadRecord, DeadLetterReason
from schemas.json_text import dumps, loads
from schemas.lexicons import Kind, Lexicon, Member

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
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


def is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_ref(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"uri", "cid"} and all(map(is_text, value.values()))


def _is_reply(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"root", "parent"} and all(map(_is_ref, value.values()))


def _is_int64(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and INT64_MIN <= value <= INT64_MAX


FITS: dict[Kind, Callable[[Any], bool]] = {
    Kind.TEXT: is_text,
    Kind.DATETIME: is_text,
    Kind.DID: is_text,
    Kind.URI: is_text,
    Kind.INTEGER: _is_int64,
    Kind.BOOLEAN: lambda value: isinstance(value, bool),
    Kind.STRINGS: lambda value: isinstance(value, list) and all(map(is_text, value)),
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
LOOSE_ENCODERS: dict[Kind, Callable[[Any], bytes]] = {
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


class RecordCodec:
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
        if is_text(rest.get("$type")):
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
        if member.name not in rest or not FITS[member.kind](rest[member.name]):
            return None
        return LOOSE_ENCODERS[member.kind](rest.pop(member.name))


class OtherCodec:
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

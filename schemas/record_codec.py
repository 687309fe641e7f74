"""The record part of an event's Avro body: typed where the value fits exactly, `extra_json` for everything else.

The fast path (`schemas.strict_encoder`) accepts only what the typed fields hold exactly; everything else takes the tolerant path,
member by member. Both give bodies from which `schemas.rebuild` restores the source JSON value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw

from schemas import binary, strict_encoder
from schemas.binary import NULL, some_long, some_strings, some_text
from schemas.derive import EMBED_TYPES, MEDIA_KINDS, derive_post
from schemas.errors import BadRecord, DeadLetterReason
from schemas.json_text import dumps, loads
from schemas.lexicons import POST_DERIVED, Kind, Lexicon, Member
from schemas.strict_encoder import INT64_MAX, INT64_MIN

_POST: Final = "app.bsky.feed.post"


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


def _loose_ref(ref: Mapping[str, str]) -> bytes:
    return some_text(ref["uri"]) + some_text(ref["cid"])


LOOSE_ENCODERS: dict[Kind, Callable[[Any], bytes]] = {
    Kind.TEXT: some_text,
    Kind.DATETIME: some_text,
    Kind.DID: some_text,
    Kind.URI: some_text,
    Kind.INTEGER: some_long,
    Kind.BOOLEAN: binary.some_boolean,
    Kind.STRINGS: some_strings,
    Kind.JSON: lambda value: some_text(dumps(value)),
    Kind.REF: _loose_ref,
    Kind.REPLY: lambda reply: _loose_ref(reply["root"]) + _loose_ref(reply["parent"]),
}

_SOME_KNOWN: Final = {name: some_text(name) for name in (*EMBED_TYPES, *MEDIA_KINDS.values(), None)}
_NO_DERIVED: Final = NULL * len(POST_DERIVED)


def _derived_bytes(embed: Any, facets: Any, labels: Any, tags: Any) -> bytes:
    """The derived fields of a post from the JSON values of its members, None for an absent one."""
    embed_type, quote, links, domains, hashtags, mentions, alts, media_kind, media_count, own_labels = derive_post(
        embed, facets, labels, tags
    )
    return b"".join(
        (
            _SOME_KNOWN.get(embed_type) or some_text(embed_type),
            some_text(quote),
            some_strings(links),
            some_strings(domains),
            some_strings(hashtags),
            some_strings(mentions),
            some_strings(alts),
            _SOME_KNOWN[media_kind],
            some_long(media_count),
            some_strings(own_labels),
        )
    )


def _derived_from_json(embed: Raw | None, facets: Raw | None, labels: Raw | None, tags: list[str] | None) -> bytes:
    if embed is None and facets is None and labels is None and tags is None:
        return _NO_DERIVED
    return _derived_bytes(
        None if embed is None else _decode(embed),
        None if facets is None else _decode(facets),
        None if labels is None else _decode(labels),
        tags,
    )


_decode: Final = msgspec.json.Decoder().decode


class RecordCodec:
    """Encodes the record part of one lexicon: `record_type`, the members, the derived fields, `extra_json`."""

    def __init__(self, lexicon: Lexicon) -> None:
        self._members = lexicon.members
        self._nulls = [NULL * len(member.fields) for member in lexicon.members]
        self._is_post = lexicon.nsid == _POST
        self._strict = strict_encoder.make(lexicon, _derived_from_json if self._is_post else None)
        self.absent = NULL * (1 + len(lexicon.fields) + 1)

    def encode(self, record: bytes) -> bytes:
        """The record part of the body; BadRecord when the record is no JSON value that we can keep."""
        try:
            return self._strict(record)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return self._encode_loose(loads(record))

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

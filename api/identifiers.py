"""Identifiers of the AT Protocol as clients write them: DIDs, handles, record keys and at-uris."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_DID: Final = re.compile(r"did:[a-z]+:[A-Za-z0-9._:%-]{1,2000}", re.ASCII)
_HANDLE: Final = re.compile(
    r"(?=.{3,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII
)
_NSID: Final = re.compile(
    r"(?=.{3,317}\Z)[A-Za-z][A-Za-z0-9-]*(\.[A-Za-z0-9][A-Za-z0-9-]*)+\.[A-Za-z][A-Za-z0-9]*", re.ASCII
)
_RKEY: Final = re.compile(r"[A-Za-z0-9._:~-]{1,512}", re.ASCII)
# A first character above `b` would need the 64th bit: the lake keeps such keys as text.
_TID: Final = re.compile(r"[234567ab][234567abcdefghijklmnopqrstuvwxyz]{12}", re.ASCII)
_ALPHABET: Final = "234567abcdefghijklmnopqrstuvwxyz"
_TID_VALUE: Final = {char: value for value, char in enumerate(_ALPHABET)}
POST: Final = "app.bsky.feed.post"


def parse_did(value: Any) -> str:
    """The DID; ValueError when it is none."""
    text = str(value).strip()
    if not _DID.fullmatch(text):
        raise ValueError("it is not a DID; write one such as did:plc:ewvi7nxzyoun6zhxrhs64oiz")
    return text


def parse_actor(value: Any) -> str:
    """A DID as it stands or a handle in lower case without `@`; ValueError when it is neither."""
    text = str(value).strip().removeprefix("@")
    if _DID.fullmatch(text):
        return text
    if _HANDLE.fullmatch(text.lower()):
        return text.lower()
    raise ValueError("it is neither a DID nor a handle; write did:plc:… or a name such as alice.bsky.social")


def is_did(actor: str) -> bool:
    """Whether an actor is a DID (and not a handle)."""
    return actor.startswith("did:")


def tid_value(text: str) -> int | None:
    """The number of a TID, as the lake stores it; None for a key that the lake keeps as text."""
    if not _TID.fullmatch(text):
        return None
    value = 0
    for char in text:
        value = value << 5 | _TID_VALUE[char]
    return value


def tid_text(value: int) -> str:
    """The 13 characters of a TID; the inverse of `tid_value`."""
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(60, -1, -5))


@dataclass(frozen=True, slots=True)
class RecordUri:
    """`at://authority/collection/rkey`; the authority is a DID, or a handle that still has to be resolved."""

    authority: str
    collection: str
    rkey: str

    def __str__(self) -> str:
        return f"at://{self.authority}/{self.collection}/{self.rkey}"


_BSKY_APP: Final = re.compile(r"https://bsky\.app/profile/([^/?#]+)/post/([^/?#]+)/?", re.ASCII)


def parse_record_uri(value: Any) -> RecordUri:
    """Read an at-uri of a record, or the address of a post on bsky.app; ValueError otherwise."""
    if isinstance(value, RecordUri):
        return value
    text = str(value).strip()
    if match := _BSKY_APP.fullmatch(text):
        text = f"at://{match[1]}/{POST}/{match[2]}"
    scheme, _, rest = text.partition("://")
    parts = rest.split("/")
    if scheme != "at" or len(parts) != 3 or not _NSID.fullmatch(parts[1]) or not _RKEY.fullmatch(parts[2]):
        raise ValueError("it is not a record's at-uri; write at://<did or handle>/<collection>/<record key>")
    try:
        authority = parse_actor(parts[0])
    except ValueError:
        raise ValueError(
            "its authority is neither a DID nor a handle; write at://<did or handle>/<collection>/<record key>"
        ) from None
    return RecordUri(authority, parts[1], parts[2])


def parse_collection(value: Any) -> str:
    """A collection's NSID; ValueError otherwise."""
    text = str(value).strip()
    if not _NSID.fullmatch(text):
        raise ValueError("it is not the name of a collection; write one such as app.bsky.feed.post")
    return text


Actor = Annotated[
    str,
    BeforeValidator(parse_actor),
    WithJsonSchema({"type": "string", "examples": ["did:plc:ewvi7nxzyoun6zhxrhs64oiz", "alice.bsky.social"]}),
]
"""A parameter that names an account: DID or handle."""


def parse_post_uri(value: Any) -> RecordUri:
    """Read an at-uri of a post, or its address on bsky.app; ValueError otherwise."""
    uri = parse_record_uri(value)
    if uri.collection != POST:
        raise ValueError(f"it names a record of {uri.collection}, not a post; write at://<did or handle>/{POST}/<key>")
    return uri


_URI_SCHEMA: Final = WithJsonSchema(
    {"type": "string", "examples": ["at://did:plc:ewvi7nxzyoun6zhxrhs64oiz/app.bsky.feed.post/3l6oveex3ii2l"]}
)
AnyUri = Annotated[RecordUri, BeforeValidator(parse_record_uri), PlainSerializer(str, return_type=str), _URI_SCHEMA]
"""A parameter that names a record of any collection."""
PostUri = Annotated[RecordUri, BeforeValidator(parse_post_uri), PlainSerializer(str, return_type=str), _URI_SCHEMA]
"""A parameter that names a post."""

Collection = Annotated[
    str, BeforeValidator(parse_collection), WithJsonSchema({"type": "string", "examples": ["app.bsky.feed.post"]})
]
"""A parameter that names a collection."""

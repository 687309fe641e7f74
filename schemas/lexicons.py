"""The 19 record lexicons of app.bsky and chat.bsky (atproto d6296a1, 2026-08-20) as typed columns.

A member whose JSON value fits its kind exactly is stored typed; any other value goes to `extra_json`, because the network
validates nothing. Unions and nested objects are stored as their JSON text in `<member>_json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Kind(Enum):
    """How a lexicon member, or a field of the envelope, is stored."""

    TEXT = auto()
    DATETIME = auto()
    DID = auto()
    URI = auto()
    CID = auto()
    TID = auto()
    INTEGER = auto()
    BOOLEAN = auto()
    MICROS = auto()
    STRINGS = auto()
    JSON = auto()
    REF = auto()
    REPLY = auto()


@dataclass(frozen=True, slots=True)
class Field:
    """One Avro field: its name and kind (never REF or REPLY, which are several fields each)."""

    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a record: its JSON name, kind and the stem of its column names."""

    name: str
    kind: Kind
    column: str

    @property
    def fields(self) -> tuple[Field, ...]:
        """The Avro fields that hold this member."""
        match self.kind:
            case Kind.REF:
                return (Field(f"{self.column}_uri", Kind.URI), Field(f"{self.column}_cid", Kind.CID))
            case Kind.REPLY:
                return tuple(
                    field
                    for part in ("root", "parent")
                    for field in (
                        Field(f"{self.column}_{part}_uri", Kind.URI),
                        Field(f"{self.column}_{part}_cid", Kind.CID),
                    )
                )
            case Kind.JSON:
                return (Field(f"{self.column}_json", Kind.JSON),)
            case Kind.URI:
                return (Field(f"{self.column}_uri", Kind.URI),)
            case _:
                return (Field(self.column, self.kind),)


@dataclass(frozen=True, slots=True)
class Lexicon:
    """A known record collection: its members, and derived fields that queries need but rebuilding never uses."""

    nsid: str
    members: tuple[Member, ...]
    derived: tuple[Field, ...] = ()

    @property
    def fields(self) -> tuple[Field, ...]:
        """The Avro fields between the envelope and `extra_json`."""
        return tuple(field for member in self.members for field in member.fields) + self.derived


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _lexicon(
    nsid: str, members: str, derived: tuple[Field, ...] = (), columns: dict[str, str] | None = None
) -> Lexicon:
    """Read `name:KIND` words; `columns` renames a member whose own name would clash with the envelope."""
    parsed = []
    for word in members.split():
        name, _, kind = word.partition(":")
        parsed.append(Member(name, Kind[kind], (columns or {}).get(name, _snake(name))))
    return Lexicon(nsid, tuple(parsed), derived)


POST_DERIVED = (
    Field("embed_type", Kind.TEXT),
    Field("quote_uri", Kind.URI),
    Field("links", Kind.STRINGS),
    Field("domains", Kind.STRINGS),
    Field("hashtags", Kind.STRINGS),
    Field("mentions", Kind.STRINGS),
    Field("alt_texts", Kind.STRINGS),
    Field("media_kind", Kind.TEXT),
    Field("media_count", Kind.INTEGER),
    Field("self_labels", Kind.STRINGS),
)

_ALL = (
    _lexicon(
        "app.bsky.feed.post",
        "text:TEXT createdAt:DATETIME reply:REPLY embed:JSON facets:JSON langs:STRINGS labels:JSON tags:STRINGS entities:JSON",
        POST_DERIVED,
    ),
    _lexicon("app.bsky.feed.like", "subject:REF createdAt:DATETIME via:REF"),
    _lexicon("app.bsky.feed.repost", "subject:REF createdAt:DATETIME via:REF"),
    _lexicon(
        "app.bsky.feed.generator",
        "did:DID displayName:TEXT createdAt:DATETIME description:TEXT descriptionFacets:JSON avatar:JSON"
        " acceptsInteractions:BOOLEAN labels:JSON contentMode:TEXT",
        columns={"did": "service_did"},
    ),
    _lexicon("app.bsky.feed.threadgate", "post:URI createdAt:DATETIME allow:JSON hiddenReplies:STRINGS"),
    _lexicon("app.bsky.feed.postgate", "post:URI createdAt:DATETIME detachedEmbeddingUris:STRINGS embeddingRules:JSON"),
    _lexicon("app.bsky.graph.follow", "subject:DID createdAt:DATETIME via:REF"),
    _lexicon("app.bsky.graph.block", "subject:DID createdAt:DATETIME"),
    _lexicon(
        "app.bsky.graph.list",
        "purpose:TEXT name:TEXT createdAt:DATETIME description:TEXT descriptionFacets:JSON avatar:JSON labels:JSON",
    ),
    _lexicon("app.bsky.graph.listitem", "subject:DID list:URI createdAt:DATETIME"),
    _lexicon("app.bsky.graph.listblock", "subject:URI createdAt:DATETIME"),
    _lexicon(
        "app.bsky.graph.starterpack",
        "name:TEXT list:URI createdAt:DATETIME description:TEXT descriptionFacets:JSON feeds:JSON",
    ),
    _lexicon("app.bsky.graph.verification", "subject:DID handle:TEXT displayName:TEXT createdAt:DATETIME"),
    _lexicon(
        "app.bsky.actor.profile",
        "displayName:TEXT description:TEXT pronouns:TEXT website:TEXT avatar:JSON banner:JSON labels:JSON"
        " joinedViaStarterPack:REF pinnedPost:REF createdAt:DATETIME",
    ),
    _lexicon("app.bsky.actor.status", "status:TEXT createdAt:DATETIME embed:JSON durationMinutes:INTEGER"),
    _lexicon("app.bsky.actor.contentVisibilityDeclaration", "hideFromAlgorithmicRecommendations:BOOLEAN"),
    _lexicon(
        "app.bsky.labeler.service",
        "policies:JSON createdAt:DATETIME labels:JSON reasonTypes:STRINGS subjectTypes:STRINGS subjectCollections:STRINGS",
    ),
    _lexicon("app.bsky.notification.declaration", "allowSubscriptions:TEXT"),
    _lexicon("chat.bsky.actor.declaration", "allowIncoming:TEXT allowGroupInvites:TEXT"),
)

LEXICONS: dict[str, Lexicon] = {lexicon.nsid: lexicon for lexicon in _ALL}

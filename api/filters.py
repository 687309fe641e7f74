"""The typed filters of every endpoint that selects posts, and what each of them means.

One list = any of its values; different filters = all of them; `not_…` = none of its values. A filter on a member that a
post does not have is not met, and its `not_…` is.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from api import query_text
from api.identifiers import Actor, AnyUri, PostUri
from api.times import Moment

MAX_VALUES = 100
"""Most values of one list: bounds the work of a filter."""


class Clock(StrEnum):
    """Which time a range is about: when the event arrived (cannot be forged) or what the author's client wrote."""

    ARRIVAL = "arrival"
    CREATED = "created"


class Media(StrEnum):
    """What a post carries beside text."""

    IMAGES = "images"
    GALLERY = "gallery"
    VIDEO = "video"
    EXTERNAL = "external"


class Operation(StrEnum):
    """How the version of the post that is shown came to be."""

    CREATE = "create"
    UPDATE = "update"


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair; send well-formed Unicode") from None
    return value


def _hashtag(value: str) -> str:
    return _word(value.strip().removeprefix("#").removeprefix("＃").lower())


def _word(value: str) -> str:
    if not value:
        raise ValueError("it is empty")
    return _encodable(value)


def _domain(value: str) -> str:
    domain = value.strip().lower().removeprefix("www.").rstrip(".")
    if not domain or any(char in domain for char in "/:?#@ "):
        raise ValueError("it is not a host name; write nytimes.com, and use `url` for an address")
    return _encodable(domain)


def _url(value: str) -> str:
    stripped = value.strip()
    lowered = stripped.lower()
    for scheme in ("https://", "http://"):
        if lowered.startswith(scheme):
            stripped = stripped[len(scheme) :]
            break
    if stripped.lower().startswith("www."):
        stripped = stripped[4:]
    host, slash, rest = stripped.partition("/")
    return _word(host.lower() + slash + rest)


_LANGUAGE: Final = re.compile(r"(?=.{2,35}\Z)[a-z]{2,3}(-[a-z0-9]{1,8})*", re.ASCII)


def _language(value: str) -> str:
    language = value.strip().lower()
    if not _LANGUAGE.fullmatch(language):
        raise ValueError("it is not a BCP 47 language tag of two or three letters; write en (not english) or pt-BR")
    return language


def _query(value: str) -> str:
    query_text.parse(value)
    return value


Text = Annotated[str, AfterValidator(_query), Field(max_length=query_text.MAX_CHARACTERS)]
Hashtag = Annotated[str, AfterValidator(_hashtag), Field(max_length=640)]
Domain = Annotated[str, AfterValidator(_domain), Field(max_length=253)]
Url = Annotated[str, AfterValidator(_url), Field(max_length=2048)]
Language = Annotated[str, AfterValidator(_language)]
Label = Annotated[str, AfterValidator(_word), Field(max_length=128)]
LabelText = Annotated[str, AfterValidator(_word), Field(max_length=1000)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]


def _list(description: str) -> Any:
    return Field(default=(), max_length=MAX_VALUES, description=description)


class ArrivalRange(BaseModel):
    """A range of time of arrival: start inclusive, end exclusive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: Moment | None = Field(
        None,
        description="Earliest time, inclusive: date, date and time (UTC unless it has an offset), or an age such as `7d`.",
    )
    end: Moment | None = Field(None, description="Latest time, exclusive; a plain date is its midnight.")

    @model_validator(mode="after")
    def _ordered(self) -> ArrivalRange:
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError("start must be earlier than end")
        return self


class TimeRange(ArrivalRange):
    """A range of time on one of two clocks."""

    clock: Clock = Field(
        Clock.ARRIVAL,
        description="Which time `start` and `end` are about: `arrival` here (cannot be forged) or `created`, the author's claim.",
    )


class PostFilters(TimeRange):
    """Everything that posts can be selected by."""

    text: Text | None = Field(
        None,
        description='Words, "phrases", OR, NOT or -, groups and * wildcards, found anywhere in the text, ignoring case.',
        examples=['climate OR "global warming" -hoax'],
    )
    exact: bool = Field(
        False, description="Words and phrases stand at word boundaries: `cat` no longer finds `category`."
    )
    case_sensitive: bool = Field(False, description="Capitals and small letters differ.")

    author: tuple[Actor, ...] = _list("Accounts that wrote the post: DIDs or handles.")
    not_author: tuple[Actor, ...] = _list("Accounts that did not.")
    mention: tuple[Actor, ...] = _list("Accounts that a mention in the post links to.")
    not_mention: tuple[Actor, ...] = _list("Accounts that none does.")
    hashtag: tuple[Hashtag, ...] = _list("Hashtags, with or without #, ignoring case.")
    not_hashtag: tuple[Hashtag, ...] = _list("Hashtags that the post does not have.")
    domain: tuple[Domain, ...] = _list("Hosts that the post links to, subdomains included.")
    not_domain: tuple[Domain, ...] = _list("Hosts that it does not link to.")
    url: tuple[Url, ...] = _list("Beginnings of linked addresses, without regard to scheme and `www.`.")
    not_url: tuple[Url, ...] = _list("Beginnings that no linked address has.")
    lang: tuple[Language, ...] = _list("Languages that the author's client declared; `pt` includes `pt-BR`.")
    not_lang: tuple[Language, ...] = _list("Languages it did not declare.")
    media: tuple[Media, ...] = _list("Kinds of media; `external` is a link card.")
    not_media: tuple[Media, ...] = _list("Kinds of media the post does not have.")
    self_label: tuple[Label, ...] = _list("Labels the author put on the post, such as `porn`.")
    not_self_label: tuple[Label, ...] = _list("Labels the author did not put on it.")

    label: tuple[LabelText, ...] = _list(
        "Conditions on label tables, `[owner/]name[.column][@version]:value`; a number may follow <, <=, >, >=, !=."
    )
    not_label: tuple[LabelText, ...] = _list("Conditions on label tables that must not hold.")

    reply: bool | None = Field(None, description="Only replies (true) or only top-level posts (false).")
    reply_to: PostUri | None = Field(None, description="Direct replies to this post.")
    reply_to_author: tuple[Actor, ...] = _list("Direct replies to posts of these accounts.")
    thread: PostUri | None = Field(
        None, description="The thread that starts at this post: the post and every reply under it."
    )
    quote: bool | None = Field(None, description="Only posts that quote a record (true) or that do not (false).")
    quoted: AnyUri | None = Field(None, description="Posts that quote this post (or list, feed, starter pack).")
    quoted_author: tuple[Actor, ...] = _list("Posts that quote a record of these accounts.")

    operation: Operation | None = Field(
        None, description="Only posts as first written (create) or edited since (update)."
    )
    resync: bool | None = Field(
        None,
        description="Only rows of a repository's re-download (true), whose time is that of the download, or none (false).",
    )
    hour_of_day: tuple[Annotated[int, Field(ge=0, le=23)], ...] = _list("Hours of the day, UTC, on the chosen clock.")
    weekday: tuple[Annotated[int, Field(ge=1, le=7)], ...] = _list("Days of the week, Monday = 1, on the chosen clock.")

    min_likes: Count | None = Field(
        None, description="At least that many likes, as seen by this archive and not withdrawn."
    )
    min_reposts: Count | None = Field(None, description="At least that many reposts, as seen by this archive.")
    min_replies: Count | None = Field(None, description="At least that many direct replies, as seen by this archive.")

    def meaning(self) -> dict[str, Any]:
        """The filters that were set, as JSON values: what a cursor is bound to and what provenance records."""
        return self.model_dump(mode="json", exclude_defaults=True, include=set(PostFilters.model_fields))

    @property
    def engagement(self) -> dict[str, int]:
        """The minimum counts asked for, by `likes`, `reposts`, `replies`."""
        asked = {"likes": self.min_likes, "reposts": self.min_reposts, "replies": self.min_replies}
        return {name: count for name, count in asked.items() if count is not None}


class PostQuery(PostFilters):
    """Filters over posts of one snapshot."""

    as_of: int | None = Field(
        None,
        ge=1,
        description="Ask about an older snapshot (`snapshot.version` of an answer): posts that arrived since are left out, "
        "and so is what was removed or edited since.",
    )


ACTOR_FIELDS = ("author", "not_author", "mention", "not_mention", "reply_to_author", "quoted_author")
"""Filters whose handles are resolved to DIDs before the query."""
URI_FIELDS = ("reply_to", "thread", "quoted")
"""Filters whose at-uri may have a handle as authority."""

"""The parameters of queries, typed, and how their values are sent. A test holds them to the service's OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Literal, TypedDict, get_type_hints

Time = str | date | datetime
"""A date, a time (without a zone: UTC), or an age such as `7d`."""
Texts = str | Sequence[str]
Numbers = int | Sequence[int]


class Filters(TypedDict, total=False):
    """What posts are selected by; a list means any of its values. See `GET /docs` of the service for each one."""

    start: Time
    end: Time
    clock: Literal["arrival", "created"]
    text: str
    exact: bool
    case_sensitive: bool
    author: Texts
    not_author: Texts
    mention: Texts
    not_mention: Texts
    hashtag: Texts
    not_hashtag: Texts
    domain: Texts
    not_domain: Texts
    url: Texts
    not_url: Texts
    lang: Texts
    not_lang: Texts
    media: Texts
    not_media: Texts
    label: Texts
    not_label: Texts
    self_label: Texts
    not_self_label: Texts
    reply: bool
    reply_to: str
    reply_to_author: Texts
    thread: str
    quote: bool
    quoted: str
    quoted_author: Texts
    operation: Literal["create", "update"]
    resync: bool
    hour_of_day: Numbers
    weekday: Numbers
    min_likes: int
    min_reposts: int
    min_replies: int
    as_of: int


class SearchQuery(Filters, total=False):
    """A search."""

    sort: Literal["newest", "oldest", "engaged"]
    fields: Texts
    total: Literal["none", "exact", "estimate"]


class SampleQuery(Filters, total=False):
    """A random sample."""

    fields: Texts
    seed: str


class CountsQuery(Filters, total=False):
    """Counts over time."""

    interval: Literal["minute", "hour", "day", "week", "month"]
    authors: bool
    share: bool
    rollups: bool


class AggregateQuery(Filters, total=False):
    """Counts by group."""

    limit: int
    authors: bool
    missing: bool


class RecordsQuery(TypedDict, total=False):
    """Records of any collection."""

    start: Time
    end: Time
    view: Literal["current", "log"]
    author: Texts
    rkey: str
    operation: Texts
    sort: Literal["newest", "oldest"]
    as_of: int


class EdgesQuery(TypedDict, total=False):
    """Edges between accounts."""

    start: Time
    end: Time
    source: Texts
    target: Texts
    weighted: bool
    limit: int
    as_of: int


class TrendsQuery(Filters, total=False):
    """What rises."""

    window_minutes: int
    baseline_minutes: int
    limit: int
    min_count: int


LISTS = frozenset(name for name, kind in get_type_hints(Filters).items() if kind in (Texts, Numbers))
"""Filters that take several values."""
COMMA_LISTS = frozenset({"fields"})
"""Parameters that take several values in one text."""


def encode(parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The query string's pairs; None values are left out. TypeError for a value that has no text form."""
    found: list[tuple[str, str]] = []
    for name, value in parameters.items():
        if value is None:
            continue
        if isinstance(value, (list, tuple, set, frozenset)):
            texts = [text_of(name, item) for item in value]
            found += [(name, ",".join(texts))] if name in COMMA_LISTS else [(name, text) for text in texts]
        else:
            found.append((name, text_of(name, value)))
    return found


def text_of(name: str, value: Any) -> str:
    """One value as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return moment.isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, (str, int, float)):
        return str(value)
    raise TypeError(f"{name}: {type(value).__name__} cannot be sent; use text, a number, true or false, or a time")

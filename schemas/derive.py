"""Columns of a post that queries need and that its union bodies hide: embed, links, hashtags, mentions, media, labels.

Derived values are never used to rebuild a record, so that nothing here may fail: whatever has an unexpected shape is
simply not found.
"""

from __future__ import annotations

from typing import Any

MEDIA_KINDS = {
    "app.bsky.embed.images": "images",
    "app.bsky.embed.gallery": "gallery",
    "app.bsky.embed.video": "video",
    "app.bsky.embed.external": "external",
}
_RECORD = "app.bsky.embed.record"
_RECORD_WITH_MEDIA = "app.bsky.embed.recordWithMedia"
EMBED_TYPES = (*MEDIA_KINDS, _RECORD, _RECORD_WITH_MEDIA)
_MENTION = "app.bsky.richtext.facet#mention"
_LINK = "app.bsky.richtext.facet#link"
_TAG = "app.bsky.richtext.facet#tag"

Derived = tuple[
    str | None,
    str | None,
    list[str] | None,
    list[str] | None,
    list[str] | None,
    list[str] | None,
    list[str] | None,
    str | None,
    int | None,
    list[str] | None,
]
"""Values in the order of `schemas.lexicons.POST_DERIVED`; None where the post has nothing of that kind."""

NOTHING: Derived = (None,) * 10


def domain_of(url: str) -> str | None:
    """The lower-cased host of an absolute URL without user, port and a leading `www.`; None when it has none."""
    _, separator, rest = url.partition("://")
    if not separator:
        return None
    for end in "/?#":
        rest = rest.partition(end)[0]
    host = rest.rpartition("@")[2].lower()
    host = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    return host.removeprefix("www.").rstrip(".") or None


def _encodable(value: Any) -> str | None:
    """`value` when it is text that UTF-8 can hold (a lone surrogate cannot be stored typed)."""
    if not isinstance(value, str) or not value:
        return None
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return value


def _add(found: list[str], value: Any) -> None:
    text = _encodable(value)
    if text is not None and text not in found:
        found.append(text)


def _member(value: Any, *path: str) -> Any:
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def _media(media: Any, links: list[str], alts: list[str]) -> tuple[str | None, int | None]:
    if not isinstance(media, dict):
        return None, None
    named = media.get("$type")
    kind = MEDIA_KINDS.get(named) if isinstance(named, str) else None
    if kind is None:
        return None, None
    if kind == "external":
        _add(links, _member(media, "external", "uri"))
        return kind, 1
    if kind == "video":
        _add(alts, media.get("alt"))
        return kind, 1
    items = media.get("images" if kind == "images" else "items")
    if not isinstance(items, list):
        return kind, 0
    for item in items:
        if isinstance(item, dict):
            _add(alts, item.get("alt"))
    return kind, len(items)


def derive_post(embed: Any, facets: Any, labels: Any, tags: Any) -> Derived:
    """Extract the derived columns from the decoded JSON values of a post's members (None for an absent member).

    Hashtags are lower-cased and stripped of a leading `#`; links, mentions and alt texts stand as written; every list keeps
    the first of equal values.
    """
    links: list[str] = []
    alts: list[str] = []
    tagged: list[str] = []
    mentions: list[str] = []
    embed_type = quote = media_kind = media_count = None
    if isinstance(embed, dict):
        embed_type = _encodable(embed.get("$type"))
        if embed_type == _RECORD_WITH_MEDIA:
            quote = _encodable(_member(embed, "record", "record", "uri"))
            media_kind, media_count = _media(embed.get("media"), links, alts)
        elif embed_type == _RECORD:
            quote = _encodable(_member(embed, "record", "uri"))
        else:
            media_kind, media_count = _media(embed, links, alts)
    for facet in facets if isinstance(facets, list) else ():
        features = facet.get("features") if isinstance(facet, dict) else None
        for feature in features if isinstance(features, list) else ():
            kind = feature.get("$type") if isinstance(feature, dict) else None
            if kind == _LINK:
                _add(links, feature.get("uri"))
            elif kind == _TAG:
                _add_tag(tagged, feature.get("tag"))
            elif kind == _MENTION:
                _add(mentions, feature.get("did"))
    for tag in tags if isinstance(tags, list) else ():
        _add_tag(tagged, tag)
    domains: list[str] = []
    for link in links:
        _add(domains, domain_of(link))
    values = labels.get("values") if isinstance(labels, dict) else None
    own: list[str] = []
    for label in values if isinstance(values, list) else ():
        _add(own, _member(label, "val"))
    return (
        embed_type,
        quote,
        links or None,
        domains or None,
        tagged or None,
        mentions or None,
        alts or None,
        media_kind,
        media_count,
        own or None,
    )


def _add_tag(found: list[str], value: Any) -> None:
    if isinstance(value, str):
        _add(found, value.removeprefix("#").lower())

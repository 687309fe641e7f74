"""How often each thing happens, as shares of all events; the figures of section 12 of the Jetstream reference."""

from __future__ import annotations

from schemas.lexicons import LEXICONS

KNOWN = frozenset(LEXICONS)
"""The 19 record collections that have a table of their own; every other collection goes to the table `other`."""

SINGLE_KEYS = {
    "app.bsky.actor.profile": b"self",
    "app.bsky.actor.status": b"self",
    "app.bsky.actor.contentVisibilityDeclaration": b"self",
    "app.bsky.labeler.service": b"self",
    "app.bsky.notification.declaration": b"self",
    "chat.bsky.actor.declaration": b"self",
    "com.germnetwork.declaration": b"self",
}
"""Collections with one record per account, and its key."""

# Creates unless the name says otherwise; "gated post" is a post with a threadgate and often a postgate in one commit.
EVENT_TYPES: tuple[tuple[str, float], ...] = (
    ("like", 0.6740),
    ("post", 0.1052),
    ("repost", 0.0960),
    ("follow", 0.0480),
    ("delete app.bsky.feed.like", 0.0150),
    ("delete app.bsky.graph.follow", 0.0125),
    ("delete app.bsky.feed.repost", 0.0045),
    ("delete app.bsky.feed.post", 0.0045),
    ("delete any", 0.0028),
    ("update", 0.0060),
    ("gated post", 0.0009),
    ("app.bsky.graph.block", 0.0130),
    ("app.bsky.graph.listitem", 0.0055),
    ("app.bsky.actor.profile", 0.0030),
    ("app.bsky.graph.list", 0.0005),
    ("app.bsky.graph.listblock", 0.0005),
    ("app.bsky.graph.starterpack", 0.0003),
    ("app.bsky.graph.verification", 0.00005),
    ("app.bsky.feed.generator", 0.0001),
    ("app.bsky.actor.status", 0.0003),
    ("app.bsky.actor.contentVisibilityDeclaration", 0.0002),
    ("app.bsky.labeler.service", 0.00003),
    ("app.bsky.notification.declaration", 0.0003),
    ("chat.bsky.actor.declaration", 0.0006),
    ("fm.teal.alpha.feed.play", 0.0020),
    ("place.stream.chat.message", 0.0008),
    ("site.standard.document", 0.0002),
    ("site.standard.publication", 0.00005),
    ("org.hypercerts.claim.activity", 0.0001),
    ("com.germnetwork.declaration", 0.0002),
    ("com.atproto.lexicon.schema", 0.00003),
    ("sh.tangled.feed.star", 0.0002),
    ("identity", 0.0006),
    ("account", 0.0006),
    ("sync", 0.00005),
)
DELETE_COLLECTIONS = (
    "app.bsky.graph.block",
    "app.bsky.graph.block",
    "app.bsky.graph.block",
    "app.bsky.graph.listitem",
    "app.bsky.graph.listitem",
    "app.bsky.graph.listblock",
    "app.bsky.graph.list",
    "app.bsky.feed.threadgate",
    "app.bsky.feed.postgate",
    "app.bsky.actor.status",
    "app.bsky.graph.starterpack",
    "app.bsky.feed.generator",
    "fm.teal.alpha.feed.play",
    "place.stream.chat.message",
    "org.hypercerts.claim.activity",
)
UPDATE_COLLECTIONS = (
    (
        "app.bsky.actor.profile",
        "app.bsky.feed.post",
        "app.bsky.graph.list",
        "app.bsky.feed.threadgate",
        "app.bsky.feed.generator",
        "app.bsky.actor.status",
        "chat.bsky.actor.declaration",
        "site.standard.document",
    ),
    (0.72, 0.05, 0.05, 0.05, 0.03, 0.04, 0.04, 0.02),
)

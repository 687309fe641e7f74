"""JSON texts of records, one function per collection; members in the order the real servers send (sorted by name).

Shapes: the lexicons of section 13 of the Jetstream reference. Every function returns compact JSON bytes.
"""

from __future__ import annotations

import random
from base64 import b64encode
from collections.abc import Callable

import numpy as np

from simulator.ids import random_cids
from simulator.population import Population
from simulator.text import TextSource, Words

_BLOB = b'{"$type":"blob","mimeType":"%b","ref":{"$link":"%b"},"size":%d}'
_EXTERNAL = b'{"$type":"app.bsky.embed.external","external":{"description":"%b",%b"title":"%b","uri":"%b"}}'
_QUOTE = b'{"$type":"app.bsky.embed.record","record":%b}'
_WITH_MEDIA = (
    b'{"$type":"app.bsky.embed.recordWithMedia","media":%b,"record":{"$type":"app.bsky.embed.record","record":%b}}'
)
_SELF_LABELS = b'"labels":{"$type":"com.atproto.label.defs#selfLabels","values":[{"val":"%b"}]}'
_LABELS = (b"porn", b"sexual", b"nudity", b"graphic-media", b"!no-unauthenticated", b"bot")
_SIZES = ((2000, 1500), (1080, 1350), (1200, 675), (1170, 2532), (1024, 1024), (899, 1599), (4032, 3024))


class RecordWriter:
    """Writes records about the given population; all randomness comes from the generators passed in."""

    def __init__(
        self, population: Population, text: TextSource, bulk: np.random.Generator, draw: random.Random
    ) -> None:
        self._population = population
        self._text = text
        self._bulk = bulk
        self._draw = draw
        self._blob_cids: list[bytes] = []
        self.rare: dict[str, Callable[[bytes, bytes], bytes]] = {
            "app.bsky.graph.block": self._block,
            "app.bsky.graph.list": self._list,
            "app.bsky.graph.listitem": self._listitem,
            "app.bsky.graph.listblock": self._listblock,
            "app.bsky.graph.starterpack": self._starterpack,
            "app.bsky.graph.verification": self._verification,
            "app.bsky.feed.generator": self._generator,
            "app.bsky.feed.threadgate": self._threadgate,
            "app.bsky.feed.postgate": self._postgate,
            "app.bsky.actor.profile": self._profile,
            "app.bsky.actor.status": self._status,
            "app.bsky.actor.contentVisibilityDeclaration": self._visibility,
            "app.bsky.labeler.service": self._labeler,
            "app.bsky.notification.declaration": self._notification,
            "chat.bsky.actor.declaration": self._chat,
            "fm.teal.alpha.feed.play": self._play,
            "place.stream.chat.message": self._stream_message,
            "site.standard.document": self._document,
            "site.standard.publication": self._publication,
            "org.hypercerts.claim.activity": self._claim,
            "com.germnetwork.declaration": self._germ,
            "com.atproto.lexicon.schema": self._lexicon,
            "sh.tangled.feed.star": self._star,
        }

    def state(self) -> dict[str, list[bytes]]:
        """The supplies of identifiers drawn in advance."""
        return {"blobs": self._blob_cids}

    def restore(self, state: dict[str, list[bytes]]) -> None:
        """Inverse of `state`."""
        self._blob_cids = list(state["blobs"])

    def post(self, created: bytes) -> tuple[bytes, bytes | None]:
        """A post record and, for a reply, the strongRef JSON of its thread root."""
        draw = self._draw.random
        words = self._text.language()
        kind = draw()
        has_embed = kind < 0.50
        size = 18 + int(self._draw.lognormvariate(4.1, 0.85))
        text, width = self._text.sentence(words, min(size, 290)) if kind > 0.015 else (b"", 0)
        facets: list[bytes] = []
        chance = draw()
        if chance < 0.10:
            text, width, facets = self._text.with_tags(text, width, 1 + int(draw() ** 2 * 5))
        elif chance < 0.20:
            text, width, facet = self._text.with_link(text, width)
            facets = [facet]
        elif chance < 0.235:
            did = self._someone()
            text, width, facet = self._text.with_mention(text, width, did, self._text.handle(did))
            facets = [facet]
        parts = [b'{"$type":"app.bsky.feed.post","createdAt":"%b"' % created]
        if has_embed:
            parts.append(b'"embed":' + self._embed(words))
        if facets:
            parts.append(b'"facets":[%b]' % b",".join(facets))
        extra = draw()
        if extra < 0.012:
            parts.append(_SELF_LABELS % self._draw.choice(_LABELS))
        if extra < 0.96:
            parts.append(
                b'"langs":["%b"]' % words.vocabulary.tag.encode()
                if extra > 0.02
                else b'"langs":["%b","en"]' % words.vocabulary.tag.encode()
            )
        root = None
        if draw() < 0.38:
            parent, root = self._reference()
            parts.append(b'"reply":{"parent":%b,"root":%b}' % (parent, root))
        if 0.30 < extra < 0.315:
            parts.append(b'"tags":["%b"]' % self._text.tag())
        parts.append(b'"text":"%b"}' % text)
        return b",".join(parts), root

    def _embed(self, words: Words) -> bytes:
        chance = self._draw.random()
        if chance < 0.13:
            return _QUOTE % self._reference()[0]
        if chance < 0.18:
            return _WITH_MEDIA % (self._media(words), self._reference()[0])
        return self._media(words)

    def _media(self, words: Words) -> bytes:
        draw = self._draw.random
        chance = draw()
        if chance < 0.53:
            return b'{"$type":"app.bsky.embed.images","images":[%b]}' % b",".join(
                b'{"alt":"%b","aspectRatio":%b,"image":%b}'
                % (self._alt(words), self._ratio(), self._blob(b"image/jpeg", 900_000))
                for _ in range(1 + int(draw() ** 4 * 4))
            )
        if chance < 0.90:
            thumb = b'"thumb":%b,' % self._blob(b"image/jpeg", 900_000) if draw() < 0.9 else b""
            description = self._text.sentence(words, 60 + int(draw() * 120))[0] if draw() < 0.85 else b""
            return _EXTERNAL % (description, thumb, self._text.phrase(words, 4 + int(draw() * 8)), self._text.link())
        if chance < 0.99:
            alt = b'"alt":"%b",' % self._alt(words) if draw() < 0.1 else b""
            video = self._blob(b"video/mp4", 60_000_000)
            return b'{"$type":"app.bsky.embed.video",%b"aspectRatio":%b,"video":%b}' % (alt, self._ratio(), video)
        return b'{"$type":"app.bsky.embed.gallery","items":[%b]}' % b",".join(
            b'{"$type":"app.bsky.embed.gallery#image","alt":"%b","aspectRatio":%b,"image":%b}'
            % (self._alt(words), self._ratio(), self._blob(b"image/jpeg", 900_000))
            for _ in range(5 + int(draw() * 8))
        )

    def _alt(self, words: Words) -> bytes:
        return self._text.sentence(words, int(self._draw.expovariate(0.012)))[0] if self._draw.random() < 0.35 else b""

    def _ratio(self) -> bytes:
        width, height = self._draw.choice(_SIZES)
        return b'{"height":%d,"width":%d}' % (height, width)

    def _blob(self, mime: bytes, largest: int) -> bytes:
        if not self._blob_cids:
            self._blob_cids = random_cids(self._bulk, 512, raw=True)
        return _BLOB % (mime, self._blob_cids.pop(), 10_000 + int(self._draw.random() ** 2 * largest))

    def _someone(self) -> bytes:
        dids = self._population.dids
        return dids[int(self._draw.random() ** 4 * len(dids))]

    def _reference(self) -> tuple[bytes, bytes]:
        posts = self._population.posts
        return posts[int(self._draw.random() ** 3 * len(posts))]

    def _uri(self, collection: str) -> bytes:
        """An existing record of the collection as at-uri, or of somebody's list if there is none yet."""
        pool = self._population.pools.get(collection)
        if pool is None or not pool.records:
            return b"at://%b/%b/3l2zpbgszrc2x" % (self._someone(), collection.encode())
        _, did, rkey = self._draw.choice(pool.records)
        return b"at://%b/%b/%b" % (did, collection.encode(), rkey)

    def _name(self) -> tuple[Words, bytes]:
        words = self._text.language()
        return words, self._text.phrase(words, 1 + int(self._draw.random() * 4))

    def _description(self, words: Words) -> bytes:
        return self._text.sentence(words, 40 + int(self._draw.random() * 160))[0]

    def _block(self, created: bytes, _: bytes) -> bytes:
        return b'{"$type":"app.bsky.graph.block","createdAt":"%b","subject":"%b"}' % (created, self._someone())

    def _list(self, created: bytes, _: bytes) -> bytes:
        words, name = self._name()
        purpose = self._draw.choice((b"modlist", b"curatelist", b"curatelist", b"referencelist"))
        avatar = b'"avatar":%b,' % self._blob(b"image/png", 400_000) if self._draw.random() < 0.3 else b""
        return (
            b'{"$type":"app.bsky.graph.list",%b"createdAt":"%b","description":"%b","name":"%b","purpose":"app.bsky.graph.defs#%b"}'
            % (
                avatar,
                created,
                self._description(words),
                name,
                purpose,
            )
        )

    def _listitem(self, created: bytes, _: bytes) -> bytes:
        uri = self._uri("app.bsky.graph.list")
        return b'{"$type":"app.bsky.graph.listitem","createdAt":"%b","list":"%b","subject":"%b"}' % (
            created,
            uri,
            self._someone(),
        )

    def _listblock(self, created: bytes, _: bytes) -> bytes:
        return b'{"$type":"app.bsky.graph.listblock","createdAt":"%b","subject":"%b"}' % (
            created,
            self._uri("app.bsky.graph.list"),
        )

    def _starterpack(self, created: bytes, _: bytes) -> bytes:
        words, name = self._name()
        feeds = b'[{"uri":"%b"}]' % self._uri("app.bsky.feed.generator") if self._draw.random() < 0.4 else b"[]"
        return (
            b'{"$type":"app.bsky.graph.starterpack","createdAt":"%b","description":"%b","feeds":%b,"list":"%b","name":"%b"}'
            % (
                created,
                self._description(words),
                feeds,
                self._uri("app.bsky.graph.list"),
                name,
            )
        )

    def _verification(self, created: bytes, _: bytes) -> bytes:
        did = self._someone()
        return (
            b'{"$type":"app.bsky.graph.verification","createdAt":"%b","displayName":"%b","handle":"%b","subject":"%b"}'
            % (
                created,
                self._name()[1],
                self._text.handle(did),
                did,
            )
        )

    def _generator(self, created: bytes, _: bytes) -> bytes:
        words, name = self._name()
        return (
            b'{"$type":"app.bsky.feed.generator","acceptsInteractions":%b,"avatar":%b,"createdAt":"%b","description":"%b",'
            b'"did":"did:web:%b","displayName":"%b"}'
            % (
                self._flag(),
                self._blob(b"image/png", 400_000),
                created,
                self._description(words),
                self._draw.choice(self._text.hosts),
                name,
            )
        )

    def _threadgate(self, created: bytes, uri: bytes) -> bytes:
        rules = (
            b"",
            b'"allow":[],',
            b'"allow":[{"$type":"app.bsky.feed.threadgate#mentionRule"}],',
            b'"allow":[{"$type":"app.bsky.feed.threadgate#followerRule"},{"$type":"app.bsky.feed.threadgate#followingRule"}],',
            b'"allow":[{"$type":"app.bsky.feed.threadgate#listRule","list":"%b"}],' % self._uri("app.bsky.graph.list"),
        )
        return b'{"$type":"app.bsky.feed.threadgate",%b"createdAt":"%b","hiddenReplies":[],"post":"%b"}' % (
            self._draw.choice(rules),
            created,
            uri,
        )

    def _postgate(self, created: bytes, uri: bytes) -> bytes:
        return (
            b'{"$type":"app.bsky.feed.postgate","createdAt":"%b","detachedEmbeddingUris":[],'
            b'"embeddingRules":[{"$type":"app.bsky.feed.postgate#disableRule"}],"post":"%b"}' % (created, uri)
        )

    def _profile(self, created: bytes, _: bytes) -> bytes:
        draw = self._draw.random
        words, name = self._name()
        parts = [b'{"$type":"app.bsky.actor.profile"']
        if draw() < 0.8:
            parts.append(b'"avatar":' + self._blob(b"image/jpeg", 400_000))
        if draw() < 0.5:
            parts.append(b'"banner":' + self._blob(b"image/jpeg", 900_000))
        if draw() < 0.7:
            parts.append(b'"createdAt":"%b"' % created)
        parts.append(b'"description":"%b"' % self._description(words))
        parts.append(b'"displayName":"%b"' % name)
        if draw() < 0.03:
            parts.append(_SELF_LABELS % b"!no-unauthenticated")
        if draw() < 0.25:
            parts.append(b'"pinnedPost":' + self._reference()[0])
        if draw() < 0.05:
            parts.append(b'"pronouns":"%b"' % self._draw.choice((b"she/her", b"he/him", b"they/them")))
        if draw() < 0.05:
            parts.append(b'"website":"https://%b"' % self._draw.choice(self._text.hosts))
        return b",".join(parts) + b"}"

    def _status(self, created: bytes, _: bytes) -> bytes:
        words = self._text.language()
        embed = _EXTERNAL % (self._description(words), b"", self._text.phrase(words, 4), self._text.link())
        return (
            b'{"$type":"app.bsky.actor.status","createdAt":"%b","durationMinutes":%d,"embed":%b,"status":"app.bsky.actor.status#live"}'
            % (
                created,
                self._draw.choice((30, 60, 120, 240)),
                embed,
            )
        )

    def _visibility(self, _created: bytes, _: bytes) -> bytes:
        return (
            b'{"$type":"app.bsky.actor.contentVisibilityDeclaration","hideFromAlgorithmicRecommendations":%b}'
            % self._flag()
        )

    def _labeler(self, created: bytes, _: bytes) -> bytes:
        words, name = self._name()
        return (
            b'{"$type":"app.bsky.labeler.service","createdAt":"%b","policies":{"labelValueDefinitions":[{"adultOnly":false,"blurs":"none",'
            b'"defaultSetting":"warn","identifier":"%b","locales":[{"description":"%b","lang":"%b","name":"%b"}],"severity":"inform"}],'
            b'"labelValues":["%b","spam"]}}'
            % (
                created,
                self._text.tag(),
                self._description(words),
                words.vocabulary.tag.encode(),
                name,
                self._text.tag(),
            )
        )

    def _notification(self, _created: bytes, _: bytes) -> bytes:
        who = self._draw.choice((b"followers", b"mutuals", b"none"))
        return b'{"$type":"app.bsky.notification.declaration","allowSubscriptions":"%b"}' % who

    def _chat(self, _created: bytes, _: bytes) -> bytes:
        who = self._draw.choice((b"all", b"none", b"following"))
        return b'{"$type":"chat.bsky.actor.declaration","allowIncoming":"%b"}' % who

    def _play(self, created: bytes, _: bytes) -> bytes:
        words, name = self._name()
        return (
            b'{"$type":"fm.teal.alpha.feed.play","artists":[{"artistName":"%b"}],"duration":%b,"musicServiceBaseDomain":"local",'
            b'"playedTime":"%b","releaseName":"%b","submissionClientAgent":"simulated/1.0","trackName":"%b"}'
            % (
                name,
                b"null" if self._draw.random() < 0.2 else b"%d" % (90 + int(self._draw.random() * 300)),
                created,
                self._text.phrase(words, 2),
                self._text.phrase(words, 3),
            )
        )

    def _stream_message(self, created: bytes, _: bytes) -> bytes:
        text, width = self._text.sentence(self._text.language(), 60)
        text, width, facets = self._text.with_tags(text, width, 1)
        return b'{"$type":"place.stream.chat.message","createdAt":"%b","facets":[%b],"streamer":"%b","text":"%b"}' % (
            created,
            facets[0],
            self._someone(),
            text,
        )

    def _document(self, created: bytes, _: bytes) -> bytes:
        words = self._text.language()
        body = b" ".join(self._text.sentence(words, 400)[0] for _ in range(1 + int(self._draw.random() * 8)))
        return (
            b'{"$type":"site.standard.document","path":"/%b","publishedAt":"%b","site":"https://%b","tags":["%b"],"textContent":"%b","title":"%b"}'
            % (
                self._text.tag(),
                created,
                self._draw.choice(self._text.hosts),
                self._text.tag(),
                body,
                self._text.phrase(words, 6),
            )
        )

    def _publication(self, _created: bytes, _: bytes) -> bytes:
        words, name = self._name()
        colours = b",".join(
            b'"%b":{"$type":"site.standard.theme.color#rgb","b":%d,"g":%d,"r":%d}' % (part, *self._draw.randbytes(3))
            for part in (b"accent", b"accentForeground", b"background", b"foreground")
        )
        return (
            b'{"$type":"site.standard.publication","basicTheme":{"$type":"site.standard.theme.basic",%b},'
            b'"description":"%b","name":"%b","url":"https://%b"}'
            % (colours, self._description(words), name, self._draw.choice(self._text.hosts))
        )

    def _claim(self, created: bytes, _: bytes) -> bytes:
        words, name = self._name()
        return (
            b'{"$type":"org.hypercerts.claim.activity","createdAt":"%b","shortDescription":"%b","title":"%b","workScope":null}'
            % (
                created,
                self._description(words),
                name,
            )
        )

    def _germ(self, _created: bytes, _: bytes) -> bytes:
        key = b64encode(self._draw.randbytes(32)).rstrip(b"=")
        return (
            b'{"$type":"com.germnetwork.declaration","currentKey":{"$bytes":"%b"},"messageMe":'
            b'{"messageMeUrl":"https://%b","showButtonTo":"everyone"},"version":"1.1.0"}'
            % (key, self._draw.choice(self._text.hosts))
        )

    def _lexicon(self, _created: bytes, key: bytes) -> bytes:
        return (
            b'{"$type":"com.atproto.lexicon.schema","defs":{"main":{"key":"tid","record":{"properties":{"createdAt":'
            b'{"format":"datetime","type":"string"}},"required":["createdAt"],"type":"object"},"type":"record"}},"id":"%b","lexicon":1}'
            % key
        )

    def _star(self, created: bytes, _: bytes) -> bytes:
        return (
            b'{"$type":"sh.tangled.feed.star","createdAt":"%b","subject":"at://%b/sh.tangled.repo/3l2zpbgszrc2x"}'
            % (created, self._someone())
        )

    def _flag(self) -> bytes:
        return b"true" if self._draw.random() < 0.5 else b"false"

"""Texts of posts: JSON-escaped words in one language with facets at their right UTF-8 byte offsets."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from simulator.vocabulary import EMOJI, PUNCTUATION, Vocabulary, build_vocabularies

_DRAWS = 16_384
_EMOJI = tuple((b" " + emoji.encode(), len(emoji.encode()) + 1) for emoji in EMOJI)
_TAG_FACET = b'{"features":[{"$type":"app.bsky.richtext.facet#tag","tag":"%b"}],"index":{"byteEnd":%d,"byteStart":%d}}'
_LINK_FACET = (
    b'{"features":[{"$type":"app.bsky.richtext.facet#link","uri":"%b"}],"index":{"byteEnd":%d,"byteStart":%d}}'
)
_MENTION_FACET = (
    b'{"features":[{"$type":"app.bsky.richtext.facet#mention","did":"%b"}],"index":{"byteEnd":%d,"byteStart":%d}}'
)


@dataclass
class Words:
    """A language with a refillable supply of word ranks drawn in bulk."""

    vocabulary: Vocabulary
    ranks: list[int]
    at: int = 0


class TextSource:
    """Writes texts; holds only bounded supplies of random draws, all from the generators passed in."""

    def __init__(self, seed: int, bulk: np.random.Generator, draw: random.Random) -> None:
        self._bulk = bulk
        self._draw = draw
        self._languages = [Words(vocabulary, []) for vocabulary in build_vocabularies()]
        total, self._cumulative = 0.0, []
        for words in self._languages:
            total += words.vocabulary.share
            self._cumulative.append(total)
        self.hosts = self._make_hosts(seed)
        self._tags = self._make_tags(seed)

    def state(self) -> list[tuple[int, list[int]]]:
        """Per language how far its supply of word ranks is used, and the supply."""
        return [(words.at, words.ranks) for words in self._languages]

    def restore(self, state: list[tuple[int, list[int]]]) -> None:
        """Inverse of `state`."""
        for words, (at, ranks) in zip(self._languages, state, strict=True):
            words.at, words.ranks = at, list(ranks)

    def language(self) -> Words:
        """A language, drawn by its share of posts."""
        return self._draw.choices(self._languages, cum_weights=self._cumulative)[0]

    def sentence(self, words: Words, size: int) -> tuple[bytes, int]:
        """About `size` UTF-8 bytes of words with punctuation: the JSON text and its exact UTF-8 length."""
        vocabulary = words.vocabulary
        count = max(1, int(size / (vocabulary.mean_width + len(vocabulary.glue))))
        ranks = self._ranks(words, count)
        known = vocabulary.words
        widths = vocabulary.widths
        glue = vocabulary.glue
        if count < 6:
            width = sum([widths[rank] for rank in ranks]) + len(glue) * (count - 1)
            return glue.join([known[rank] for rank in ranks]), width
        draw = self._draw.random
        pieces = []
        width = 0
        start = 0
        while start < count:
            end = min(count, start + 4 + int(draw() * 12))
            part = ranks[start:end]
            width += sum([widths[rank] for rank in part]) + len(glue) * (end - start - 1)
            mark, mark_width = PUNCTUATION[int(draw() * len(PUNCTUATION))]
            pieces.append(glue.join([known[rank] for rank in part]) + mark)
            width += mark_width
            start = end
        if draw() < 0.14:
            emoji, emoji_width = _EMOJI[int(draw() ** 2 * len(_EMOJI))]
            pieces.append(emoji)
            width += emoji_width
        return glue.join(pieces), width + len(glue) * (len(pieces) - 1)

    def phrase(self, words: Words, count: int) -> bytes:
        """`count` plain words without punctuation (titles, names)."""
        known = words.vocabulary.words
        return words.vocabulary.glue.join([known[rank] for rank in self._ranks(words, count)])

    def link(self) -> bytes:
        """A web address on one of the synthetic hosts (Zipf); paths are nearly unique."""
        draw = self._draw.random
        host = self.hosts[int(draw() ** 3 * len(self.hosts))]
        return b"https://%b/%b/%b-%x" % (host, self._slug(), self._slug(), int(draw() * 2**32))

    def tag(self) -> bytes:
        """A hashtag without its `#`, Zipf by rank."""
        return self._tags[int(self._draw.random() ** 3 * len(self._tags))]

    def with_tags(self, text: bytes, width: int, count: int) -> tuple[bytes, int, list[bytes]]:
        """Append `count` hashtags to a text; returns text, width and the facets."""
        facets = []
        for _ in range(count):
            tag = self.tag()
            facets.append(_TAG_FACET % (tag, width + 2 + len(tag), width + 1))
            text += b" #" + tag
            width += 2 + len(tag)
        return text, width, facets

    def with_link(self, text: bytes, width: int) -> tuple[bytes, int, bytes]:
        """Append a link shown shortened, as clients do; returns text, width and the facet."""
        uri = self.link()
        shown = uri[8:35] + b"..."
        return text + b" " + shown, width + 1 + len(shown), _LINK_FACET % (uri, width + 1 + len(shown), width + 1)

    def with_mention(self, text: bytes, width: int, did: bytes, handle: bytes) -> tuple[bytes, int, bytes]:
        """Put a mention before a text; returns text, width and the facet."""
        shown = b"@" + handle
        return shown + b" " + text, width + len(shown) + 1, _MENTION_FACET % (did, len(shown), 0)

    def handle(self, did: bytes) -> bytes:
        """The handle of an account, a pure function of its DID."""
        digits = int.from_bytes(did[8:14], "big")
        known = self._languages[0].vocabulary.words
        name = known[100 + digits % (len(known) - 100)].replace(b"'", b"")
        if digits % 19 == 0:
            return name + b"." + self.hosts[digits % len(self.hosts)]
        return b"%b%d.bsky.social" % (name, digits % 9973)

    def _slug(self) -> bytes:
        known = self._languages[0].vocabulary.words
        return known[100 + int(self._draw.random() * (len(known) - 100))]

    def _ranks(self, words: Words, count: int) -> list[int]:
        at = words.at
        if at + count > len(words.ranks):
            size = len(words.vocabulary.words)
            # Zipf-Mandelbrot with exponent 1: the cumulative share of a rank is a logarithm, inverted here.
            drawn = 2.7 * ((size + 2.7) / 2.7) ** self._bulk.random(max(_DRAWS, count)) - 2.7
            words.ranks = np.minimum(drawn.astype(np.int64), size - 1).tolist()
            at = 0
        words.at = at + count
        return words.ranks[at : at + count]

    def _make_hosts(self, seed: int) -> list[bytes]:
        draw = random.Random(seed ^ 0x6057)
        known = [word for word in self._languages[0].vocabulary.words[100:] if word.isalpha()]
        endings = (
            b".com",
            b".com",
            b".com",
            b".org",
            b".net",
            b".news",
            b".io",
            b".co.uk",
            b".de",
            b".jp",
            b".example",
        )
        return [draw.choice(known) + draw.choice(known) + draw.choice(endings) for _ in range(3000)]

    def _make_tags(self, seed: int) -> list[bytes]:
        draw = random.Random(seed ^ 0x7A65)
        tags = []
        for _ in range(6000):
            words = draw.choice(self._languages).vocabulary.words
            picked = [draw.choice(words) for _ in range(draw.randint(1, 2))]
            tags.append(b"".join(word.replace(b"'", b"") for word in picked))
        return tags

"""Records that break parsers, schemas and databases: a collection and the record's JSON text, by scenario.

Each function gets the turn (to walk through variants), the scenario's amount and a valid time text.
"""

from __future__ import annotations

from collections.abc import Callable

Poison = Callable[[int, int, bytes], tuple[str, bytes]]
_POST, _LIKE, _FOLLOW, _PROFILE = (
    "app.bsky.feed.post",
    "app.bsky.feed.like",
    "app.bsky.graph.follow",
    "app.bsky.actor.profile",
)
_OTHER = "org.simulated.poison.record"
_POST_HEAD = b'{"$type":"app.bsky.feed.post","createdAt":"%b",'


def _text(body: bytes) -> Poison:
    """A post whose text is the given JSON string body."""
    return lambda _turn, _amount, created: (_POST, _POST_HEAD % created + b'"langs":["en"],"text":"' + body + b'"}')


def _fixed(collection: str, *records: bytes) -> Poison:
    """The given records in turn; `@` stands for the time."""
    return lambda turn, _amount, created: (collection, records[turn % len(records)].replace(b"@", created))


def _in_turn(*pairs: tuple[str, bytes]) -> Poison:
    """The given collections and records in turn; `@` stands for the time."""
    return lambda turn, _amount, created: (
        pairs[turn % len(pairs)][0],
        pairs[turn % len(pairs)][1].replace(b"@", created),
    )


def _nested(_turn: int, amount: int, created: bytes) -> tuple[str, bytes]:
    return _POST, _POST_HEAD % created + b'"text":"nested","tree":' + b'{"a":[' * (amount // 2) + b"]}" * (
        amount // 2
    ) + b"}"


def _huge(turn: int, amount: int, created: bytes) -> tuple[str, bytes]:
    if turn % 2:
        return _OTHER, b'{"$type":"org.simulated.poison.record","items":[' + b",".join(
            [b'{"n":1}'] * (amount // 8)
        ) + b"]}"
    return _POST, _POST_HEAD % created + b'"text":"' + b"lorem ipsum " * (amount // 12) + b'"}'


def _over_long(_turn: int, _amount: int, created: bytes) -> tuple[str, bytes]:
    langs = b",".join([b'"en"'] * 60)
    facet = (
        b'{"features":[{"$type":"app.bsky.richtext.facet#tag","tag":"%b"}],"index":{"byteEnd":9999999,"byteStart":-5}}'
        % (b"t" * 900)
    )
    facets = b",".join([facet] * 40)
    return _POST, _POST_HEAD % created + b'"facets":[%b],"langs":[%b],"text":"%b"}' % (
        facets,
        langs,
        "長い".encode() * 9000,
    )


def _odd_time(turn: int, _amount: int, _created: bytes) -> tuple[str, bytes]:
    return _POST, _POST_HEAD % _TIMES[turn % len(_TIMES)] + b'"text":"when?"}'


def _long_names(turn: int, _amount: int, created: bytes) -> tuple[str, bytes]:
    name = ".".join(["org", *["a" * 60] * 4, "record"])
    return (name if turn % 2 else _OTHER), b'{"$type":"%b","createdAt":"%b"}' % (name.encode(), created)


_TIMES = (
    b"0001-01-01T00:00:00.000Z",
    b"9999-12-31T23:59:59.999Z",
    b"-0001-01-01T00:00:00Z",
    b"2026-02-30T00:00:00.000Z",
    b"2026-07-04T14:38:08",
    b"2026-07-04T14:38:08.123456789+05:30",
    b"2026-07-04 14:38:08Z",
    b"2026-06-30T23:59:60.000Z",
    b"2026-07-04T14:38:08.5-00:00",
    b"2026-07-04T14:38Z",
    b"1783175888085",
    b"yesterday",
    b"",
)

RECORDS: dict[str, Poison] = {
    "unknown-collection": _fixed(_OTHER, b'{"$type":"org.simulated.poison.record","createdAt":"@","n":1}'),
    "empty-record": _in_turn((_POST, b"{}"), (_LIKE, b"{}"), (_PROFILE, b"{}"), (_OTHER, b"{}")),
    "untyped-record": _in_turn(
        (_POST, b'{"createdAt":"@","text":"no type"}'),
        (_LIKE, b'{"createdAt":"@","subject":{"cid":"x","uri":"at://y"}}'),
        (_OTHER, b'{"n":1}'),
    ),
    "mistyped-record": _fixed(
        _POST,
        b'{"$type":"app.bsky.feed.like","createdAt":"@","text":"mistyped"}',
        b'{"$type":7,"createdAt":"@","text":""}',
    ),
    "not-an-object": _in_turn(
        (_POST, b'["a","b"]'),
        (_LIKE, b'"text"'),
        (_OTHER, b"42"),
        (_FOLLOW, b"true"),
        (_POST, b"null"),
        (_OTHER, b"[]"),
    ),
    "wrong-types": _in_turn(
        (
            _POST,
            b'{"$type":"app.bsky.feed.post","createdAt":5,"embed":"x","facets":{},"labels":[],"langs":"en","reply":[],"tags":7,"text":["t"]}',
        ),
        (
            _POST,
            b'{"$type":"app.bsky.feed.post","createdAt":"@","embed":[],"facets":[1],"langs":["en",5,null],"reply":{"parent":5,"root":{"cid":1}},"text":{}}',
        ),
        (_LIKE, b'{"$type":"app.bsky.feed.like","createdAt":{},"subject":"did:plc:notaref","via":[]}'),
        (
            _LIKE,
            b'{"$type":"app.bsky.feed.like","createdAt":"@","subject":{"cid":5,"uri":{"a":1}},"via":{"uri":"only"}}',
        ),
        (_FOLLOW, b'{"$type":"app.bsky.graph.follow","createdAt":true,"subject":{"uri":"at://x","cid":"y"}}'),
        (
            _PROFILE,
            b'{"$type":"app.bsky.actor.profile","avatar":"me.png","createdAt":1.5,"displayName":{},"labels":"x","pinnedPost":"p","website":[]}',
        ),
    ),
    "missing-members": _in_turn(
        (_POST, b'{"$type":"app.bsky.feed.post","text":"only text"}'),
        (_POST, b'{"$type":"app.bsky.feed.post","createdAt":"@"}'),
        (_LIKE, b'{"$type":"app.bsky.feed.like","createdAt":"@"}'),
        (_FOLLOW, b'{"$type":"app.bsky.graph.follow","createdAt":"@"}'),
    ),
    "null-and-empty": _fixed(
        _POST,
        b'{"$type":"app.bsky.feed.post","createdAt":"@","embed":null,"facets":null,"labels":{},"langs":null,"reply":null,"tags":null,"text":null}',
        b'{"$type":"app.bsky.feed.post","createdAt":"@","embed":{},"facets":[],"langs":[],"tags":[],"text":""}',
        b'{"$type":"app.bsky.feed.post","createdAt":"@","langs":[""],"reply":{},"tags":[null],"text":"x"}',
    ),
    "bytes-and-links": _fixed(
        _OTHER,
        b'{"$type":"org.simulated.poison.record","key":{"$bytes":"AAECAwQ"},"none":{"$bytes":""},"link":'
        b'{"$link":"bafyreigryxpompmprnnil2domkkn5yjqipf73fj4k4dyb5jo373kfdfe54"},"more":[{"$bytes":"/+8"},{"$link":"not a cid"}]}',
    ),
    "legacy-blob": _fixed(
        _POST,
        b'{"$type":"app.bsky.feed.post","createdAt":"@","embed":{"$type":"app.bsky.embed.images","images":[{"alt":"old","image":'
        b'{"cid":"bafkreigryxpompmprnnil2domkkn5yjqipf73fj4k4dyb5jo373kfdfe54","mimeType":"image/png"}}]},"text":""}',
    ),
    "nul": _text(b"before\\u0000after\\u0000"),
    "lone-surrogate": _text(b"half a pair \\ud83d and \\ude00 the other \\ud83d\\ude00"),
    "strange-unicode": _text(
        "\u2028\u2029\ufeff\ufffe\uffff\U0010ffff\u202egnirts\u202c e\u0301\u200d\u200b \U0001d4d7\U000e0041 ｱ".encode()
    ),
    "escapes": _text(
        b'\\u003cscript\\u003e\\u0026amp;\\u003c/script\\u003e \\\\n \\"quoted\\" \\/ \\b\\f\\n\\r\\t \\u00e9 \\ud83e\\udd8b'
    ),
    "nested": _nested,
    "deep": _nested,
    "huge": _huge,
    "over-long": _over_long,
    "odd-times": _odd_time,
    "big-numbers": _fixed(
        _OTHER,
        b'{"$type":"org.simulated.poison.record","a":9007199254740993,"b":9223372036854775807,"c":-9223372036854775808,"d":0.1,"e":-0.0,"f":1e-7,"g":1.0}',
        b'{"$type":"org.simulated.poison.record","a":9007199254740993,"b":-9007199254740993,"c":0,"d":-1}',
    ),
    "infinite-number": _fixed(
        _OTHER,
        b'{"$type":"org.simulated.poison.record","a":1e400}',
        b'{"$type":"org.simulated.poison.record","a":18446744073709551616}',
        b'{"$type":"org.simulated.poison.record","a":%b}' % (b"9" * 400),
    ),
    "duplicate-keys": _fixed(
        _POST,
        b'{"$type":"app.bsky.feed.post","createdAt":"@","text":"first","text":"second"}',
        b'{"$type":"app.bsky.feed.post","createdAt":"@","langs":["en"],"text":"x","extra":{"a":1,"a":2}}',
    ),
    "long-names": _long_names,
}

"""The fast and the tolerant path of a record agree, however its JSON is spelled."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.bodies import decode_body
from schemas.codec import EventEncoder
from schemas.errors import BadRecord
from schemas.json_text import dumps, loads
from schemas.lexicons import LEXICONS, Kind, Member
from schemas.record_codec import RecordCodec

CODECS = {nsid: RecordCodec(lexicon) for nsid, lexicon in LEXICONS.items()}
NSIDS = sorted(LEXICONS)

texts = st.text(max_size=8) | st.sampled_from(
    ["", "x" * 63, "x" * 64, "é" * 40, "\x00", "\ud800", "😀", "#Tag", "2026-11-23T19:03:21.502Z"]
)
refs = st.fixed_dictionaries({"uri": texts, "cid": texts})
features = st.fixed_dictionaries(
    {"$type": st.sampled_from([f"app.bsky.richtext.facet#{name}" for name in ("link", "tag", "mention", "new")])},
    optional={
        "uri": texts | st.sampled_from(["https://U@WWW.a.example:8/x", "https://a.example"]),
        "tag": texts,
        "did": texts,
    },
)
media = st.fixed_dictionaries(
    {
        "$type": st.sampled_from(
            [f"app.bsky.embed.{name}" for name in ("images", "gallery", "video", "external", "new")]
        )
    },
    optional={
        "images": st.lists(st.fixed_dictionaries({"alt": texts}) | texts, max_size=3),
        "items": st.lists(st.fixed_dictionaries({"alt": texts}), max_size=2) | texts,
        "alt": texts,
        "external": st.fixed_dictionaries({"uri": texts | st.just("https://b.example/?q")}),
    },
)
embeds = (
    media
    | st.fixed_dictionaries({"$type": st.just("app.bsky.embed.record"), "record": refs})
    | st.fixed_dictionaries(
        {
            "$type": st.just("app.bsky.embed.recordWithMedia"),
            "record": st.fixed_dictionaries({"record": refs}),
            "media": media,
        }
    )
)
json_bodies = (
    embeds
    | st.lists(st.fixed_dictionaries({"features": st.lists(features | texts, max_size=3)}) | texts, max_size=3)
    | st.fixed_dictionaries({"values": st.lists(st.fixed_dictionaries({"val": texts}), max_size=2)})
)
strays = (
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.just(1.5) | texts | st.lists(texts, max_size=2) | refs
)
OF_KIND: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.INTEGER: st.sampled_from([0, -1, 63, 64, 2**13, 2**27 - 1, 2**27, 2**63 - 1, -(2**63), 2**63]),
    Kind.BOOLEAN: st.booleans(),
    Kind.STRINGS: st.lists(texts, max_size=3),
    Kind.JSON: json_bodies,
    Kind.REF: refs,
    Kind.REPLY: st.fixed_dictionaries({"root": refs, "parent": refs}),
}


@st.composite
def records(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Mostly what the lexicon says; sometimes a member of another kind, an unknown member, another type."""
    nsid = draw(st.sampled_from([*NSIDS, *["app.bsky.feed.post"] * 10]))
    members: tuple[Member, ...] = LEXICONS[nsid].members
    record = {
        member.name: draw(OF_KIND.get(member.kind, texts) if draw(st.integers(0, 15)) else strays)
        for member in members
        if draw(st.integers(0, 3))
    }
    if draw(st.integers(0, 4)):
        record["$type"] = draw(st.just(nsid) if draw(st.integers(0, 7)) else strays)
    if not draw(st.integers(0, 7)):
        record |= draw(st.dictionaries(texts, strays, max_size=2))
    names = draw(st.permutations(sorted(record)))
    return nsid, {name: record[name] for name in names}


def spell(value: Any, chance: random.Random) -> str:
    """One of the many JSON texts of `value`: white space, escapes, repeated members, other digits."""
    space = chance.choice(["", "", "", " ", "\n\t "])
    if isinstance(value, dict):
        members = list(value.items())
        if members and not chance.randrange(8):
            # Of two equal names the last one counts.
            members.insert(0, (members[-1][0], chance.choice([None, 7, "earlier", {"uri": "a"}])))
        inner = ",".join(f"{spell(name, chance)}:{space}{spell(item, chance)}" for name, item in members)
        return f"{space}{{{inner}{space}}}"
    if isinstance(value, list):
        return f"[{','.join(spell(item, chance) for item in value)}{space}]"
    if isinstance(value, str) and not chance.randrange(4):
        return '"' + "".join(f"\\u{unit:04x}" for unit in _utf16(value)) + '"'
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1000 and not chance.randrange(4):
        return f"{value}.0" if chance.randrange(2) else f"{value}e0"
    return json.dumps(value, ensure_ascii=bool(chance.randrange(2)) or not _encodable(value))


def _utf16(text: str) -> list[int]:
    raw = text.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(raw[at : at + 2], "big") for at in range(0, len(raw), 2)]


def _encodable(value: Any) -> bool:
    return not isinstance(value, str) or value.encode("utf-8", "replace").decode() == value


def fast(nsid: str, raw: bytes) -> bytes | str:
    try:
        return CODECS[nsid].encode(raw)
    except BadRecord as bad:
        return str(bad.reason)


def tolerant(nsid: str, raw: bytes) -> bytes | str:
    try:
        return CODECS[nsid]._encode_loose(loads(raw))
    except BadRecord as bad:
        return str(bad.reason)


def columns(nsid: str, part: bytes) -> dict[str, Any]:
    """The record part read by another implementation, JSON columns as values."""
    encoder = EventEncoder("h", "v2")
    _, body = encoder.commit(0, "d", "delete", nsid, "k", "v", None, None, 0, False, False, None, None)
    row = decode_body(nsid, body[: -len(CODECS[nsid].absent)] + part)
    return {
        name: json.loads(value) if name.endswith("_json") and value is not None else value
        for name, value in row.items()
    }


@settings(max_examples=300)
@given(records())
def test_both_paths_give_the_same_bytes_for_compact_json(case: tuple[str, dict[str, Any]]) -> None:
    nsid, record = case
    raw = dumps(record).encode()
    assert fast(nsid, raw) == tolerant(nsid, raw)


@settings(max_examples=300)
@given(records(), st.randoms(use_true_random=False))
def test_both_paths_give_the_same_columns_for_any_spelling(
    case: tuple[str, dict[str, Any]], chance: random.Random
) -> None:
    nsid, record = case
    raw = spell(record, chance).encode()
    one, other = fast(nsid, raw), tolerant(nsid, raw)
    if isinstance(one, str) or isinstance(other, str):
        assert one == other
    else:
        assert columns(nsid, one) == columns(nsid, other)


@pytest.mark.parametrize("nsid", NSIDS)
def test_the_fast_path_takes_records_that_fit(nsid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = RecordCodec(LEXICONS[nsid])
    monkeypatch.setattr(codec, "_encode_loose", lambda record: pytest.fail("took the tolerant path"))
    fitting: dict[Kind, Any] = {
        Kind.INTEGER: 5,
        Kind.BOOLEAN: True,
        Kind.STRINGS: ["en"],
        Kind.JSON: {"$type": "app.bsky.embed.images", "images": [{"alt": "é"}]},
        Kind.REF: {"cid": "c", "uri": "u"},
        Kind.REPLY: {"parent": {"cid": "c", "uri": "u"}, "root": {"cid": "c", "uri": "u"}},
    }
    record = {member.name: fitting.get(member.kind, "text") for member in LEXICONS[nsid].members}
    assert codec.encode(json.dumps({"$type": nsid, **record}).encode())
    assert codec.encode(b"{}") == codec.absent

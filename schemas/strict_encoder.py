"""The fast path of `schemas.record_codec`: one generated function per lexicon for records that fit their typed fields exactly.

A strict msgspec type refuses whatever the typed fields cannot hold exactly; what it accepts is encoded by straight-line code,
written here member by member as a dataclass writes its `__init__`. A loop over encoders takes twice the time, and this runs
for every event. `source` shows the code of a lexicon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw

from schemas import binary
from schemas.binary import NULL, SOME_LENGTH, some_text
from schemas.lexicons import Kind, Lexicon, Member

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1

Derive = Callable[[Raw | None, Raw | None, Raw | None, list[str] | None], bytes]
"""Encodes the derived fields of a post from its embed, facets, labels (JSON text) and tags."""


class _Ref(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    cid: str
    uri: str


class _Reply(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    parent: _Ref
    root: _Ref


_TYPES: dict[Kind, Any] = {
    Kind.TEXT: str,
    Kind.DATETIME: str,
    Kind.DID: str,
    Kind.URI: str,
    Kind.INTEGER: Annotated[int, Meta(ge=INT64_MIN, le=INT64_MAX)],
    Kind.BOOLEAN: bool,
    Kind.STRINGS: list[str],
    Kind.JSON: Raw,
    Kind.REF: _Ref,
    Kind.REPLY: _Reply,
}
_WHOLE: dict[Kind, str] = {
    Kind.INTEGER: "some_long({value})",
    Kind.BOOLEAN: "some_boolean({value})",
    Kind.STRINGS: "some_strings({value})",
}
"""Kinds whose encoder takes None for an absent member."""
_TEXTS: dict[Kind, tuple[str, ...]] = {
    Kind.REF: ("uri.encode()", "cid.encode()"),
    Kind.REPLY: tuple(f"{place}.encode()" for place in ("root.uri", "root.cid", "parent.uri", "parent.cid")),
}
"""Kinds of several texts: the attributes that hold them, in the order of the Avro fields."""


def raw_json(raw: Raw) -> bytes:
    """The JSON text of a member; UnicodeDecodeError when it is no UTF-8, which a decoder that skips it does not see."""
    body = bytes(raw)
    if not body.isascii():
        body.decode()
    return body


def make(lexicon: Lexicon, derive: Derive | None) -> Callable[[bytes], bytes]:
    """The encoder of records of `lexicon`; `derive` encodes its derived fields, None when it has none.

    It raises msgspec.DecodeError, UnicodeError or RecursionError for a record that needs the tolerant path.
    """
    names: dict[str, Any] = {
        "decode": msgspec.json.Decoder(_strict_type(lexicon)).decode,
        "derive": derive,
        "raw_json": raw_json,
        "some_text": some_text,
        "some_long": binary.some_long,
        "some_boolean": binary.some_boolean,
        "some_strings": binary.some_strings,
        "SOME_LENGTH": SOME_LENGTH,
        "NULL": NULL,
        "EMPTY": b"",
        "NSID": lexicon.nsid,
        "NSID_TEXT": some_text(lexicon.nsid),
    }
    exec(source(lexicon, derived=derive is not None), names)  # noqa: S102  # our own text, made of the names in schemas.lexicons
    encode: Callable[[bytes], bytes] = names["encode"]
    return encode


def _strict_type(lexicon: Lexicon) -> type[msgspec.Struct]:
    """Absent members are None; null is refused, so that the two stay different."""
    fields: list[tuple[str, Any, Any]] = [("record_type", str, msgspec.field(name="$type", default=None))]
    # Sorted, as servers write them: the decoder looks for the next member first.
    fields += [
        (_attribute(member), _TYPES[member.kind], msgspec.field(name=member.name, default=None))
        for member in sorted(lexicon.members, key=lambda member: member.name)
    ]
    return msgspec.defstruct("Strict", fields, forbid_unknown_fields=True, gc=False)


def _attribute(member: Member) -> str:
    return f"m_{member.name}"


def source(lexicon: Lexicon, *, derived: bool) -> str:
    """Python text of `encode(record: bytes) -> bytes` for `lexicon`."""
    lines = ["def encode(record):", "    strict = decode(record)", "    kind = strict.record_type"]
    pieces = ["NSID_TEXT if kind == NSID else some_text(kind)"]
    for member in lexicon.members:
        name = _attribute(member)
        value = f"strict.{name}"
        if member.kind in _WHOLE:
            pieces.append(_WHOLE[member.kind].format(value=value))
            continue
        if member.kind is Kind.JSON:
            texts = [f"raw_json({value})"]
        else:
            texts = [f"{value}.{text}" for text in _TEXTS.get(member.kind, ("encode()",))]
        slots = [(f"{name}_length{i}", f"{name}_text{i}") for i in range(len(texts))]
        lines.append(f"    if {value} is None:")
        lines += [f"        {length} = NULL; {text} = EMPTY" for length, text in slots]
        lines.append("    else:")
        lines += [
            f"        {text} = {expression}; {length} = SOME_LENGTH[len({text})]"
            for (length, text), expression in zip(slots, texts, strict=True)
        ]
        pieces += [slot for pair in slots for slot in pair]
    if derived:
        pieces.append("derive(strict.m_embed, strict.m_facets, strict.m_labels, strict.m_tags)")
    pieces.append("NULL")
    return "\n".join([*lines, f"    return b''.join(({', '.join(pieces)}))"])

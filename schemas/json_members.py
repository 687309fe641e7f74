"""Split a JSON object into its members' exact source text without recursion.

For frames and stored texts: it reaches the members of a frame that a strict decoder refuses (nesting thousands deep,
lone surrogates, unknown members) and keeps the text of each value as it was sent. Pure; never raises anything but
`Malformed`.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

_SPACE: Final = re.compile(rb"[ \t\n\r]*")
_STRING: Final = re.compile(rb'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"')
_SCALAR: Final = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_CLOSING: Final = {b"{": b"}", b"[": b"]"}
_MAX_INTEGER_DIGITS: Final = 400
_split_natively: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Malformed(ValueError):  # noqa: N818 - an outcome that callers classify
    """The text is not one JSON value of the expected shape; the message says where it stops being one."""


def split_object(text: bytes) -> dict[str, bytes]:
    """Return member name → exact text of its value, for text that is one JSON object.

    The last of several equal names wins, as in every JSON parser in use. Nested values are checked however deep they nest;
    text inside strings may still not be UTF-8. Raises Malformed.
    """
    try:
        return {name: bytes(value) for name, value in _split_natively(text).items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _split_iteratively(text)


def _split_iteratively(text: bytes) -> dict[str, bytes]:
    pos = _skip_space(text, 0)
    if text[pos : pos + 1] != b"{":
        raise Malformed(f"expected an object at byte {pos}")
    members: dict[str, bytes] = {}
    pos = _skip_space(text, pos + 1)
    if text[pos : pos + 1] == b"}":
        pos += 1
    else:
        while True:
            name, start = _name(text, pos)
            end = _value_end(text, start)
            members[_text_of(name)] = text[start:end]
            pos = _skip_space(text, end)
            separator = text[pos : pos + 1]
            if separator == b"}":
                pos += 1
                break
            if separator != b",":
                raise Malformed(f"expected ',' or '}}' at byte {pos}")
            pos = _skip_space(text, pos + 1)
    pos = _skip_space(text, pos)
    if pos != len(text):
        raise Malformed(f"trailing characters at byte {pos}")
    return members


def scalar(text: bytes) -> Any:
    """The Python value of a member that is a string, number, boolean or null.

    Raises Malformed for anything else, and for a number longer than any in use.
    """
    if text[:1] in (b"{", b"["):
        raise Malformed("expected a scalar")
    if text[:1] != b'"' and len(text) > _MAX_INTEGER_DIGITS:
        raise Malformed("number too long")
    try:
        return json.loads(text)
    except (ValueError, UnicodeDecodeError) as error:
        raise Malformed(str(error)) from None


def join_object(members: dict[str, bytes]) -> bytes:
    """The inverse of `split_object`: one JSON object from names and raw value texts."""
    return b"{" + b",".join(json.dumps(name).encode("ascii") + b":" + value for name, value in members.items()) + b"}"


def is_valid(text: bytes) -> bool:
    """Whether `text` is one well-formed JSON value in UTF-8 that ordinary parsers can read back."""
    try:
        json.loads(text.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> Any:
    raise ValueError(name)


def _skip_space(text: bytes, pos: int) -> int:
    match = _SPACE.match(text, pos)
    return match.end() if match else pos


def _text_of(quoted: bytes) -> str:
    try:
        return str(json.loads(quoted))
    except (ValueError, UnicodeDecodeError) as error:
        raise Malformed(str(error)) from None


def _value_end(text: bytes, pos: int) -> int:
    first = text[pos : pos + 1]
    if first == b'"':
        match = _STRING.match(text, pos)
    elif first in (b"{", b"["):
        return _nested_end(text, pos)
    else:
        match = _SCALAR.match(text, pos)
    if match is None:
        raise Malformed(f"expected a value at byte {pos}")
    return match.end()


def _nested_end(text: bytes, pos: int) -> int:
    """The end of the object or array that begins at `pos`, whose grammar is checked on the way. Raises Malformed."""
    closing = bytearray()  # the brackets that are still to come, innermost last
    while True:
        bracket = text[pos : pos + 1]
        if bracket in _CLOSING:
            closing += _CLOSING[bracket]
            pos = _skip_space(text, pos + 1)
            if text[pos : pos + 1] != closing[-1:]:
                pos = _name(text, pos)[1] if bracket == b"{" else pos
                continue
        else:
            pos = _skip_space(text, _value_end(text, pos))
        while text[pos : pos + 1] == closing[-1:]:
            closing.pop()
            if not closing:
                return pos + 1
            pos = _skip_space(text, pos + 1)
        if text[pos : pos + 1] != b",":
            raise Malformed(f"expected ',' or {closing[-1:].decode()!r} at byte {pos}")
        pos = _skip_space(text, pos + 1)
        if closing[-1:] == b"}":
            _, pos = _name(text, pos)


def _name(text: bytes, pos: int) -> tuple[bytes, int]:
    """The quoted name of the member that begins at `pos`, and where its value begins. Raises Malformed."""
    name = _STRING.match(text, pos)
    if name is None:
        raise Malformed(f"expected a member name at byte {pos}")
    pos = _skip_space(text, name.end())
    if text[pos : pos + 1] != b":":
        raise Malformed(f"expected ':' at byte {pos}")
    return name.group(), _skip_space(text, pos + 1)

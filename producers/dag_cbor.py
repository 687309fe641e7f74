"""DAG-CBOR to JSON values, as archive segments hold records. Pure.

Format: the DAG-CBOR codec of IPLD (definite lengths only, map keys are text, tag 42 is a CID, floats of 64 bits) and atproto's
JSON mapping (`$link`, `$bytes` in base64 without padding). Written out because the decoders on PyPI return a CID and a byte string,
or a CID and a text, as the same Python type.
"""

from __future__ import annotations

import math
import struct
from base64 import b32encode, b64encode
from typing import Any, Final

MAX_DEPTH: Final = 400
_CID_TAG: Final = 42
_CIDV1_DAG_CBOR_SHA256: Final = bytes((0x01, 0x71, 0x12, 0x20))


def decode(data: bytes) -> Any:
    """The JSON value of one DAG-CBOR item. ValueError when the bytes are not exactly one, or nest too deep for JSON parsers."""
    value, position = _item(data, 0, 0)
    if position != len(data):
        raise ValueError(f"{len(data) - position} bytes after the value")
    return value


def cid_of(digest: bytes) -> str:
    """The text of the CID of a DAG-CBOR block with this sha-256 digest."""
    return cid_text(_CIDV1_DAG_CBOR_SHA256 + digest)


def cid_text(binary: bytes) -> str:
    """A binary CIDv1 in lower-case base32; a CIDv0 becomes the same, which names the same block."""
    if binary[:2] == b"\x12\x20":
        binary = b"\x01\x70" + binary
    return "b" + b32encode(binary).decode("ascii").rstrip("=").lower()


def _item(data: bytes, position: int, depth: int) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    try:
        first = data[position]
    except IndexError:
        raise ValueError("the value is cut off") from None
    major, info = first >> 5, first & 0x1F
    if major == 7:
        return _simple(data, position, info)
    argument, position = _argument(data, position + 1, info)
    match major:
        case 0:
            return argument, position
        case 1:
            return -1 - argument, position
        case 2:
            return {
                "$bytes": b64encode(_slice(data, position, argument)).decode("ascii").rstrip("=")
            }, position + argument
        case 3:
            return _slice(data, position, argument).decode("utf-8"), position + argument
        case 4:
            items = []
            for _ in range(argument):
                value, position = _item(data, position, depth + 1)
                items.append(value)
            return items, position
        case 5:
            members: dict[str, Any] = {}
            for _ in range(argument):
                name, position = _item(data, position, depth + 1)
                if not isinstance(name, str):
                    raise ValueError("a map key is not text")
                members[name], position = _item(data, position, depth + 1)
            return members, position
        case _:
            return _link(data, position, argument)


def _argument(data: bytes, position: int, info: int) -> tuple[int, int]:
    if info < 24:
        return info, position
    if info > 27:
        raise ValueError("an indefinite or reserved length")
    size = 1 << (info - 24)
    return int.from_bytes(_slice(data, position, size), "big"), position + size


def _simple(data: bytes, position: int, info: int) -> tuple[Any, int]:
    match info:
        case 20 | 21:
            return info == 21, position + 1
        case 22:
            return None, position + 1
        case 27:
            (value,) = struct.unpack(">d", _slice(data, position + 1, 8))
            if not math.isfinite(value):
                raise ValueError("a float that JSON cannot hold")
            return value, position + 9
        case _:
            raise ValueError(f"simple value {info}")


def _link(data: bytes, position: int, tag: int) -> tuple[Any, int]:
    if tag != _CID_TAG or position >= len(data) or data[position] >> 5 != 2:
        raise ValueError(f"tag {tag}")
    length, position = _argument(data, position + 1, data[position] & 0x1F)
    binary = _slice(data, position, length)
    if binary[:1] != b"\x00":
        raise ValueError("a CID without the multibase prefix of binary")
    return {"$link": cid_text(binary[1:])}, position + length


def _slice(data: bytes, position: int, length: int) -> bytes:
    part = data[position : position + length]
    if len(part) != length:
        raise ValueError("the value is cut off")
    return part

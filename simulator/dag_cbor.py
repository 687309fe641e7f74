"""DAG-CBOR of JSON records, for real CIDs and for the archive's segment files.

Format: the DAG-CBOR codec of IPLD (deterministic CBOR, map keys sorted by length then bytes, CIDs as tag 42) and atproto's JSON
mapping (`$link`, `$bytes`). A few dozen lines of our own, because an encoder is needed at run time without another dependency.
"""

from __future__ import annotations

import struct
from base64 import b32decode, b64decode
from hashlib import sha256
from typing import Any

import msgspec

from simulator.ids import cid_of_digest


def encode(value: Any) -> bytes:
    """DAG-CBOR of a JSON value; ValueError for what atproto's data model lacks (integers over 64 bits, bad links)."""
    out: list[bytes] = []
    _write(value, out)
    return b"".join(out)


def record_cid(record: bytes) -> bytes:
    """The CID text of a record given as JSON bytes."""
    return cid_of_digest(sha256(encode(msgspec.json.decode(record))).digest())


def _write(value: Any, out: list[bytes]) -> None:
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        out += (_head(3, len(data)), data)
    elif value is None or isinstance(value, bool):
        out.append(b"\xf6" if value is None else b"\xf5" if value else b"\xf4")
    elif isinstance(value, int):
        out.append(_head(0, value) if value >= 0 else _head(1, -1 - value))
    elif isinstance(value, float):
        out.append(b"\xfb" + struct.pack(">d", value))
    elif isinstance(value, list):
        out.append(_head(4, len(value)))
        for item in value:
            _write(item, out)
    else:
        _write_object(value, out)


def _write_object(value: dict[str, Any], out: list[bytes]) -> None:
    if len(value) == 1:
        link, data = value.get("$link"), value.get("$bytes")
        if isinstance(link, str):
            cid = link_bytes(link)
            out += (b"\xd8\x2a", _head(2, len(cid) + 1), b"\x00", cid)
            return
        if isinstance(data, str):
            raw = b64decode(data + "=" * (-len(data) % 4))
            out += (_head(2, len(raw)), raw)
            return
    out.append(_head(5, len(value)))
    keyed = sorted((len(key := name.encode()), key, name) for name in value)
    for size, key, name in keyed:
        out += (_head(3, size), key)
        _write(value[name], out)


def link_bytes(text: str) -> bytes:
    """The binary form of a base32 CID text."""
    if not text.startswith("b"):
        raise ValueError(f"not a base32 CID: {text[:80]!r}")
    body = text[1:].upper()
    return b32decode(body + "=" * (-len(body) % 8))


def _head(major: int, value: int) -> bytes:
    first = major << 5
    if value < 24:
        return bytes((first | value,))
    if value < 0x100:
        return bytes((first | 24, value))
    if value < 0x1_0000:
        return struct.pack(">BH", first | 25, value)
    if value < 0x1_0000_0000:
        return struct.pack(">BI", first | 26, value)
    if value < 0x1_0000_0000_0000_0000:
        return struct.pack(">BQ", first | 27, value)
    raise ValueError(f"integer outside 64 bits: {value}")

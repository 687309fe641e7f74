"""DAG-CBOR of JSON records, for real CIDs and for the archive's segment files.

Format: the DAG-CBOR codec of IPLD (deterministic CBOR, map keys sorted by length then bytes, CIDs as tag 42) and atproto's JSON
mapping (`$link`, `$bytes`). A few dozen lines of our own, because an encoder is needed at run time without another dependency.
"""

from __future__ import annotations

import re
import struct
from base64 import b64decode
from hashlib import sha256
from typing import Any

import msgspec

from simulator.ids import BASE32_ALPHABET, cid_of_digest

_BASE32_CID = re.compile(r"b[a-z2-7]{2,200}")
_BASE32_DIGITS = str.maketrans(BASE32_ALPHABET.decode(), "0123456789abcdefghijklmnopqrstuv")  # as int() reads base 32


def encode(value: Any) -> bytes:
    """DAG-CBOR of a JSON value; ValueError for what atproto's data model lacks (integers over 64 bits, bad links)."""
    out: list[bytes] = []
    _write(value, out)
    return b"".join(out)


def record_cid(record: bytes) -> bytes:
    """The CID text of a record given as JSON bytes."""
    return cid_of_digest(sha256(encode(msgspec.json.decode(record))).digest())


def subject_cid(collection: bytes, created: bytes, subject: bytes, via: bytes | None = None) -> bytes:
    """`record_cid` of a like or repost, an order of magnitude faster; `subject` and `via` are strongRefs as JSON.

    Rests on the fixed shape of what the generator writes: 24 characters of time, CIDs of 59, all texts over 23 bytes.
    """
    parts = [b"\xa4cvia" + _strong(via) if via else b"\xa3", b"e$type", bytes((0x60 + len(collection),)), collection]
    parts += (b"gsubject", _strong(subject), b"icreatedAtx\x18", created)
    return cid_of_digest(sha256(b"".join(parts)).digest())


def follow_cid(created: bytes, did: bytes) -> bytes:
    """`record_cid` of a follow whose DID has 32 characters."""
    return cid_of_digest(
        sha256(b"\xa3e$typeuapp.bsky.graph.followgsubjectx\x20%bicreatedAtx\x18%b" % (did, created)).digest()
    )


def _strong(reference: bytes) -> bytes:
    uri = reference[76:-2]
    return b"\xa2ccidx;%bcurix%c%b" % (reference[8:67], len(uri), uri)


def _write(value: Any, out: list[bytes]) -> None:
    kind = type(value)
    if kind is str:
        data = value.encode()
        size = len(data)
        out.append(_TEXT_HEADS[size] + data if size < 256 else _head(3, size) + data)
    elif kind is dict:
        _write_object(value, out)
    elif kind is list:
        out.append(_head(4, len(value)))
        for item in value:
            _write(item, out)
    elif kind is int:
        out.append(_head(0, value) if value >= 0 else _head(1, -1 - value))
    elif kind is float:
        out.append(b"\xfb" + struct.pack(">d", value))
    else:
        out.append(b"\xf6" if value is None else b"\xf5" if value else b"\xf4")


def _write_object(value: dict[str, Any], out: list[bytes]) -> None:
    names = tuple(value)
    if names == ("$link",) and type(value["$link"]) is str:
        cid = link_bytes(value["$link"])
        out.append(b"\xd8\x2a" + _head(2, len(cid) + 1) + b"\x00" + cid)
        return
    if names == ("$bytes",) and type(value["$bytes"]) is str:
        data = value["$bytes"]
        raw = b64decode(data + "=" * (-len(data) % 4))
        out.append(_head(2, len(raw)) + raw)
        return
    known = _shapes.get(names)
    if known is None:
        known = sorted((len(key := name.encode()), key, name) for name in names)
        if len(_shapes) < _MAX_SHAPES:
            _shapes[names] = known
    out.append(_head(5, len(names)))
    for size, key, name in known:
        out.append(_TEXT_HEADS[size] + key if size < 256 else _head(3, size) + key)
        _write(value[name], out)


def link_bytes(text: str) -> bytes:
    """The binary form of a base32 CID text."""
    if not _BASE32_CID.fullmatch(text):
        raise ValueError(f"not a base32 CID: {text[:80]!r}")
    bits = 5 * (len(text) - 1)
    return (int(text[1:].translate(_BASE32_DIGITS), 32) >> bits % 8).to_bytes(bits // 8, "big")


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


_TEXT_HEADS = [_head(3, size) for size in range(256)]
_MAX_SHAPES = 4096
_shapes: dict[tuple[str, ...], list[tuple[int, bytes, str]]] = {}  # member names as they come -> in the codec's order

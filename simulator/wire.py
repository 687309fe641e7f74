"""Frames on the wire: v1 from v2, filters, and RFC 6455 framing in bulk. Pure functions, no I/O."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

TEXT, BINARY = 0x81, 0x82
V2_COMMIT = re.compile(
    rb'\{"\$type":"message","payload":\{"\$type":"network\.bsky\.jetstream\.subscribeEvents#commit",(?:"cid":"([^"]*)",)?'
    rb'"collection":"([^"]*)","did":"([^"]*)","operation":"([^"]*)",(?:"record":(.*),)?"rev":"([^"]*)","rkey":"([^"]*)",'
    rb'"seq":(\d+),"time":"[^"]*"\}\}',
    re.DOTALL,
)
_V2_NESTED = re.compile(
    rb'\{"\$type":"message","payload":\{"\$type":"[^"]*#(?:identity|account)",(?:"did":"[^"]*",)?"(identity|account)":(\{[^{}]*\})'
    rb'(?:,"did":"[^"]*")?,"seq":\d+,"time":"[^"]*"\}\}'
)
_COMMIT_MEMBERS = ("rev", "operation", "collection", "rkey", "record", "cid")
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_HEAD_SIZE = len(b'{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#')
_SHORT_HEADS = {kind: tuple(bytes((kind, size)) for size in range(126)) for kind in (TEXT, BINARY)}
_MEDIUM = struct.Struct(">BBH")
_LONG = struct.Struct(">BBQ")


def v1_frame(frame: bytes, seq: int, time_us: int, *, cursor: bool) -> bytes:
    """The v1 text of a v2 commit, identity or account frame; `cursor` adds the member that only the v2 software sends."""
    number = b'"cursor":%d,' % seq if cursor else b""
    match = V2_COMMIT.fullmatch(frame)
    if match is not None:
        cid, collection, did, operation, record, rev, rkey, _ = match.groups()
        head = b'{"did":"%b","time_us":%d,%b"kind":"commit","commit":{"rev":"%b","operation":"%b","collection":"%b","rkey":"%b"'
        start = head % (did, time_us, number, rev, operation, collection, rkey)
        if record is None:
            return start + b"}}"
        return b'%b,"record":%b,"cid":"%b"}}' % (start, record, cid)
    nested = _V2_NESTED.fullmatch(frame)
    if nested is None:
        return _v1_of_any(frame, time_us, number)
    name, body = nested.groups()
    return b'{"did":"%b","time_us":%d,%b"kind":"%b","%b":%b}' % (frame_did(frame), time_us, number, name, name, body)


def _v1_of_any(frame: bytes, time_us: int, number: bytes) -> bytes:
    """The v1 form of a frame of any shape: unknown members of the payload become unknown members of the v1 envelope."""
    envelope = _members(frame)
    members = _members(envelope["payload"])
    kind = msgspec.json.decode(members.pop("$type"), type=str).rpartition("#")[2].encode()
    del members["seq"], members["time"]
    did = members.pop("did", None)
    start = (
        b'{"did":%b,"time_us":%d,%b"kind":"%b"' % (did, time_us, number, kind)
        if did
        else b'{"time_us":%d,%b"kind":"%b"' % (time_us, number, kind)
    )
    commit = [
        b'"%b":%b' % (name.encode(), members.pop(name))
        for name in _COMMIT_MEMBERS
        if kind == b"commit" and name in members
    ]
    if commit:
        members["commit"] = msgspec.Raw(b"{" + b",".join(commit) + b"}")
    return start + b"".join(b",%b:%b" % (msgspec.json.encode(name), value) for name, value in members.items()) + b"}"


def frame_kind(frame: bytes) -> bytes:
    """commit, identity, account or sync, from the payload's `$type`."""
    return frame[_HEAD_SIZE : frame.index(b'"', _HEAD_SIZE)]


def frame_did(frame: bytes) -> bytes:
    """The envelope's DID: for a commit the first in the text, for the others equal to the nested one; b"" if it has none."""
    start = frame.find(b'"did":"') + 7
    return b"" if start < 7 else frame[start : frame.index(b'"', start)]


def frame_collection(frame: bytes) -> bytes:
    """The collection of a commit frame."""
    start = frame.index(b'"collection":"') + 14
    return frame[start : frame.index(b'"', start)]


def framed(payloads: Iterable[bytes], kind: int) -> list[bytes]:
    """Server-to-client WebSocket frames (never masked), each complete, ready to be joined into one write."""
    short = _SHORT_HEADS.get(kind) or [bytes((kind, size)) for size in range(126)]
    out = []
    for payload in payloads:
        size = len(payload)
        if size < 126:
            out.append(short[size] + payload)
        elif size < 65_536:
            out.append(_MEDIUM.pack(kind, 126, size) + payload)
        else:
            out.append(_LONG.pack(kind, 127, size) + payload)
    return out


def micros_text(time_us: int) -> bytes:
    """v2 form of a time: RFC 3339 UTC with exactly six fractional digits."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode() + b".%06dZ" % (
        time_us % 1_000_000
    )


def info_frame(name: str, message: str) -> bytes:
    """A v2 `#info` frame."""
    return (
        b'{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#info","message":"%b","name":"%b"}}'
        % (
            message.encode(),
            name.encode(),
        )
    )


def error_frame(name: str, message: str) -> bytes:
    """A v2 error frame, after which the server drops the connection."""
    return b'{"$type":"error","error":"%b","message":"%b"}' % (name.encode(), message.encode())

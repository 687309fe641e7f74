"""Wire v2: `network.bsky.jetstream.subscribeEvents`, bytes of one frame in, typed frame out.

Pure. Nearly every frame takes the strict path (one native decode); whatever that refuses is read by the tolerant path,
which keeps unknown members and reports why a frame is no event.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from producers import tolerant
from producers.config import SourceSettings
from producers.tolerant import Members, Refused
from producers.wire import (
    MAX_SEQ,
    Account,
    Commit,
    Frame,
    Identity,
    Info,
    StreamError,
    Sync,
    Unknown,
    format_time,
    parse_canonical_time,
    parse_time,
    rejected,
)
from schemas.errors import DeadLetterReason

PATH: Final = "/xrpc/network.bsky.jetstream.subscribeEvents"
SUBPROTOCOL: Final = "xrpc.v1.json"
_PREFIX: Final = "network.bsky.jetstream.subscribeEvents#"

_Seq = Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQ)]


# Members in the order in which the server writes them: the decoder looks for the next one first. In a commit, absent is None
# and null is refused, so that the tolerant path can tell the two apart.


class _Commit(
    msgspec.Struct, tag_field="$type", tag=_PREFIX + "commit", forbid_unknown_fields=True, kw_only=True, gc=False
):
    cid: str = None  # type: ignore[assignment]
    collection: str
    did: str
    operation: Literal["create", "update", "delete"]
    record: msgspec.Raw = None  # type: ignore[assignment]
    rev: str
    rkey: str
    seq: _Seq
    time: str


class _Identity(msgspec.Struct, tag_field="$type", tag=_PREFIX + "identity", forbid_unknown_fields=True, gc=False):
    did: str
    identity: msgspec.Raw
    seq: _Seq
    time: str


class _Account(msgspec.Struct, tag_field="$type", tag=_PREFIX + "account", forbid_unknown_fields=True, gc=False):
    account: msgspec.Raw
    did: str
    seq: _Seq
    time: str


class _Sync(msgspec.Struct, tag_field="$type", tag=_PREFIX + "sync", forbid_unknown_fields=True, gc=False):
    did: str
    seq: _Seq
    sync: msgspec.Raw
    time: str


class _Message(msgspec.Struct, tag_field="$type", tag="message", forbid_unknown_fields=True, gc=False):
    payload: _Commit | _Identity | _Account | _Sync


class _Error(msgspec.Struct, tag_field="$type", tag="error", gc=False):
    """Only makes the decoder insist on the envelope's $type, which one type alone would let be absent."""


_decode_strictly = msgspec.json.Decoder(_Message | _Error).decode


def parameters(settings: SourceSettings, cursor: int | None, dictionary_id: int | None) -> list[tuple[str, str]]:
    """The query of the subscription; `cursor` None asks for the live tip, `dictionary_id` None for plain text frames."""
    query = [("collections", collection) for collection in settings.collections]
    query += [("dids", did) for did in settings.dids]
    query += [("kinds", kind) for kind in settings.kinds]
    if settings.max_message_bytes:
        query.append(("maxMessageSizeBytes", str(settings.max_message_bytes)))
    if cursor is not None:
        query.append(("cursor", str(cursor)))
    if dictionary_id is not None:
        query.append(("zstdDictionary", str(dictionary_id)))
    return query


def decode(frame: bytes) -> Frame:
    """What one uncompressed v2 frame means. Never raises."""
    try:
        message = _decode_strictly(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_tolerantly(frame)
    if type(message) is not _Message:
        return _decode_tolerantly(frame)
    payload = message.payload
    time_us = parse_canonical_time(payload.time)
    if time_us is None:
        return _decode_tolerantly(frame)
    if type(payload) is _Commit:
        operation, record = payload.operation, payload.record
        if (record is None) is not (operation == "delete"):
            return _decode_tolerantly(frame)
        return Commit(
            payload.seq,
            time_us,
            payload.did,
            operation,
            payload.collection,
            payload.rkey,
            payload.rev,
            payload.cid,
            None if record is None else bytes(record),
        )
    if type(payload) is _Identity:
        kind: type[Identity | Account | Sync] = Identity
        upstream = bytes(payload.identity)
    elif type(payload) is _Account:
        upstream, kind = bytes(payload.account), Account
    elif type(payload) is _Sync:
        upstream, kind = bytes(payload.sync), Sync
    else:
        raise AssertionError("the decoder knows no other payload")
    return kind(payload.seq, time_us, payload.did, upstream) if upstream[:1] == b"{" else _decode_tolerantly(frame)


_UPSTREAM: Final[dict[str, type[Identity | Account | Sync]]] = {"identity": Identity, "account": Account, "sync": Sync}


def _decode_tolerantly(frame: bytes) -> Frame:
    try:
        return _read(Members(frame, "frame"), frame)
    except Refused as refused:
        return rejected(refused.reason, refused.detail, frame)


def _read(envelope: Members, frame: bytes) -> Frame:
    kind = _type_of(envelope, "frame")
    if kind == "error":
        return StreamError(envelope.take_text_if_usable("error") or "", envelope.take_text_if_usable("message") or "")
    if kind != "message":
        hint = rejected(DeadLetterReason.UNKNOWN_KIND, "", frame)
        return Unknown(kind, hint.seq, hint.time_us)
    payload = Members(envelope.take_object("payload"), "payload")
    name = _type_of(payload, "payload").removeprefix(_PREFIX)
    if name == "info":
        return Info(payload.take_text_if_usable("name") or "", payload.take_text_if_usable("message") or "")
    if name != "commit" and name not in _UPSTREAM:
        hint = rejected(DeadLetterReason.UNKNOWN_KIND, "", frame)
        return Unknown(name, hint.seq, hint.time_us)
    did = payload.take_text("did")
    seq = tolerant.take_seq(payload, "seq")
    time_us = _take_time(payload)
    if name == "commit":
        taken = tolerant.take_commit(payload, seq, time_us, did)
        return Commit(*taken, tolerant.patch(envelope.rest(), "payload", payload.rest()))
    upstream = payload.take_object(name)
    return _UPSTREAM[name](seq, time_us, did, upstream, tolerant.patch(envelope.rest(), "payload", payload.rest()))


def _type_of(members: Members, what: str) -> str:
    if not members.has("$type"):
        raise Refused(DeadLetterReason.NOT_AN_EVENT, f"{what} has no $type")
    return members.take_text("$type")


def _take_time(payload: Members) -> int:
    time = payload.take_text("time")
    time_us = parse_time(time)
    if time_us is None:
        raise Refused(DeadLetterReason.BAD_TIME, f"time {time[:64]!r} is none between 1970 and 9999")
    if format_time(time_us) != time:
        # The frame's own text is kept beside the instant, so that the frame can be rebuilt as it was sent.
        payload.put_back("time", msgspec.json.encode(time))
    return time_us

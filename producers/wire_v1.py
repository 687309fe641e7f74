"""Wire v1: `/subscribe`, bytes of one frame in, typed event out.

Pure. Spoken by the legacy server and, frozen, by the v2 server, which adds the member `cursor` (its sequence number).
Nearly every frame takes the strict path (one native decode); whatever that refuses is read by the tolerant path.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from producers import tolerant
from producers.config import SourceSettings
from producers.tolerant import Members, Refused
from producers.wire import MAX_SEQ, MAX_TIME_US, MIN_TIME_US, Account, Commit, Frame, Identity, Unknown, rejected
from schemas.errors import DeadLetterReason

PATH: Final = "/subscribe"

_MAX_URL_DIDS: Final = 100
"""More accounts than this do not fit a URL on every proxy; they are sent in the first message instead."""

_Seq = Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQ)]
_TimeUs = Annotated[int, msgspec.Meta(ge=MIN_TIME_US, le=MAX_TIME_US)]


class _Operation(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    operation: Literal["create", "update", "delete"]
    collection: str
    rkey: str
    rev: str
    # Absent is None here and null is refused, so that the tolerant path can tell the two apart.
    cid: str = None  # type: ignore[assignment]
    record: msgspec.Raw = None  # type: ignore[assignment]


class _Event(msgspec.Struct, tag_field="kind", forbid_unknown_fields=True, gc=False):
    did: str
    time_us: _TimeUs


class _Commit(_Event, tag="commit", forbid_unknown_fields=True, gc=False):
    commit: _Operation
    cursor: _Seq = None  # type: ignore[assignment]


class _Identity(_Event, tag="identity", forbid_unknown_fields=True, gc=False):
    identity: msgspec.Raw
    cursor: _Seq = None  # type: ignore[assignment]


class _Account(_Event, tag="account", forbid_unknown_fields=True, gc=False):
    account: msgspec.Raw
    cursor: _Seq = None  # type: ignore[assignment]


_decode_strictly = msgspec.json.Decoder(_Commit | _Identity | _Account).decode
_UPSTREAM: Final[dict[str, type[Identity | Account]]] = {"identity": Identity, "account": Account}


def parameters(settings: SourceSettings, cursor: int | None, *, compress: bool) -> list[tuple[str, str]]:
    """The query of the subscription; `cursor` None asks for the live tip."""
    query = [("wantedCollections", collection) for collection in settings.collections]
    if len(settings.dids) > _MAX_URL_DIDS:
        query.append(("requireHello", "true"))
    else:
        query += [("wantedDids", did) for did in settings.dids]
    if settings.max_message_bytes:
        query.append(("maxMessageSizeBytes", str(settings.max_message_bytes)))
    if cursor is not None:
        query.append(("cursor", str(cursor)))
    if compress:
        query.append(("compress", "true"))
    return query


def hello(settings: SourceSettings) -> bytes | None:
    """The first message to send, None when the URL already says everything."""
    if len(settings.dids) <= _MAX_URL_DIDS:
        return None
    payload = {
        "wantedCollections": settings.collections,
        "wantedDids": settings.dids,
        "maxMessageSizeBytes": settings.max_message_bytes,
    }
    return msgspec.json.encode({"type": "options_update", "payload": payload})


def decode(frame: bytes) -> Frame:
    """What one uncompressed v1 frame means. Never raises."""
    try:
        event = _decode_strictly(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_tolerantly(frame)
    if type(event) is _Commit:
        commit = event.commit
        operation, record = commit.operation, commit.record
        if (record is None) is not (operation == "delete"):
            return _decode_tolerantly(frame)
        return Commit(
            event.cursor,
            event.time_us,
            event.did,
            operation,
            commit.collection,
            commit.rkey,
            commit.rev,
            commit.cid,
            None if record is None else bytes(record),
        )
    if type(event) is _Identity:
        kind: type[Identity | Account] = Identity
        upstream = bytes(event.identity)
    elif type(event) is _Account:
        upstream, kind = bytes(event.account), Account
    else:
        raise AssertionError("the decoder knows no other kind")
    return kind(event.cursor, event.time_us, event.did, upstream) if upstream[:1] == b"{" else _decode_tolerantly(frame)


def _decode_tolerantly(frame: bytes) -> Frame:
    try:
        return _read(Members(frame, "frame"), frame)
    except Refused as refused:
        return rejected(refused.reason, refused.detail, frame)


def _read(envelope: Members, frame: bytes) -> Frame:
    if not envelope.has("kind"):
        raise Refused(DeadLetterReason.NOT_AN_EVENT, "frame has no kind")
    kind = envelope.take_text("kind")
    if kind != "commit" and kind not in _UPSTREAM:
        hint = rejected(DeadLetterReason.UNKNOWN_KIND, "", frame)
        return Unknown(kind, hint.seq, hint.time_us)
    did = envelope.take_text("did")
    time_us = tolerant.take_time_us(envelope, "time_us")
    seq = tolerant.take_seq(envelope, "cursor") if envelope.has("cursor") else None
    if kind == "commit":
        commit = Members(envelope.take_object("commit"), "commit")
        taken = tolerant.take_commit(commit, seq, time_us, did)
        return Commit(*taken, tolerant.patch(envelope.rest(), "commit", commit.rest()))
    upstream = envelope.take_object(kind)
    return _UPSTREAM[kind](seq, time_us, did, upstream, tolerant.patch(envelope.rest(), "", {}))

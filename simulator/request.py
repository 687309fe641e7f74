"""Subscription requests: query parameters of both wires checked by the servers' own rules. Pure, no I/O.

Rules: sections 2.1, 2.2 and 3.1 of the Jetstream reference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from simulator.events import HEAD
from simulator.wire import frame_collection, frame_did, frame_kind

DID = re.compile(r"did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]")
NSID = re.compile(
    r"[a-zA-Z](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)+\.[a-zA-Z][a-zA-Z0-9]{0,62}"
)
KINDS = ("commit", "identity", "account", "sync")
MAX_COLLECTIONS, MAX_DIDS = 100, 10_000
_RAW_COLLECTIONS, _RAW_DIDS = 10_000, 1_000_000
_INT64 = 2**63
Query = Mapping[str, Sequence[str]]


class RequestRefusedError(Exception):
    """The request is answered with an HTTP error before the upgrade."""

    def __init__(self, status: int, name: str, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.name = name
        self.message = message
        self.headers = headers


@dataclass(frozen=True)
class Filter:
    """Which events a subscriber wants; None means no restriction."""

    collections: frozenset[bytes] | None = None
    prefixes: tuple[bytes, ...] = ()
    dids: frozenset[bytes] | None = None
    kinds: frozenset[bytes] | None = None
    max_bytes: int = 0

    @property
    def everything(self) -> bool:
        """No restriction at all (the fast path)."""
        return self.collections is None and self.dids is None and self.kinds is None and not self.max_bytes

    def wants(self, frame: bytes) -> bool:
        """Decide by the sound v2 frame; the size limit is checked elsewhere, on the text that would be sent."""
        if not frame.startswith(HEAD):
            return True
        kind = frame_kind(frame)
        if self.kinds is not None and kind not in self.kinds:
            return False
        if self.dids is not None and frame_did(frame) not in self.dids:
            return False
        if self.collections is None or kind != b"commit":
            return True
        name = frame_collection(frame)
        return name in self.collections or name.startswith(self.prefixes)


@dataclass(frozen=True)
class Subscription:
    """A checked request. `cursor` None means the live tip; `dictionary` is a zstd dictionary id or None for plain text."""

    version: int
    cursor: int | None
    filter: Filter
    dictionary: int | None
    require_hello: bool = False


def parse_v1(query: Query, headers: Mapping[str, str], dictionary: int) -> Subscription:
    """`GET /subscribe`; RequestRefusedError with 400 when a rule is broken."""
    collections = query.get("wantedCollections", ())
    dids = query.get("wantedDids", ())
    compress = query.get("compress", [""])[0] == "true" or "zstd" in headers.get("socket-encoding", "")
    if compress and "permessage-deflate" in headers.get("sec-websocket-extensions", ""):
        raise RequestRefusedError(400, "InvalidRequest", "choose one compression: permessage-deflate or zstd")
    try:
        wanted = v1_filter(collections, dids, lenient_int(query.get("maxMessageSizeBytes", ["0"])[0]))
    except ValueError as error:
        raise RequestRefusedError(400, "InvalidRequest", str(error)) from error
    hello = query.get("requireHello", [""])[0] == "true"
    return Subscription(1, _cursor(query), wanted, dictionary if compress else None, hello)


def parse_v2(query: Query, headers: Mapping[str, str]) -> Subscription:
    """`GET …subscribeEvents`; RequestRefusedError with 400 when a rule is broken; the dictionary is looked up later."""
    for name in ("wantedDids", "wantedCollections", "requireHello"):
        if name in query:
            raise RequestRefusedError(400, "InvalidRequest", f"{name} is a v1 parameter")
    if query.get("compress", [""])[0] == "true" or "zstd" in headers.get("socket-encoding", ""):
        raise RequestRefusedError(400, "InvalidRequest", "use zstdDictionary")
    try:
        wanted = v2_filter(query.get("kinds", ()), query.get("dids", ()), query.get("collections", ()))
        wanted = replace(wanted, max_bytes=_unsigned(query, "maxMessageSizeBytes", 0, 2**32 - 1) or 0)
        dictionary = _unsigned(query, "zstdDictionary", 1, 2**32 - 1)
    except ValueError as error:
        raise RequestRefusedError(400, "InvalidRequest", str(error)) from error
    if len(query.get("cursor", ())) > 1:
        raise RequestRefusedError(400, "InvalidRequest", "cursor given more than once")
    return Subscription(2, _cursor(query), wanted, dictionary)


def v1_filter(collections: Sequence[str], dids: Sequence[str], max_bytes: int) -> Filter:
    """The filter of v1 parameters or of an `options_update`; ValueError when a rule is broken."""
    if len(collections) > _RAW_COLLECTIONS or len(set(collections)) > MAX_COLLECTIONS:
        raise ValueError(f"too many wanted collections: {len(set(collections))} > {MAX_COLLECTIONS}")
    if len(dids) > _RAW_DIDS or len(set(dids)) > MAX_DIDS:
        raise ValueError(f"too many wanted DIDs: {len(set(dids))} > {MAX_DIDS}")
    names, prefixes = set(), []
    for value in collections:
        if value.endswith(".*") and "*" not in value[:-1]:
            prefixes.append(value[:-1].encode())
        elif NSID.fullmatch(value):
            names.add(value.encode())
        else:
            raise ValueError(f"invalid collection: {value[:200]}")
    return Filter(frozenset(names) if collections else None, tuple(prefixes), _dids(dids), None, max_bytes)


def v2_filter(kinds: Sequence[str], dids: Sequence[str], collections: Sequence[str]) -> Filter:
    """The filter of v2 parameters and of planSnapshot; ValueError when a rule is broken."""
    if len(kinds) > len(KINDS) or any(kind not in KINDS for kind in kinds):
        raise ValueError(f"kinds must be of {', '.join(KINDS)}")
    if len(dids) > MAX_DIDS or len(collections) > MAX_COLLECTIONS:
        raise ValueError(f"at most {MAX_DIDS} dids and {MAX_COLLECTIONS} collections")
    if collections and kinds and "commit" not in kinds:
        raise ValueError("collections need the kind commit")
    names, prefixes = set(), []
    for value in collections:
        if value.endswith(".*") and NSID.fullmatch(value[:-2] + ".x"):
            prefixes.append(value[:-1].encode())
        elif NSID.fullmatch(value):
            names.add(value.encode())
        else:
            raise ValueError(f"invalid collection: {value[:200]}")
    chosen = frozenset(kind.encode() for kind in kinds) if kinds else None
    return Filter(frozenset(names) if collections else None, tuple(prefixes), _dids(dids), chosen)


def options_update(text: str) -> Filter | None:
    """The new filter of a v1 client message, None for a message of another type.

    msgspec.DecodeError for a malformed one (close 1007), ValueError for an invalid filter (close 1008).
    """
    message = msgspec.json.decode(text, type=_ClientMessage)
    if message.type != "options_update":
        return None
    options = msgspec.convert(message.payload, _Options)
    return v1_filter(options.wantedCollections or (), options.wantedDids or (), max(0, options.maxMessageSizeBytes))


class _ClientMessage(msgspec.Struct):
    type: str = ""
    payload: Any = None


class _Options(msgspec.Struct):
    wantedCollections: list[str] | None = None  # noqa: N815 (wire name)
    wantedDids: list[str] | None = None  # noqa: N815 (wire name)
    maxMessageSizeBytes: int = 0  # noqa: N815 (wire name)


def lenient_int(text: str) -> int:
    """v1's size limit: anything unusable means 0."""
    return int(text) if re.fullmatch(r"\d{1,18}", text) else 0


def _dids(values: Sequence[str]) -> frozenset[bytes] | None:
    for value in values:
        if not DID.fullmatch(value):
            raise ValueError(f"invalid DID: {value[:200]}")
    return frozenset(value.encode() for value in values) if values else None


def _cursor(query: Query) -> int | None:
    values = query.get("cursor", ())
    if not values or values[0] == "":
        return None
    if not re.fullmatch(r"\d{1,19}", values[0]) or int(values[0]) >= _INT64:
        raise RequestRefusedError(400, "InvalidRequest", f"invalid cursor: {values[0][:50]}")
    return int(values[0])


def _unsigned(query: Query, name: str, low: int, high: int) -> int | None:
    values = query.get(name, ())
    if not values:
        return None
    if len(values) > 1 or not re.fullmatch(r"\d{1,10}", values[0]) or not low <= int(values[0]) <= high:
        raise ValueError(f"{name} must be one integer of {low} to {high}")
    return int(values[0])

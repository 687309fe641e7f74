"""When to try again and when not: the one place that decides, and the delays in between."""

from __future__ import annotations

import enum
import json
import random
from collections.abc import Iterator

from producers.errors import ConnectFailedError, HandshakeRefusedError


class Disposition(enum.Enum):
    """What a failed attempt to connect calls for."""

    RETRY = "retry"  # the server or the network is not ready; the same request may succeed later
    CURSOR_TOO_OLD = "cursor_too_old"  # the server no longer holds that sequence; resume by time, record the gap
    UNKNOWN_DICTIONARY = "unknown_dictionary"  # the compression dictionary was rotated; fetch the current one
    NOT_THIS_WIRE = "not_this_wire"  # the server does not have the path; try the other wire
    REFUSED = "refused"  # this request will never succeed on this host


def delays(first: float, longest: float, random_unit: random.Random | None = None) -> Iterator[float]:
    """Seconds to wait before each further attempt: doubling from `first` to `longest`, each shortened by up to half.

    The jitter keeps clients that lost the same server from coming back together. Make a new one after progress.
    """
    chance = random_unit or random.Random()
    delay = first
    while True:
        yield delay * (1 - chance.random() / 2)
        delay = min(delay * 2, longest)


def disposition(failure: ConnectFailedError) -> Disposition:
    """Retry or raise, decided from the answer to the upgrade request alone."""
    if not isinstance(failure, HandshakeRefusedError):
        return Disposition.RETRY
    status = failure.status
    if status == 400:
        named = {"CursorTooOld": Disposition.CURSOR_TOO_OLD, "UnknownZstdDictionary": Disposition.UNKNOWN_DICTIONARY}
        return named.get(error_name(failure.body), Disposition.REFUSED)
    if status in (404, 405, 410, 501) or 200 <= status < 300:  # a page where a websocket should be
        return Disposition.NOT_THIS_WIRE
    if status in (408, 425, 429) or status >= 500 or status < 400:
        return Disposition.RETRY
    return Disposition.REFUSED


def error_name(body: bytes) -> str:
    """The `error` member of an XRPC error body, empty when there is none (v1 answers in plain text)."""
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    name = error.get("error") if isinstance(error, dict) else None
    return name if isinstance(name, str) else ""

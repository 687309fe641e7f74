"""Errors of the producer: what ends it, each with an instruction, and what only ends a connection."""

from __future__ import annotations

from schemas.errors import ExplorerError


class SourceSettingsError(ExplorerError):
    """The source settings cannot work: a URL, a filter or a credential that every attempt would fail on."""

    exit_code = 2


class CursorUnreadableError(ExplorerError):
    """The cursor topic holds a record that this release cannot read; going on would skip or repeat history silently."""

    exit_code = 3


class TooManyDeadLettersError(ExplorerError):
    """So much was set aside that the fault is more likely ours, or the source is not a Jetstream."""

    exit_code = 4


class BrokerRefusedError(ExplorerError):
    """The broker answers, and refuses for a reason that waiting does not mend (a topic is missing, access is denied)."""

    exit_code = 5


class ConnectFailedError(Exception):
    """No websocket could be opened; `cause` is one clause for people. Ends an attempt, never the process."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class HandshakeRefusedError(ConnectFailedError):
    """The server answered the upgrade with an HTTP status instead."""

    def __init__(self, status: int, body: bytes, retry_after: float | None, location: str | None = None) -> None:
        text = " ".join(body[:300].decode("utf-8", "replace").split())
        if location is not None:
            text = f"it has moved to {location[:300]}; write that in EXPLORER_SOURCE_HOSTS"
        super().__init__(f"HTTP {status}{': ' + text if text else ''}")
        self.status = status
        self.body = body
        self.retry_after = retry_after


class ConnectionEndedError(Exception):
    """The websocket is gone: `code` 1006 means without a close frame."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}{' ' + reason if reason else ''}")
        self.code = code
        self.reason = reason

"""What can go wrong, as exceptions whose text says what to do. All derive from `ExplorerError`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

__all__ = [
    "ConnectionFailed",
    "DownloadError",
    "ExplorerError",
    "ExportError",
    "InvalidRequest",
    "NotAllowed",
    "NotFound",
    "ProblemError",
    "RateLimited",
    "ServiceError",
]


class ExplorerError(Exception):
    """Base of every error of this package."""


class ConnectionFailed(ExplorerError):  # noqa: N818 - reads as what happened
    """The service could not be reached, or the connection broke more often than is retried."""


class DownloadError(ExplorerError):
    """A file did not arrive whole, or its digest is not the one the service announced."""


class ExportError(ExplorerError):
    """An export ended without a file, or took longer than the caller wanted to wait."""


@dataclass(frozen=True)
class FieldProblem:
    """One input that is wrong: which one, where it was (query, path, header, body), and why."""

    parameter: str
    location: str
    detail: str
    pointer: str | None = None


class ProblemError(ExplorerError):
    """The service refused a request (RFC 9457). Its text is the service's own, which names the input and the remedy.

    `kind` is the stable name of the problem, such as `invalid-parameter`; `retry_after` the seconds after which the same
    request may succeed, None when it never will; `body` the whole answer.
    """

    def __init__(self, status: int, body: Mapping[str, Any], retry_after: float | None = None) -> None:
        self.status = status
        self.body = dict(body)
        self.kind = str(body.get("type", "")).rpartition("/")[2] or f"http-{status}"
        self.title = str(body.get("title", ""))
        self.detail = str(body.get("detail", ""))
        self.request_id: str | None = body.get("request_id")
        self.retry_after = retry_after
        self.errors = tuple(
            FieldProblem(
                str(item.get("parameter", "")),
                str(item.get("location", "")),
                str(item.get("detail", "")),
                item.get("pointer"),
            )
            for item in body.get("errors") or ()
            if isinstance(item, dict)
        )
        super().__init__(f"{self.detail or self.title or 'the service gave no reason'} [{status} {self.kind}]")


class InvalidRequest(ProblemError):  # noqa: N818
    """A parameter, query or body is wrong."""


class NotAllowed(ProblemError):  # noqa: N818
    """A key is missing or wrong, or does not allow this."""


class NotFound(ProblemError):  # noqa: N818
    """There is no such thing, or not any more."""


class RateLimited(ProblemError):  # noqa: N818
    """Too many requests, or too many bytes read today; `retry_after` says when to come back."""


class ServiceError(ProblemError):
    """The service is busy, stopped a query at its time limit, or failed."""


def from_response(response: httpx.Response) -> ProblemError:
    """The error for an answer with a status of 400 or more, whose body has been read."""
    status = response.status_code
    try:
        body = response.json()
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    body.setdefault(
        "detail", response.text[:300].strip() if "json" not in response.headers.get("content-type", "") else ""
    )
    kind: type[ProblemError] = InvalidRequest
    if status in (401, 403):
        kind = NotAllowed
    elif status in (404, 410):
        kind = NotFound
    elif status == 429:
        kind = RateLimited
    elif status >= 500:
        kind = ServiceError
    return kind(status, body, retry_after(response))


def retry_after(response: httpx.Response) -> float | None:
    """Seconds of the Retry-After header; None without one."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdigit() else None

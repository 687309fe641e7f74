"""Hosts and web origins: who may embed answers (CORS), and protection of a service that needs no key from web pages.

A page on any site can make a browser send requests to `localhost`, and with its own name pointed at 127.0.0.1 (DNS
rebinding) also read the answers. Hence the checks of Host and Origin. Pure, except for making responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response

from api.access.scopes import is_loopback
from api.errors import ApiError, Problem

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE")
_REQUEST_HEADERS: Final = ("Accept", "Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Range")
_EXPOSED: Final = (
    "Content-Disposition, ETag, Link, Location, RateLimit, RateLimit-Policy, Repr-Digest, Retry-After, X-Request-Id"
)
_PREFLIGHT_SECONDS: Final = 600


def host_name(host: str) -> str:
    """The name in a Host header, without port, in lower case."""
    if host.startswith("["):
        return host.partition("]")[0].removeprefix("[").lower()
    return host.partition(":")[0].rstrip(".").lower()


def host_allowed(host: str | None, allowed: frozenset[str], *, loopback_only: bool) -> bool:
    """Whether the service answers under this name; `allowed` empty and not `loopback_only` = under any."""
    if not allowed and not loopback_only:
        return True
    if host is None:
        return False
    name = host_name(host)
    return name in allowed or (loopback_only and is_loopback(name))


def origin_allowed(method: str, headers: Headers, allowed: Sequence[str]) -> bool:
    """Whether a request that changes something comes from our own page, a listed origin, or no page at all."""
    origin = headers.get("origin")
    if method in _SAFE or origin is None:
        return True
    return origin in allowed or origin.partition("://")[2].lower() == headers.get("host", "").lower()


def is_preflight(method: str, headers: Headers) -> bool:
    """Whether a browser asks in advance if it may send a request."""
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def answer_headers(origin: str | None, method: str, allowed: Sequence[str]) -> dict[str, str]:
    """What lets a page of that origin read the answer; empty when it may not. Never with credentials."""
    if origin is None:
        return {}
    if origin in allowed:
        return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSED}
    if "*" in allowed and method in _SAFE:
        return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": _EXPOSED}
    return {}


def answer_preflight(headers: Headers, allowed: Sequence[str]) -> Response:
    """The answer to a preflight. Raises ApiError 403 when the request may not be sent."""
    origin, method = headers["origin"], headers["access-control-request-method"].upper()
    methods = _METHODS if origin in allowed else ("GET", "HEAD") if "*" in allowed else ()
    if method not in methods:
        raise ApiError(
            Problem.FORBIDDEN,
            f"Origin: pages of this site may not send {method} requests"
            " (operator: EXPLORER_API_ACCESS_CORS_ORIGINS names the sites)",
        )
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": ", ".join(methods),
            "Access-Control-Allow-Headers": ", ".join(_REQUEST_HEADERS),
            "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
        },
    )

"""Who a request comes from, and what the rest of the API may ask about that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fastapi import Request

from api.access.buckets import Buckets, Decision, Quota
from api.access.config import AccessSettings
from api.access.scopes import ANONYMOUS, Scope, allows
from api.errors import ApiError, Problem

SCOPE_KEY: Final = "explorer.access"
"""Where the ASGI scope holds the `Access` of a request."""
ANONYMOUS_OWNER: Final = "anonymous"
_MINUTE: Final = 60.0
_DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a key, or an address while no key is needed.

    `owner` is what exports and label tables belong to; all clients without a key share one. `client` is what limits
    count against. Limits of None are those of the settings.
    """

    key_id: str | None
    scopes: frozenset[Scope]
    client: str
    requests_per_minute: int | None = None
    bytes_per_day: int | None = None

    @property
    def owner(self) -> str:
        """The owner of what this principal creates."""
        return self.key_id or ANONYMOUS_OWNER

    def may(self, scope: Scope) -> bool:
        """Whether this principal has a permission."""
        return allows(self.scopes, scope)


def anonymous(client: str) -> Principal:
    """A client without a key."""
    return Principal(None, ANONYMOUS, client)


class Limits:
    """The limits of all clients; thread-safe, since queries charge bytes from worker threads too."""

    def __init__(self, settings: AccessSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._requests = Buckets(settings.tracked_clients)
        self._bytes = Buckets(settings.tracked_clients)
        self._failures = Buckets(settings.tracked_clients)

    def request_quota(self, principal: Principal) -> Quota:
        """Requests a minute."""
        own = principal.requests_per_minute
        return Quota(self._settings.requests_per_minute if own is None else own, _MINUTE)

    def byte_quota(self, principal: Principal) -> Quota:
        """Bytes a day."""
        own = principal.bytes_per_day
        return Quota(self._settings.bytes_per_day if own is None else own, _DAY)

    def request(self, principal: Principal) -> Decision:
        """Count one request."""
        with self._lock:
            return self._requests.take(principal.client, self.request_quota(principal), 1.0, self._clock())

    def scan(self, principal: Principal, size: int) -> Decision:
        """Count bytes that a query reads; refused once nothing is left."""
        with self._lock:
            return self._bytes.charge(principal.client, self.byte_quota(principal), float(size), self._clock())

    def bytes_left(self, principal: Principal) -> Decision:
        """What is left of the day's bytes."""
        with self._lock:
            return self._bytes.peek(principal.client, self.byte_quota(principal), self._clock())

    def failure(self, client: str) -> None:
        """Count a wrong key from an address."""
        with self._lock:
            self._failures.take(client, self._failure_quota(), 1.0, self._clock())

    def may_try(self, client: str) -> Decision:
        """Whether an address may try another key now."""
        with self._lock:
            found = self._failures.peek(client, self._failure_quota(), self._clock())
        return Decision(found.remaining >= 1, found.remaining, found.reset, max(1, found.reset))

    def _failure_quota(self) -> Quota:
        return Quota(self._settings.failures_per_minute, _MINUTE)


@dataclass(slots=True)
class Access:
    """What the access layer knows about one request; `bytes_scanned` is what its queries were charged."""

    principal: Principal
    limits: Limits
    bytes_scanned: int = 0


def rate_limited(detail: str, retry_after: int, limit: float) -> ApiError:
    """429 that tells when to come back (seconds)."""
    return ApiError(
        Problem.RATE_LIMITED,
        detail,
        extension={"retry_after": retry_after, "limit": int(limit)},
        headers={"Retry-After": str(retry_after)},
    )


def access_of(request: Request) -> Access:
    """The access layer's view of a request."""
    found: Access = request.scope[SCOPE_KEY]
    return found


def principal(request: Request) -> Principal:
    """Who asks; also a dependency for routes."""
    return access_of(request).principal


def charge_bytes(request: Request, size: int) -> None:
    """Count the bytes of files that a query for this request reads, before it runs; never blocks.

    Raises ApiError 429 when the client's allowance of the day is used up. A query larger than what is left is allowed, and
    paid off before the next.
    """
    access = access_of(request)
    decision = access.limits.scan(access.principal, size)
    if not decision.allowed:
        quota = access.limits.byte_quota(access.principal)
        raise rate_limited(
            f"your queries have read the {int(quota.amount)} bytes a day that are allowed: narrow the time range or the"
            f" filters, and try again in {decision.retry_after} s",
            decision.retry_after,
            quota.amount,
        )
    access.bytes_scanned += size

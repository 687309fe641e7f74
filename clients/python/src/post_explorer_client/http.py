"""One HTTP connection pool with bounded retries."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from .errors import ConnectionFailed, ProblemError, from_response

Query = Sequence[tuple[str, str]]
_RETRIED = frozenset({429, 502, 503, 504})
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})


@dataclass(frozen=True)
class Retry:
    """How often and how long to try again after 429, 503 and broken connections.

    The service's Retry-After is kept, unless it is longer than what is left of `seconds`: then the error is raised, with
    `retry_after`, for the caller to decide. Without one, the pause doubles from `first_pause` up to `longest_pause`.
    """

    attempts: int = 6
    seconds: float = 120.0
    first_pause: float = 0.5
    longest_pause: float = 20.0


class Http:
    """Sends requests to one service; raises ProblemError for its refusals and ConnectionFailed when it is away."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None,
        timeout: float,
        retry: Retry,
        transport: httpx.BaseTransport | None,
        user_agent: str,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        headers = {"User-Agent": user_agent}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        # Redirects are not followed: the key must not go to another host.
        self._client = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            transport=transport,
        )
        self._retry = retry
        self._sleep = sleep
        self._clock = clock

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def json(
        self, method: str, path: str, *, query: Query = (), body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """The JSON answer; None for an empty one."""
        response = self.request(method, path, query=query, body=body, headers=headers)
        return response.json() if response.content else None

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: Any = None,
        content: Callable[[], Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """The whole answer. `content` gives the body anew for each attempt."""
        headers = dict(headers or {})
        retried = method in _IDEMPOTENT or "Idempotency-Key" in headers
        pauses = self._pauses()
        while True:
            try:
                response = self._client.request(
                    method,
                    path,
                    params=list(query) or None,
                    json=body,
                    content=content() if content is not None else None,
                    headers=headers,
                )
            except httpx.TransportError as error:
                # A request that was never sent may always be repeated.
                if not retried and not isinstance(error, httpx.ConnectError):
                    raise ConnectionFailed(f"{method} {path}: the connection broke: {_text(error)}") from error
                self._pause(
                    pauses, ConnectionFailed(f"{self._client.base_url} cannot be reached: {_text(error)}"), None
                )
                continue
            if response.status_code < 400:
                return response
            problem = from_response(response)
            # 429 and 503 say that nothing was done.
            if response.status_code not in _RETRIED or not (retried or response.status_code in (429, 503)):
                raise problem
            self._pause(pauses, problem, problem.retry_after)

    @contextmanager
    def stream(self, path: str, *, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """A GET answer that is read piece by piece; refusals are raised, nothing is repeated."""
        with self._client.stream("GET", path, headers=dict(headers)) as response:
            if response.status_code >= 400:
                response.read()
                raise from_response(response)
            yield response

    def attempts(self) -> Callable[[Exception, float | None], None]:
        """A function that waits before another attempt, or raises the given error when there were enough."""
        pauses = self._pauses()
        return lambda error, asked: self._pause(pauses, error, asked)

    def _pauses(self) -> Iterator[float]:
        """Own pauses before each further attempt, as long as there may be one."""
        retry = self._retry
        pause = retry.first_pause
        started = self._clock()
        for _ in range(retry.attempts - 1):
            left = retry.seconds - (self._clock() - started)
            if left <= 0:
                return
            yield min(left, pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, retry.longest_pause)

    def _pause(self, pauses: Iterator[float], error: Exception, asked: float | None) -> None:
        own = next(pauses, None)
        if own is None or (asked is not None and asked > self._retry.seconds):
            raise error
        self._sleep(max(own, asked or 0.0))


def is_temporary(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    return isinstance(error, httpx.TransportError) or (isinstance(error, ProblemError) and error.status in _RETRIED)


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__

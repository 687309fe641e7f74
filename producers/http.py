"""Plain HTTP requests to a source, bounded in time and size; used beside the websocket (dictionary, archive)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import httpx

from producers.backoff import error_name


class HttpFailure(Exception):  # noqa: N818 - an outcome that callers decide about
    """No usable answer. `status` is None when there was none at all, `error` the XRPC error name if one was given."""

    def __init__(
        self, cause: str, status: int | None = None, error: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.status = status
        self.error = error
        self.retry_after = retry_after


class HttpAnswer(NamedTuple):
    """A successful answer; header names in lower case."""

    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Requests to one server. Blocks; every request is bounded by `timeout` seconds per step and `max_bytes`."""

    def __init__(self, websocket_url: str, timeout: float, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(websocket_url)
        scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
        path = parts.path.rstrip("/")
        for known in ("/xrpc/network.bsky.jetstream.subscribeEvents", "/subscribe"):
            path = path.removesuffix(known)
        self._base = urlunsplit((scheme, parts.netloc, path, "", ""))
        self._client = httpx.Client(timeout=timeout, headers=dict(headers or {}), follow_redirects=True)

    def get(self, path: str, query: Mapping[str, str] | None = None, *, max_bytes: int) -> HttpAnswer:
        """Fetch `path` below the server's base. Raises HttpFailure."""
        return self._send(self._client.build_request("GET", self._base + path, params=dict(query or {})), max_bytes)

    def get_range(
        self, path: str, query: Mapping[str, str], start: int, if_range: str | None, *, max_bytes: int
    ) -> tuple[bool, HttpAnswer]:
        """Fetch the rest of a resource from byte `start`, if it is still the one with ETag `if_range`.

        The first value says whether the answer begins at `start`; otherwise it is the whole resource. Raises HttpFailure.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and if_range is not None:
            headers["If-Range"] = if_range
        request = self._client.build_request("GET", self._base + path, params=dict(query), headers=headers)
        answer = self._send(request, max_bytes)
        return bool(start) and answer.headers.get("content-range", "").startswith(f"bytes {start}-"), answer

    def post_json(self, path: str, body: object, *, max_bytes: int) -> HttpAnswer:
        """Post a JSON value. Raises HttpFailure."""
        return self._send(self._client.build_request("POST", self._base + path, json=body), max_bytes)

    def close(self) -> None:
        """Give up the connections kept open."""
        self._client.close()

    def _send(self, request: httpx.Request, max_bytes: int) -> HttpAnswer:
        try:
            response = self._client.send(request, stream=True)
            try:
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > max_bytes:
                        raise HttpFailure(f"{request.url.path}: the answer exceeds {max_bytes} bytes")
            finally:
                response.close()
        except httpx.HTTPError as error:
            raise HttpFailure(f"{request.url.path}: {type(error).__name__} {error}".strip()) from None
        if response.status_code not in (200, 206):
            text = bytes(body[:300]).decode("utf-8", "replace").strip()
            raise HttpFailure(
                f"{request.url.path}: HTTP {response.status_code} {text}".strip(),
                response.status_code,
                error_name(bytes(body)),
                _seconds(response.headers.get("Retry-After")),
            )
        return HttpAnswer({name.lower(): value for name, value in response.headers.items()}, bytes(body))


def _seconds(text: str | None) -> float | None:
    try:
        return min(max(float(text), 0.0), 3600.0) if text is not None else None
    except ValueError:
        return None

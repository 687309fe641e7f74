"""Plain HTTP requests to a source, bounded in time and size; used beside the websocket (dictionary, archive)."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import BinaryIO, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import httpx

from producers.backoff import error_name

Paced = Callable[[int], None]
"""Told how many bytes came; may sleep."""


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

    def __init__(
        self, websocket_url: str, timeout: float, tls: ssl.SSLContext, headers: Mapping[str, str] | None = None
    ) -> None:
        parts = urlsplit(websocket_url)
        scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
        path = parts.path.rstrip("/")
        for known in ("/xrpc/network.bsky.jetstream.subscribeEvents", "/subscribe"):
            path = path.removesuffix(known)
        self._base = urlunsplit((scheme, parts.netloc, path, "", ""))
        self._client = httpx.Client(timeout=timeout, verify=tls, headers=dict(headers or {}), follow_redirects=True)

    def get(self, path: str, query: Mapping[str, str] | None = None, *, max_bytes: int) -> HttpAnswer:
        """Fetch `path` below the server's base. Raises HttpFailure."""
        return self._send(self._client.build_request("GET", self._base + path, params=dict(query or {})), max_bytes)

    def download(
        self, path: str, query: Mapping[str, str], target: BinaryIO, etag: str | None, *, max_bytes: int, paced: Paced
    ) -> str | None:
        """Append to `target` what is still missing of a resource, and return its ETag.

        `target` holds the beginning of the resource as it was under `etag`; when the server has another by now, `target` is emptied
        first. `paced` is called with the size of each piece. Raises HttpFailure; what came until then stays in `target`.
        """
        start = target.seek(0, 2)
        headers = {"Range": f"bytes={start}-", "If-Range": etag} if start and etag is not None else {}
        request = self._client.build_request("GET", self._base + path, params=dict(query), headers=headers)
        try:
            response = self._client.send(request, stream=True)
            try:
                if response.status_code == 416 and response.headers.get("content-range") == f"bytes */{start}":
                    return etag
                if response.status_code not in (200, 206):
                    response.read()
                    raise _failure(request, response, response.content)
                if response.status_code == 200:
                    target.seek(0)
                    target.truncate()
                for chunk in response.iter_bytes():
                    if target.tell() + len(chunk) > max_bytes:
                        raise HttpFailure(f"{request.url.path}: larger than {max_bytes} bytes")
                    target.write(chunk)
                    paced(len(chunk))
                found: str | None = response.headers.get("etag", etag)
                return found
            finally:
                response.close()
        except httpx.HTTPError as error:
            raise HttpFailure(f"{request.url.path}: {type(error).__name__} {error}".strip()) from None

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
            raise _failure(request, response, bytes(body))
        return HttpAnswer({name.lower(): value for name, value in response.headers.items()}, bytes(body))


def _failure(request: httpx.Request, response: httpx.Response, body: bytes) -> HttpFailure:
    text = body[:300].decode("utf-8", "replace").strip()
    return HttpFailure(
        f"{request.url.path}: HTTP {response.status_code} {text}".strip(),
        response.status_code,
        error_name(body),
        _seconds(response.headers.get("Retry-After")),
    )


def _seconds(text: str | None) -> float | None:
    try:
        return min(max(float(text), 0.0), 3600.0) if text is not None else None
    except ValueError:
        return None

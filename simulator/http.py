"""Just enough HTTP/1.1 for the server: one request a connection, bounded head and body."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from simulator.request import Query, RequestRefusedError

MAX_HEAD = 1024 * 1024
_MAX_FIELDS = 1_020_000


@dataclass(frozen=True)
class HttpRequest:
    """One HTTP request with its body read; header names in lower case; `head` is the raw text up to the empty line."""

    method: str
    path: str
    query: Query
    headers: dict[str, str]
    head: bytes
    body: bytes = b""


@dataclass(frozen=True)
class HttpResponse:
    """One HTTP answer; the connection is closed after it."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()

    def serialised(self, *, head_only: bool = False) -> bytes:
        """The bytes to send."""
        lines = [
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (b"" if head_only else self.body)


async def read_request(reader: asyncio.StreamReader) -> HttpRequest | None:
    """The next request, None when the client leaves or does not speak HTTP; the caller sets the time limit."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    lines = head.decode("latin-1").split("\r\n")
    match = re.fullmatch(r"([A-Z]+) (\S+) HTTP/1\.[01]", lines[0])
    if match is None:
        return None
    target = urlsplit(match[2])
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
    }
    size = headers.get("content-length", "0")
    body = await reader.readexactly(min(int(size), MAX_HEAD)) if size.isdigit() and size != "0" else b""
    query = parse_qs(target.query, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    return HttpRequest(match[1], target.path, query, headers, head, body)


def refusal_response(refusal: RequestRefusedError, *, plain: bool) -> HttpResponse:
    """v1 answers errors as plain text, everything else as XRPC JSON; a refusal that brings HTML is sent as it is."""
    if refusal.name == "html":
        return HttpResponse(refusal.status, refusal.message.encode(), "text/html", refusal.headers)
    if plain:
        return HttpResponse(
            refusal.status, refusal.message.encode() + b"\n", "text/plain; charset=utf-8", refusal.headers
        )
    body = json.dumps({"error": refusal.name, "message": refusal.message}).encode()
    return HttpResponse(refusal.status, body, headers=refusal.headers)

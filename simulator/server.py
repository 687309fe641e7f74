"""The listener: one port for both WebSocket wires, the dictionary, and the control endpoints under `/_simulator/`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from websockets.frames import CloseCode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from simulator.blocks import BlockCache
from simulator.connection import Connection
from simulator.control import Control
from simulator.dictionary import FIRST_ID, V1_ID, Dictionary, train
from simulator.errors import PortTakenError
from simulator.network import Network
from simulator.request import Query, RequestRefusedError, Subscription, parse_v1, parse_v2

logger = logging.getLogger("explorer.simulator")

V1_PATH = "/subscribe"
V2_PATH = "/xrpc/network.bsky.jetstream.subscribeEvents"
DICTIONARY_PATH = "/xrpc/network.bsky.jetstream.getZstdDictionary"
SUBPROTOCOL = "xrpc.v1.json"
_MAX_HEAD = 1024 * 1024
_HEAD_SECONDS = 10.0
_REASONS = {
    200: "OK",
    206: "Partial Content",
    304: "Not Modified",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    416: "Range Not Satisfiable",
    429: "Too Many Requests",
    502: "Bad Gateway",
    503: "Service Unavailable",
}


@dataclass(frozen=True)
class HttpRequest:
    """One HTTP request with its body read."""

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


class JetstreamServer:
    """Serves one network; runs on the event loop that calls `start`."""

    def __init__(self, network: Network) -> None:
        settings = network.settings
        self.network = network
        self.cache = BlockCache(settings.cache_megabytes * 1024 * 1024, v1_cursor=settings.v1_cursor)
        self.connections: dict[Connection, asyncio.Task[None]] = {}
        self.v2_dictionary: Dictionary = train(settings, FIRST_ID, 2)
        self.v1_dictionary: Dictionary = train(settings, V1_ID, 1)
        self.sent_before = 0
        self.port = 0
        self.control = Control(self)
        self._server: asyncio.Server | None = None
        self._routes: dict[str, Callable[[HttpRequest], HttpResponse]] = {DICTIONARY_PATH: self._dictionary}

    async def start(self) -> None:
        """Bind and listen; PortTakenError when the address is not free."""
        settings = self.network.settings
        try:
            self._server = await asyncio.start_server(self._accept, settings.host, settings.port, limit=_MAX_HEAD)
        except OSError as error:
            raise PortTakenError(
                f"cannot listen on {settings.host}:{settings.port}: {error}",
                "Choose another port (0 picks a free one) or stop its owner",
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close all subscribers with 1001 and stop listening; bounded by two seconds."""
        if self._server is not None:
            self._server.close()
        tasks = list(self.connections.values())
        for connection in list(self.connections):
            with contextlib.suppress(Exception):
                await asyncio.wait_for(connection.close(CloseCode.GOING_AWAY, "server shutting down"), 1.0)
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def sent(self) -> int:
        """Frames sent to all subscribers since the start."""
        return self.sent_before + sum(connection.progress.sent for connection in self.connections)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await asyncio.wait_for(_read_request(reader), _HEAD_SECONDS)
            if request is None:
                return
            if request.headers.get("upgrade", "").lower() == "websocket" and request.path in (V1_PATH, V2_PATH):
                await self._subscribe(request, reader, writer)
            else:
                writer.write(_serialised(self._answer(request)))
                await asyncio.wait_for(writer.drain(), self.network.settings.deadline_seconds)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        finally:
            writer.close()

    def _answer(self, request: HttpRequest) -> HttpResponse:
        try:
            if request.path.startswith("/_simulator/"):
                return self.control.answer(request)
            route = self._routes.get(request.path)
            if route is not None:
                return route(request)
            if request.path in (V1_PATH, V2_PATH):
                raise RequestRefusedError(400, "InvalidRequest", "this endpoint needs a WebSocket upgrade")
            raise RequestRefusedError(404, "NotFound", f"no such path: {request.path[:200]}")
        except RequestRefusedError as refusal:
            return _refusal(refusal, plain=request.path == V1_PATH)

    async def _subscribe(
        self, request: HttpRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        network = self.network
        protocol = ServerProtocol(subprotocols=[SUBPROTOCOL] if request.path == V2_PATH else None, max_size=10_000_000)  # type: ignore[list-item]
        # The library limits the request line; a list of thousands of DIDs is longer, so it sees the headers only.
        protocol.receive_data(b"GET / HTTP/1.1\r\n" + request.head.partition(b"\r\n")[2])
        event = next(iter(protocol.events_received()), None)
        if protocol.handshake_exc is not None or not isinstance(event, Request):
            writer.write(_serialised(HttpResponse(400, b"malformed upgrade\n", "text/plain")))
            return
        try:
            subscription, dictionary = self._checked(request)
            start = network.start(subscription.cursor, subscription.version)
        except RequestRefusedError as refusal:
            writer.write(_serialised(_refusal(refusal, plain=request.path == V1_PATH)))
            await asyncio.wait_for(writer.drain(), network.settings.deadline_seconds)
            return
        if SUBPROTOCOL not in request.headers.get("sec-websocket-protocol", ""):
            protocol.available_subprotocols = None
        response = protocol.accept(event)
        protocol.send_response(response)
        for data in protocol.data_to_send():
            if data:
                writer.write(data)
        if response.status_code != 101:
            await asyncio.wait_for(writer.drain(), network.settings.deadline_seconds)
            return
        connection = Connection(network, self.cache, protocol, subscription, dictionary, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self.connections[connection] = task
        try:
            await connection.run(subscription.cursor, start.outdated, start.position)
        finally:
            del self.connections[connection]
            self.sent_before += connection.progress.sent

    def _checked(self, request: HttpRequest) -> tuple[Subscription, Dictionary | None]:
        if not self.network.ready:
            raise RequestRefusedError(503, "ServiceUnavailable", "bootstrap in progress")
        if len(self.connections) >= self.network.settings.max_subscribers:
            raise RequestRefusedError(503, "ServiceUnavailable", "too many subscribers")
        if request.path == V1_PATH:
            subscription = parse_v1(request.query, request.headers, self.v1_dictionary.number)
            return subscription, self.v1_dictionary if subscription.dictionary else None
        subscription = parse_v2(request.query, request.headers)
        current = self.v2_dictionary
        if subscription.dictionary not in (None, current.number):
            raise RequestRefusedError(
                400,
                "UnknownZstdDictionary",
                f"unknown dictionary {subscription.dictionary}, current is {current.number}",
            )
        return subscription, current if subscription.dictionary else None

    def _dictionary(self, request: HttpRequest) -> HttpResponse:
        current = self.v2_dictionary
        wanted = request.query.get("id", [str(current.number)])[0]
        if wanted == str(self.v1_dictionary.number):
            current = self.v1_dictionary
        elif wanted != str(current.number):
            raise RequestRefusedError(
                404, "DictionaryNotFound", f"no dictionary {wanted[:20]}, current is {current.number}"
            )
        headers = (
            ("ETag", f'"zstd-dict-{current.number}"'),
            ("X-Zstd-Dictionary-Id", str(current.number)),
            ("Cache-Control", "public, max-age=31536000, immutable"),
        )
        return HttpResponse(200, current.data, "application/octet-stream", headers)


async def _read_request(reader: asyncio.StreamReader) -> HttpRequest | None:
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
    body = await reader.readexactly(min(int(size), _MAX_HEAD)) if size.isdigit() and size != "0" else b""
    query = parse_qs(target.query, keep_blank_values=True, max_num_fields=1_020_000)
    return HttpRequest(match[1], target.path, query, headers, head, body)


def _refusal(refusal: RequestRefusedError, *, plain: bool) -> HttpResponse:
    """v1 answers errors as plain text, everything else as XRPC JSON."""
    if plain:
        return HttpResponse(
            refusal.status, refusal.message.encode() + b"\n", "text/plain; charset=utf-8", refusal.headers
        )
    body = json.dumps({"error": refusal.name, "message": refusal.message}).encode()
    return HttpResponse(refusal.status, body, headers=refusal.headers)


def _serialised(response: HttpResponse) -> bytes:
    lines = [
        f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Status')}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in response.headers),
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + response.body

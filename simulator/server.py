"""The listener: one port for both WebSocket wires, the XRPC endpoints, and the control endpoints under `/_simulator/`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from websockets.frames import CloseCode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from simulator.archive_api import ArchiveApi, CutShortError
from simulator.blocks import BlockCache
from simulator.connection import MAX_CLIENT_MESSAGE, Connection
from simulator.control import Control
from simulator.dictionary import FIRST_ID, V1_ID, Dictionary, train
from simulator.errors import ConnectionDroppedError, PortTakenError, SimulatorError
from simulator.http import MAX_HEAD, HttpRequest, HttpResponse, read_request, refusal_response
from simulator.network import Network
from simulator.refusals import upgrade_scenarios
from simulator.request import RequestRefusedError, Subscription, parse_v1, parse_v2

logger = logging.getLogger("explorer.simulator")

V1_PATH = "/subscribe"
V2_PATH = "/xrpc/network.bsky.jetstream.subscribeEvents"
DICTIONARY_PATH = "/xrpc/network.bsky.jetstream.getZstdDictionary"
SUBPROTOCOL = "xrpc.v1.json"
_HEAD_SECONDS = 10.0
_PAGE = (
    b"<!doctype html><title>jetstream (simulated)</title><h1>jetstream (simulated)</h1><p>last sequence number: %d</p>"
)
Route = Callable[[HttpRequest], Awaitable[HttpResponse]]


class JetstreamServer:
    """Serves one network; runs on the event loop that calls `start`."""

    def __init__(self, network: Network) -> None:
        settings = network.settings
        self.network = network
        self.cache = BlockCache(
            settings.cache_megabytes * 1024 * 1024, v1_cursor=settings.v1_cursor and not settings.legacy
        )
        self.connections: dict[Connection, asyncio.Task[None]] = {}
        self.v2_dictionary: Dictionary = train(settings, FIRST_ID, 2)
        self.v1_dictionary: Dictionary = train(settings, V1_ID, 1)
        self.port = 0
        self.warm_until = 0.0
        self.silent_until = 0.0
        self.failure: SimulatorError | None = None  # damage met while serving; the service stops for it
        self._sent_before = 0
        self._control = Control(self)
        self._server: asyncio.Server | None = None
        self._wires = {V1_PATH: 1} if settings.legacy else {V1_PATH: 1, V2_PATH: 2}
        self._routes: dict[str, Route] = {}
        if not settings.legacy:
            self._routes = {DICTIONARY_PATH: self._dictionary, **ArchiveApi(network).routes}

    async def start(self) -> None:
        """Bind and listen; PortTakenError when the address is not free."""
        settings = self.network.settings
        try:
            self._server = await asyncio.start_server(self._accept, settings.host, settings.port, limit=MAX_HEAD)
        except OSError as error:
            raise PortTakenError(
                f"cannot listen on {settings.host}:{settings.port}: {error}",
                "Choose another port (0 picks a free one), or stop what uses it",
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close all subscribers with 1001 and stop listening; bounded by three seconds."""
        if self._server is not None:
            self._server.close()
        tasks = list(self.connections.values())
        closing = [connection.close(CloseCode.GOING_AWAY, "server shutting down") for connection in self.connections]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*closing, return_exceptions=True), 1.0)
        if tasks:
            await asyncio.wait(tasks, timeout=2.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def sent(self) -> int:
        """Messages sent to all subscribers since the start."""
        return self._sent_before + sum(connection.sent for connection in self.connections)

    def rotate_dictionary(self) -> None:
        """Make a new dictionary the current one; connections keep the one they began with."""
        self.v2_dictionary = train(self.network.settings, self.v2_dictionary.number + 1, 2)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await asyncio.wait_for(read_request(reader), _HEAD_SECONDS)
            if request is None:
                return
            if request.headers.get("upgrade", "").lower() == "websocket" and request.path in self._wires:
                await self._subscribe(request, reader, writer)
            else:
                await self._respond(writer, await self._answer(request), head_only=request.method == "HEAD")
        except SimulatorError as failure:
            self.failure = failure
            writer.transport.abort()
        except CutShortError as cut:
            writer.write(cut.data)
            await asyncio.sleep(0.05)  # time for the first half to leave before the connection ends
            writer.transport.abort()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionDroppedError):
            writer.transport.abort()
        finally:
            writer.close()

    async def _respond(self, writer: asyncio.StreamWriter, response: HttpResponse, *, head_only: bool = False) -> None:
        writer.write(response.serialised(head_only=head_only))
        await asyncio.wait_for(writer.drain(), self.network.settings.deadline_seconds)

    async def _answer(self, request: HttpRequest) -> HttpResponse:
        try:
            if request.path.startswith("/_simulator/"):
                return await self._control.answer(request)
            route = self._routes.get(request.path)
            if route is not None:
                return await route(request)
            if request.path in ("/", "/status"):
                return HttpResponse(200, _PAGE % self.network.log.last_seq, "text/html")
            if request.path in self._wires:
                raise RequestRefusedError(400, "InvalidRequest", "this endpoint needs a WebSocket upgrade")
            raise RequestRefusedError(404, "NotFound", f"no such path: {request.path[:200]}")
        except RequestRefusedError as refusal:
            return refusal_response(refusal, plain=request.path == V1_PATH)

    async def _subscribe(
        self, request: HttpRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        network = self.network
        version = self._wires[request.path]
        offered = (
            [Subprotocol(SUBPROTOCOL)]
            if SUBPROTOCOL in request.headers.get("sec-websocket-protocol", "") and version == 2
            else None
        )
        protocol = ServerProtocol(subprotocols=offered, max_size=MAX_CLIENT_MESSAGE)
        # The library limits the request line; a list of thousands of DIDs is longer, so it sees the headers only.
        protocol.receive_data(b"GET / HTTP/1.1\r\n" + request.head.partition(b"\r\n")[2])
        event = next(iter(protocol.events_received()), None)
        try:
            if not isinstance(event, Request):
                raise RequestRefusedError(400, "InvalidRequest", "malformed upgrade request")
            await upgrade_scenarios(network.scenarios, version)
            subscription, dictionary = self._checked(request, version)
            start = network.start(subscription.cursor, version)
        except RequestRefusedError as refusal:
            await self._respond(writer, refusal_response(refusal, plain=version == 1))
            return
        response = protocol.accept(event)
        protocol.send_response(response)
        writer.writelines(data for data in protocol.data_to_send() if data)
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
            self._sent_before += connection.sent

    def _checked(self, request: HttpRequest, version: int) -> tuple[Subscription, Dictionary | None]:
        if not self.network.ready or time.monotonic() < self.warm_until:
            raise RequestRefusedError(503, "ServiceUnavailable", "server is warming up")
        if len(self.connections) >= self.network.settings.max_subscribers:
            raise RequestRefusedError(503, "ServiceUnavailable", "too many subscribers")
        if version == 1:
            subscription = parse_v1(request.query, request.headers, self.v1_dictionary.number)
            return subscription, self.v1_dictionary if subscription.dictionary else None
        subscription = parse_v2(request.query, request.headers)
        current = self.v2_dictionary
        if subscription.dictionary not in (None, current.number):
            message = f"unknown dictionary {subscription.dictionary}, current is {current.number}"
            raise RequestRefusedError(400, "UnknownZstdDictionary", message)
        return subscription, current if subscription.dictionary else None

    async def _dictionary(self, request: HttpRequest) -> HttpResponse:
        current = self.v2_dictionary
        wanted = request.query.get("id", [str(current.number)])[0]
        if wanted != str(current.number):
            raise RequestRefusedError(
                404, "DictionaryNotFound", f"no dictionary {wanted[:20]}, current is {current.number}"
            )
        headers = (
            ("ETag", f'"zstd-dict-{current.number}"'),
            ("X-Zstd-Dictionary-Id", str(current.number)),
            ("Cache-Control", "public, max-age=31536000, immutable"),
        )
        return HttpResponse(200, current.data, "application/octet-stream", headers)

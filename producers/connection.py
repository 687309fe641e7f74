"""One websocket to one Jetstream: open it, read messages, close it, each within a time limit. No reconnecting here.

A plain socket and `websockets`' protocol without I/O, driven by the caller's thread: the reader then decodes and publishes in
the same loop, with nothing queued in between that could hide a stall.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import CloseCode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from producers.errors import ConnectFailedError, ConnectionEndedError, HandshakeRefusedError
from producers.tls import client_context, failure_of
from producers.websocket_frames import FrameReader

READ_BYTES: Final = 256 * 1024
_MAX_REFUSAL_BYTES: Final = 256 * 1024
_USER_AGENT: Final = "bluesky-post-explorer"
# Not every system has a code of its own for a name without addresses.
_NO_SUCH_NAME: Final = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


class Connection:
    """An open websocket. Made by `open_connection`; used by one thread."""

    def __init__(self, sock: socket.socket, protocol: ClientProtocol, received: bytes, max_size: int) -> None:
        self._sock = sock
        self._protocol = protocol
        self._reader = FrameReader(protocol, max_size)
        self._first = received
        self._timeout: float | None = None
        now = time.monotonic()
        self._pinged_at = now
        self.last_bytes_at = now
        """Monotonic time of the newest bytes from the server, pongs included."""

    def read(self, timeout: float) -> list[bytes]:
        """Messages that arrived; waits up to `timeout` seconds for the first bytes, empty when none came.

        Answers the server's pings on the way, so it must be called at least every few seconds. Raises ConnectionEndedError once
        every message received before the end has been returned.
        """
        if self._first:
            data, self._first = self._first, b""
        elif self._protocol.state is not State.OPEN:
            raise self._ended()
        else:
            received = self._receive(timeout)
            if received is None:
                return []
            data = received
        self.last_bytes_at = time.monotonic()
        if not data:
            self._protocol.receive_eof()
            raise self._ended()
        messages = self._reader.feed(data)
        self._send_pending()
        if not messages and self._protocol.state is not State.OPEN:
            raise self._ended()
        return messages

    def ping_if_due(self, now: float, interval: float) -> None:
        """Send a ping of ours when the last is `interval` seconds old (`now` as time.monotonic)."""
        if now - self._pinged_at >= interval and self._protocol.state is State.OPEN:
            self._pinged_at = now
            self._protocol.send_ping(os.urandom(4))
            self._send_pending()

    def send_text(self, message: bytes) -> None:
        """Send one text message (v1 only; v2 closes the connection on any). Raises ConnectionEndedError."""
        self._protocol.send_text(message)
        self._send_pending()

    def close(self, timeout: float) -> None:
        """Say goodbye and wait up to `timeout` seconds for the answer; messages still arriving are dropped. Never raises."""
        deadline = time.monotonic() + timeout
        try:
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
                self._send_pending()
            # Once both close frames are exchanged nothing more can come; the server's side of TCP may end when it likes.
            while self._protocol.close_rcvd is None and (left := deadline - time.monotonic()) > 0:
                data = self._receive(left)
                if not data:
                    break
                self._reader.feed(data)
                self._send_pending()
        except (OSError, ConnectionEndedError, ValueError):
            pass
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Drop the TCP connection at once. Never raises."""
        with contextlib.suppress(OSError):
            self._sock.close()

    def _receive(self, timeout: float) -> bytes | None:
        if timeout != self._timeout:
            self._sock.settimeout(max(timeout, 0.001))
            self._timeout = timeout
        try:
            return self._sock.recv(READ_BYTES)
        except (TimeoutError, ssl.SSLWantReadError):
            return None
        except OSError as error:
            raise ConnectionEndedError(CloseCode.ABNORMAL_CLOSURE, f"{type(error).__name__}: {error}") from None

    def _send_pending(self) -> None:
        try:
            for data in self._protocol.data_to_send():
                if data:
                    self._sock.sendall(data)
        except OSError as error:
            raise ConnectionEndedError(CloseCode.ABNORMAL_CLOSURE, f"{type(error).__name__}: {error}") from None

    def _ended(self) -> ConnectionEndedError:
        received = self._protocol.close_rcvd
        if received is not None:
            return ConnectionEndedError(int(received.code), received.reason)
        sent = self._protocol.close_sent
        if sent is not None:
            return ConnectionEndedError(CloseCode.ABNORMAL_CLOSURE, f"we failed it: {int(sent.code)} {sent.reason}")
        return ConnectionEndedError(CloseCode.ABNORMAL_CLOSURE, "no close frame")


def open_connection(
    url: str,
    *,
    subprotocols: Sequence[str] = (),
    headers: Sequence[tuple[str, str]] = (),
    timeout: float,
    max_size: int,
    tls: ssl.SSLContext | None = None,
) -> Connection:
    """Open a websocket; blocks up to `timeout` seconds, plus however long the system's resolver takes.

    `tls` verifies a wss:// server; None trusts whom the system trusts. Never offers permessage-deflate. Raises ConnectFailedError,
    HandshakeRefusedError when the server answered with a status.
    """
    deadline = time.monotonic() + timeout
    parts = urlsplit(url)
    secure = parts.scheme == "wss"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    where = f"{host}:{port}"
    sock = _connect(host, port, deadline)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if secure:
            sock.settimeout(max(0.01, deadline - time.monotonic()))
            sock = (tls or client_context(None)).wrap_socket(sock, server_hostname=host)
        protocol = ClientProtocol(
            parse_uri(url), subprotocols=[Subprotocol(name) for name in subprotocols] or None, max_size=max_size
        )
        request = protocol.connect()
        request.headers["User-Agent"] = _USER_AGENT
        for name, value in headers:
            request.headers[name] = value
        protocol.send_request(request)
        for data in protocol.data_to_send():
            sock.sendall(data)
        rest = _read_response(sock, protocol, deadline)
    except ssl.SSLError as error:
        sock.close()
        raise ConnectFailedError(f"{where}: {failure_of(error, where)}") from None
    except OSError as error:
        sock.close()
        raise ConnectFailedError(f"{where} failed during the upgrade: {error.strerror or error}") from None
    except ConnectFailedError:
        sock.close()
        raise
    return Connection(sock, protocol, rest, max_size)


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    """A TCP connection to the first address that answers; the time left is shared among the addresses."""
    where = f"{host}:{port}"
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        hint = "; is the name in EXPLORER_SOURCE_HOSTS right?" if error.errno in _NO_SUCH_NAME else ""
        raise ConnectFailedError(f"{where} cannot be reached: {error.strerror or error}{hint}") from None
    failure: OSError | None = None
    for left, (family, kind, protocol, _, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(max(0.01, (deadline - time.monotonic()) / left))
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise ConnectFailedError(f"{where} cannot be reached: {(failure and failure.strerror) or failure}")


def _read_response(sock: socket.socket, protocol: ClientProtocol, deadline: float) -> bytes:
    """Feed the protocol exactly the HTTP response; return what follows it."""
    received = b""
    while (end := received.find(b"\r\n\r\n")) < 0:
        data = _receive_until(sock, deadline)
        received += data
        if not data or len(received) > _MAX_REFUSAL_BYTES:
            raise ConnectFailedError("the server ended the connection before a complete HTTP response")
    protocol.receive_data(received[: end + 4])
    rest = received[end + 4 :]
    if protocol.state is State.OPEN:
        protocol.events_received()
        return rest
    if rest:
        protocol.receive_data(rest)
    taken = len(rest)
    while protocol.handshake_exc is None and taken <= _MAX_REFUSAL_BYTES:
        data = _receive_until(sock, deadline)
        if not data:
            protocol.receive_eof()
            break
        taken += len(data)
        protocol.receive_data(data)
    failure = protocol.handshake_exc
    if isinstance(failure, InvalidStatus):
        raise _refused(failure.response)
    raise ConnectFailedError(f"not a websocket: {failure}")


def _receive_until(sock: socket.socket, deadline: float) -> bytes:
    left = deadline - time.monotonic()
    if left <= 0:
        raise ConnectFailedError("the upgrade took too long")
    sock.settimeout(left)
    return sock.recv(READ_BYTES)


def _refused(response: Response) -> HandshakeRefusedError:
    retry_after: float | None = None
    with contextlib.suppress(ValueError, KeyError):
        retry_after = min(max(float(response.headers["Retry-After"]), 0.0), 3600.0)
    location = response.headers.get("Location") if 300 <= response.status_code < 400 else None
    return HandshakeRefusedError(response.status_code, bytes(response.body or b""), retry_after, location)


class Droppable(Protocol):
    """What an attempt yields."""

    @property
    def connection(self) -> Connection:
        """Dropped when the attempt was given up before it succeeded."""


T = TypeVar("T", bound=Droppable)


class Opening(Generic[T]):
    """An attempt to connect, in a thread of its own, because name resolution cannot be interrupted.

    The thread is a daemon: one that hangs in the resolver does not keep the process from ending. `attempt` may raise
    ConnectFailedError.
    """

    def __init__(self, attempt: Callable[[], T]) -> None:
        self.started_us = time.time_ns() // 1000
        """When the attempt began, in unix microseconds."""
        self._attempt = attempt
        self._guard = threading.Lock()
        self._done = threading.Event()
        self._abandoned = False
        self._opened: T | None = None
        self._failure: ConnectFailedError | None = None
        threading.Thread(target=self._run, name="connect", daemon=True).start()

    def _run(self) -> None:
        opened: T | None = None
        try:
            opened = self._attempt()
        except ConnectFailedError as failure:
            self._failure = failure
        except Exception as error:
            self._failure = ConnectFailedError(f"{type(error).__name__}: {error}")
        with self._guard:
            self._opened = opened
            if self._abandoned and opened is not None:
                opened.connection.abandon()
        self._done.set()

    def result(self, timeout: float) -> T | None:
        """What was opened, or None when the attempt still goes on after `timeout` seconds. Raises ConnectFailedError."""
        if not self._done.wait(timeout):
            return None
        if self._failure is not None:
            raise self._failure
        return self._opened

    def abandon(self) -> None:
        """Give up the attempt; a connection that opens later is dropped."""
        with self._guard:
            self._abandoned = True
            if self._opened is not None:
                self._opened.connection.abandon()

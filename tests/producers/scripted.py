"""A Jetstream that does exactly what a test writes down, connection by connection; for what no healthy server does."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.frames import CloseCode
from websockets.server import ServerProtocol

SERVE_SECONDS = 60.0
PREFIX = "network.bsky.jetstream.subscribeEvents#"


class Peer:
    """One upgrade request and the connection it came on."""

    def __init__(self, sock: socket.socket, head: bytes) -> None:
        self._sock = sock
        self._protocol = ServerProtocol()
        self._head = head
        target = head.split(b" ", 2)[1].decode()
        self.path = urlsplit(target).path
        self.query: Mapping[str, list[str]] = parse_qs(urlsplit(target).query)
        self.head = head.decode("latin-1")
        self.received: list[bytes] = []
        """Data messages of the client."""

    @property
    def cursor(self) -> int | None:
        """The cursor asked for."""
        values = self.query.get("cursor")
        return int(values[0]) if values else None

    def refuse(self, status: int, body: bytes | str, headers: Mapping[str, str] | None = None) -> None:
        """Answer the upgrade with a status."""
        body = body.encode() if isinstance(body, str) else body
        lines = [f"HTTP/1.1 {status} Refused", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self._sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def refuse_xrpc(self, status: int, error: str, message: str = "") -> None:
        """Answer the upgrade with an XRPC error."""
        self.refuse(status, json.dumps({"error": error, "message": message}))

    def accept(self) -> None:
        """Complete the upgrade."""
        self._protocol.receive_data(self._head)
        (request,) = self._protocol.events_received()
        self._protocol.send_response(self._protocol.accept(request))  # type: ignore[arg-type]
        self._flush()

    def send(self, *frames: bytes | Mapping[str, Any]) -> None:
        """Send text messages; what is not bytes is written as JSON."""
        for frame in frames:
            self._protocol.send_text(frame if isinstance(frame, bytes) else json.dumps(frame).encode())
        self._flush()

    def send_binary(self, *frames: bytes) -> None:
        """Send binary messages."""
        for frame in frames:
            self._protocol.send_binary(frame)
        self._flush()

    def ping(self) -> None:
        """Send a ping."""
        self._protocol.send_ping(b"ping")
        self._flush()

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame and end in order."""
        self._protocol.send_close(CloseCode(code), reason)
        self._flush()
        self.hold(2.0)

    def drop(self) -> None:
        """End without a close frame, as a reset."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def hold(self, seconds: float = SERVE_SECONDS) -> None:
        """Keep the connection, answering control frames, until the client ends it or the time is over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._sock.settimeout(0.05)
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return
            if not data:
                return
            self._protocol.receive_data(data)
            for event in self._protocol.events_received():
                if getattr(event, "opcode", None) in (1, 2):
                    self.received.append(bytes(event.data))  # type: ignore[union-attr]
            with contextlib.suppress(OSError):
                self._flush()

    def _flush(self) -> None:
        self._sock.settimeout(SERVE_SECONDS)
        for data in self._protocol.data_to_send():
            if data:
                self._sock.sendall(data)


Script = Callable[[Peer], None]


class ScriptedServer:
    """Runs one script per upgrade, in order; the last one again and again. Plain requests are answered from `pages`.

    With `tls` it speaks nothing else; a handshake that fails is the client's business.
    """

    def __init__(
        self,
        scripts: Sequence[Script],
        pages: Mapping[str, Callable[[], tuple[int, bytes]]] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self._scripts = list(scripts)
        self._pages = dict(pages or {})
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.name = f"127.0.0.1:{self._listener.getsockname()[1]}"
        """Host and port."""
        self._stopping = False
        self.peers: list[Peer] = []
        """Every upgrade request so far."""
        self.errors: list[BaseException] = []

    @property
    def url(self) -> str:
        """Where to connect."""
        return f"{'ws' if self._tls is None else 'wss'}://{self.name}"

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Accept connections; at the end the scripts' own failures are raised."""
        thread = threading.Thread(target=self._accept, daemon=True)
        thread.start()
        try:
            yield self.url
        finally:
            self._stopping = True
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            thread.join(10)
        if self.errors:
            raise self.errors[0]

    def _accept(self) -> None:
        while not self._stopping:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.ExitStack() as open_sockets:
            open_sockets.enter_context(sock)
            try:
                if self._tls is not None:
                    try:
                        sock = open_sockets.enter_context(self._tls.wrap_socket(sock, server_side=True))
                    except OSError:
                        return
                head = b""
                while b"\r\n\r\n" not in head:
                    data = sock.recv(65536)
                    if not data:
                        return
                    head += data
                if b"upgrade: websocket" not in head.lower():
                    self._page(sock, head)
                    return
                peer = Peer(sock, head)
                self.peers.append(peer)
                script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
                script(peer)
            except (BrokenPipeError, ConnectionResetError):
                return
            except BaseException as error:
                self.errors.append(error)

    def _page(self, sock: socket.socket, head: bytes) -> None:
        path = urlsplit(head.split(b" ", 2)[1].decode()).path
        status, body = self._pages[path]() if path in self._pages else (404, b"not found")
        sock.sendall(
            f"HTTP/1.1 {status} Page\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
        )


def tid(micros: int) -> str:
    """The TID of a moment, of clock 0."""
    digits = "234567abcdefghijklmnopqrstuvwxyz"
    return "".join(digits[(micros << 10 >> 5 * place) % 32] for place in reversed(range(13)))


def v2_like(
    seq: int, time_us: int, *, rkey: str | None = None, did: str = "did:plc:scripted", rev: str | None = None
) -> dict[str, Any]:
    """A v2 commit of a like, by its rev made when the host witnessed it."""
    from producers.wire import format_time

    return {
        "$type": "message",
        "payload": {
            "$type": PREFIX + "commit", "did": did, "seq": seq, "time": format_time(time_us), "operation": "create",
            "collection": "app.bsky.feed.like", "rkey": rkey or f"3mp{seq:010d}", "rev": rev or tid(time_us), "cid": "bafyrei",
            "record": {"$type": "app.bsky.feed.like", "createdAt": "2026-07-04T14:38:08.999Z",
                       "subject": {"cid": "bafy", "uri": "at://did:plc:x/app.bsky.feed.post/3mptbyplj5d2a"}},
        },
    }  # fmt: skip


def v1_like(time_us: int, cursor: int | None, *, rkey: str | None = None) -> dict[str, Any]:
    """A v1 commit of a like."""
    payload = v2_like(cursor or time_us % 10**9, time_us, rkey=rkey)["payload"]
    commit = {name: payload[name] for name in ("rev", "operation", "collection", "rkey", "record", "cid")}
    frame = {"did": payload["did"], "time_us": time_us, "kind": "commit", "commit": commit}
    return frame if cursor is None else {**frame, "cursor": cursor}


def info(name: str, message: str) -> dict[str, Any]:
    """A v2 notice."""
    return {"$type": "message", "payload": {"$type": PREFIX + "info", "name": name, "message": message}}


def now_us() -> int:
    """The time of day in unix microseconds."""
    return time.time_ns() // 1000

"""One subscriber: handshake done, frames in bulk out, control frames in.

Control frames and the closing handshake go through websockets' protocol without I/O; data frames are framed by `simulator.wire`
and written in large chunks, because one library call per event would be the slowest part of a replay.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

import msgspec
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from simulator.blocks import BlockCache, Encoded
from simulator.config import SimulatorSettings
from simulator.dictionary import Dictionary
from simulator.log import BlockInfo
from simulator.network import Network
from simulator.request import Filter, Subscription, options_update
from simulator.wire import BINARY, TEXT, framed, info_frame

logger = logging.getLogger("explorer.simulator")

CHUNK_BYTES = 256 * 1024
HIGH_WATER = 1024 * 1024
MAX_CLIENT_MESSAGE = 10_000_000


class ConnectionDroppedError(Exception):
    """The connection ends without a closing handshake (the client sees 1006); the text says why."""


@dataclass
class Progress:
    """What a connection has sent, for status and scenarios."""

    sent: int = 0
    position: int = 0


class Connection:
    """Streams one subscription until the client leaves, misbehaves or the server drops it."""

    def __init__(
        self,
        network: Network,
        cache: BlockCache,
        protocol: ServerProtocol,
        subscription: Subscription,
        dictionary: Dictionary | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._network = network
        self._settings: SimulatorSettings = network.settings
        self._cache = cache
        self._protocol = protocol
        self._version = subscription.version
        self._filter: Filter = subscription.filter
        self._dictionary = dictionary
        self._reader = reader
        self._writer = writer
        self._pong_due: float | None = None
        self._hello = asyncio.Event()
        if not subscription.require_hello:
            self._hello.set()
        self._message = bytearray()
        self.progress = Progress()
        writer.transport.set_write_buffer_limits(high=HIGH_WATER)

    async def run(self, cursor: int | None, outdated: str | None, position: int) -> None:
        """Send from `position` on; returns when the connection is over. `cursor` None takes the live tip after a hello."""
        tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._send(cursor, outdated, position))]
        tasks.append(asyncio.create_task(self._keepalive()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except ConnectionDroppedError as reason:
            logger.info("subscriber dropped: %s", reason, extra={"sent": self.progress.sent})
            self._writer.transport.abort()
        except OSError:
            self._writer.transport.abort()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self, code: int, reason: str) -> None:
        """Begin a closing handshake and flush."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)
        await self._flush()

    # Receiving --------------------------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        while True:
            data = await self._reader.read(65_536)
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
            for event in self._protocol.events_received():
                if isinstance(event, Frame):
                    self._received(event)
            await self._flush()
            if not data or self._protocol.state in (State.CLOSING, State.CLOSED):
                return

    def _received(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            self._pong_due = None
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT) and self._protocol.state is State.OPEN:
            if self._version == 2:
                self._protocol.send_close(CloseCode.POLICY_VIOLATION, "unexpected data message")
            else:
                self._client_message(frame)

    def _client_message(self, frame: Frame) -> None:
        """v1: collect the fragments of a text message; `options_update` replaces the filter, everything else is ignored."""
        if frame.opcode is not Opcode.CONT:
            self._message = bytearray()
            self._binary = frame.opcode is Opcode.BINARY
        self._message += frame.data
        if not frame.fin or self._binary:
            return
        try:
            wanted = options_update(self._message.decode())
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._protocol.send_close(CloseCode.INVALID_DATA, "malformed message")
        except ValueError as error:
            self._protocol.send_close(CloseCode.POLICY_VIOLATION, str(error).encode()[:123].decode("utf-8", "ignore"))
        else:
            if wanted is not None:
                self._filter = wanted
                self._hello.set()

    async def _keepalive(self) -> None:
        await self._hello.wait()
        while True:
            await asyncio.sleep(self._settings.ping_seconds)
            if self._protocol.state is not State.OPEN:
                return
            self._protocol.send_ping(b"jetstream")
            self._pong_due = time.monotonic() + self._settings.deadline_seconds
            await self._flush()
            await asyncio.sleep(self._settings.deadline_seconds)
            if self._pong_due is not None:
                raise ConnectionDroppedError("no pong in time")

    # Sending ----------------------------------------------------------------------------------------------------------

    async def _send(self, cursor: int | None, outdated: str | None, position: int) -> None:
        waited = not self._hello.is_set()
        await self._hello.wait()
        if waited and cursor is None:
            position = self._network.log.position
        if outdated is not None:
            await self._control_message(info_frame("OutdatedCursor", outdated))
        network = self._network
        while True:
            if position >= network.log.position:
                await network.tip.wait()
                continue
            segment = network.segment_at(position)
            for info in network.infos(segment):
                if info.position + info.events > position:
                    await self._block(info, position - info.position)
                    position = info.position + info.events
                    self.progress.position = position
                    await asyncio.sleep(0)

    async def _block(self, info: BlockInfo, first: int) -> None:
        encoded = self._cache.encoded(info, self._version, self._dictionary)
        messages = encoded.messages[first:] if first else encoded.messages
        if not self._filter.everything:
            messages = self._filtered(info, encoded, first)
        sent = len(messages) - messages.count(b"") if b"" in messages[:] else len(messages)
        self._writer.write(b"".join(messages))
        self.progress.sent += sent
        await self._drain()

    def _filtered(self, info: BlockInfo, encoded: Encoded, first: int) -> list[bytes]:
        wants, limit = self._filter.wants, self._filter.max_bytes
        frames = self._cache.block(info).frames
        return [
            message
            for frame, message, size in zip(
                frames[first:], encoded.messages[first:], encoded.sizes[first:], strict=True
            )
            if message and (not limit or size <= limit) and wants(frame)
        ]

    async def _control_message(self, payload: bytes) -> None:
        if self._dictionary is not None:
            payload = self._dictionary.compress(payload)
        self._writer.write(framed((payload,), TEXT if self._dictionary is None else BINARY)[0])
        await self._drain()

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._writer.write(data)
        await self._drain()

    async def _drain(self) -> None:
        """Wait until the transport has room; `ConnectionDroppedError` when it takes nothing for the length of the deadline."""
        transport = self._writer.transport
        left = transport.get_write_buffer_size()
        while left > HIGH_WATER:
            try:
                await asyncio.wait_for(self._writer.drain(), self._settings.deadline_seconds)
            except TimeoutError:
                now = transport.get_write_buffer_size()
                if now >= left:
                    raise ConnectionDroppedError("no write progress in time") from None
                left = now
            else:
                return
        if transport.is_closing():
            raise ConnectionDroppedError("the client is gone")

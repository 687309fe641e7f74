"""One subscriber: handshake done, frames in bulk out, control frames in.

Control frames and the closing handshake go through websockets' protocol without I/O; data frames are framed by `simulator.wire`
and written a block at a time, because one library call per event would be the slowest part of a replay.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from bisect import bisect_right

import msgspec
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from simulator.blocks import BlockCache, Encoded
from simulator.dictionary import Dictionary
from simulator.errors import ConnectionDroppedError
from simulator.log import BlockInfo
from simulator.misbehaviour import ACTIONS, rearranged
from simulator.network import Network
from simulator.request import Filter, Subscription, options_update
from simulator.scenarios import Point
from simulator.wire import BINARY, TEXT, framed, info_frame

logger = logging.getLogger("explorer.simulator")

HIGH_WATER = 1024 * 1024
MAX_CLIENT_MESSAGE = 10_000_000


class Connection:
    """Streams one subscription until the client leaves, misbehaves or the server drops it. `sent` counts messages."""

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
        self.version = subscription.version
        self.sent = 0
        self.answers_pings = True
        self.deaf = False
        self._network = network
        self._cache = cache
        self._protocol = protocol
        self._filter: Filter = subscription.filter
        self._dictionary = dictionary
        self._reader = reader
        self._writer = writer
        self._pong_due: float | None = None
        self._hello = asyncio.Event()
        if not subscription.require_hello:
            self._hello.set()
        self._message = bytearray()
        self._binary = False
        self._finished = False
        writer.transport.set_write_buffer_limits(high=HIGH_WATER)

    async def run(self, cursor: int | None, outdated: str | None, position: int) -> None:
        """Send from `position` on; returns when the connection is over. `cursor` None takes the live tip after a hello."""
        tasks = [
            asyncio.create_task(self._receive()),
            asyncio.create_task(self._send(cursor, outdated, position)),
            asyncio.create_task(self._keepalive()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except ConnectionDroppedError as reason:
            logger.info("subscriber dropped: %s", reason, extra={"sent": self.sent})
            self.abort()
        except OSError:
            self.abort()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def abort(self) -> None:
        """End the TCP connection now, without a closing handshake."""
        self._writer.transport.abort()

    async def close(self, code: int, reason: str) -> None:
        """Begin a closing handshake; no data follows."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)
        await self._flush()

    # Receiving --------------------------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        """Until the client's half of the closing handshake or the end of its data; bounded once a close frame is out."""
        while self._protocol.state is not State.CLOSED:
            closing = self._protocol.state is State.CLOSING
            timeout = self._network.settings.deadline_seconds if closing else None
            try:
                data = await asyncio.wait_for(self._reader.read(65_536), timeout)
            except TimeoutError:
                return
            if self.deaf:
                continue
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
            for event in self._protocol.events_received():
                if isinstance(event, Frame):
                    self._received(event)
            await self._flush()
            if not data or self._finished:
                return

    def _received(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            self._pong_due = None
        elif frame.opcode is Opcode.PING and not self.answers_pings:
            self._protocol.data_to_send()  # the library has queued a pong: throw it away
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT) and self._protocol.state is State.OPEN:
            if self.version == 2:
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
        settings = self._network.settings
        while True:
            await asyncio.sleep(settings.ping_seconds)
            if self._protocol.state is State.OPEN and not self.deaf:
                self._protocol.send_ping(b"jetstream")
                self._pong_due = time.monotonic() + settings.deadline_seconds
                await self._flush()
                await asyncio.sleep(settings.deadline_seconds)
                if self._pong_due is not None:
                    raise ConnectionDroppedError("no pong in time")

    # Sending ----------------------------------------------------------------------------------------------------------

    async def _send(self, cursor: int | None, outdated: str | None, position: int) -> None:
        network = self._network
        waited = not self._hello.is_set()
        await self._hello.wait()
        if waited and cursor is None:
            position = network.log.position
        if outdated is not None:
            await self.send_text(info_frame("OutdatedCursor", outdated))
        while True:
            position, end = network.cursors.visible_from(position)
            if position >= end:
                await network.tip.wait()
                continue
            infos = network.infos(network.segment_at(position))
            # The active segment of a slow network holds thousands of small blocks: do not walk them at every wake-up.
            at = bisect_right(infos, position, key=lambda info: info.position) - 1
            while at < len(infos):
                info = infos[at]
                at += 1
                first, last = max(position, info.position), min(end, info.position + info.events)
                if first < last:
                    await self._block(info, first - info.position, last - info.position)
                    position = last
                    await asyncio.sleep(0)

    async def _block(self, info: BlockInfo, first: int, last: int) -> None:
        encoded = self._cache.encoded(info, self.version, self._dictionary)
        messages = encoded.messages if last - first == info.events else encoded.messages[first:last]
        if not self._filter.everything or encoded.hidden:
            messages = self._wanted(info, encoded, first, last)
        scenarios = self._network.scenarios
        armed = scenarios.armed(Point.FRAME)
        if armed and messages:
            await self._misbehave(armed, messages)
            return
        await self.write(b"".join(messages))
        self.sent += len(messages)

    def _wanted(self, info: BlockInfo, encoded: Encoded, first: int, last: int) -> list[bytes]:
        wants, limit = self._filter.wants, self._filter.max_bytes
        everything = self._filter.everything
        legacy = self._network.settings.legacy  # compares its limit with the bytes to be sent
        frames = self._cache.block(info).frames
        return [
            message
            for frame, message, size in zip(
                frames[first:last], encoded.messages[first:last], encoded.sizes[first:last], strict=True
            )
            if message and (everything or ((not limit or (len(message) if legacy else size) <= limit) and wants(frame)))
        ]

    async def _misbehave(self, armed: list[str], messages: list[bytes]) -> None:
        """Send messages with the frame scenarios that fire among them."""
        scenarios = self._network.scenarios
        plan = sorted((at, name) for name in armed for at in scenarios.hits(name, len(messages)))
        moved = [(at, name) for at, name in plan if name not in ACTIONS]
        done = 0
        for at, name in plan:
            if name not in ACTIONS:
                continue
            await self.write(b"".join(messages[done:at]))
            self.sent += at - done
            done = at
            if await ACTIONS[name](self, messages[at], scenarios.amount(name)):
                done = at + 1
                self.sent += 1
        rest = messages
        for at, name in moved:
            if at >= done:
                rest = rearranged(name, rest, at, scenarios.amount(name))
        await self.write(b"".join(rest[done:]))
        self.sent += len(rest) - done

    async def send_text(self, payload: bytes) -> None:
        """Send one message that is no event, compressed if the subscription is."""
        if self._dictionary is not None:
            payload = self._dictionary.compress(payload)
        await self.write(framed((payload,), TEXT if self._dictionary is None else BINARY)[0])

    async def write(self, data: bytes) -> None:
        """Write framed bytes under the write deadline; waits for ever (until the connection ends) once a close frame is out."""
        if self._protocol.state is not State.OPEN:
            await asyncio.Event().wait()
        self._writer.write(data)
        await self._drain(HIGH_WATER)

    async def drained(self) -> None:
        """Wait until all that was written has been handed to the kernel, under the write deadline."""
        self._writer.transport.set_write_buffer_limits(high=0)
        await self._drain(0)

    def linger_none(self) -> None:
        """Make the coming end of the connection a reset: linger of zero seconds sends RST instead of FIN."""
        wrapped = self._writer.get_extra_info("socket")
        if wrapped is not None:
            wrapped.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._writer.write(data)
            else:
                self._finished = True  # the library's sign that the closing handshake is complete
        await self._drain(HIGH_WATER)

    async def _drain(self, allowed: int) -> None:
        """Wait until at most `allowed` bytes wait; ConnectionDroppedError when none leaves within the deadline."""
        transport = self._writer.transport
        left = transport.get_write_buffer_size()
        while left > allowed:
            try:
                await asyncio.wait_for(self._writer.drain(), self._network.settings.deadline_seconds)
            except TimeoutError:
                now = transport.get_write_buffer_size()
                if now >= left:
                    raise ConnectionDroppedError("no write progress in time") from None
                left = now
            else:
                break
        if transport.is_closing():
            raise ConnectionDroppedError("the client is gone")

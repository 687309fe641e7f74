"""The frame scenarios: what a connection does to its client at a chosen message instead of simply sending it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from websockets.frames import CloseCode

from simulator.errors import ConnectionDroppedError
from simulator.wire import BINARY, TEXT, error_frame, framed, info_frame

if TYPE_CHECKING:
    from simulator.connection import Connection

Misbehaviour = Callable[["Connection", bytes, float], Awaitable[bool]]
"""Gets the connection, the message (a complete WebSocket frame) that is about to be sent, and the amount. The message is sent
afterwards by the caller, unless the answer is True (it has been sent) or the connection ends."""


async def _drop(connection: Connection, message: bytes, _: float) -> bool:
    await connection.write(message[: len(message) // 2])
    raise ConnectionDroppedError("scenario drop")


async def _reset(connection: Connection, message: bytes, _: float) -> bool:
    await connection.write(message[: len(message) // 2])
    connection.linger_none()
    raise ConnectionDroppedError("scenario reset")


def _close(code: int, reason: str) -> Misbehaviour:
    async def act(connection: Connection, _message: bytes, _amount: float) -> bool:
        await connection.close(code, reason)
        await asyncio.sleep(1.0)  # time for the client's half of the closing handshake
        raise ConnectionDroppedError(f"scenario close {code}")

    return act


def _error(name: str, text: str) -> Misbehaviour:
    async def act(connection: Connection, _message: bytes, _amount: float) -> bool:
        if connection.version == 2:
            await connection.send_text(error_frame(name, text))
            await connection.drained()
        raise ConnectionDroppedError(f"scenario error {name}")

    return act


async def _write_stall(connection: Connection, message: bytes, amount: float) -> bool:
    await connection.write(message[: len(message) // 2])
    await asyncio.sleep(amount)
    raise ConnectionDroppedError("scenario write-stall")


async def _silent_stall(_connection: Connection, _message: bytes, amount: float) -> bool:
    await asyncio.sleep(amount)
    return False


async def _half_open(connection: Connection, _message: bytes, amount: float) -> bool:
    connection.deaf = True
    await asyncio.sleep(amount)
    raise ConnectionDroppedError("scenario half-open")


async def _no_pong(connection: Connection, _message: bytes, _amount: float) -> bool:
    connection.answers_pings = False
    return False


async def _trickle(connection: Connection, message: bytes, amount: float) -> bool:
    """Send the message byte by byte."""
    for at in range(len(message)):
        await connection.write(message[at : at + 1])
        await asyncio.sleep(amount / 1000)
    return True


async def _fragments(connection: Connection, message: bytes, _: float) -> bool:
    """Send the message in three fragments with a ping between them."""
    payload = message[2 if message[1] < 126 else 4 if message[1] == 126 else 10 :]
    third = max(1, len(payload) // 3)
    pieces = (payload[:third], payload[third : 2 * third], payload[2 * third :])
    heads = (message[0] & 0x0F, 0x00, 0x80)
    for head, piece in zip(heads, pieces, strict=True):
        await connection.write(framed((piece,), head)[0])
        await connection.write(b"\x89\x02hi")
    return True


async def _junk_text(connection: Connection, _message: bytes, _amount: float) -> bool:
    await connection.write(framed((b"<html>gateway says hello</html>",), TEXT)[0])
    return False


async def _junk_binary(connection: Connection, _message: bytes, _amount: float) -> bool:
    await connection.write(framed((b"\x28\xb5\x2f\xfd\xff\x00junk",), BINARY)[0])
    return False


async def _unknown_info(connection: Connection, _message: bytes, _amount: float) -> bool:
    if connection.version == 2:
        await connection.send_text(info_frame("MaintenanceSoon", "nothing to do for clients"))
    return False


ACTIONS: dict[str, Misbehaviour] = {
    "drop": _drop,
    "reset": _reset,
    "close-1001": _close(CloseCode.GOING_AWAY, "server shutting down"),
    "close-1000": _close(CloseCode.NORMAL_CLOSURE, "terminated by the operator"),
    "error-too-slow": _error("ConsumerTooSlow", "consumer is more than 100000 events behind"),
    "error-internal": _error("InternalError", "read failed"),
    "error-unknown": _error("SomethingNew", "an error of a later version"),
    "write-stall": _write_stall,
    "silent-stall": _silent_stall,
    "half-open": _half_open,
    "no-pong": _no_pong,
    "trickle": _trickle,
    "fragments": _fragments,
    "junk-text": _junk_text,
    "junk-binary": _junk_binary,
    "unknown-info": _unknown_info,
}


def rearranged(name: str, messages: list[bytes], at: int, amount: float) -> list[bytes]:
    """`repeat` and `reorder`: the messages of a block in another order."""
    if name == "repeat":
        return [*messages[: at + 1], *messages[max(0, at + 1 - int(amount)) : at + 1], *messages[at + 1 :]]
    return [*messages[:at], *reversed(messages[at : at + 2]), *messages[at + 2 :]]

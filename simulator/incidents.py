"""The scenarios that happen once, when they are armed: to the server, its archive, its clock or the upstream network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from websockets.frames import CloseCode

if TYPE_CHECKING:
    from simulator.server import JetstreamServer

Incident = Callable[["JetstreamServer", float], Awaitable[None]]


async def happen(server: JetstreamServer, name: str, amount: float) -> None:
    """Let one incident happen; returns when its immediate effects are there."""
    await INCIDENTS[name](server, amount)


async def _disconnect_all(server: JetstreamServer, _: float) -> None:
    closing = [connection.close(CloseCode.GOING_AWAY, "server shutting down") for connection in server.connections]
    await asyncio.gather(*closing, return_exceptions=True)


async def _crash(server: JetstreamServer, _: float) -> None:
    for connection in list(server.connections):
        connection.abort()


async def _warm_up(server: JetstreamServer, amount: float) -> None:
    server.warm_until = time.monotonic() + amount


async def _rotate_dictionary(server: JetstreamServer, _: float) -> None:
    server.rotate_dictionary()


async def _raise_floor(server: JetstreamServer, amount: float) -> None:
    server.network.forget_before(max(0, server.network.log.position - int(amount)))


async def _seq_gap(server: JetstreamServer, amount: float) -> None:
    server.network.generator.events.next_seq += int(amount)


async def _seq_reset(server: JetstreamServer, amount: float) -> None:
    server.network.reset_archive()
    await _crash(server, amount)


async def _seq_reuse(server: JetstreamServer, amount: float) -> None:
    server.network.lose_tail(int(amount))
    await _crash(server, amount)


async def _time_jump(server: JetstreamServer, amount: float) -> None:
    clock = server.network.clock
    clock.set(clock.now_us() + int(amount * 1e6))


async def _silence(server: JetstreamServer, amount: float) -> None:
    server.silent_until = time.monotonic() + amount


async def _burst(server: JetstreamServer, amount: float) -> None:
    left = int(amount)
    while left > 0 and not server.network.full:
        now = server.network.clock.now_us()
        server.network.live(min(left, 1024), now, now + 1)
        left -= 1024
        await asyncio.sleep(0)


async def _rate(server: JetstreamServer, amount: float) -> None:
    server.network.rate = amount


async def _v1_without_cursor(server: JetstreamServer, amount: float) -> None:
    server.cache.set_v1_cursor(wanted=not amount)


async def _compaction(server: JetstreamServer, _: float) -> None:
    server.network.compact()


INCIDENTS: dict[str, Incident] = {
    "disconnect-all": _disconnect_all,
    "crash": _crash,
    "warm-up": _warm_up,
    "rotate-dictionary": _rotate_dictionary,
    "raise-floor": _raise_floor,
    "seq-gap": _seq_gap,
    "seq-reset": _seq_reset,
    "seq-reuse": _seq_reuse,
    "time-jump": _time_jump,
    "silence": _silence,
    "burst": _burst,
    "rate": _rate,
    "v1-without-cursor": _v1_without_cursor,
    "compaction": _compaction,
}

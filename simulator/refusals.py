"""The upgrade scenarios: what a server or a proxy in front of it may answer instead of accepting a subscriber."""

from __future__ import annotations

import asyncio

from simulator.errors import ConnectionDroppedError
from simulator.request import RequestRefusedError
from simulator.scenarios import Point, Scenarios

_PROXY_PAGE = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


async def upgrade_scenarios(scenarios: Scenarios, version: int) -> None:
    """Pass one upgrade through the armed scenarios.

    Returns if it may go on; RequestRefusedError with the answer, ConnectionDroppedError to end without one.
    """
    for name in scenarios.armed(Point.UPGRADE):
        if not scenarios.hits(name, 1):
            continue
        amount = scenarios.amount(name)
        if name == "slow-upgrade":
            await asyncio.sleep(amount)
        elif name == "drop-upgrade":
            raise ConnectionDroppedError("scenario drop-upgrade")
        elif name != "refuse-too-old":
            raise _refusal(name, amount)
        elif version == 2:
            raise RequestRefusedError(400, "CursorTooOld", "cursor is older than the oldest available sequence 1000")


def _refusal(name: str, amount: float) -> RequestRefusedError:
    match name:
        case "refuse-400":
            return RequestRefusedError(400, "InvalidRequest", "refused by scenario")
        case "refuse-401":
            return RequestRefusedError(401, "AuthMissing", "a key is needed")
        case "refuse-429":
            return RequestRefusedError(
                429, "RateLimitExceeded", "too many connections", (("Retry-After", f"{amount:g}"),)
            )
        case "refuse-500":
            return RequestRefusedError(500, "InternalServerError", "internal server error")
        case "refuse-502":
            return RequestRefusedError(502, "html", _PROXY_PAGE)
        case _:
            return RequestRefusedError(503, "ServiceUnavailable", "server is warming up")

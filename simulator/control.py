"""Control of a running simulator over HTTP, for tests and for the status display; never part of Jetstream."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from simulator.http import HttpRequest, HttpResponse
from simulator.incidents import happen
from simulator.log import COUNT_NAMES
from simulator.request import RequestRefusedError
from simulator.scenarios import SCENARIOS, Point, UnknownScenarioError

if TYPE_CHECKING:
    from simulator.server import JetstreamServer


class Control:
    """Answers `/_simulator/status`, `pause`, `resume`, `scenarios`, `scenario?name=…` and `v1-dictionary`.

    `scenario` arms a scenario with `every`, `count`, `after`, `share`, `amount`, or disarms it with `off=1`; one of the point `now`
    happens at once. Its answer, and each entry of `scenarios`, tells how often it fired.
    """

    def __init__(self, server: JetstreamServer) -> None:
        self._server = server

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Handle one control request; RequestRefusedError with 404 for an unknown one, 400 for bad options."""
        server = self._server
        network = server.network
        action = request.path.removeprefix("/_simulator/")
        body: object
        if action == "scenario":
            body = await self._scenario({name: values[0] for name, values in request.query.items()})
        elif action == "scenarios":
            body = [network.scenarios.status(name) for name in SCENARIOS]
        elif action == "v1-dictionary":
            return HttpResponse(200, server.v1_dictionary.data, "application/octet-stream")
        elif action in ("status", "pause", "resume"):
            if action != "status":
                network.paused = action == "pause"
            body = self.status()
        else:
            raise RequestRefusedError(404, "NotFound", f"no control {action[:100]}")
        return HttpResponse(200, json.dumps(body).encode())

    async def _scenario(self, options: dict[str, str]) -> dict[str, object]:
        scenarios = self._server.network.scenarios
        name = options.pop("name", "")
        try:
            if options.pop("off", ""):
                scenarios.disarm(name)
            else:
                scenarios.arm(name, options)
            if name not in SCENARIOS:
                raise UnknownScenarioError(f"no scenario {name[:100]!r}")
        except UnknownScenarioError as error:
            raise RequestRefusedError(400, "InvalidRequest", str(error)) from error
        for armed in scenarios.armed(Point.NOW):
            amount = scenarios.amount(armed)
            scenarios.hits(armed, 1)
            scenarios.disarm(armed)
            await happen(self._server, armed, amount)
        return scenarios.status(name)

    def status(self) -> dict[str, object]:
        """Figures of the running simulator."""
        server = self._server
        network = server.network
        counts = {table: dict(zip(COUNT_NAMES, row, strict=True)) for table, row in sorted(network.log.counts.items())}
        return {
            "ready": network.ready,
            "paused": network.paused,
            "rate": network.rate,
            "generated": network.log.position,
            "sent": server.sent,
            "subscribers": len(server.connections),
            "last_seq": network.log.last_seq,
            "last_time_us": network.log.last_time,
            "now_us": network.clock.now_us(),
            "dictionary": server.v2_dictionary.number,
            "counts": counts,
        }

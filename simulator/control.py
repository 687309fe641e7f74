"""Control of a running simulator over HTTP, for tests and for the status display; never part of Jetstream."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from simulator.log import COUNT_NAMES
from simulator.request import RequestRefusedError

if TYPE_CHECKING:
    from simulator.server import HttpRequest, HttpResponse, JetstreamServer


class Control:
    """Answers `/_simulator/status`, `/_simulator/pause` and `/_simulator/resume`."""

    def __init__(self, server: JetstreamServer) -> None:
        self._server = server

    def answer(self, request: HttpRequest) -> HttpResponse:
        """Handle one control request; RequestRefusedError with 404 for an unknown one."""
        from simulator.server import HttpResponse

        network = self._server.network
        action = request.path.removeprefix("/_simulator/")
        if action in ("pause", "resume"):
            network.paused = action == "pause"
        elif action != "status":
            raise RequestRefusedError(404, "NotFound", f"no control {action[:100]}")
        return HttpResponse(200, json.dumps(self.status()).encode())

    def status(self) -> dict[str, object]:
        """Figures of the running simulator."""
        server = self._server
        network = server.network
        counts = {table: dict(zip(COUNT_NAMES, row, strict=True)) for table, row in sorted(network.log.counts.items())}
        return {
            "ready": network.ready,
            "paused": network.paused,
            "generated": network.log.position,
            "sent": server.sent,
            "subscribers": len(server.connections),
            "last_seq": network.log.last_seq,
            "last_time_us": network.log.last_time,
            "now_us": network.clock.now_us(),
            "dictionary": server.v2_dictionary.number,
            "counts": counts,
        }

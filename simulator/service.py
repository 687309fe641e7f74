"""The simulator as a process: history first, then live events and subscribers until it is told to stop."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping

from simulator.config import SimulatorSettings
from simulator.network import BLOCK_EVENTS, Network
from simulator.server import JetstreamServer

logger = logging.getLogger("explorer.simulator")

Report = Callable[[Mapping[str, object]], None]
_MAX_DEBT_SECONDS = 0.5


class SimulatorService:
    """Runs one simulator. The port in use is in `port` and in `<data_dir>/address.json` once it listens."""

    def __init__(self, settings: SimulatorSettings, report: Report) -> None:
        self._settings = settings
        self._report = report
        self.port = 0
        self.listening = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Block until `stop` is set; SimulatorError for a taken port, a busy or foreign data folder, a damaged log."""
        asyncio.run(self._run(stop))

    async def _run(self, stop: threading.Event) -> None:
        network = Network(self._settings)
        try:
            server = JetstreamServer(network)
            await server.start()
            try:
                self._announce(server)
                await self._generate(network, server, stop)
            finally:
                await server.stop()
        finally:
            network.close()

    def _announce(self, server: JetstreamServer) -> None:
        self.port = server.port
        address = {"host": self._settings.host, "port": server.port, "url": f"ws://{self._settings.host}:{server.port}"}
        path = self._settings.data_dir / "address.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(address))
        temporary.replace(path)
        self.listening.set()
        logger.info("simulator listens on %s", address["url"], extra=address)

    async def _generate(self, network: Network, server: JetstreamServer, stop: threading.Event) -> None:
        reported = 0.0
        for _ in network.history():
            await asyncio.sleep(0)
            if stop.is_set():
                return
            reported = self._maybe_report(network, server, reported)
        settings = self._settings
        before, sim_before = time.monotonic(), network.clock.now_us()
        owed = 0.0
        while not stop.is_set():
            await asyncio.sleep(0 if owed >= BLOCK_EVENTS else settings.tick_seconds)
            now, sim_now = time.monotonic(), network.clock.now_us()
            if not network.paused and not network.full and now >= server.silent_until:
                # A machine that cannot keep up makes events as fast as it can and forgets the rest of what it owes.
                owed = min(owed + (now - before) * network.rate, max(network.rate * _MAX_DEBT_SECONDS, 1.0))
                slots = min(int(owed), BLOCK_EVENTS)
                if slots:
                    share = slots / int(owed)
                    upto = sim_before + int((sim_now - sim_before) * share)
                    network.live(slots, sim_before, upto)
                    owed -= slots
                    sim_before = upto
            else:
                owed, sim_before = 0.0, sim_now
            before = now
            if server.failure is not None:
                raise server.failure
            reported = self._maybe_report(network, server, reported)

    def _maybe_report(self, network: Network, server: JetstreamServer, reported: float) -> float:
        now = time.monotonic()
        if now - reported < 1.0:
            return reported
        self._report(
            {
                "generated": network.log.position,
                "sent": server.sent,
                "rate": network.rate,
                "subscribers": len(server.connections),
                "last_seq": network.log.last_seq,
                "ready": network.ready,
            }
        )
        return now

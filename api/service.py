"""The API process: one uvicorn server in the calling thread, until asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping

import uvicorn

from api.app import create_app
from api.config import ApiSettings
from api.errors import ServiceError
from api.services import Services

LOGGER = logging.getLogger("explorer.api")
_POLL_SECONDS = 0.2
_BACKLOG = 2048


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        # Signals belong to the process that runs the service: it sets `stop`.
        yield


class ApiService:
    """Serves the lake over HTTP."""

    def __init__(
        self, config: ApiSettings, lake: str, manifest: str, report: Callable[[Mapping[str, object]], None]
    ) -> None:
        """`lake` is a folder, `manifest` a SQLite path or PostgreSQL URL; both are opened read only, when they exist."""
        self._config = config
        self._lake = lake
        self._manifest = manifest
        self._report = report
        self.port = config.port
        self.ready = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set; running requests get `drain_seconds`. Raises ServiceError when it cannot listen."""
        listener = self._listen()
        try:
            asyncio.run(self._serve(listener, stop))
        finally:
            listener.close()

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._config.host else socket.AF_INET
        # With the protocol named, asyncio sets TCP_NODELAY on its connections; without, answers wait 40 ms for an ACK.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._config.host, self._config.port))
            # From here on a connection waits for the server instead of being refused.
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise ServiceError(
                f"The API cannot listen on {self._config.host}:{self._config.port}: {error.strerror}.",
                "Free the port, or set EXPLORER_API_PORT (0 = any free one) or EXPLORER_API_HOST.",
            ) from error
        self.port = listener.getsockname()[1]
        return listener

    async def _serve(self, listener: socket.socket, stop: threading.Event) -> None:
        app = create_app(self._config, self._lake, self._manifest)
        services: Services = app.state.services
        server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                # Which proxies to believe is the access layer's business.
                proxy_headers=False,
                date_header=True,
                ws="none",
                timeout_keep_alive=30,
                h11_max_incomplete_event_size=self._config.url_bytes + 32_768,
                timeout_graceful_shutdown=max(1, round(self._config.drain_seconds)),
            )
        )
        serving = asyncio.create_task(server.serve([listener]))
        LOGGER.info("listening", extra={"host": self._config.host, "port": self.port})
        self.ready.set()
        reported = 0.0
        while not serving.done():
            if stop.is_set() and not server.should_exit:
                services.runner.stop()
                server.should_exit = True
            if time.monotonic() - reported >= 1.0:
                reported = time.monotonic()
                self._report(_numbers(services, self.port))
            await asyncio.wait({serving}, timeout=_POLL_SECONDS)
        serving.result()
        self._report(_numbers(services, self.port))


def _numbers(services: Services, port: int) -> dict[str, object]:
    counts = services.counts
    lanes = services.runner.lanes.values()
    return {
        "port": port,
        "requests": counts.requests,
        "active": counts.active,
        "errors": counts.statuses["5xx"],
        "refused": sum(lane.status.refused for lane in lanes),
        "queries": sum(lane.status.finished for lane in lanes),
        "queries_running": sum(lane.status.running for lane in lanes),
        "queries_waiting": sum(lane.status.waiting for lane in lanes),
        "mean_seconds": round(counts.seconds / counts.requests, 4) if counts.requests else 0.0,
    }

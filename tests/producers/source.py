"""A simulator in a thread, and what its ledger says that a capture must hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from schemas.identity import Identity, commit_identity, relay_identity, sync_identity
from simulator.config import SimulatorSettings
from simulator.ledger import Ledger, LedgerEvent
from simulator.service import SimulatorService
from tests.producers.harness import running, wait_for


class Source:
    """A simulator with a log of its own."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        values: dict[str, Any] = {"port": 0, "history_hours": 0.0, "rate": 2000.0, "accounts": 500, **settings}
        self.settings = SimulatorSettings(data_dir=data_dir, **values)
        self.service = SimulatorService(self.settings, lambda report: None)
        self.ledger = Ledger(data_dir)

    @contextmanager
    def serve(self) -> Iterator[str]:
        """The simulator running; gives its URL."""
        with running(self.service) as thread:
            wait_for(lambda: self.service.listening.is_set() or thread.ended, "the simulator")
            if thread.error is not None:
                raise thread.error
            yield f"ws://127.0.0.1:{self.service.port}"

    def arm(self, scenario: str, **options: float) -> None:
        """Switch a scenario on while the simulator runs."""
        query = "&".join(f"{name}={value}" for name, value in {"name": scenario, **options}.items())
        answer = httpx.get(f"http://127.0.0.1:{self.service.port}/_simulator/scenario?{query}", timeout=30)
        assert answer.status_code == 200, answer.text

    def v1_dictionary(self) -> bytes:
        """The dictionary that the simulator compresses v1 frames with."""
        return httpx.get(f"http://127.0.0.1:{self.service.port}/_simulator/v1-dictionary", timeout=30).content

    def fired(self) -> dict[str, int]:
        """How often each scenario fired."""
        answer = httpx.get(f"http://127.0.0.1:{self.service.port}/_simulator/scenarios", timeout=30)
        return {entry["name"]: entry["fired"] for entry in answer.json()}

    def identities(self, *, wire: str = "v2") -> set[Identity]:
        """What a complete capture over `wire` must hold."""
        return {
            event_identity(event)
            for event in self.ledger.events()
            if wire == "v2" or (event.kind != "sync" and not event.resync)
        }


def event_identity(event: LedgerEvent) -> Identity:
    """The identity of an event of the ledger."""
    if event.kind == "commit":
        return commit_identity(
            event.did, event.collection or "", event.rkey or "", event.rev or "", event.operation or ""
        )
    if event.kind == "sync":
        return sync_identity(event.did, event.record.get("rev") or "")
    return relay_identity(event.kind, event.did, event.record.get("seq"), event.record.get("time"))

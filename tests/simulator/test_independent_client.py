"""Independent clients from PyPI read the simulator without a complaint: `atproto` v2 and the archive, `truewire-bluesky` v1."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, Callable
from typing import Any

import pytest
from atproto import JetstreamClient
from atproto_client.models.base import ModelBase
from atproto_client.models.utils import get_or_create
from bluesky.core.ws import SocketClient
from bluesky.jetstream.events import JetstreamEvent
from truewire_core.validation import validator

from simulator.mix import KNOWN
from tests.simulator.conftest import Running

KINDS = ("commit", "identity", "account")
"""Not `sync`: the client of `atproto` 0.0.73 stops at the `$bytes` of its blocks (atproto's JSON mapping of bytes)."""


def _client(running: Running, compress: bool = False) -> JetstreamClient:
    return JetstreamClient(
        {"cursor": 1, "kinds": list(KINDS)}, base_uri=f"ws://127.0.0.1:{running.service.port}/xrpc", compress=compress
    )


def _read(client: JetstreamClient, count: int) -> tuple[list[Any], list[BaseException]]:
    messages: list[Any] = []
    errors: list[BaseException] = []

    def on_message(message: Any) -> None:
        messages.append(message)
        if len(messages) == count:
            client.stop()

    watchdog = threading.Timer(60, client.stop)
    watchdog.start()
    try:
        client.start(on_message, errors.append)
    finally:
        watchdog.cancel()
    return messages, errors


def test_it_reads_all_events_plain_and_compressed(shared: Running) -> None:
    events = [event for event in shared.ledger.events() if event.kind in KINDS]
    for compress in (False, True):
        client = _client(shared, compress)
        messages, errors = _read(client, len(events))
        assert errors == []
        assert client.compressed is compress
        assert [message.seq for message in messages] == [event.seq for event in events]
        assert [message.did for message in messages] == [event.did for event in events]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_validating_v1_client_reads_all_events(start: Callable[..., Running], legacy: bool) -> None:
    """It checks each event against its own types and raises where one does not fit."""
    running = start(legacy=legacy)
    wanted = [event for event in running.ledger.events() if event.kind != "sync" and not event.resync]

    async def read() -> list[JetstreamEvent]:
        async with SocketClient.new("ws://" + running.url("/subscribe")) as client:
            stream = client.subscribe(
                "subscribe", {"cursor": wanted[0].time_us}, payload_validator=validator(JetstreamEvent)
            )
            async with stream as events:
                return await _first(events, len(wanted))

    found = asyncio.run(asyncio.wait_for(read(), 60))
    assert [(event["did"], event["kind"]) for event in found] == [(event.did, event.kind) for event in wanted]
    commits = [event["commit"] for event in found if "commit" in event]
    assert [(commit["operation"], commit["rkey"], commit.get("cid")) for commit in commits] == [
        (event.operation, event.rkey, event.cid) for event in wanted if event.kind == "commit"
    ]


async def _first(events: AsyncIterable[JetstreamEvent], count: int) -> list[JetstreamEvent]:
    """Waiting for one more would never end."""
    found: list[JetstreamEvent] = []
    async for event in events:
        found.append(event)
        if len(found) == count:
            break
    return found


def test_it_survives_rotation_drops_and_odd_frames(start: Callable[..., Running]) -> None:
    running = start(rate=1500.0, history_hours=0.2)
    running.scenario("drop", every=700, count=1)
    running.scenario("unknown-payload", every=300)
    running.scenario("sync")
    client = _client(running)
    threading.Timer(0.5, running.scenario, ("rotate-dictionary",)).start()
    messages, errors = _read(client, 3000)
    assert errors == []
    known = {event.seq for event in running.ledger.events() if event.kind in KINDS}
    seqs = [message.seq for message in messages]
    assert seqs == sorted(known)[: len(seqs)]
    assert running.fired("drop") == 1


def test_it_reads_the_archive_and_derives_the_same_cids(start: Callable[..., Running]) -> None:
    running = start(api_key="test")
    client = JetstreamClient(base_uri=f"ws://127.0.0.1:{running.service.port}/xrpc", api_key="test")
    messages = list(client.snapshot())
    events = list(running.ledger.events())[: len(messages)]
    assert len(messages) > 3000
    assert [(message.seq, getattr(message, "cid", None)) for message in messages] == [
        (event.seq, event.cid) for event in events
    ]


def test_generated_records_are_valid_by_the_published_lexicons(shared: Running) -> None:
    seen = set()
    for event in shared.ledger.events():
        if event.collection in KNOWN and event.record is not None:
            name = event.collection
            record = get_or_create(event.record, strict=False, strict_string_format=True)
            assert isinstance(record, ModelBase), (name, event.record)
            seen.add(name)
    assert len(seen) >= 10

"""Every misbehaviour that the simulator knows, one test each: the topics end as the ledger says, as sets of identities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.kafka import KafkaSettings
from producers.errors import SourceSettingsError
from schemas.identity import Identity, row_identity
from simulator.scenarios import SCENARIOS, Point
from tests.producers.harness import Broker, Running, running, wait_for
from tests.producers.source import Source, event_identity

EVENTS = 1_500
QUICK = {"silence_timeout": 1.0, "ping_interval": 0.3, "backoff_longest": 0.3, "open_timeout": 5.0}
AMOUNT = {
    "write-stall": 1, "silent-stall": 3, "half-open": 3, "refuse-429": 0.1, "slow-upgrade": 0.5, "warm-up": 0.5,
    "silence": 2, "time-jump": 100, "burst": 500, "raise-floor": 100, "imported-time": 100, "seq-reuse": 50,
}  # fmt: skip
EVERY = {Point.EVENT: 40, Point.FRAME: 500, Point.UPGRADE: 1}
LOST_AT_THE_SOURCE = {"raise-floor", "seq-reset", "seq-reuse"}
"""After these the server itself no longer has what it had sent or was about to send."""
SEPARATELY = {"rate", "v1-without-cursor", "refuse-400", "refuse-401", "refuse-too-old"}
"""They end otherwise than in the same set of events; each has a test of its own below."""


@pytest.fixture
def broker(kafka_broker: KafkaSettings) -> Broker:
    return Broker(kafka_broker)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Source, str]]:
    """A simulator that has made its events and only serves them, shared by the tests of connections."""
    source = Source(tmp_path_factory.mktemp("still"), max_events=EVENTS, rate=50_000)
    with source.serve() as url:
        wait_for(lambda: source.ledger.total() >= EVENTS, "the simulator")
        yield source, url


def names(point: Point) -> list[str]:
    return [name for name, scenario in SCENARIOS.items() if scenario.point is point and name not in SEPARATELY]


def expected(source: Source, wire: str) -> set[Identity]:
    return {
        event_identity(event)
        for event in source.ledger.events()
        if not event.unparsable and (wire == "v2" or (event.kind != "sync" and not event.resync))
    }


def arm(source: Source, name: str, **options: Any) -> None:
    amount = {"amount": AMOUNT[name]} if name in AMOUNT else {}
    source.arm(name, **amount, **options)


def capture(
    source: Source, url: str, broker: Broker, want: set[Identity], source_settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Run a producer until everything in `want` is in the topics; the rows."""
    service, reports = broker.producer(url, {**QUICK, **source_settings}, dead_letter_share=1.0)
    rows: list[dict[str, Any]] = []

    def complete() -> bool:
        if not reports or int(str(reports[-1]["enqueued"])) < len(want):
            return False
        rows[:] = broker.rows()
        return want <= {row_identity(row) for row in rows}

    with running(service) as thread:
        wait_for(lambda: thread.ended or complete(), "the events of the ledger", 40.0)
    return broker.rows()


@pytest.mark.parametrize(
    ("wire", "compression"),
    [("v2", "none"), ("v2", "zstd"), ("v1", "none"), ("v1", "zstd")],
    ids=["v2", "v2 zstd", "v1", "v1 zstd"],
)
def test_every_kind_of_event(tmp_path: Path, broker: Broker, wire: str, compression: str) -> None:
    """All oddities of records and events at once: each is a row, or a dead letter when no parser takes it."""
    scenarios = tuple(f"{name}:every=97,after={7 * at}" for at, name in enumerate(names(Point.EVENT)))
    source = Source(tmp_path / "source", max_events=4_000, rate=50_000, scenarios=scenarios)
    settings: dict[str, Any] = {"protocol": wire, "compression": compression}
    with source.serve() as url:
        wait_for(lambda: source.ledger.total() >= 4_000, "the simulator")
        if wire == "v1" and compression == "zstd":
            settings["dictionary"] = tmp_path / "dictionary"
            settings["dictionary"].write_bytes(source.v1_dictionary())
        want = expected(source, wire)
        rows = capture(source, url, broker, want, settings)
        fired = source.fired()
    got = {row_identity(row) for row in rows}
    letters = broker.dead_letters()
    assert want <= got
    assert [name for name in names(Point.EVENT) if not fired[name]] == []
    unparsable = {
        event_identity(event): event.seq
        for event in source.ledger.events()
        if event.unparsable and (wire == "v2" or not event.resync)
    }
    # A number beyond every parser is kept as text where no field has to hold it, and set aside elsewhere.
    assert got - want <= unparsable.keys()
    assert {seq for identity, seq in unparsable.items() if identity not in got} <= {letter.seq for letter in letters}
    if wire == "v2":
        assert {row["did"] for row in rows if row["resync"]}
        resync = {event_identity(event) for event in source.ledger.events() if event.resync}
        assert {row_identity(row) for row in rows if row["resync"]} == resync


@pytest.mark.parametrize("wire", ["v1", "v2"])
@pytest.mark.parametrize("name", names(Point.FRAME))
def test_trouble_on_the_connection(still: tuple[Source, str], broker: Broker, name: str, wire: str) -> None:
    source, url = still
    before = source.fired()[name]
    arm(source, name, every=EVERY[Point.FRAME], count=2)
    want = expected(source, wire)
    rows = capture(source, url, broker, want, {"protocol": wire})
    source.arm(name, off=1)
    assert source.fired()[name] > before
    assert {row_identity(row) for row in rows} == want
    assert broker.gaps() == []


@pytest.mark.parametrize("name", names(Point.UPGRADE))
def test_trouble_at_the_upgrade(still: tuple[Source, str], broker: Broker, name: str) -> None:
    source, url = still
    arm(source, name, count=2)
    want = expected(source, "v2")
    rows = capture(source, url, broker, want, {})
    source.arm(name, off=1)
    assert source.fired()[name]
    assert {row_identity(row) for row in rows} == want


@pytest.mark.parametrize("name", ["refuse-400", "refuse-401"])
def test_a_refusal_for_good_ends_with_an_instruction(still: tuple[Source, str], broker: Broker, name: str) -> None:
    source, url = still
    arm(source, name)
    service, _ = broker.producer(url, QUICK)
    thread = Running(service)
    try:
        wait_for(lambda: thread.ended, "the refusal")
    finally:
        source.arm(name, off=1)
        thread.stop.set()
    with pytest.raises(SourceSettingsError, match=name.removeprefix("refuse-")) as ended:
        thread.join()
    assert ended.value.exit_code == 2
    assert "EXPLORER_SOURCE_HOSTS" in ended.value.remedy


def test_a_cursor_called_too_old_is_resumed_by_time_and_loses_nothing(
    still: tuple[Source, str], broker: Broker
) -> None:
    """The server forgets numbers, not events: nothing is missing afterwards, so no gap is recorded."""
    source, url = still
    want = expected(source, "v2")
    assert {row_identity(row) for row in capture(source, url, broker, want, {})} == want
    before = source.fired()["refuse-too-old"]
    arm(source, "refuse-too-old", count=1)
    service, reports = broker.producer(url, QUICK)
    with running(service):
        wait_for(lambda: bool(reports) and int(str(reports[-1]["enqueued"])) > 0, "events read again")
    assert source.fired()["refuse-too-old"] == before + 1
    assert broker.identities() == want
    assert broker.gaps() == []


def test_another_rate_in_the_middle(tmp_path: Path, broker: Broker) -> None:
    source = Source(tmp_path, max_events=4 * EVENTS, rate=200)
    with source.serve() as url:
        service, reports = broker.producer(url, QUICK)
        with running(service):
            wait_for(lambda: bool(reports) and int(str(reports[-1]["enqueued"])) > 100, "a start")
            source.arm("rate", amount=20_000)
            wait_for(lambda: source.ledger.total() >= 4 * EVENTS, "the simulator")
            want = expected(source, "v2")
            wait_for(lambda: want <= broker.identities(), "the events of the ledger", 40.0)
        assert source.fired()["rate"] == 1
    assert broker.identities() == want


@pytest.mark.parametrize("wire", ["v1", "v2"])
@pytest.mark.parametrize("name", names(Point.NOW))
def test_an_incident_in_the_middle(tmp_path: Path, broker: Broker, name: str, wire: str) -> None:
    """The incident happens while events flow; what the server still has afterwards is in the topics."""
    source = Source(tmp_path, max_events=4 * EVENTS, rate=1_000)
    with source.serve() as url:
        service, reports = broker.producer(
            url, {**QUICK, "protocol": wire, "compression": "zstd" if wire == "v2" else "none"}
        )
        with running(service):
            wait_for(lambda: bool(reports) and int(str(reports[-1]["enqueued"])) > EVENTS, "a start")
            arm(source, name)
            wait_for(lambda: source.ledger.total() >= 4 * EVENTS, "the simulator")
            want = expected(source, wire)
            wait_for(lambda: want <= broker.identities(), "the events of the ledger", 40.0)
        assert source.fired()[name]
    if name not in LOST_AT_THE_SOURCE:
        assert broker.identities() == want
    assert {gap.reason for gap in broker.gaps()} <= {"time-jump": {"jump"}, "seq-reset": {"renumbered"}}.get(
        name, set()
    )


def test_v1_loses_its_cursor_member(tmp_path: Path, broker: Broker) -> None:
    """The same host changes to software without sequences and back."""
    source = Source(tmp_path, max_events=4 * EVENTS, rate=1_500)
    with source.serve() as url:
        service, reports = broker.producer(url, {**QUICK, "protocol": "v1"})
        with running(service):
            for amount in (1, 0):
                before = int(str(reports[-1]["enqueued"])) if reports else 0
                wait_for(lambda: bool(reports) and int(str(reports[-1]["enqueued"])) > before + EVENTS, "a start")  # noqa: B023
                source.arm("v1-without-cursor", amount=amount)
                source.arm("disconnect-all")
            wait_for(lambda: source.ledger.total() >= 4 * EVENTS, "the simulator")
            want = expected(source, "v1")
            wait_for(lambda: want <= broker.identities(), "the events of the ledger", 40.0)
    assert broker.identities() == want


def test_a_legacy_server(tmp_path: Path, broker: Broker) -> None:
    source = Source(tmp_path, max_events=EVENTS, rate=50_000, legacy=True)
    with source.serve() as url:
        wait_for(lambda: source.ledger.total() >= EVENTS, "the simulator")
        source.arm("drop", every=400, count=2)
        want = expected(source, "v1")
        rows = capture(source, url, broker, want, {})
    assert {row_identity(row) for row in rows} == want
    assert {(row["protocol"], row["seq"]) for row in rows} == {("v1", None)}

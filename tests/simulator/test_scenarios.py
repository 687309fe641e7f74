"""Each scenario of section 15 of the reference fires when it should and does what its name says."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest
from websockets.exceptions import (
    ConnectionClosed,
    ConnectionClosedError,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
)

from simulator.config import SimulatorSettings
from simulator.ledger import LedgerEvent
from simulator.scenarios import SCENARIOS, Point, Scenarios, UnknownScenarioError
from tests.simulator.conftest import V1, V2, Running, collect, small

EVENT_NAMES = [name for name, scenario in SCENARIOS.items() if scenario.point is Point.EVENT]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A network in which every event scenario fires several times."""
    armed = tuple(
        f"{name}:every=1000,count=13" if name == "odd-times" else f"{name}:every=1000" for name in EVENT_NAMES
    )
    one = Running(small(tmp_path_factory.mktemp("odd"), history_hours=2.0, scenarios=armed))
    yield one
    one.stop()


@pytest.fixture(scope="module")
def events(odd: Running) -> list[LedgerEvent]:
    return list(odd.ledger.events(malformed=True))


def test_every_event_scenario_fires_and_is_counted(odd: Running) -> None:
    assert {name: odd.fired(name) > 0 for name in EVENT_NAMES} == dict.fromkeys(EVENT_NAMES, True)


def test_both_wires_carry_all_of_it(odd: Running, events: list[LedgerEvent]) -> None:
    total = odd.ledger.total()
    texts = odd.read(total, cursor=1)
    known = [str(text).encode() for text in texts if b'"$type":"message"' in str(text).encode()]
    sound = {event.raw for event in events if not event.flaw}
    assert sound <= set(known)
    hidden = sum(event.resync or event.kind == "sync" for event in events)
    v1 = odd.read(total - hidden, V1, cursor=1)
    parsed = 0
    for text in v1:
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            continue
        parsed += 1
    assert parsed >= len(v1) - odd.fired("malformed") - odd.fired("deep")


def test_events_of_the_rare_kinds(events: list[LedgerEvent]) -> None:
    accounts = [event.record for event in events if event.kind == "account"]
    assert {"takendown", "suspended", "deactivated", "desynchronized", "throttled", "deleted", "frozen"} & {
        account.get("status") for account in accounts
    }
    assert any(account["active"] is False and "status" not in account for account in accounts)
    identities = [event.record for event in events if event.kind == "identity"]
    assert any("handle" in identity for identity in identities)
    assert any("handle" not in identity for identity in identities)
    syncs = [event.record for event in events if event.kind == "sync"]
    assert any(sync["blocks"]["$bytes"] == "" and sync["seq"] == 0 and sync["time"] == "" for sync in syncs)
    assert any(sync["blocks"]["$bytes"] and sync["seq"] for sync in syncs)


def test_a_resync_is_a_sync_and_creates_of_its_rev(events: list[LedgerEvent]) -> None:
    rows = [event for event in events if event.resync]
    syncs = {(event.did, event.record["rev"]): event for event in events if event.kind == "sync"}
    assert len(rows) >= 5
    for row in rows:
        sync = syncs[row.did, row.rev or ""]
        assert (row.time_us, row.operation) == (sync.time_us, "create")
        assert row.seq > sync.seq


def test_several_events_share_one_time_and_rev(events: list[LedgerEvent]) -> None:
    groups: dict[tuple[str, str | None, int], set[str | None]] = {}
    for event in events:
        if event.operation == "create" and not event.resync:
            groups.setdefault((event.did, event.rev, event.time_us), set()).add(event.rkey)
    assert max(map(len, groups.values())) >= 4


def test_poisoned_records_are_what_they_say(events: list[LedgerEvent]) -> None:
    records = [event for event in events if event.kind == "commit" and event.record_json is not None]
    texts = [event.record_json or b"" for event in records]
    assert any(event.unparsable and len(event.record_json or b"") > 50_000 for event in records)
    assert any(len(text) >= 1_500_000 for text in texts)
    assert any(event.record == {} for event in records)
    assert any(isinstance(event.record, dict) and "$type" not in event.record and event.record for event in records)
    assert any(b"\\u0000" in text for text in texts)
    assert any(isinstance(event.record, dict) and "\ud83d" in str(event.record.get("text")) for event in records)
    assert any(b"0001-01-01" in text for text in texts)
    assert any(b'"text":"first","text":"second"' in text for text in texts)
    assert any(event.record == [] or isinstance(event.record, (str, int)) for event in records)
    assert any(len(event.rkey or "") == 255 for event in records)
    assert any(b"9007199254740993" in text for text in texts)


def test_unknown_kinds_are_no_events(odd: Running, events: list[LedgerEvent]) -> None:
    unknown = odd.fired("unknown-payload") + odd.fired("unknown-envelope")
    assert odd.ledger.total() - len(events) == unknown
    texts = odd.read(odd.ledger.total(), cursor=1)
    assert sum("#label" in text or '"heartbeat"' in text for text in map(str, texts)) == unknown


def test_oddities_are_deterministic(odd: Running, start: Callable[..., Running], events: list[LedgerEvent]) -> None:
    again = start(history_hours=2.0, scenarios=odd.settings.scenarios)
    assert [event.raw for event in again.ledger.events(malformed=True)] == [event.raw for event in events]


def test_schedules() -> None:
    one = Scenarios(5, ("drop:every=10,count=2", "repeat:every=3,after=4", "reset:share=0.2"))
    assert one.hits("drop", 35) == [9, 19]
    assert one.armed(Point.FRAME) == ["repeat", "reset"]
    assert one.hits("repeat", 5) + [5 + at for at in one.hits("repeat", 8)] == [6, 9, 12]
    share = one.hits("reset", 1000)
    assert 120 < len(share) < 280
    assert Scenarios(5, ("reset:share=0.2",)).hits("reset", 1000) == share
    assert one.fired("drop") == 2
    one.arm("drop", {})
    assert one.fired("drop") == 2


@pytest.mark.parametrize("text", ["nonsense", "drop:every=0", "drop:count=x", "drop:colour=red", "drop:share=2"])
def test_bad_scenarios_are_refused_with_the_settings(text: str) -> None:
    with pytest.raises(UnknownScenarioError):
        Scenarios(1, (text,))
    with pytest.raises(ValueError, match="scenario"):
        SimulatorSettings(scenarios=(text,))


@pytest.mark.parametrize("path", [V2, V1])
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("drop", 1006),
        ("reset", 1006),
        ("close-1001", 1001),
        ("close-1000", 1000),
        ("error-too-slow", 1006),
        ("write-stall", 1006),
        ("half-open", 1006),
    ],
)
def test_connections_end_as_told(start: Callable[..., Running], name: str, code: int, path: str) -> None:
    running = start(history_hours=0.3)
    running.scenario(name, every=100, count=1, amount=0.2)
    texts: list[str] = []
    with running.connect(path, cursor=1) as client, pytest.raises(ConnectionClosed) as closed:
        collect(client, texts)
    assert (closed.value.rcvd.code if closed.value.rcvd else 1006) == code
    if name.startswith("error") and path == V2:
        assert json.loads(texts.pop()) == {
            "$type": "error", "error": "ConsumerTooSlow", "message": "consumer is more than 100000 events behind",
        }  # fmt: skip
    assert len(texts) == 99
    assert running.fired(name) == 1
    assert len(running.read(1000, path, cursor=1)) == 1000


def test_messages_in_strange_forms_lose_nothing(start: Callable[..., Running]) -> None:
    running = start(history_hours=0.3)
    expected = running.read(1000, cursor=1)
    for name in ("trickle", "fragments"):
        running.scenario(name, every=200, count=3, amount=0)
        assert running.read(1000, cursor=1) == expected
        assert running.fired(name) == 3
    running.scenario("reorder", every=200, count=2)
    mixed = running.read(1000, cursor=1)
    assert mixed != expected
    assert sorted(mixed) == sorted(expected)
    running.scenario("repeat", every=300, count=1, amount=5)
    repeated = running.read(1005, cursor=1)
    assert len(set(repeated)) == 1000
    for name in ("junk-text", "junk-binary", "unknown-info"):
        running.scenario(name, every=500, count=1)
        extra = [text for text in running.read(1001, cursor=1) if text not in expected]
        assert len(extra) == 1


def test_a_silent_connection_answers_pings_and_goes_on(start: Callable[..., Running]) -> None:
    running = start(history_hours=0.3)
    running.scenario("silent-stall", every=50, count=1, amount=0.6)
    with running.connect(cursor=1) as client:
        seqs = [json.loads(client.recv(timeout=5))["payload"]["seq"] for _ in range(49)]
        assert client.ping().wait(0.4)
        seqs += [json.loads(client.recv(timeout=5))["payload"]["seq"] for _ in range(50)]
    assert seqs == list(range(1, 100))


def test_no_pong(start: Callable[..., Running]) -> None:
    running = start(history_hours=0.3)
    running.scenario("no-pong", every=10, count=1)
    with running.connect(cursor=1) as client:
        for _ in range(20):
            client.recv(timeout=5)
        assert not client.ping().wait(0.5)


@pytest.mark.parametrize(
    ("name", "status", "kind"),
    [
        ("refuse-400", 400, "json"), ("refuse-401", 401, "json"), ("refuse-429", 429, "json"), ("refuse-500", 500, "json"),
        ("refuse-502", 502, "html"), ("refuse-503", 503, "json"), ("refuse-too-old", 400, "json"),
    ],
)  # fmt: skip
def test_upgrades_are_refused_in_the_wires_format(
    start: Callable[..., Running], name: str, status: int, kind: str
) -> None:
    running = start(history_hours=0.1)
    for path in (V2, V1) if name != "refuse-too-old" else (V2,):
        running.scenario(name, count=1)
        with pytest.raises(InvalidStatus) as refusal, running.connect(path):
            pass
        response = refusal.value.response
        assert response.status_code == status
        expected = "html" if kind == "html" else "plain" if path == V1 else "json"
        assert expected in response.headers["Content-Type"]
        if name == "refuse-429":
            assert response.headers["Retry-After"] == "1"
        with running.connect(path):
            pass


def test_upgrades_can_be_slow_or_end_in_nothing(start: Callable[..., Running]) -> None:
    running = start(history_hours=0.1)
    running.scenario("drop-upgrade", count=1)
    with pytest.raises((InvalidHandshake, InvalidMessage, OSError, EOFError)), running.connect():
        pass
    running.scenario("slow-upgrade", count=1, amount=0.5)
    before = time.monotonic()
    with running.connect():
        assert time.monotonic() - before >= 0.5
    running.scenario("warm-up", amount=0.5)
    with pytest.raises(InvalidStatus), running.connect():
        pass
    running.wait(lambda: _accepts(running))


def _accepts(running: Running) -> bool:
    try:
        with running.connect():
            return True
    except InvalidStatus:
        return False


def test_dictionary_rotation(start: Callable[..., Running]) -> None:
    running = start(history_hours=0.1)
    old = running.status()["dictionary"]
    with running.connect(cursor=1, zstdDictionary=old) as client:
        client.recv(timeout=5)
        running.scenario("rotate-dictionary")
        client.recv(timeout=5)
    new = running.status()["dictionary"]
    assert new != old
    with pytest.raises(InvalidStatus) as refusal, running.connect(zstdDictionary=old):
        pass
    body = json.loads(refusal.value.response.body)
    assert (body["error"], str(new) in body["message"]) == ("UnknownZstdDictionary", True)
    with running.connect(cursor=1, zstdDictionary=new) as client:
        assert isinstance(client.recv(timeout=5), bytes)


def _next(running: Running, **query: object) -> dict:
    return json.loads(running.read(1, **query)[0])["payload"]


def test_a_rebuilt_archive_starts_over_with_later_times(start: Callable[..., Running]) -> None:
    running = start(history_hours=0.3)
    last = list(running.ledger.events())[-1]
    with running.connect() as client:
        running.scenario("seq-reset")
        with pytest.raises(ConnectionClosedError):
            client.recv(timeout=5)
    running.scenario("burst", amount=50)
    first = _next(running, cursor=1)
    assert first["seq"] == 1
    assert [event.seq for event in running.ledger.events()][-50:][0] == 1
    assert list(running.ledger.events())[-1].time_us > last.time_us
    with running.connect(cursor=last.seq) as client, pytest.raises(TimeoutError):
        client.recv(timeout=0.3)  # from the old numbering: looks like the future, so live
    info, first = (json.loads(text)["payload"] for text in running.read(2, cursor=last.time_us))
    assert (info["name"], first["seq"]) == ("OutdatedCursor", 1)


def test_reused_numbers_carry_other_content(start: Callable[..., Running]) -> None:
    running = start(history_hours=0.5)
    before = {event.seq: event.raw for event in running.ledger.events()}
    tip = max(before)
    running.scenario("seq-reuse", amount=100)
    running.scenario("burst", amount=300)
    served = running.read(tip, cursor=1)
    seqs = [json.loads(text)["payload"]["seq"] for text in served]
    assert seqs == list(range(1, tip + 1))
    assert [str(text).encode() for text in served[: tip - 100]] == [before[seq] for seq in range(1, tip - 99)]
    assert all(
        str(text).encode() != before[seq] for text, seq in zip(served[tip - 100 :], seqs[tip - 100 :], strict=True)
    )
    running.stop()
    again = start("network", history_hours=0.5)
    assert again.read(tip, cursor=1) == served


def test_numbers_can_have_holes_and_time_can_jump(start: Callable[..., Running]) -> None:
    running = start(history_hours=0.1)
    tip = running.status()["last_seq"]
    time_us = running.status()["last_time_us"]
    running.scenario("seq-gap", amount=500)
    running.scenario("time-jump", amount=7200)
    running.scenario("burst", amount=10)
    first = _next(running, cursor=tip + 1)
    assert first["seq"] == tip + 501
    assert running.status()["last_time_us"] - time_us >= 7_200_000_000


def test_silence_and_rate(start: Callable[..., Running]) -> None:
    running = start(rate=500.0, history_hours=0.1)
    running.scenario("silence", amount=0.8)
    before = running.status()["last_seq"]
    time.sleep(0.4)
    assert running.status()["last_seq"] == before
    running.wait(lambda: running.status()["last_seq"] > before)
    running.scenario("rate", amount=0)
    assert running.status()["rate"] == 0


def test_v1_loses_its_cursor_member(start: Callable[..., Running]) -> None:
    running = start(history_hours=0.1)
    assert "cursor" in json.loads(running.read(1, V1, cursor=1)[0])
    running.scenario("v1-without-cursor")
    assert "cursor" not in json.loads(running.read(1, V1, cursor=1)[0])
    running.scenario("v1-without-cursor", amount=0)
    assert "cursor" in json.loads(running.read(1, V1, cursor=1)[0])


def test_a_crash_drops_everybody(start: Callable[..., Running]) -> None:
    running = start(history_hours=0.1)
    with running.connect() as client:
        running.scenario("crash")
        with pytest.raises(ConnectionClosedError) as closed:
            client.recv(timeout=5)
    assert closed.value.rcvd is None

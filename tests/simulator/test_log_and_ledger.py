"""The log survives what happens to processes and files, and the ledger tells the truth about it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosedError, InvalidHandshake

from simulator.errors import DataFolderBusyError, DataFolderError, LogDamagedError, LogVersionError, PortTakenError
from simulator.ledger import Ledger
from simulator.log import segment_paths
from simulator.network import Network
from tests.simulator.conftest import Running, collect, small


def _make(folder: Path, **changes: object) -> Network:
    network = Network(small(folder, **changes))
    for _ in network.history():
        pass
    return network


def _content(folder: Path) -> list[tuple[int, bytes]]:
    return [(event.seq, event.raw) for event in Ledger(folder).events(malformed=True)]


def test_ledger_counts_equal_its_events(tmp_path: Path) -> None:
    _make(tmp_path, malformed_share=0.05, scenarios=("unknown-payload:every=500", "resync:every=900")).close()
    ledger = Ledger(tmp_path)
    events = list(ledger.events(malformed=True))
    counted = ledger.counts()
    tables = Counter(event.table for event in events if not event.flaw)
    assert {name: row["events"] for name, row in counted.items()} == dict(tables)
    assert sum(row["malformed"] for row in counted.values()) == sum(bool(event.flaw) for event in events) > 0
    for name, operation in (("creates", "create"), ("updates", "update"), ("deletes", "delete")):
        expected = sum(event.operation == operation for event in events if not event.flaw)
        assert sum(row[name] for row in counted.values()) == expected
    assert list(ledger.events("app.bsky.feed.post")) == [
        event for event in events if event.table == "app.bsky.feed.post" and not event.flaw
    ]
    unknown = ledger.total() - len(events)
    assert unknown == 7
    first = events[0]
    assert json.loads(first.raw)["payload"]["record"] == first.record


def test_two_networks_of_one_seed_are_equal(tmp_path: Path) -> None:
    for name in ("one", "two"):
        _make(tmp_path / name).close()
    assert _content(tmp_path / "one") == _content(tmp_path / "two")


def test_a_clean_restart_continues_as_if_it_had_not_happened(tmp_path: Path) -> None:
    whole, parts = _make(tmp_path / "whole"), _make(tmp_path / "parts")
    now = whole.clock.now_us()
    whole.live(3000, now, now + 10_000_000)
    whole.live(3000, now + 10_000_000, now + 20_000_000)
    whole.close()
    parts.live(3000, now, now + 10_000_000)
    parts.close()
    parts = Network(small(tmp_path / "parts"))
    assert not list(parts.history())
    parts.live(3000, now + 10_000_000, now + 20_000_000)
    parts.close()
    assert _content(tmp_path / "whole") == _content(tmp_path / "parts")


def test_after_a_crash_seqs_revs_and_records_continue(tmp_path: Path) -> None:
    network = _make(tmp_path)
    now = network.clock.now_us()
    network.live(4000, now, now + 10_000_000)
    network.log.close()
    network._lock.close()  # no checkpoint: as a killed process leaves it
    again = Network(small(tmp_path))
    again.live(4000, now + 10_000_000, now + 20_000_000)
    again.close()
    events = list(Ledger(tmp_path).events())
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    live: set[tuple[str, str, str]] = set()
    gone: set[str] = set()
    revs: dict[str, str] = {}
    for event in events:
        assert event.did not in gone
        if event.kind == "account" and event.record.get("status") == "deleted":
            gone.add(event.did)
        if event.collection is None or event.rkey is None or event.rev is None:
            continue
        assert event.rev >= revs.get(event.did, "")
        revs[event.did] = event.rev
        key = (event.did, event.collection, event.rkey)
        assert (key in live) == (event.operation != "create")
        (live.discard if event.operation == "delete" else live.add)(key)


@pytest.mark.parametrize("lost", [1, 30, 500])
def test_a_torn_last_block_is_cut_off(tmp_path: Path, lost: int) -> None:
    _make(tmp_path).close()
    before = _content(tmp_path)
    (tmp_path / "checkpoint.msgpack").unlink()
    last = segment_paths(tmp_path / "log")[-1]
    os.truncate(last, last.stat().st_size - lost)
    kept = _content(tmp_path)
    assert kept == before[: len(kept)]
    assert len(kept) < len(before)
    network = Network(small(tmp_path))
    network.live(10, network.clock.now_us(), network.clock.now_us() + 1000)
    network.close()
    assert _content(tmp_path)[: len(kept)] == kept
    assert _content(tmp_path)[len(kept)][0] == kept[-1][0] + 1


def test_damage_in_a_sealed_segment_stops_the_simulator(tmp_path: Path) -> None:
    _make(tmp_path).close()
    first = segment_paths(tmp_path / "log")[0]
    data = bytearray(first.read_bytes())
    data[20] ^= 0xFF
    first.write_bytes(data)
    with pytest.raises(LogDamagedError, match="damaged at byte 0"):
        Network(small(tmp_path))


def test_another_seed_does_not_continue_a_log(tmp_path: Path) -> None:
    _make(tmp_path).close()
    with pytest.raises(LogVersionError, match="'seed': 1"):
        Network(small(tmp_path, seed=2))


def test_a_data_folder_has_one_writer(tmp_path: Path) -> None:
    network = _make(tmp_path)
    with pytest.raises(DataFolderBusyError, match="in use by another simulator"):
        Network(small(tmp_path))
    network.close()


def test_a_taken_port_is_named(start: Callable[..., Running], tmp_path: Path) -> None:
    first = start()
    import threading

    from simulator.service import SimulatorService

    with pytest.raises(PortTakenError, match=str(first.service.port)):
        SimulatorService(small(tmp_path / "other", port=first.service.port), lambda _: None).run(threading.Event())


def test_max_events_ends_the_network(tmp_path: Path) -> None:
    network = _make(tmp_path, max_events=2000)
    assert network.full
    assert 2000 <= network.log.position < 2010
    network.close()


_PROGRAM = """
import sys, threading
from pathlib import Path
from simulator.service import SimulatorService
from tests.simulator.conftest import small
settings = small(Path(sys.argv[1]), rate=3000.0, history_hours=0.1, checkpoint_seconds=0.2)
SimulatorService(settings, lambda _: None).run(threading.Event())
"""


def test_kill_9_loses_nothing_that_was_sent(tmp_path: Path) -> None:
    from websockets.sync.client import connect

    seen: dict[int, str] = {}
    for _ in range(2):
        (tmp_path / "address.json").unlink(missing_ok=True)
        child = subprocess.Popen([sys.executable, "-c", _PROGRAM, str(tmp_path)], cwd=Path(__file__).parents[2])
        try:
            deadline = time.monotonic() + 60
            while not (tmp_path / "address.json").exists():
                assert time.monotonic() < deadline
                assert child.poll() is None
                time.sleep(0.02)
            url = json.loads((tmp_path / "address.json").read_text())["url"]
            while True:
                try:
                    client = connect(
                        url + "/xrpc/network.bsky.jetstream.subscribeEvents",
                        compression=None,
                        max_size=2**25,
                        close_timeout=0.1,
                    )
                    break
                except Exception:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            with client:
                for _ in range(1500):
                    text = client.recv(timeout=20)
                    seen[json.loads(text)["payload"]["seq"]] = str(text)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
    logged = {seq: raw.decode() for seq, raw in _content(tmp_path)}
    assert sorted(logged) == list(range(1, len(logged) + 1))
    assert len(seen) >= 2500
    assert all(logged[seq] == text for seq, text in seen.items())


def test_damage_met_while_serving_stops_the_process(tmp_path: Path) -> None:
    running = Running(small(tmp_path, cache_megabytes=1))
    first = segment_paths(tmp_path / "log")[0]
    data = bytearray(first.read_bytes())
    data[-20:] = bytes(20)
    first.write_bytes(data)
    with pytest.raises((ConnectionClosedError, InvalidHandshake)), running.connect(cursor=1) as client:
        collect(client, [])
    with pytest.raises(LogDamagedError, match="move the data folder away"):
        running.stop()


def test_an_unusable_data_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataFolderError, match="Choose a data folder"):
        Network(small(tmp_path / "file" / "folder"))

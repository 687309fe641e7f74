"""The operator's commands against a real broker and a real lake; `events` gives back exactly what the source sent."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.lexicons import LEXICONS
from simulator.ledger import Ledger
from simulator.scenarios import SCENARIOS, Point
from tests.support.stack import Stack, identities, run_command, stack

pytestmark = pytest.mark.timeout(900)

ODDITIES = [name for name, scenario in SCENARIOS.items() if scenario.point is Point.EVENT]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose lake holds everything the simulator sent; only the broker still runs."""
    environment = {
        "EXPLORER_SIMULATOR_HISTORY_HOURS": "2",
        "EXPLORER_SIMULATOR_HISTORY_RATE": "1",
        "EXPLORER_SIMULATOR_RATE": "20",
        # Every oddity of records and events that the simulator knows, broken frames included, at different moments.
        "EXPLORER_SIMULATOR_SCENARIOS": json.dumps(
            [f"{name}:every=97,after={5 * at}" for at, name in enumerate(ODDITIES)]
        ),
        "EXPLORER_WRITER_BATCH_AGE_SECONDS": "0.5",
    }
    with stack(tmp_path_factory.mktemp("commands"), **environment) as running:
        running.start("broker", "simulator", "writer", "producer")
        running.until(lambda: running.committed_rows() > 5000, "the history is committed")
        for entry in running.control("scenarios"):
            assert entry["fired"] or entry["name"] not in ODDITIES, entry
        for name in ODDITIES:
            running.control(f"scenario?name={name}&off=1")
        # The cursor moves by events: the last thing sent must be one.
        last = (running.simulator() or {})["last_seq"]
        running.until(lambda: (running.simulator() or {}).get("last_seq", 0) > last, "an ordinary event")
        running.pause()
        running.until(running.drained, "everything sent is committed")
        for name in ("producer", "simulator", "writer"):
            event = running.supervisor.stop(name)
            assert event is not None
            assert not event.failed
        yield running


def run(filled: Stack, *arguments: str, status: int = 0) -> str:
    return run_command(filled, *arguments, status=status).stdout


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True)


def sent(filled: Stack) -> Counter[str]:
    """What the source sent, without what was set aside: records that no field can hold in a collection that has fields."""
    frames: Counter[str] = Counter()
    for event in Ledger(filled.state / "simulator").events():
        if not event.unparsable or event.collection not in LEXICONS:
            frames[canonical(json.loads(event.raw))] += 1
    return frames


def test_events_from_the_topics_are_what_the_source_sent(filled: Stack) -> None:
    lines = run(filled, "events", "--from", "topic").splitlines()
    assert Counter(canonical(json.loads(line)) for line in lines) == sent(filled)
    assert "e400}" in "".join(lines)


def test_events_from_the_lake_are_what_the_source_sent(filled: Stack) -> None:
    lines = run(filled, "events", "--from", "lake").splitlines()
    assert Counter(canonical(json.loads(line)) for line in lines) == sent(filled)
    times = [json.loads(line)["payload"]["time"] for line in lines]
    assert times == sorted(times)


def test_events_of_one_collection_and_account_as_v1(filled: Stack) -> None:
    first = json.loads(run(filled, "events", "--wire", "v1", "--collection", "app.bsky.feed.post", "--limit", "1"))
    assert first["kind"] == "commit"
    assert first["commit"]["collection"] == "app.bsky.feed.post"
    lines = [json.loads(line) for line in run(filled, "events", "--wire", "v1", "--did", first["did"]).splitlines()]
    assert first in lines
    assert {line["did"] for line in lines} == {first["did"]}


def test_the_cursor_can_be_seen_exported_and_moved(filled: Stack) -> None:
    (found,) = json.loads(run(filled, "cursor", "show", "--json"))
    last = max(event.seq for event in Ledger(filled.state / "simulator").events(malformed=True))
    assert found["seq"] == last
    exported = run(filled, "cursor", "export").splitlines()
    assert [json.loads(line) for line in exported] == [found]
    run(filled, "cursor", "set", "elsewhere.example", "--time", "2026-01-01T00:00:00Z", "--seq", "7")
    newest = json.loads(run(filled, "cursor", "show", "--json"))[0]
    assert (newest["host"], newest["seq"], newest["time_us"]) == ("elsewhere.example", 7, 1_767_225_600_000_000)


def test_dead_letters_can_be_listed_shown_and_tried_again(filled: Stack) -> None:
    events = Ledger(filled.state / "simulator").events(malformed=True)
    broken = sum(1 for event in events if event.flaw or (event.unparsable and event.collection in LEXICONS))
    listed = [
        json.loads(line) for line in run(filled, "dead-letters", "list", "--json", "--limit", "9999").splitlines()
    ]
    assert len(listed) == broken > 0
    assert json.loads(run(filled, "dead-letters", "show", listed[0]["id"])) == listed[0]
    assert run(filled, "dead-letters", "show", listed[0]["id"], "--raw") == listed[0]["raw"]
    assert "0 published" in run(filled, "dead-letters", "retry", listed[0]["id"], status=1)


def test_the_lake_proves_that_it_is_whole(filled: Stack) -> None:
    books = json.loads(run(filled, "lake", "report", "--json"))
    assert books["closes"] is True
    assert sum(hour["rows"] for hour in books["hours"]) == filled.committed_rows()
    verified = json.loads(run(filled, "lake", "verify", "--deep", "--json"))
    assert (verified["rows"], verified["findings"]) == (filled.committed_rows(), [])
    assert json.loads(run(filled, "lake", "versions", "--json"))[0]["version"] == books["version"]
    assert json.loads(run(filled, "lake", "gaps", "--json")) == []
    assert "0 partitions" in run(filled, "lake", "accept-broker")


def test_an_hour_can_be_replayed_without_change(filled: Stack) -> None:
    books = json.loads(run(filled, "lake", "report", "--json"))
    hour = next(entry for entry in books["hours"] if entry["table"] == "app.bsky.feed.like")
    start = f"{hour['hour_us'] // 1_000_000}"
    moment = subprocess.run(
        ["date", "-u", "-d", f"@{start}", "+%Y-%m-%dT%H:%M:%SZ"], capture_output=True, text=True, check=True
    ).stdout.strip()
    arguments = ("replay", "app.bsky.feed.like", "--start", moment, "--json")
    planned = json.loads(run(filled, *arguments, "--dry-run"))
    assert planned["version"] is None
    done = json.loads(run(filled, *arguments, "--yes"))
    assert done["version"] > books["version"]
    assert [(entry["before"], entry["after"]) for entry in done["hours"]] == [(hour["rows"], hour["rows"])]


def test_a_new_lake_is_filled_from_the_topics_and_equals_the_old_one(filled: Stack, tmp_path: Path) -> None:
    found = json.loads(run(filled, "replay", "--into", str(tmp_path / "again"), "--json"))
    assert (found["complete"], found["rows"]) == (True, filled.committed_rows())
    old, new = identities(filled.lake), identities(tmp_path / "again")
    assert old.keys() == new.keys()
    assert all(old[table].equals(new[table]) for table in old)


def test_validation_says_what_is_missing_for_a_day(filled: Stack, tmp_path: Path) -> None:
    found = json.loads(
        run(filled, "validate", "--phase", "1", "--captured", "--shallow", "--state", str(tmp_path), "--json", status=1)
    )
    failed = {gate["name"] for gate in found["gates"] if gate["passed"] is False}
    assert "hours with events" in failed
    assert not failed & {
        "topic-hours that do not close",
        "gaps",
        "files that are wrong",
        "messages that nobody can read",
    }


def test_the_doctor_finds_what_is_well_and_what_is_not(filled: Stack) -> None:
    findings = {entry["check"]: entry for entry in json.loads(run(filled, "doctor", "--json"))}
    assert {findings[name]["verdict"] for name in ("disk", "broker", "topics", "manifest", "books", "lag")} == {"ok"}
    assert findings["writer"]["verdict"] == "warning"
    assert findings["writer"]["remedy"]


def test_maintenance_runs_once_and_the_events_stay_what_they_were(filled: Stack) -> None:
    before = filled.committed_rows()
    assert "hours_rolled" in run(filled, "maintain", "--once")
    assert filled.committed_rows() == before
    assert json.loads(run(filled, "lake", "verify", "--deep", "--json"))["findings"] == []


def test_a_key_is_made_listed_and_revoked(filled: Stack) -> None:
    made = json.loads(run(filled, "keys", "create", "--name", "Ada", "--days", "3", "--json"))
    listed = json.loads(run(filled, "keys", "list", "--json"))
    assert [key["id"] for key in listed] == [made["id"]]
    assert made["token"] not in json.dumps(listed)
    run(filled, "keys", "revoke", made["id"])
    assert json.loads(run(filled, "keys", "list", "--json"))[0]["revoked"] is not None


def test_the_state_folder_is_the_only_place_written_to(filled: Stack) -> None:
    assert {path.name for path in Path(filled.state).iterdir()} <= {
        "api",
        "kafka",
        "lake",
        "logs",
        "simulator",
        "status",
    }

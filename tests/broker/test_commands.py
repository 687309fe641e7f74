"""The commands `broker` and `topics`, as a person or a script calls them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.broker_probe import probe
from pipeline.cli import cli
from pipeline.kafka import KafkaSettings
from pipeline.local_broker import LocalBroker
from schemas.errors import ExplorerError
from schemas.topics import TOPICS


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("EXPLORER_STATE", str(tmp_path))
    monkeypatch.setenv("EXPLORER_BROKER_HOME", str(tmp_path / "kafka"))
    yield tmp_path / "kafka"
    LocalBroker(tmp_path / "kafka").stop()


def test_a_broker_and_its_topics_from_nothing(home: Path) -> None:
    assert call("broker", "status").exit_code == 3
    assert "no broker was running" in call("broker", "stop").output

    started = call("broker", "start")
    assert started.exit_code == 0
    assert "EXPLORER_KAFKA_BOOTSTRAP=127.0.0.1:" in started.output
    assert "already runs" in call("broker", "start").output
    other_port = call("broker", "start", "--port", "1")
    assert isinstance(other_port.exception, ExplorerError)

    status = call("broker", "status", "--json")
    assert status.exit_code == 0
    facts = json.loads(status.output)
    assert facts["ready"] is True
    assert facts["rss_bytes"] < 512 * 2**20
    assert facts["home"] == str(home)

    before = call("topics", "diff", "--json")
    assert before.exit_code == 1
    report = json.loads(before.output)
    assert {drift["topic"] for drift in report["drifts"]} == set(TOPICS)
    assert "none of our topics" in call("topics", "list").output
    assert call("topics", "apply").exit_code == 0
    assert "agree" in call("topics", "diff").output
    again = call("topics", "apply", "--json")
    assert again.exit_code == 0
    assert json.loads(again.output)["before"]["agrees"] is True
    listed = json.loads(call("topics", "list", "--json").output)
    assert {row["topic"]: row["partitions"] for row in listed} == {t.name: t.partitions for t in TOPICS.values()}
    assert all(row["records"] == 0 for row in listed)

    assert "stopped" in call("broker", "stop").output
    unreachable = call("topics", "diff")
    assert isinstance(unreachable.exception, ExplorerError)
    assert "no broker answers" in unreachable.exception.message


def test_the_probe_finds_everything_our_pipeline_rests_on(kafka_broker: KafkaSettings) -> None:
    findings = probe(kafka_broker)
    assert findings.failures == []
    assert findings.behaviour["timestamp_in_2_hours"] == "INVALID_TIMESTAMP"
    assert findings.behaviour["read_uncommitted_sees"] == ["kept", "aborted"]
    json.dumps(findings.to_json())


def test_the_probe_reports_what_is_missing() -> None:
    from pipeline.broker_probe import Findings

    findings = Findings()
    findings.note("a", 1, needed=1)
    findings.note("b", 1, needed=2)
    findings.note("c", 1)
    assert findings.failures == ["b: 1, needed 2"]

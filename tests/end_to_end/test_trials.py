"""Trials of the whole pipeline as operators run them: a rehearsed validation, and faults on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lake.store import LakeStore
from pipeline.commands_faults import faults
from pipeline.errors import SupervisionError
from pipeline.rehearsal import Scale, rehearsed
from pipeline.stack import empty_folder
from pipeline.validate import lake_gates, span_of
from pipeline.validate_api import api_gates
from pipeline.validate_rehearsal import facts_of, rehearsal_gates

pytestmark = pytest.mark.timeout(900)

# What depends on how fast this machine is just now.
SPEED = {
    "time of a batch",
    "sustained ingest, all on this machine",
    "event → queryable at live rate",
    "API answers meanwhile",
}


def test_a_rehearsed_history_is_complete_and_judged(tmp_path: Path) -> None:
    said: list[str] = []
    scale = Scale(hours=3, events_per_day=40_000, live_seconds=4, give_up=600)
    with rehearsed(tmp_path / "trial", scale, said.append) as (stack, result, prober):
        with stack.manifest() as manifest:
            span, books = span_of(manifest, 1), manifest.reconciliation(0, 1 << 62)
            gates = list(
                lake_gates(
                    manifest,
                    LakeStore(str(stack.lake)),
                    1,
                    least_events_per_day=1,
                    deep=True,
                    progress=lambda done, total: None,
                )
            )
        gates += api_gates(stack.api_url, span)
        gates += rehearsal_gates(result, books, prober)
    # Three hours are no day, which it has to say.
    assert {gate.name for gate in gates if gate.passed is False} - SPEED == {"hours with events"}
    assert {gate.name for gate in gates if gate.passed is None} >= {"bytes per event", "smaller than the JSON"}
    assert result.proof is not None
    assert result.proof.total("sent") >= 0.9 * scale.events
    assert result.topic_messages >= result.proof.total("sent")
    assert len(result.freshness) >= 1
    assert facts_of(result)["events in the history"] == result.history_events
    assert any("events made" in text or "committed" in text or "comparing" in text for text in said)


def test_a_folder_that_is_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(SupervisionError, match="not empty"):
        empty_folder(tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"
    empty_folder(tmp_path / "new")
    (tmp_path / "new" / "trial").write_text("old")
    empty_folder(tmp_path / "new")
    assert not (tmp_path / "new" / "trial").exists()


def test_more_than_the_disk_holds_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(SupervisionError, match="GB are free"),
        rehearsed(tmp_path / "trial", Scale(24, 1e15, 0, 60), lambda text: None),
    ):
        pytest.fail("nothing may start")


def test_faults_are_struck_recovered_from_and_reported(tmp_path: Path) -> None:
    command = [
        "faults",
        "producer",
        "broken frames",
        "disk full",
        "--rate",
        "150",
        "--pause",
        "1",
        "--state",
        str(tmp_path / "f"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *command], capture_output=True, text=True, check=False, timeout=800
    )
    report = json.loads((tmp_path / "f" / "report.json").read_text())
    gates = {gate["name"]: gate for gate in report["gates"]}
    struck = {"source sends broken frames"} | ({"disk full"} if os.geteuid() == 0 else set())
    for name in struck:
        assert "1 ×" in gates[name]["measured"], done.stdout
        assert "0 lost, 0 repeated" in gates[name]["measured"], done.stdout
    assert gates["dead letters = frames broken on purpose"]["passed"], done.stdout
    assert gates["topic-hours that do not close"]["passed"], done.stdout
    assert (done.returncode == 0) == (report["result"] == "PASS")
    assert not (tmp_path / "f" / "lake").is_mount()


def test_faults_can_be_listed_and_chosen() -> None:
    listed = CliRunner().invoke(faults, ["--list"]).output.splitlines()
    assert len(listed) >= 15
    assert all("back within" in text for text in listed)
    chosen = CliRunner().invoke(faults, ["broker", "--list"]).output.splitlines()
    assert chosen == [text for text in listed if text.startswith("broker")]
    with pytest.raises(SupervisionError, match="no fault is called"):
        CliRunner().invoke(faults, ["nonsense", "--list"], catch_exceptions=False)

"""Targets beside measurements: verdicts, percentiles and the report file."""

from __future__ import annotations

import json
import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipeline.gates import Gate, passed, percentile, table, write_report

HOLDS = Gate("speed", "3 s", "≤ 5 s", True)
FAILS = Gate("size", "9 GB", "≤ 5 GB", False)
UNKNOWN = Gate("cost", "–", "≤ $50", None, "no lake | yet")


def test_nothing_judged_is_not_passed() -> None:
    assert passed([HOLDS, UNKNOWN])
    assert not passed([HOLDS, FAILS])
    assert not passed([UNKNOWN])
    assert not passed([])


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert percentile(values, 1.0) == max(values)


def test_without_values_there_is_no_percentile() -> None:
    assert math.isnan(percentile([], 0.5))


def test_the_table_lines_up_and_names_every_verdict() -> None:
    lines = table([HOLDS, FAILS, UNKNOWN]).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["PASS", "FAIL", "NOT"]
    assert len({line.index(cell) for line, cell in zip(lines[1:], ("≤ 5 s", "≤ 5 GB", "≤ $50"), strict=True)}) == 1
    assert "(no lake | yet)" in lines[3]


def test_a_report_says_the_same_to_people_and_programs(tmp_path: Path) -> None:
    markdown, data = write_report(tmp_path / "new", "phase-1", "Phase 1", [HOLDS, FAILS, UNKNOWN], {"events": 1234567})
    document = json.loads(data.read_text())
    assert document["result"] == "FAIL"
    assert [gate["verdict"] for gate in document["gates"]] == ["PASS", "FAIL", "NOT JUDGED"]
    assert document["facts"] == {"events": 1234567}
    text = markdown.read_text()
    assert text.startswith("# Phase 1: FAIL")
    assert "| FAIL | size | ≤ 5 GB | 9 GB |  |" in text
    assert "no lake \\| yet" in text
    assert "| events | 1,234,567 |" in text
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["phase-1.json", "phase-1.md"]

"""The demo's equation: it closes only when every event is accounted for exactly once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.summary import Line, Summary

numbers = st.integers(0, 10**9)


def summary(*lines: Line, unexpected: int = 0) -> Summary:
    return Summary(lines, bytes=100, files=1, version=1, unexpected_dead_letters=unexpected)


@given(rows=numbers, deletions=numbers, dead=numbers, off=st.integers(-5, 5))
def test_a_line_closes_when_nothing_is_missing_or_twice(rows: int, deletions: int, dead: int, off: int) -> None:
    line = Line("post", rows + deletions + dead + off, rows, deletions, dead)
    assert line.closes == (off == 0)
    assert summary(line).closes == (off == 0)


def test_two_errors_in_opposite_directions_do_not_cancel() -> None:
    wrong = summary(Line("a", 10, 9, 0, 0), Line("b", 10, 11, 0, 0))
    assert wrong.total.closes
    assert not wrong.closes
    assert wrong.to_json()["result"] == "FAIL"
    assert "FAIL (-1)" in wrong.text()
    assert "FAIL (+1)" in wrong.text()


def test_a_dead_letter_nobody_sent_fails() -> None:
    wrong = summary(Line("a", 1, 1, 0, 0), unexpected=1)
    assert not wrong.closes
    assert "1 dead letters that the simulator did not send as broken" in wrong.text()

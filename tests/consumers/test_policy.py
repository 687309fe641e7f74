"""The pure rules: when to commit, when too much is bad, how one deadline is shared."""

from __future__ import annotations

import pytest

from consumers.config import WriterConfig
from consumers.deadline import Deadline
from consumers.errors import DeadlineExceeded
from consumers.policy import CommitPolicy, DeadLetterCeiling

POLICY = CommitPolicy(max_rows=10, max_bytes=100, max_age_seconds=5.0)


@pytest.mark.parametrize(
    ("rows", "size", "opened_at", "now", "due"),
    [
        (0, 0, None, 1000.0, False),
        (1, 1, 100.0, 104.9, False),
        (1, 1, 100.0, 105.0, True),
        (10, 1, 100.0, 100.0, True),
        (1, 100, 100.0, 100.0, True),
    ],
)
def test_any_bound_makes_a_batch_due(rows: int, size: int, opened_at: float | None, now: float, due: bool) -> None:
    assert POLICY.due(rows=rows, size=size, opened_at=opened_at, now=now) is due


def test_a_poll_never_makes_a_batch_late() -> None:
    assert POLICY.wait(opened_at=None, now=7.0, at_most=0.25) == 0.25
    assert POLICY.wait(opened_at=100.0, now=104.9, at_most=0.25) == pytest.approx(0.1)
    assert POLICY.wait(opened_at=100.0, now=109.0, at_most=0.25) == 0.0


def test_the_ceiling_judges_only_after_enough_messages() -> None:
    ceiling = DeadLetterCeiling(max_share=0.2, min_messages=10)
    assert not ceiling.exceeded(messages=9, dead_letters=9)
    assert not ceiling.exceeded(messages=10, dead_letters=2)
    assert ceiling.exceeded(messages=10, dead_letters=3)


def test_a_deadline_is_shared_by_all_steps() -> None:
    now = 50.0
    deadline = Deadline(3.0, clock=lambda: now)
    deadline.check("decode")
    assert deadline.within(10.0) == 3.0
    now = 52.0
    assert deadline.within(10.0) == 1.0
    now = 53.0
    assert deadline.remaining() == 0.0
    with pytest.raises(DeadlineExceeded, match="commit"):
        deadline.check("commit")


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="drain_seconds"):
        WriterConfig(drain_seconds=200.0, max_poll_interval_seconds=100.0)

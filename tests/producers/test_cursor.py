"""The low-water mark: never past an unacknowledged event, whatever the order of the acknowledgements."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from producers.cursor import Batch, LowWaterMark, Position


def at(seq: int) -> Position:
    return Position("host", "v2", seq, seq * 1000)


class MarkMachine(RuleBasedStateMachine):
    """Batches are opened, filled, sealed and acknowledged in any order; the model is the list of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.start = at(1)
        self.mark = LowWaterMark(self.start)
        self.model: list[tuple[Batch, Position | None]] = []
        self.seq = 1

    @property
    def open_batch(self) -> Batch | None:
        return self.model[-1][0] if self.model and not self.model[-1][0].sealed else None

    @precondition(lambda self: self.open_batch is None)
    @rule(records=st.integers(0, 5))
    def open(self, records: int) -> None:
        batch = self.mark.open()
        batch.pending += records
        self.model.append((batch, None))

    @precondition(lambda self: self.open_batch is not None)
    @rule(moves=st.booleans(), more=st.integers(0, 3))
    def seal(self, moves: bool, more: int) -> None:
        batch = self.open_batch
        assert batch is not None
        batch.pending += more
        self.seq += 1
        position = at(self.seq) if moves else None
        self.mark.seal(batch, position)
        self.model[-1] = (batch, position)

    @precondition(lambda self: any(batch.pending for batch, _ in self.model))
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from([batch for batch, _ in self.model if batch.pending]))
        batch.pending -= 1

    @rule()
    def rewind(self) -> None:
        expected = self.expected()
        assert self.mark.rewind() == expected
        self.start = expected
        self.model = []

    def expected(self) -> Position:
        safe = self.start
        for batch, position in self.model:
            if not batch.sealed or batch.pending:
                break
            safe = position or safe
        return safe

    @invariant()
    def safe_position_is_below_every_unacknowledged_event(self) -> None:
        assert self.mark.safe_position == self.expected()


TestMark = MarkMachine.TestCase


def test_two_open_batches_are_a_mistake() -> None:
    mark = LowWaterMark()
    mark.open()
    with pytest.raises(ValueError, match="still open"):
        mark.open()


@given(st.permutations(range(5)))
def test_acknowledgements_in_any_order_end_at_the_last_event(order: list[int]) -> None:
    mark = LowWaterMark()
    batches = []
    for seq in range(5):
        batch = mark.open()
        batch.pending = 1
        mark.seal(batch, at(seq))
        batches.append(batch)
    done: set[int] = set()
    for index in order:
        batches[index].pending -= 1
        done.add(index)
        contiguous = next(seq for seq in range(6) if seq not in done)
        assert mark.safe_position == (at(contiguous - 1) if contiguous else None)

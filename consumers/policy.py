"""When a batch is committed: pure rules over rows, bytes and age; time is always passed in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CommitPolicy:
    """Commit when any bound is reached: small batches at live rate (age), large ones while catching up (rows, bytes)."""

    max_rows: int
    max_bytes: int
    max_age_seconds: float

    def due(self, *, rows: int, size: int, opened_at: float | None, now: float) -> bool:
        """Whether a batch of `rows` messages and `size` bytes, opened at `opened_at` (None: empty), is to be committed.

        `opened_at` and `now` are seconds of one monotonic clock.
        """
        if opened_at is None:
            return False
        return rows >= self.max_rows or size >= self.max_bytes or now - opened_at >= self.max_age_seconds

    def wait(self, *, opened_at: float | None, now: float, at_most: float) -> float:
        """Seconds a poll may block without making a batch late; `at_most` when nothing is buffered."""
        if opened_at is None:
            return at_most
        return max(0.0, min(at_most, opened_at + self.max_age_seconds - now))


@dataclass(frozen=True, slots=True)
class DeadLetterCeiling:
    """How large a share of unreadable messages is still taken for bad input rather than for a fault of ours."""

    max_share: float
    min_messages: int

    def exceeded(self, *, messages: int, dead_letters: int) -> bool:
        """Whether `dead_letters` of `messages` is too much; False while fewer than `min_messages` were seen."""
        return messages >= self.min_messages and dead_letters > self.max_share * messages

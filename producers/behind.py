"""How far a host is behind the network: between when events were made and when it witnessed them. Pure.

A host that was down, or whose relay was, reads what it missed and gives it the time at which it reads it.
"""

from __future__ import annotations

from collections import deque
from statistics import median_high
from typing import Final

from producers.wire import Commit, Event
from schemas.identity import tid_micros

_SAMPLES: Final = 25
"""Of the last so many commits half have to agree: when it was made is each account's word."""
_LONGEST_US: Final = 86_400_000_000
"""Servers keep little more than a day; what says that it is older was made by a clock that stands."""


class Behind:
    """Samples of one connection: one commit of each read is enough."""

    def __init__(self) -> None:
        self._samples: deque[int] = deque(maxlen=_SAMPLES)

    def note(self, event: Event) -> None:
        """Take in an event of the host; only commits tell."""
        if isinstance(event, Commit):
            made_us = tid_micros(event.rev)
            if made_us is not None:
                self._samples.append(min(max(event.time_us - made_us, 0), _LONGEST_US))

    @property
    def micros(self) -> int | None:
        """By how much; None before the first commit."""
        return median_high(self._samples) if self._samples else None

    def made_us(self, time_us: int) -> int | None:
        """Up to when the events had been made that the host witnessed by `time_us`; None when that is not known."""
        return None if self.micros is None else time_us - self.micros

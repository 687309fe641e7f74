"""Where to start reading on a host, and what the first event then says about missing history. Pure.

Two number spaces and three clocks are kept apart here: a sequence belongs to one host, and so does witness time, the time of its
events: what a host that is behind witnesses now, others witnessed an hour ago. So another host is asked from the time at which the
last events were made, which comes before any host's witness time. Cursors are inclusive on every known server: asking for the last
event's own position and getting it back proves that nothing was missed.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from producers.cursor import Position
from producers.wire import TIMESTAMP_CURSOR_FLOOR, Commit, Event

LEGACY_REWIND_US = 10_000_000
"""Legacy software loses or reorders events where replay meets live; a rewind repairs most of it."""


class Resume(NamedTuple):
    """What to ask for: `cursor` is the parameter, None for the live tip.

    `since` is the event time up to which history is already held (None: nothing is expected); `seq` is set when the cursor is a
    sequence; `from_us` is the time asked for when it is a time. `cause` names a loss that is already known.
    """

    cursor: int | None
    seq: int | None = None
    from_us: int | None = None
    since: Position | None = None
    since_us: int | None = None
    cause: str | None = None


class Verdict(enum.Enum):
    """What the first event after resuming shows."""

    CONTINUES = "continues"
    REPEATS = "repeats"  # it is the very event that the cursor names
    GAP = "gap"
    RENUMBERED = "renumbered"  # the host counts anew: its archive was rebuilt, the stored sequence means nothing


def resume_live() -> Resume:
    """Begin at the live tip."""
    return Resume(None)


def resume_at_time(time_us: int) -> Resume:
    """Begin at an event time chosen by the operator; what the host lacks from there on is a gap."""
    return Resume(max(time_us, TIMESTAMP_CURSOR_FLOOR), from_us=time_us, since_us=time_us)


def resume_oldest() -> Resume:
    """Begin with the oldest event that the host still has; no gap is expected to be reported."""
    return Resume(TIMESTAMP_CURSOR_FLOOR)


def resume_after(position: Position, host: str, margin_us: int, cause: str | None = None) -> Resume:
    """Go on after `position` on `host`, which may be another one than the position's.

    With a `cause`, the sequence is known to be useless on this host and the time is used.
    """
    if position.host == host and position.seq is not None and cause is None:
        return Resume(position.seq, seq=position.seq, since=position, since_us=position.time_us)
    same = position.host == host and cause is None
    held_us = position.time_us if position.host == host else position.common_us
    from_us = max(held_us - (LEGACY_REWIND_US if same else margin_us), TIMESTAMP_CURSOR_FLOOR)
    return Resume(from_us, from_us=from_us, since=position, since_us=held_us, cause=cause)


def judge(resume: Resume, first: Event, last: Event | None, tolerance_us: int) -> Verdict:
    """Compare the first event of a connection with what was asked for.

    `last` is the event at the resumed position, None when this process has not seen it.
    """
    if resume.seq is not None and first.seq is not None:
        if first.seq < resume.seq:
            return Verdict.RENUMBERED
        if first.seq == resume.seq:
            # After a crash a server may give the same number to another event, and others before it as well.
            same = same_event(first, last) if last is not None else first.time_us == resume.since_us
            return Verdict.REPEATS if same else Verdict.RENUMBERED
    if resume.since_us is not None and first.time_us > resume.since_us + tolerance_us:
        return Verdict.GAP
    return Verdict.CONTINUES


def same_event(one: Event, other: Event) -> bool:
    """Whether two frames of one host carry the same event; the text of the record may differ between replay and live."""
    if type(one) is not type(other) or (one.seq, one.time_us, one.did) != (other.seq, other.time_us, other.did):
        return False
    if isinstance(one, Commit) and isinstance(other, Commit):
        mine = (one.collection, one.rkey, one.rev, one.operation)
        return mine == (other.collection, other.rkey, other.rev, other.operation)
    return True

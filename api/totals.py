"""How many posts a filter selects, within a time that the caller gives, and how that number is meant."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from api.answers import TotalRelation
from api.engine import Session
from api.minimums import minimums_of
from api.posts_query import Selection, prepare
from api.relation import Lake
from api.snapshots import Scan

_FIRST_ROWS: Final = 250_000
_LARGEST_ROWS: Final = 4_000_000
_LARGEST_COUNTED_ROWS: Final = 1_000_000
"""Where likes, reposts or replies of what matches have to be counted."""


_CountOf = Callable[[Scan, float], tuple[int, bool]]
"""How many posts of a step match, and whether all were counted before a time of the monotonic clock."""


class TotalMode(StrEnum):
    """Which total a client wants: none, a count, or a quick estimate."""

    NONE = "none"
    EXACT = "exact"
    ESTIMATE = "estimate"


@dataclass(frozen=True)
class Total:
    """A number of posts and how it is meant."""

    count: int
    relation: TotalRelation


def run_total(session: Session, lake: Lake, plan: Scan, selection: Selection, mode: TotalMode, seconds: float) -> Total:
    """Count in steps of whole hours until done or out of time.

    All counted: `exact`. Out of time: `at_least` what was counted for EXACT; for ESTIMATE, whose steps are drawn at random
    over the range, the share found so far scaled to all rows.
    """
    until = time.monotonic() + seconds
    count_of = (_counted if selection.filters.engagement else _selected)(session, lake, plan, selection)
    largest = _LARGEST_COUNTED_ROWS if selection.filters.engagement else _LARGEST_ROWS
    steps = plan.steps(newest_first=True, first_rows=_FIRST_ROWS, largest_rows=largest)
    if mode is TotalMode.ESTIMATE:
        steps = plan.steps(newest_first=True, first_rows=_FIRST_ROWS, largest_rows=_FIRST_ROWS)
        # The same drawing for the same files: an estimate does not change when it is asked for again.
        random.Random(plan.snapshot.version).shuffle(steps)
    found = scanned = 0
    for number, step in enumerate(steps):
        # An estimate is scaled by whole steps.
        some, whole = count_of(replace(plan, files=step), until if mode is TotalMode.EXACT else math.inf)
        found += some
        scanned += sum(file.rows for file in step)
        if not whole or (time.monotonic() >= until and number + 1 < len(steps)):
            if mode is TotalMode.ESTIMATE:
                return Total(round(found * plan.rows / max(1, scanned)), TotalRelation.ESTIMATE)
            return Total(found, TotalRelation.AT_LEAST)
    return Total(found, TotalRelation.EXACT)


def _selected(session: Session, lake: Lake, plan: Scan, selection: Selection) -> _CountOf:
    source = prepare(session, lake, plan, selection)

    def count(step: Scan, _: float) -> tuple[int, bool]:
        reading, values = lake.reading(step, f"{source.joins} {source.condition}")
        statement = f"SELECT count(*) FROM {source.over(reading)} WHERE {source.condition}"  # noqa: S608 - see api.sql
        return int(session.rows(statement, {**source.bound.values, **values})[0][0]), True

    return count


def _counted(session: Session, lake: Lake, plan: Scan, selection: Selection) -> _CountOf:
    minimums = minimums_of(session, lake, plan, selection)
    return lambda step, until: minimums.counted(session, step, until)

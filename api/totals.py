"""How many posts a filter selects, within a time that the caller gives, and how that number is meant."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from api.answers import TotalRelation
from api.engine import Session
from api.posts_query import Selection, prepare
from api.relation import Lake
from api.snapshots import Scan

_FIRST_ROWS: Final = 250_000
_LARGEST_ROWS: Final = 4_000_000


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
    source = prepare(session, lake, plan, selection)
    steps = plan.steps(newest_first=True, first_rows=_FIRST_ROWS, largest_rows=_LARGEST_ROWS)
    if mode is TotalMode.ESTIMATE:
        steps = plan.steps(newest_first=True, first_rows=_FIRST_ROWS, largest_rows=_FIRST_ROWS)
        # The same drawing for the same files: an estimate does not change when it is asked for again.
        random.Random(plan.snapshot.version).shuffle(steps)
    found = scanned = 0
    for number, step in enumerate(steps):
        reading, values = lake.reading(replace(plan, files=step), f"{source.joins} {source.condition}")
        statement = f"SELECT count(*) FROM {source.over(reading)} WHERE {source.condition}"  # noqa: S608 - see api.sql
        rows = session.rows(statement, {**source.bound.values, **values})
        found += int(rows[0][0])
        scanned += sum(file.rows for file in step)
        if time.monotonic() >= until and number + 1 < len(steps):
            if mode is TotalMode.ESTIMATE:
                return Total(round(found * plan.rows / max(1, scanned)), TotalRelation.ESTIMATE)
            return Total(found, TotalRelation.AT_LEAST)
    return Total(found, TotalRelation.EXACT)

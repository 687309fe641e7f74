"""Rows to table and hour of event time: where each row of a batch will be filed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from consumers.decode import BadMessage
from lake.manifest import HOUR_US


def by_hour(frame: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    """Split decoded events by the hour of `time_us`, in hour order; rows keep their order inside an hour.

    Yields the first microsecond of each hour with its rows.
    """
    hours: NDArray[np.int64] = frame["time_us"].to_numpy() // HOUR_US
    if not len(hours):
        return
    present = np.unique(hours)
    for hour in present:
        yield int(hour) * HOUR_US, frame if len(present) == 1 else frame.filter(pl.Series(hours == hour))


def hours_of_bad(bad: Iterable[BadMessage], fallback_us: int) -> dict[tuple[str, int], int]:
    """Dead letters per topic and hour of the Kafka timestamp; `fallback_us` places those without one."""
    counts: dict[tuple[str, int], int] = {}
    for message in bad:
        time_us = message.timestamp_ms * 1000 if message.timestamp_ms >= 0 else fallback_us
        key = (message.topic, time_us - time_us % HOUR_US)
        counts[key] = counts.get(key, 0) + 1
    return counts

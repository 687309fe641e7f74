"""Which hour a message belongs to when its event time cannot be read."""

from __future__ import annotations

from collections.abc import Iterable

from consumers.decode import BadMessage
from lake.manifest import hour_of


def hours_of_bad(bad: Iterable[BadMessage], fallback_us: int) -> dict[tuple[str, int], int]:
    """Dead letters per topic and hour of the Kafka timestamp; `fallback_us` places those without one."""
    counts: dict[tuple[str, int], int] = {}
    for message in bad:
        time_us = message.timestamp_ms * 1000 if message.timestamp_ms >= 0 else fallback_us
        key = (message.topic, hour_of(time_us))
        counts[key] = counts.get(key, 0) + 1
    return counts

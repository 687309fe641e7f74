"""Rate limits as token buckets, for many clients in bounded memory. Pure: the caller passes the time."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

_SHARED: Final = ""
"""The bucket of clients that come when the table is full of busy ones."""


@dataclass(frozen=True, slots=True)
class Quota:
    """At most `amount` at once, refilled evenly over `window` seconds. An amount of 0 means unlimited."""

    amount: float
    window: float

    @property
    def unlimited(self) -> bool:
        """Whether nothing is counted."""
        return self.amount <= 0


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether something may happen, and what the client is told: what is left, and seconds until all of it is back.

    `retry_after` is the number of seconds, at least 1, after which the same request would be allowed; 0 when it is now.
    """

    allowed: bool
    remaining: int
    reset: int
    retry_after: int


@dataclass(slots=True)
class _Bucket:
    level: float
    updated: float


class Buckets:
    """One bucket per client, at most `capacity` of them; not thread-safe.

    A bucket that has refilled is forgotten first, which changes nothing for its client. While all are in use, further
    clients share one bucket: forgetting a used bucket would hand its client a new allowance.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._buckets: OrderedDict[str, tuple[_Bucket, Quota]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, client: str, quota: Quota, cost: float, now: float) -> Decision:
        """Spend `cost` if the bucket holds it; the answer says whether it did. `now` never runs backwards."""
        if quota.unlimited:
            return Decision(True, 0, 0, 0)
        bucket = self._bucket(client, quota, now)
        allowed = bucket.level >= cost
        if allowed:
            bucket.level -= cost
        return _decision(bucket, quota, cost, allowed)

    def charge(self, client: str, quota: Quota, cost: float, now: float) -> Decision:
        """Spend `cost` if anything is left, also more than is left: the debt is paid off before the next is allowed.

        For work whose cost is only known roughly, or exceeds a whole allowance.
        """
        if quota.unlimited:
            return Decision(True, 0, 0, 0)
        bucket = self._bucket(client, quota, now)
        allowed = bucket.level > 0
        if allowed:
            # Bounded, so that no single request can lock a client out for longer than one more window.
            bucket.level = max(bucket.level - cost, -quota.amount)
        return _decision(bucket, quota, 1.0, allowed)

    def peek(self, client: str, quota: Quota, now: float) -> Decision:
        """What `take` of nothing would answer, without making a bucket."""
        if quota.unlimited:
            return Decision(True, 0, 0, 0)
        entry = self._buckets.get(client)
        bucket = entry[0] if entry else _Bucket(quota.amount, now)
        return _decision(_Bucket(_refilled(bucket, quota, now), now), quota, 0.0, True)

    def _bucket(self, client: str, quota: Quota, now: float) -> _Bucket:
        entry = self._buckets.get(client)
        if entry is None:
            client = self._admit(client, now)
            entry = self._buckets.get(client, (_Bucket(quota.amount, now), quota))
        bucket = entry[0]
        bucket.level = _refilled(bucket, quota, now)
        bucket.updated = now
        self._buckets[client] = (bucket, quota)
        self._buckets.move_to_end(client)
        return bucket

    def _admit(self, client: str, now: float) -> str:
        while len(self._buckets) >= self._capacity:
            oldest, (bucket, quota) = next(iter(self._buckets.items()))
            if _refilled(bucket, quota, now) < quota.amount:
                return _SHARED
            del self._buckets[oldest]
        return client


def _refilled(bucket: _Bucket, quota: Quota, now: float) -> float:
    passed = max(0.0, now - bucket.updated)
    return min(quota.amount, bucket.level + passed * quota.amount / quota.window)


def _decision(bucket: _Bucket, quota: Quota, cost: float, allowed: bool) -> Decision:
    rate = quota.amount / quota.window
    missing = min(cost, quota.amount) - bucket.level
    return Decision(
        allowed=allowed,
        remaining=max(0, math.floor(bucket.level)),
        reset=math.ceil((quota.amount - bucket.level) / rate),
        retry_after=0 if allowed else max(1, math.ceil(missing / rate)),
    )

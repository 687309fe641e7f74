"""The producer's instruments. Recorded once per report, never per event; free when no exporter is configured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from opentelemetry import metrics

from schemas.telemetry import METRICS
from schemas.topics import ACCOUNT, DEAD_LETTER, IDENTITY, SYNC

_KINDS = {IDENTITY: "identity", ACCOUNT: "account", SYNC: "sync"}
_meter = metrics.get_meter("producers")


class Instruments:
    """Turns totals into increments; one per process."""

    def __init__(self, meter: metrics.Meter = _meter) -> None:
        def counter(name: str) -> metrics.Counter:
            metric = METRICS[name]
            return meter.create_counter(metric.name, metric.unit, metric.meaning)

        self._events = counter("explorer.source.events")
        self._reconnects = counter("explorer.source.reconnects")
        self._gaps = counter("explorer.source.gaps")
        self._acknowledged = counter("explorer.producer.acknowledged")
        self._dead_letters = counter("explorer.dead_letters")
        lag = METRICS["explorer.source.lag"]
        self._lag = meter.create_gauge(lag.name, lag.unit, lag.meaning)
        self._sent: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def report(
        self,
        host: str,
        sent: Mapping[str, int],
        held: Mapping[str, int],
        reasons: Mapping[str, int],
        lag_seconds: float | None,
    ) -> None:
        """Take in the totals since the start: records handed over and acknowledged by topic, bad frames by reason.

        `lag_seconds` None says that nothing was received yet.
        """
        for topic, count in _increments(self._sent, sent).items():
            if topic != DEAD_LETTER:
                self._events.add(count, {"host": host, "kind": _KINDS.get(topic, "commit")})
        for topic, count in _increments(self._held, held).items():
            self._acknowledged.add(count, {"topic": topic})
        for reason, count in _increments(self._reasons, reasons).items():
            self._dead_letters.add(count, {"stage": "producer", "reason": reason})
        if lag_seconds is not None:
            self._lag.set(lag_seconds, {"host": host})

    def reconnected(self, host: str, cause: str) -> None:
        """Count a connection that ended."""
        self._reconnects.add(1, {"host": host, "cause": cause})

    def gap(self, host: str, reason: str) -> None:
        """Count a stretch of lost history."""
        self._gaps.add(1, {"host": host, "reason": reason})


def _increments(before: Counter[str], totals: Mapping[str, int]) -> Counter[str]:
    """What was added to each total since the last call; `before` becomes the totals."""
    added = Counter(totals) - before
    before.update(added)
    return added

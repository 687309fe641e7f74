"""The producer's instruments. Recorded once per report, never per event; free when no exporter is configured."""

from __future__ import annotations

from collections import Counter

from opentelemetry import metrics

from schemas.telemetry import METRICS

_meter = metrics.get_meter("producers")


def _counter(name: str) -> metrics.Counter:
    metric = METRICS[name]
    return _meter.create_counter(metric.name, metric.unit, metric.meaning)


class Instruments:
    """Turns totals into increments; one per process."""

    def __init__(self) -> None:
        self._events = _counter("explorer.source.events")
        self._reconnects = _counter("explorer.source.reconnects")
        self._gaps = _counter("explorer.source.gaps")
        self._acknowledged = _counter("explorer.producer.acknowledged")
        self._dead_letters = _counter("explorer.dead_letters")
        lag = METRICS["explorer.source.lag"]
        self._lag = _meter.create_gauge(lag.name, lag.unit, lag.meaning)
        self._reported: Counter[str] = Counter()

    def report(
        self, host: str, received: int, acknowledged: int, reasons: Counter[str], lag_seconds: float | None
    ) -> None:
        """Take in the totals since the start; `lag_seconds` None says that nothing was received yet."""
        if received > self._reported["received"]:
            self._events.add(received - self._reported["received"], {"host": host})
        if acknowledged > self._reported["acknowledged"]:
            self._acknowledged.add(acknowledged - self._reported["acknowledged"])
        for reason, count in reasons.items():
            if count > self._reported[f"reason {reason}"]:
                self._dead_letters.add(
                    count - self._reported[f"reason {reason}"], {"stage": "producer", "reason": reason}
                )
            self._reported[f"reason {reason}"] = count
        self._reported["received"] = received
        self._reported["acknowledged"] = acknowledged
        if lag_seconds is not None:
            self._lag.set(lag_seconds, {"host": host})

    def reconnected(self, host: str, cause: str) -> None:
        """Count a connection that ended."""
        self._reconnects.add(1, {"host": host, "cause": cause})

    def gap(self, host: str, reason: str) -> None:
        """Count a stretch of lost history."""
        self._gaps.add(1, {"host": host, "reason": reason})

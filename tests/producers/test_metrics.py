"""The producer's metrics carry the attributes that their table promises, and count what was published."""

from __future__ import annotations

from collections import Counter
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from producers.cursor import LowWaterMark
from producers.metrics import Instruments
from schemas.telemetry import METRICS

POST, LIKE = "bluesky.app.bsky.feed.post", "bluesky.app.bsky.feed.like"
LETTER, IDENTITY = "bluesky.dead-letter", "bluesky.identity"


def points(reader: InMemoryMetricReader) -> dict[str, dict[tuple[Any, ...], float]]:
    """Metric → values of its attributes, in the order of the table → value."""
    data = reader.get_metrics_data()
    assert data is not None
    found: dict[str, dict[tuple[Any, ...], float]] = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        names = METRICS[metric.name].attributes
        for point in metric.data.data_points:
            assert isinstance(point, NumberDataPoint)
            attributes = dict(point.attributes or {})
            assert set(attributes) == set(names), metric.name
            found.setdefault(metric.name, {})[tuple(attributes[name] for name in names)] = point.value
    return found


def test_totals_become_increments_with_every_attribute() -> None:
    reader = InMemoryMetricReader()
    instruments = Instruments(MeterProvider(metric_readers=[reader]).get_meter("test"))
    instruments.report("a", {POST: 3, LIKE: 4, IDENTITY: 1, LETTER: 2}, {POST: 2}, {"not_json": 2}, None)
    instruments.report("b", {POST: 5, LIKE: 4, IDENTITY: 1, LETTER: 2}, {POST: 5, LETTER: 2}, {"not_json": 2}, 0.5)
    instruments.reconnected("a", "closed")
    instruments.gap("b", "jump")
    assert points(reader) == {
        "explorer.source.events": {("a", "commit"): 7, ("a", "identity"): 1, ("b", "commit"): 2},
        "explorer.producer.acknowledged": {(POST,): 5, (LETTER,): 2},
        "explorer.dead_letters": {("producer", "not_json"): 2},
        "explorer.source.lag": {("b",): 0.5},
        "explorer.source.reconnects": {("a", "closed"): 1},
        "explorer.source.gaps": {("b", "jump"): 1},
    }


def test_a_batch_counts_as_acknowledged_once_all_before_it_is() -> None:
    mark = LowWaterMark()
    first = mark.open()
    first.pending, first.topics = 2, Counter({POST: 1, LETTER: 1})
    mark.seal(first, None)
    second = mark.open()
    second.topics = Counter({POST: 1})
    mark.seal(second, None)
    assert (mark.safe_position, mark.acknowledged) == (None, Counter())
    first.pending = 0
    assert mark.safe_position is None
    assert mark.acknowledged == {POST: 2, LETTER: 1}

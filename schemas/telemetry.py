"""Every metric and span we emit, by name: the only list; documentation and dashboards are checked against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """One instrument: unit in UCUM, allowed attributes, and what a moving value means."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    attributes: tuple[str, ...]
    meaning: str


_ALL: Final = (
    Metric("explorer.source.events", "counter", "{event}", ("host", "kind"), "Frames that became events."),
    Metric(
        "explorer.source.reconnects", "counter", "{connection}", ("host", "cause"), "Connections ended and reopened."
    ),
    Metric("explorer.source.gaps", "counter", "{gap}", ("host", "reason"), "Stretches of history lost at the source."),
    Metric("explorer.source.lag", "gauge", "s", ("host",), "Time since the newest event received was made."),
    Metric("explorer.producer.acknowledged", "counter", "{event}", ("topic",), "Events the broker holds durably."),
    Metric("explorer.dead_letters", "counter", "{event}", ("stage", "reason"), "Events set aside; look at the topic."),
    Metric("explorer.writer.rows", "counter", "{row}", ("table",), "Rows committed to the lake."),
    Metric("explorer.writer.duplicates", "counter", "{row}", ("table",), "Events dropped because the lake has them."),
    Metric(
        "explorer.writer.commit.duration", "histogram", "s", (), "From the first file byte to the manifest's answer."
    ),
    Metric(
        "explorer.writer.lag", "gauge", "{event}", ("topic", "partition"), "Records in the topic not yet committed."
    ),
    Metric("explorer.writer.freshness", "gauge", "s", (), "Age of the newest queryable event."),
    Metric("explorer.maintenance.rolled", "counter", "{file}", ("table",), "Small files merged into hourly files."),
    Metric("explorer.maintenance.erased", "counter", "{row}", ("table",), "Rows whose content was erased from files."),
    Metric(
        "explorer.lake.unreconciled", "gauge", "{hour}", (), "Topic-hours whose equation does not close; 0 is right."
    ),
    Metric("explorer.api.requests", "counter", "{request}", ("route", "status"), "HTTP answers."),
    Metric("explorer.api.duration", "histogram", "s", ("route",), "From request to last byte."),
    Metric("explorer.api.rejected", "counter", "{request}", ("reason",), "Requests refused by a limit."),
)

METRICS: Final[dict[str, Metric]] = {metric.name: metric for metric in _ALL}

SPANS: Final[dict[str, str]] = {
    "source.batch": "Frames read from the socket together, until handed to the Kafka client.",
    "producer.deliver": "From the hand-over to the broker's acknowledgement of the whole batch.",
    "writer.batch": "One batch from poll to commit; child of the produced batches it holds, by links.",
    "writer.decode": "Avro bodies to columns.",
    "writer.dedupe": "Identity look-up.",
    "writer.write": "Parquet files of the batch, fsync included.",
    "writer.commit": "The manifest transaction.",
    "maintenance.roll": "One topic-hour merged.",
    "maintenance.erase": "Erased content removed from one file.",
    "api.query": "One DuckDB query, queue wait included.",
}

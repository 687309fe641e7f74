"""The topics, read from `schemas/topics/*.yaml`, the only source of names, partitions and retention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Final

import yaml

from schemas.lexicons import LEXICONS

PREFIX: Final = "bluesky."
OTHER: Final = "bluesky.other"
IDENTITY: Final = "bluesky.identity"
ACCOUNT: Final = "bluesky.account"
SYNC: Final = "bluesky.sync"
DEAD_LETTER: Final = "bluesky.dead-letter"
CURSOR: Final = "bluesky.jetstream-cursor"
GAP: Final = "bluesky.gap"


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic as its YAML file declares it; `table` is None for topics that feed no table of events."""

    name: str
    description: str
    schema: str
    key: str
    partitions: int
    table: str | None = None
    dead_letter: str | None = None
    retention_ms: int = -1
    retention_bytes: int = -1
    cleanup_policy: str = "delete"
    max_message_bytes: int = 4 * 1024 * 1024
    config: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str]:
        """The topic's Kafka settings, name to value; retention_bytes is per partition, -1 means no limit."""
        return {
            "cleanup.policy": self.cleanup_policy,
            "compression.type": "producer",
            "max.message.bytes": str(self.max_message_bytes),
            "retention.bytes": str(self.retention_bytes),
            "retention.ms": str(self.retention_ms),
            **self.config,
        }


def _load(text: str) -> Topic:
    raw: dict[str, Any] = yaml.safe_load(text)
    return Topic(**raw)


@cache
def topics() -> dict[str, Topic]:
    """Every topic by name, in name order."""
    folder = files("schemas") / "topics"
    loaded = [_load(entry.read_text("utf-8")) for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    return {topic.name: topic for topic in sorted(loaded, key=lambda topic: topic.name)}


TOPICS: Final[dict[str, Topic]] = topics()
TABLE_TOPICS: Final[dict[str, str]] = {topic.table: name for name, topic in TOPICS.items() if topic.table}
"""Table name → topic name."""


def topic_for(collection: str) -> str:
    """The topic that carries commits of `collection`."""
    return PREFIX + collection if collection in LEXICONS else OTHER

"""Makes a broker agree with the topics that `schemas/topics/*.yaml` declare, and reports first where it does not.

Works on Apache Kafka and on Redpanda: a setting that the broker does not list for a topic is one it does not know; it is
skipped and named. Nothing is ever deleted, and partitions are only added: what a change would destroy is left to a person.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined] # its type stubs forget to export these
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
)

from schemas.errors import ExplorerError
from schemas.topics import PREFIX, TOPICS, Topic

REQUEST_TIMEOUT_SECONDS: Final = 30.0
SETTLE_SECONDS: Final = 15.0
"""How long a finished change may take to show in the broker's answers."""
EVENT_TOPICS: Final = tuple(name for name, topic in TOPICS.items() if topic.table is not None)
"""The topics whose messages become rows of the lake."""

NOT_YET_CODES: Final = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)
"""What a partition that was just created answers before it has a leader."""


class TopicError(ExplorerError):
    """The broker refused a question about topics, or a change."""


class DriftKind(StrEnum):
    """How a broker differs from the declared topics."""

    MISSING = "missing"
    TOO_FEW_PARTITIONS = "too_few_partitions"
    TOO_MANY_PARTITIONS = "too_many_partitions"
    SETTING = "setting"
    EXTRA = "extra"


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference; `setting` is None unless kind is SETTING, `note` says what `apply` would do about it."""

    topic: str
    kind: DriftKind
    declared: str | None
    found: str | None
    setting: str | None = None
    note: str = ""

    @property
    def repairable(self) -> bool:
        """True if `apply` removes this difference."""
        return self.kind in (DriftKind.MISSING, DriftKind.TOO_FEW_PARTITIONS, DriftKind.SETTING)

    def __str__(self) -> str:
        what = self.setting if self.setting is not None else self.kind.value.replace("_", " ")
        return f"{self.topic}: {what}: declared {self.declared or '-'}, found {self.found or '-'}  ({self.note})"


@dataclass(frozen=True, slots=True)
class TopicReport:
    """All differences, and the declared settings that the broker does not know."""

    drifts: tuple[Drift, ...]
    unknown_settings: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """True if broker and declaration are the same."""
        return not self.drifts

    @property
    def declared_agree(self) -> bool:
        """True if every declared topic is as declared; extra topics do not matter."""
        return all(drift.kind is DriftKind.EXTRA for drift in self.drifts)

    def to_json(self) -> dict[str, object]:
        """The report as JSON values, for `--json`."""
        return {
            "agrees": self.agrees,
            "drifts": [{**asdict(drift), "repairable": drift.repairable} for drift in self.drifts],
            "unknown_settings": list(self.unknown_settings),
        }


@dataclass(frozen=True, slots=True)
class TopicState:
    """What a broker says about one topic."""

    partitions: int
    settings: Mapping[str, str | None]


def read_topics(admin: AdminClient, names: Collection[str] | None = None) -> dict[str, TopicState]:
    """The broker's topics with our prefix (or the given names) and their settings; raises TopicError."""
    try:
        metadata = admin.list_topics(timeout=REQUEST_TIMEOUT_SECONDS)
        wanted = {
            name: len(topic.partitions)
            for name, topic in metadata.topics.items()
            if (name in names if names is not None else name.startswith(PREFIX)) and topic.error is None
        }
        resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in wanted]
        answers = admin.describe_configs(resources, request_timeout=REQUEST_TIMEOUT_SECONDS) if resources else {}
        states: dict[str, TopicState] = {}
        for resource, future in answers.items():
            try:
                entries = future.result(REQUEST_TIMEOUT_SECONDS)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
                continue  # deleted since the list was made
            states[resource.name] = TopicState(
                wanted[resource.name], {name: entry.value for name, entry in entries.items()}
            )
        return states
    except KafkaException as error:
        raise _refused("read the topics", error) from error


def count_records(admin: AdminClient, partitions: Mapping[str, int]) -> dict[str, int]:
    """End minus start offset of each topic (name → number of partitions), summed over its partitions.

    An upper bound where a topic is compacted or has transactions. Blocks; raises TopicError.
    """
    every = [TopicPartition(name, number) for name, count in partitions.items() for number in range(count)]
    totals = dict.fromkeys(partitions, 0)
    end, start = OffsetSpec.latest(), OffsetSpec.earliest()  # type: ignore[no-untyped-call]
    for sign, spec in ((1, end), (-1, start)):
        deadline, unanswered = time.monotonic() + SETTLE_SECONDS, every
        while unanswered:
            answers = admin.list_offsets(
                dict.fromkeys(unanswered, spec),
                isolation_level=IsolationLevel.READ_UNCOMMITTED,
                request_timeout=REQUEST_TIMEOUT_SECONDS,
            )
            unanswered = []
            for partition, future in answers.items():
                try:
                    totals[partition.topic] += sign * future.result(REQUEST_TIMEOUT_SECONDS).offset
                except KafkaException as error:
                    if error.args[0].code() not in NOT_YET_CODES or time.monotonic() > deadline:
                        raise _refused(f"read the offsets of {partition.topic}", error) from error
                    unanswered.append(partition)
            if unanswered:
                time.sleep(0.1)
    return totals


def compare(declared: Mapping[str, Topic], found: Mapping[str, TopicState]) -> TopicReport:
    """Where a broker's topics differ from the declared ones; pure."""
    drifts: list[Drift] = []
    unknown: set[str] = set()
    for name, topic in sorted(declared.items()):
        state = found.get(name)
        if state is None:
            drifts.append(
                Drift(name, DriftKind.MISSING, f"{topic.partitions} partitions", None, note="apply creates it")
            )
            continue
        if state.partitions < topic.partitions:
            note = "apply adds partitions; from then on new events of an account may go to another partition"
            kind = DriftKind.TOO_FEW_PARTITIONS
        elif state.partitions > topic.partitions:
            note = "partitions can be raised but never lowered: raise the number in the topic's YAML file"
            kind = DriftKind.TOO_MANY_PARTITIONS
        else:
            kind = None
        if kind is not None:
            drifts.append(Drift(name, kind, str(topic.partitions), str(state.partitions), note=note))
        for setting, value in sorted(topic.settings.items()):
            if setting not in state.settings:
                unknown.add(setting)
            elif not _same(value, state.settings[setting]):
                have = state.settings[setting]
                drifts.append(Drift(name, DriftKind.SETTING, value, have, setting, note="apply sets it"))
    drifts += [
        Drift(
            name, DriftKind.EXTRA, None, f"{found[name].partitions} partitions", note="never deleted: decide yourself"
        )
        for name in sorted(found.keys() - declared.keys())
    ]
    return TopicReport(tuple(drifts), tuple(sorted(unknown)))


def diff_topics(admin: AdminClient, declared: Mapping[str, Topic] = TOPICS) -> TopicReport:
    """Asks the broker and compares; blocks for `REQUEST_TIMEOUT_SECONDS` at most per question. Raises TopicError."""
    return compare(declared, read_topics(admin))


def apply_topics(admin: AdminClient, declared: Mapping[str, Topic] = TOPICS) -> tuple[TopicReport, TopicReport]:
    """Removes every repairable difference and returns the reports from before and after.

    Blocks until the broker shows the changes or `SETTLE_SECONDS` have passed. May be called by several processes and
    again at any time. Raises TopicError if the broker refuses a change.
    """
    before = diff_topics(admin, declared)
    if not any(drift.repairable for drift in before.drifts):
        return before, before
    _create(admin, [declared[d.topic] for d in before.drifts if d.kind is DriftKind.MISSING])
    _add_partitions(admin, [d for d in before.drifts if d.kind is DriftKind.TOO_FEW_PARTITIONS])
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        after = diff_topics(admin, declared)
        # Also for topics just created: a broker may have dropped settings of the creation that it does know.
        _set_settings(admin, [d for d in after.drifts if d.kind is DriftKind.SETTING])
        if not any(drift.repairable for drift in after.drifts) or time.monotonic() > deadline:
            return before, after
        time.sleep(0.1)


def _create(admin: AdminClient, topics: Collection[Topic]) -> None:
    new = [NewTopic(t.name, num_partitions=t.partitions, replication_factor=-1, config=t.settings) for t in topics]
    if not new:
        return
    refused: list[Topic] = []
    answers = admin.create_topics(new, request_timeout=REQUEST_TIMEOUT_SECONDS)
    for topic in topics:
        try:
            answers[topic.name].result(REQUEST_TIMEOUT_SECONDS)
        except KafkaException as error:
            code = error.args[0].code()
            if code == KafkaError.INVALID_CONFIG:
                refused.append(topic)
            elif code != KafkaError.TOPIC_ALREADY_EXISTS:
                raise _refused(f"create {topic.name}", error) from error
    if not refused:
        return
    # A setting this broker does not know: create the topic bare, then set what it lists.
    bare = [NewTopic(topic.name, num_partitions=topic.partitions, replication_factor=-1) for topic in refused]
    for name, future in admin.create_topics(bare, request_timeout=REQUEST_TIMEOUT_SECONDS).items():
        try:
            future.result(REQUEST_TIMEOUT_SECONDS)
        except KafkaException as error:
            raise _refused(f"create {name}", error) from error


def _add_partitions(admin: AdminClient, drifts: Iterable[Drift]) -> None:
    grown = [NewPartitions(drift.topic, int(drift.declared or 0)) for drift in drifts]
    if not grown:
        return
    for topic, future in admin.create_partitions(grown, request_timeout=REQUEST_TIMEOUT_SECONDS).items():
        try:
            future.result(REQUEST_TIMEOUT_SECONDS)
        except KafkaException as error:
            raise _refused(f"add partitions to {topic}", error) from error


def _set_settings(admin: AdminClient, drifts: Iterable[Drift]) -> None:
    by_topic: dict[str, list[ConfigEntry]] = {}
    for drift in drifts:
        if drift.setting is not None and drift.declared is not None:
            entry = ConfigEntry(drift.setting, drift.declared, incremental_operation=AlterConfigOpType.SET)
            by_topic.setdefault(drift.topic, []).append(entry)
    if not by_topic:
        return
    resources = [
        ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=entries)
        for topic, entries in by_topic.items()
    ]
    answers = admin.incremental_alter_configs(resources, request_timeout=REQUEST_TIMEOUT_SECONDS)
    for resource, future in answers.items():
        try:
            future.result(REQUEST_TIMEOUT_SECONDS)
        except KafkaException as error:
            raise _refused(f"change the settings of {resource.name}", error) from error


def _same(declared: str, found: str | None) -> bool:
    """Equal as text or as numbers: Redpanda answers 0.100000 where 0.1 was set."""
    if found is None or declared == found:
        return declared == found
    try:
        return float(declared) == float(found)
    except ValueError:
        return False


def _refused(action: str, error: KafkaException) -> TopicError:
    detail = error.args[0]
    remedies = {
        KafkaError.TOPIC_AUTHORIZATION_FAILED: "give this user the right to create and alter topics",
        KafkaError.CLUSTER_AUTHORIZATION_FAILED: "give this user the right to create and alter topics",
        KafkaError._TIMED_OUT: "check that the broker is healthy (`post-explorer broker status`) and try again",
        KafkaError.INVALID_REPLICATION_FACTOR: "start more brokers or lower the broker's default replication factor",
    }
    return TopicError(
        f"the broker refused to {action}: {detail.str()}", remedies.get(detail.code(), "see the broker's log")
    )

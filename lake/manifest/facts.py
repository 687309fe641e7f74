"""What the manifest is told and what it tells: files, offsets, counts and gaps, and the changes that carry them.

All times are microseconds since 1970-01-01 UTC. An "hour" is the first microsecond of a clock hour, of event time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

HOUR_US = 3_600_000_000

FileKind = Literal["small", "rolled"]


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int


class Position(NamedTuple):
    """Where reading continues, and the fencing number of the current owner."""

    next_offset: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Advance:
    """Moves one partition from offset `expected` to `next`; applied only if both `expected` and `epoch` still hold."""

    topic: str
    partition: int
    expected: int
    next: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Span:
    """Which offsets of one partition a file's rows came from.

    `first_offset` and `last_offset` are inclusive. `rows` is a fact of its own: offsets have holes.
    """

    topic: str
    partition: int
    first_offset: int
    last_offset: int
    rows: int


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that is durable on disk and waits to become visible.

    path: relative to the lake's root, with forward slashes.
    supersedes: rows in it that end the life of other rows (updates, deletes, account deletions, syncs); 0 if none.
    pending: whether those rows still have to be applied to the other files; a rolled file may carry applied ones.
    erased: rows whose content was removed (they keep identity and time).
    since_us: the earliest time at which a row that ends one of this file's can have been witnessed; None = min_time_us.
    Earlier than that for rows that a lagging host delivered long after they were written.
    """

    path: str
    table: str
    hour_us: int
    rows: int
    bytes: int
    min_time_us: int
    max_time_us: int
    sha256: str
    kind: FileKind = "small"
    supersedes: int = 0
    spans: tuple[Span, ...] = ()
    pending: bool = True
    erased: int = 0
    since_us: int | None = None


@dataclass(frozen=True, slots=True)
class LiveFile:
    """A file as the manifest knows it; `pending` is true while its superseding rows are not applied everywhere."""

    path: str
    table: str
    hour_us: int
    rows: int
    bytes: int
    min_time_us: int
    max_time_us: int
    sha256: str
    kind: FileKind
    supersedes: int
    pending: bool
    erased: int
    added_version: int
    since_us: int


@dataclass(frozen=True, slots=True)
class SmallFiles:
    """A table's hour that has small files in the newest version: how many of them."""

    table: str
    hour_us: int
    files: int


@dataclass(frozen=True, slots=True)
class RetiredFile:
    """A file that left the lake and still lies on disk for readers of older versions."""

    path: str
    retired_version: int
    retired_us: int


@dataclass(frozen=True, slots=True)
class HourCount:
    """What one commit did for one topic and hour; added to the running totals of the reconciliation.

    consumed = duplicates + rows + dead_letters. The hour of a message that cannot be decoded is the hour of its Kafka
    timestamp.
    """

    topic: str
    hour_us: int
    consumed: int
    duplicates: int
    rows: int
    dead_letters: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A range of event time for which the source could not give everything.

    id: stable identity, so that a repeated report is stored once. start_us, end_us: None if that end is not known, then
    the gap counts as open on that side. first_seq, last_seq: None if the protocol has none.
    """

    id: str
    source_host: str
    start_us: int | None
    end_us: int | None
    reason: str
    detail: str
    detected_us: int
    first_seq: int | None = None
    last_seq: int | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """One atomic step of ingest. `id` is chosen by the writer and makes a repeated commit harmless."""

    id: str
    advances: tuple[Advance, ...]
    files: tuple[NewFile, ...]
    counts: tuple[HourCount, ...] = ()
    gaps: tuple[Gap, ...] = ()
    reason: str = "ingest"


@dataclass(frozen=True, slots=True)
class Swap:
    """Replaces files by others in one version: compaction, erasure, replay, retention. Offsets stay untouched.

    retire: paths that must be live now. applied: live files whose superseding rows have been applied everywhere.
    counts: changes to the reconciliation totals (a replay may find more or fewer rows); negative numbers are allowed.
    removed: rows that left the lake for good, by (topic, hour) (retention only).
    """

    id: str
    retire: tuple[str, ...]
    files: tuple[NewFile, ...]
    reason: str
    applied: tuple[str, ...] = ()
    counts: tuple[HourCount, ...] = ()
    removed: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One visible change of the lake."""

    version: int
    created_us: int
    reason: str
    id: str
    files_added: int
    files_retired: int
    rows_added: int
    rows_retired: int


@dataclass(frozen=True, slots=True)
class HourReconciliation:
    """The running totals of one topic and hour beside what the live files hold.

    The equation closes when every consumed message is a row, a duplicate or a dead letter, and every row written is
    still in a live file or was removed by retention.
    """

    topic: str
    table: str | None
    hour_us: int
    consumed: int
    duplicates: int
    rows: int
    dead_letters: int
    removed: int
    live_rows: int
    erased_rows: int

    @property
    def closes(self) -> bool:
        """Whether nothing is unaccounted for."""
        return self.consumed == self.duplicates + self.rows + self.dead_letters and self.rows == (
            self.live_rows + self.removed
        )


@dataclass(frozen=True, slots=True)
class TableTotals:
    """Totals of a table over its live files."""

    rows: int = 0
    bytes: int = 0
    files: int = 0
    erased: int = 0
    min_time_us: int | None = None
    max_time_us: int | None = None


def hour_of(time_us: int) -> int:
    """First microsecond of the clock hour of `time_us`."""
    return time_us - time_us % HOUR_US


def coalesce_spans(spans: Sequence[Span]) -> tuple[Span, ...]:
    """One span per partition that covers all of `spans`, sorted; rows are added up."""
    merged: dict[tuple[str, int], Span] = {}
    for span in spans:
        key = (span.topic, span.partition)
        seen = merged.get(key)
        merged[key] = (
            span
            if seen is None
            else Span(
                *key,
                min(seen.first_offset, span.first_offset),
                max(seen.last_offset, span.last_offset),
                seen.rows + span.rows,
            )
        )
    return tuple(merged[key] for key in sorted(merged))

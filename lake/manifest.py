"""The manifest: the one authority on what is in the lake.

A row is visible if and only if the manifest names its file as live; the transaction that added the file also advanced
the offsets its rows came from. Two implementations (`manifest_sqlite`, `manifest_postgres`) stand behind the `Manifest`
protocol of this module and pass one contract suite.

All times are microseconds since 1970-01-01 UTC. An "hour" is the first microsecond of a clock hour, of event time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from lake.steps import Hook, no_hook

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


class Snapshot(Protocol):
    """One version of the lake. Cheap to make, holds no lock; its files stay on disk for the grace time."""

    @property
    def version(self) -> int:
        """The manifest version; 0 is the empty lake."""

    @property
    def created_us(self) -> int:
        """When that version was committed; 0 for the empty lake."""

    def tables(self) -> list[str]:
        """Names of the tables that have live files, sorted."""

    def files(self, table: str, start_us: int | None = None, end_us: int | None = None) -> list[LiveFile]:
        """Live files that can hold rows with start_us <= time < end_us (None = open end), by hour, then path.

        Raises SnapshotExpired when files of this version were forgotten already.
        """

    def superseding(self, table: str, start_us: int | None = None, source: str | None = None) -> list[LiveFile]:
        """Live files whose superseding rows a current answer over `table` has to apply itself.

        source: the table that holds those rows (`table` itself by default; "account" and "sync" act on every table).
        The list has the pending files, and, for rows that arrived after their own deletion was applied, every file from
        one hour before the oldest `since_us` of a small file on. start_us: the start of the range asked for.
        """

    def totals(self, table: str) -> TableTotals:
        """Rows, bytes and times of a table, without touching a file."""

    def total_rows(self, table: str) -> int:
        """Rows of a table in this version (tombstones included)."""

    def positions(self, topics: Collection[str] | None = None) -> dict[TopicPartition, int]:
        """The next offset of each partition in this version (partitions that had not moved are missing).

        Rows of version v are those with kafka_offset < positions(v), whatever files hold them today. Raises
        SnapshotExpired for a version that `Manifest.thin` removed.
        """

    def gaps(self, start_us: int, end_us: int) -> list[Gap]:
        """Gaps that overlap start_us <= t < end_us."""


class Manifest(Protocol):
    """The commit authority. Every method may block for at most the busy timeout; safe for use from several threads."""

    @property
    def url(self) -> str:
        """Where the manifest lives, without secrets."""

    def offsets(self, topics: Collection[str] | None = None) -> dict[TopicPartition, Position]:
        """Positions of all known partitions, or of those of `topics`."""

    def claim(self, partitions: Collection[TopicPartition], owner: str) -> dict[TopicPartition, Position]:
        """Takes partitions over: raises their epoch, which fences every earlier owner; new ones start at offset 0.

        Call on assignment, before seeking. owner: free text for people (host, pid).
        """

    def seek(self, topic: str, partition: int, next_offset: int, epoch: int) -> None:
        """Sets a position without rows (first start in mid-topic, history lost at the broker).

        Raises CommitRefused if the epoch is not the caller's or the position would move backwards.
        """

    def rewind(self, topic: str, partition: int, next_offset: int) -> int:
        """Sets a position to any offset and fences its owner; returns the version. Raises CommitRefused if unknown.

        For an operator who accepts that a topic was recreated: what is read again is dropped by its identity.
        """

    def commit(self, commit: Commit) -> int:
        """Applies all of `commit` in one transaction and returns the new version.

        Committing the same id again returns the version of the first time. Raises CommitRefused (nothing applied),
        CommitOutcomeUnknown (ask `outcome`), ManifestUnavailable (nothing applied; retry).
        """

    def swap(self, swap: Swap) -> int:
        """Applies `swap` in one transaction and returns the new version; errors as for `commit`."""

    def outcome(self, commit_id: str) -> int | None:
        """The version under which a commit or swap was applied, or None if it was not."""

    def snapshot(self, version: int | None = None) -> Snapshot:
        """The newest version, or an older one; raises SnapshotExpired if it cannot be read any more."""

    def file(self, path: str) -> LiveFile | None:
        """The live file of this path, or None."""

    def spans(self, path: str) -> tuple[Span, ...]:
        """Offsets a known file (live or retired) came from; empty for an unknown path."""

    def known_paths(self) -> set[str]:
        """Paths of all live and retired files that are not forgotten."""

    def add_gap(self, gap: Gap) -> bool:
        """Stores a gap; False if one of this id was there."""

    def gaps(self, start_us: int, end_us: int) -> list[Gap]:
        """Gaps that overlap start_us <= t < end_us, by start."""

    def reconciliation(self, start_us: int, end_us: int) -> list[HourReconciliation]:
        """Totals of every topic and hour in start_us <= hour < end_us, by hour, then topic."""

    def versions(self, limit: int = 100) -> list[VersionInfo]:
        """The newest visible changes, newest first."""

    def files_to_unlink(self, retired_before_us: int, limit: int = 10_000) -> list[RetiredFile]:
        """Files retired before that time, oldest first: unlink them, then `forget` them."""

    def forget(self, paths: Iterable[str]) -> int:
        """Removes retired files from the manifest after they were unlinked; returns how many."""

    def thin(self, before_us: int, keep_every_us: int = HOUR_US) -> int:
        """Thins out the history of positions before that time to the last one of every period; returns rows removed."""

    def hold(self, name: str, owner: str) -> AbstractContextManager[None]:
        """A named lock over all processes, freed when the process dies; raises LockHeld at once if taken."""

    def close(self) -> None:
        """Frees connections; afterwards every call fails."""


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


@dataclass(frozen=True, slots=True)
class ManifestOptions:
    """Bounds of a manifest connection. busy_timeout_s: longest wait for another transaction; hook: for fault tests."""

    busy_timeout_s: float = 10.0
    create: bool = False
    read_only: bool = False
    hook: Hook = no_hook


def open_manifest(
    url_or_path: str,
    *,
    create: bool = False,
    read_only: bool = False,
    busy_timeout_s: float = 10.0,
    hook: Hook = no_hook,
) -> Manifest:
    """Opens the manifest at a SQLite path or a `postgresql://` URL.

    create: make it if it is not there (otherwise ManifestUnavailable says how). read_only: every change is refused by
    the database itself. hook: for fault tests. Raises ManifestVersionError for a manifest of a newer release.
    """
    options = ManifestOptions(busy_timeout_s, create, read_only, hook)
    if url_or_path.startswith(("postgresql://", "postgres://")):
        from lake.manifest_postgres import PostgresManifest

        return PostgresManifest(url_or_path, options)
    from lake.manifest_sqlite import SqliteManifest

    return SqliteManifest(url_or_path, options)

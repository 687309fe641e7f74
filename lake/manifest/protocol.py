"""The interface of the manifest, which the SQLite and the PostgreSQL one implement, and a snapshot of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from lake.manifest.facts import (
    HOUR_US,
    Commit,
    Gap,
    HourReconciliation,
    LiveFile,
    Position,
    RetiredFile,
    SmallFiles,
    Span,
    Swap,
    TableTotals,
    TopicPartition,
    VersionInfo,
)


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

    def small_files(self) -> list[SmallFiles]:
        """Hours with small files in the newest version, by hour, then table; costs what these are, whatever the lake's size."""

    def newest_time_us(self, not_after_us: int) -> int | None:
        """The newest event time of the live files that end by `not_after_us`, which leaves out events from the future.

        None if there is none. Quick, whatever the lake's size.
        """

    def add_gap(self, gap: Gap) -> bool:
        """Stores a gap; False if one of this id was there."""

    def gaps(self, start_us: int, end_us: int) -> list[Gap]:
        """Gaps that overlap start_us <= t < end_us, by start."""

    def reconciliation(self, start_us: int, end_us: int) -> list[HourReconciliation]:
        """Totals of every topic and hour in start_us <= hour < end_us, by hour, then topic."""

    def versions(self, limit: int = 100) -> list[VersionInfo]:
        """The newest visible changes, newest first."""

    def version_info(self, version: int) -> VersionInfo | None:
        """One visible change, however old; None if it never was or was thinned out."""

    def positions(self, version: int, topics: Collection[str] | None = None) -> dict[TopicPartition, int]:
        """See `Snapshot.positions`; also for a version whose files were unlinked. Quick: an index look-up per partition.

        Raises SnapshotExpired, naming the nearest versions that were kept, for one that `thin` removed.
        """

    def files_to_unlink(self, retired_before_us: int, limit: int = 10_000) -> list[RetiredFile]:
        """Files retired before that time, oldest first: unlink them, then `forget` them."""

    def forget(self, paths: Iterable[str]) -> int:
        """Removes retired files from the manifest after they were unlinked; returns how many."""

    def thin(self, before_us: int, keep_every_us: int = HOUR_US) -> int:
        """Thins out the history of positions before that time to the last one of every period; returns rows removed."""

    def checkpoint(self) -> None:
        """Upkeep that would otherwise fall to some commit and make it slow; for maintenance, every run."""

    def hold(self, name: str, owner: str) -> AbstractContextManager[None]:
        """A named lock over all processes, freed when the process dies; raises LockHeld at once if taken."""

    def close(self) -> None:
        """Frees connections; afterwards every call fails."""

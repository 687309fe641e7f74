"""What the SQLite and the PostgreSQL manifest share.

Each change first raises `state.version`: that one row lock puts all changes in an order, so that a version names one set of
files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from lake.errors import CommitRefused, SnapshotExpired
from lake.manifest import changes
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
    TopicPartition,
    VersionInfo,
)
from lake.manifest.protocol import Snapshot
from lake.manifest.rows import FILE_COLUMNS, VERSION_COLUMNS, live_file
from lake.manifest.snapshot import SqlSnapshot, gaps_between, positions_of
from schemas.topics import TABLE_TOPICS, TOPICS


class SqlManifest(ABC):
    """Implements `lake.manifest.Manifest` over a small set of primitives."""

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[Any]:
        """A write transaction as a DB-API cursor; commits at the end of the block, rolls back on any exception."""

    @abstractmethod
    def _query(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of one read."""

    # --- positions --------------------------------------------------------------------------------------------------

    def offsets(self, topics: Collection[str] | None = None) -> dict[TopicPartition, Position]:
        """See `Manifest.offsets`."""
        rows = self._query("SELECT topic, partition, next_offset, epoch FROM offsets")
        return {
            TopicPartition(topic, partition): Position(next_offset, epoch)
            for topic, partition, next_offset, epoch in rows
            if topics is None or topic in topics
        }

    def claim(self, partitions: Collection[TopicPartition], owner: str) -> dict[TopicPartition, Position]:
        """See `Manifest.claim`."""
        claimed: dict[TopicPartition, Position] = {}
        statement = (
            "INSERT INTO offsets (topic, partition, next_offset, epoch, owner, claimed_us) VALUES (?, ?, 0, 1, ?, ?)"
            " ON CONFLICT (topic, partition) DO UPDATE SET epoch = offsets.epoch + 1, owner = excluded.owner,"
            " claimed_us = excluded.claimed_us RETURNING next_offset, epoch"
        )
        with self._transaction() as cursor:
            # Sorted, so that two claims never wait for each other's rows in a circle.
            for topic, partition in sorted(partitions):
                cursor.execute(statement, (topic, partition, owner, changes.now_us()))
                claimed[TopicPartition(topic, partition)] = Position(*cursor.fetchone())
        return claimed

    def seek(self, topic: str, partition: int, next_offset: int, epoch: int) -> None:
        """See `Manifest.seek`."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE offsets SET next_offset = ? WHERE topic = ? AND partition = ? AND epoch = ?"
                " AND next_offset <= ?",
                (next_offset, topic, partition, epoch, next_offset),
            )
            if cursor.rowcount != 1:
                raise CommitRefused(
                    f"{topic}[{partition}] cannot be moved to offset {next_offset}: epoch {epoch} does not own it or it"
                    " is past that offset.",
                    "Claim the partition again and read its offset.",
                )

    def rewind(self, topic: str, partition: int, next_offset: int) -> int:
        """See `Manifest.rewind`."""
        with self._transaction() as cursor:
            version, _ = changes.next_version(cursor, change := f"rewind-{topic}-{partition}-{changes.now_us()}")
            cursor.execute(
                "UPDATE offsets SET next_offset = ?, epoch = epoch + 1 WHERE topic = ? AND partition = ?",
                (next_offset, topic, partition),
            )
            if cursor.rowcount != 1:
                raise CommitRefused(f"The manifest does not know {topic}[{partition}].", "Check the topic's name.")
            changes.record_advance(cursor, topic, partition, version, next_offset)
            changes.add_version(cursor, version, "rewind", change, (), 0, 0)
        return version

    # --- changes ----------------------------------------------------------------------------------------------------

    def commit(self, commit: Commit) -> int:
        """See `Manifest.commit`."""
        with self._transaction() as cursor:
            version, known = changes.next_version(cursor, commit.id)
            if known:
                return version
            changes.advance(cursor, commit.advances, version)
            changes.add_files(cursor, commit.files, version)
            changes.add_counts(cursor, commit.counts)
            for gap in commit.gaps:
                changes.insert_gap(cursor, gap)
            changes.add_version(cursor, version, commit.reason, commit.id, commit.files, 0, 0)
        return version

    def swap(self, swap: Swap) -> int:
        """See `Manifest.swap`."""
        with self._transaction() as cursor:
            version, known = changes.next_version(cursor, swap.id)
            if known:
                return version
            retired_rows = changes.retire(cursor, swap.retire, version)
            changes.add_files(cursor, swap.files, version)
            changes.mark_applied(cursor, swap.applied, version)
            changes.add_counts(cursor, swap.counts)
            for topic, hour_us, rows in swap.removed:
                cursor.execute(
                    "UPDATE counts SET removed = removed + ? WHERE topic = ? AND hour_us = ?",
                    (rows, topic, hour_us),
                )
            changes.add_version(cursor, version, swap.reason, swap.id, swap.files, len(swap.retire), retired_rows)
        return version

    def outcome(self, commit_id: str) -> int | None:
        """See `Manifest.outcome`."""
        rows = self._query("SELECT version FROM versions WHERE id = ?", (commit_id,))
        return rows[0][0] if rows else None

    def add_gap(self, gap: Gap) -> bool:
        """See `Manifest.add_gap`."""
        with self._transaction() as cursor:
            return changes.insert_gap(cursor, gap)

    def forget(self, paths: Iterable[str]) -> int:
        """See `Manifest.forget`."""
        with self._transaction() as cursor:
            return changes.forget(cursor, list(paths))

    # --- reads ------------------------------------------------------------------------------------------------------

    def snapshot(self, version: int | None = None) -> Snapshot:
        """See `Manifest.snapshot`."""
        newest, horizon = self._query("SELECT version, horizon FROM state WHERE id = 1")[0]
        wanted = newest if version is None else version
        if wanted > newest or wanted < horizon:
            raise SnapshotExpired(
                f"Version {wanted} cannot be read; versions {horizon} to {newest} can.", "Read the newest version."
            )
        rows = self._query("SELECT created_us FROM versions WHERE version = ?", (wanted,))
        return SqlSnapshot(self._query, wanted, rows[0][0] if rows else 0)

    def file(self, path: str) -> LiveFile | None:
        """See `Manifest.file`."""
        rows = self._query(
            f"SELECT {FILE_COLUMNS} FROM files WHERE path = ? AND retired_version IS NULL",  # noqa: S608 - constants
            (path,),
        )
        return live_file(rows[0], None) if rows else None

    def spans(self, path: str) -> tuple[Span, ...]:
        """See `Manifest.spans`."""
        rows = self._query(
            "SELECT topic, partition, first_offset, last_offset, rows FROM spans WHERE path = ?"
            " ORDER BY topic, partition, first_offset",
            (path,),
        )
        return tuple(Span(*row) for row in rows)

    def known_paths(self) -> set[str]:
        """See `Manifest.known_paths`."""
        return {row[0] for row in self._query("SELECT path FROM files")}

    def small_files(self) -> list[SmallFiles]:
        """See `Manifest.small_files`."""
        rows = self._query(
            "SELECT table_name, hour_us, count(*) FROM files WHERE kind = 'small' AND retired_version IS NULL"
            " GROUP BY hour_us, table_name ORDER BY hour_us, table_name"
        )
        return [SmallFiles(*row) for row in rows]

    def newest_time_us(self, not_after_us: int) -> int | None:
        """See `Manifest.newest_time_us`."""
        rows = self._query(
            "SELECT max(max_time_us) FROM files WHERE retired_version IS NULL AND max_time_us <= ?", (not_after_us,)
        )
        found: int | None = rows[0][0]
        return found

    def gaps(self, start_us: int, end_us: int) -> list[Gap]:
        """See `Manifest.gaps`."""
        return gaps_between(self._query, start_us, end_us)

    def reconciliation(self, start_us: int, end_us: int) -> list[HourReconciliation]:
        """See `Manifest.reconciliation`."""
        counted = self._query(
            "SELECT hour_us, topic, consumed, duplicates, rows, dead_letters, removed FROM counts"
            " WHERE hour_us >= ? AND hour_us < ?",
            (start_us, end_us),
        )
        stored = self._query(
            "SELECT hour_us, table_name, sum(rows), sum(erased) FROM files"
            " WHERE retired_version IS NULL AND hour_us >= ? AND hour_us < ? GROUP BY hour_us, table_name",
            (start_us, end_us),
        )
        live = {
            (hour, TABLE_TOPICS.get(table, table)): (int(rows), int(erased)) for hour, table, rows, erased in stored
        }
        totals = {(row[0], row[1]): row[2:] for row in counted}
        result = []
        for hour, topic in sorted(live.keys() | totals.keys()):
            consumed, duplicates, rows, dead_letters, removed = totals.get((hour, topic), (0, 0, 0, 0, 0))
            live_rows, erased = live.get((hour, topic), (0, 0))
            table = TOPICS[topic].table if topic in TOPICS else None
            result.append(
                HourReconciliation(
                    topic, table, hour, consumed, duplicates, rows, dead_letters, removed, live_rows, erased
                )
            )
        return result

    def versions(self, limit: int = 100) -> list[VersionInfo]:
        """See `Manifest.versions`."""
        rows = self._query(
            f"SELECT {VERSION_COLUMNS} FROM versions ORDER BY version DESC LIMIT ?",  # noqa: S608 - constants
            (limit,),
        )
        return [VersionInfo(*row) for row in rows]

    def version_info(self, version: int) -> VersionInfo | None:
        """See `Manifest.version_info`."""
        rows = self._query(f"SELECT {VERSION_COLUMNS} FROM versions WHERE version = ?", (version,))  # noqa: S608
        return VersionInfo(*rows[0]) if rows else None

    def positions(self, version: int, topics: Collection[str] | None = None) -> dict[TopicPartition, int]:
        """See `Manifest.positions`."""
        return positions_of(self._query, version, topics)

    def files_to_unlink(self, retired_before_us: int, limit: int = 10_000) -> list[RetiredFile]:
        """See `Manifest.files_to_unlink`."""
        rows = self._query(
            "SELECT path, retired_version, retired_us FROM files WHERE retired_us IS NOT NULL AND retired_us < ?"
            " ORDER BY retired_us, path LIMIT ?",
            (retired_before_us, limit),
        )
        return [RetiredFile(*row) for row in rows]

    def thin(self, before_us: int, keep_every_us: int = HOUR_US) -> int:
        """See `Manifest.thin`."""
        # Whole periods that were not thinned before: each once, and each a short change.
        periods = self._query(
            "SELECT min(version), max(version) FROM versions WHERE created_us < ?"
            " AND version >= (SELECT thinned FROM state WHERE id = 1) GROUP BY created_us / ? ORDER BY 1",
            (before_us - before_us % keep_every_us, keep_every_us),
        )
        removed = 0
        for first, last in periods:
            if first < last:
                with self._transaction() as cursor:
                    removed += changes.thin(cursor, first, last)
        return removed

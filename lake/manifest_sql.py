"""What the SQLite and the PostgreSQL manifest share: tables, migrations and every statement.

SQL is written once with `?` placeholders; an implementation supplies transactions, queries and locks. Each change first
raises `state.version`: that one row lock puts all changes in an order, so that a version names one set of files.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from lake.errors import CommitRefused, SnapshotExpired
from lake.manifest import (
    HOUR_US,
    Advance,
    Commit,
    Gap,
    HourCount,
    HourReconciliation,
    LiveFile,
    NewFile,
    Position,
    RetiredFile,
    Snapshot,
    Span,
    Swap,
    TableTotals,
    TopicPartition,
    VersionInfo,
    hour_of,
)
from schemas.topics import TABLE_TOPICS, TOPICS

SCHEMA_VERSION = 1

_CHUNK = 500
"""Values per IN list: below the 999 variables that old SQLite builds allow."""

_FILE_COLUMNS = (
    "path, table_name, hour_us, rows, bytes, min_time_us, max_time_us, sha256, kind, supersedes, applied_version, erased,"
    " added_version, since_us"
)
_GAP_COLUMNS = "id, source_host, start_us, end_us, reason, detail, detected_us, first_seq, last_seq"
_LIVE_AT = "added_version <= ? AND (retired_version IS NULL OR retired_version > ?)"

_VERSION_1 = (
    """CREATE TABLE state (
        id INTEGER PRIMARY KEY CHECK (id = 1), version BIGINT NOT NULL, horizon BIGINT NOT NULL,
        thinned BIGINT NOT NULL)""",
    "INSERT INTO state VALUES (1, 0, 0, 0)",
    """CREATE TABLE offsets (
        topic TEXT NOT NULL, partition INTEGER NOT NULL, next_offset BIGINT NOT NULL, epoch BIGINT NOT NULL,
        owner TEXT NOT NULL, claimed_us BIGINT NOT NULL, PRIMARY KEY (topic, partition))""",
    """CREATE TABLE advances (
        topic TEXT NOT NULL, partition INTEGER NOT NULL, version BIGINT NOT NULL, next_offset BIGINT NOT NULL,
        PRIMARY KEY (topic, partition, version))""",
    """CREATE TABLE versions (
        version BIGINT PRIMARY KEY, created_us BIGINT NOT NULL, reason TEXT NOT NULL, id TEXT NOT NULL UNIQUE,
        files_added BIGINT NOT NULL, files_retired BIGINT NOT NULL, rows_added BIGINT NOT NULL,
        rows_retired BIGINT NOT NULL)""",
    """CREATE TABLE files (
        path TEXT PRIMARY KEY, table_name TEXT NOT NULL, hour_us BIGINT NOT NULL, rows BIGINT NOT NULL,
        bytes BIGINT NOT NULL, min_time_us BIGINT NOT NULL, max_time_us BIGINT NOT NULL, sha256 TEXT NOT NULL,
        kind TEXT NOT NULL, supersedes BIGINT NOT NULL, applied_version BIGINT, erased BIGINT NOT NULL,
        added_version BIGINT NOT NULL, since_us BIGINT NOT NULL, retired_version BIGINT, retired_us BIGINT)""",
    "CREATE INDEX files_by_hour ON files (table_name, hour_us)",
    "CREATE INDEX files_retired ON files (retired_us) WHERE retired_us IS NOT NULL",
    "CREATE INDEX files_pending ON files (table_name) WHERE supersedes > 0",
    """CREATE TABLE spans (
        path TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL, first_offset BIGINT NOT NULL,
        last_offset BIGINT NOT NULL, rows BIGINT NOT NULL, PRIMARY KEY (path, topic, partition, first_offset))""",
    """CREATE TABLE counts (
        topic TEXT NOT NULL, hour_us BIGINT NOT NULL, consumed BIGINT NOT NULL, duplicates BIGINT NOT NULL,
        rows BIGINT NOT NULL, dead_letters BIGINT NOT NULL, removed BIGINT NOT NULL, PRIMARY KEY (topic, hour_us))""",
    """CREATE TABLE gaps (
        id TEXT PRIMARY KEY, source_host TEXT NOT NULL, start_us BIGINT, end_us BIGINT, reason TEXT NOT NULL,
        detail TEXT NOT NULL, detected_us BIGINT NOT NULL, first_seq BIGINT, last_seq BIGINT)""",
)


def migrations() -> list[tuple[int, tuple[str, ...]]]:
    """Every step of the manifest's schema, oldest first: (version it leads to, statements). Released steps never change."""
    return [(1, _VERSION_1)]


class SqlManifest(ABC):
    """Implements `lake.manifest.Manifest` over a small set of primitives."""

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[Any]:
        """A write transaction as a DB-API cursor; commits at the end of the block, rolls back on any exception."""

    @abstractmethod
    def _query(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of one read."""

    @abstractmethod
    def _sql(self, text: str) -> str:
        """The statement in the placeholder style of the database."""

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
        statement = self._sql(
            "INSERT INTO offsets (topic, partition, next_offset, epoch, owner, claimed_us) VALUES (?, ?, 0, 1, ?, ?)"
            " ON CONFLICT (topic, partition) DO UPDATE SET epoch = offsets.epoch + 1, owner = excluded.owner,"
            " claimed_us = excluded.claimed_us RETURNING next_offset, epoch"
        )
        with self._transaction() as cursor:
            # Sorted, so that two claims never wait for each other's rows in a circle.
            for topic, partition in sorted(partitions):
                cursor.execute(statement, (topic, partition, owner, now_us()))
                claimed[TopicPartition(topic, partition)] = Position(*cursor.fetchone())
        return claimed

    def seek(self, topic: str, partition: int, next_offset: int, epoch: int) -> None:
        """See `Manifest.seek`."""
        with self._transaction() as cursor:
            cursor.execute(
                self._sql(
                    "UPDATE offsets SET next_offset = ? WHERE topic = ? AND partition = ? AND epoch = ?"
                    " AND next_offset <= ?"
                ),
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
            version, _ = self._next_version(cursor, change := f"rewind-{topic}-{partition}-{now_us()}")
            cursor.execute(
                self._sql("UPDATE offsets SET next_offset = ?, epoch = epoch + 1 WHERE topic = ? AND partition = ?"),
                (next_offset, topic, partition),
            )
            if cursor.rowcount != 1:
                raise CommitRefused(f"The manifest does not know {topic}[{partition}].", "Check the topic's name.")
            self._record_advance(cursor, topic, partition, version, next_offset)
            self._add_version(cursor, version, "rewind", change, (), 0, 0)
        return version

    # --- changes ----------------------------------------------------------------------------------------------------

    def commit(self, commit: Commit) -> int:
        """See `Manifest.commit`."""
        with self._transaction() as cursor:
            version, known = self._next_version(cursor, commit.id)
            if known:
                return version
            self._advance(cursor, commit.advances, version)
            self._add_files(cursor, commit.files, version)
            self._add_counts(cursor, commit.counts)
            for gap in commit.gaps:
                self._insert_gap(cursor, gap)
            self._add_version(cursor, version, commit.reason, commit.id, commit.files, 0, 0)
        return version

    def swap(self, swap: Swap) -> int:
        """See `Manifest.swap`."""
        with self._transaction() as cursor:
            version, known = self._next_version(cursor, swap.id)
            if known:
                return version
            retired_rows = self._retire(cursor, swap.retire, version)
            self._add_files(cursor, swap.files, version)
            self._mark_applied(cursor, swap.applied, version)
            self._add_counts(cursor, swap.counts)
            for topic, hour_us, rows in swap.removed:
                cursor.execute(
                    self._sql("UPDATE counts SET removed = removed + ? WHERE topic = ? AND hour_us = ?"),
                    (rows, topic, hour_us),
                )
            self._add_version(cursor, version, swap.reason, swap.id, swap.files, len(swap.retire), retired_rows)
        return version

    def outcome(self, commit_id: str) -> int | None:
        """See `Manifest.outcome`."""
        rows = self._query("SELECT version FROM versions WHERE id = ?", (commit_id,))
        return rows[0][0] if rows else None

    def add_gap(self, gap: Gap) -> bool:
        """See `Manifest.add_gap`."""
        with self._transaction() as cursor:
            return self._insert_gap(cursor, gap)

    def forget(self, paths: Iterable[str]) -> int:
        """See `Manifest.forget`."""
        forgotten = 0
        with self._transaction() as cursor:
            for chunk in _chunks(list(paths)):
                marks = _marks(chunk)
                cursor.execute(
                    self._sql(
                        "SELECT path, retired_version FROM files"  # noqa: S608 - only placeholders are inserted
                        f" WHERE path IN ({marks}) AND retired_version IS NOT NULL"
                    ),
                    chunk,
                )
                rows = cursor.fetchall()
                if not rows:
                    continue
                known = [row[0] for row in rows]
                horizon = max(row[1] for row in rows)
                cursor.execute(
                    self._sql("UPDATE state SET horizon = ? WHERE id = 1 AND horizon < ?"), (horizon, horizon)
                )
                for table in ("files", "spans"):
                    cursor.execute(
                        self._sql(f"DELETE FROM {table} WHERE path IN ({_marks(known)})"),  # noqa: S608 - see above
                        known,
                    )
                forgotten += len(known)
        return forgotten

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
        return SqlSnapshot(self, wanted, rows[0][0] if rows else 0)

    def file(self, path: str) -> LiveFile | None:
        """See `Manifest.file`."""
        rows = self._query(
            f"SELECT {_FILE_COLUMNS} FROM files WHERE path = ? AND retired_version IS NULL",  # noqa: S608 - constants
            (path,),
        )
        return _live_file(rows[0], None) if rows else None

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

    def gaps(self, start_us: int, end_us: int) -> list[Gap]:
        """See `Manifest.gaps`."""
        rows = self._query(
            f"SELECT {_GAP_COLUMNS} FROM gaps"  # noqa: S608 - constants
            " WHERE (start_us IS NULL OR start_us < ?) AND (end_us IS NULL OR end_us > ?) ORDER BY start_us, id",
            (end_us, start_us),
        )
        return [Gap(*row) for row in rows]

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
            "SELECT version, created_us, reason, id, files_added, files_retired, rows_added, rows_retired FROM versions"
            " ORDER BY version DESC LIMIT ?",
            (limit,),
        )
        return [VersionInfo(*row) for row in rows]

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
        with self._transaction() as cursor:
            cursor.execute(
                self._sql("SELECT max(version) FROM versions WHERE created_us < ?"),
                (before_us,),
            )
            newest = cursor.fetchone()[0]
            if newest is None:
                return 0
            # Kept: per partition the last position of each period. Positions inside a period cannot be asked for then.
            cursor.execute(
                self._sql(
                    "DELETE FROM advances WHERE version < ? AND version NOT IN ("
                    " SELECT max(a.version) FROM advances a JOIN versions v ON v.version = a.version"
                    " WHERE a.version <= ? GROUP BY a.topic, a.partition, v.created_us / ?)"
                ),
                (newest, newest, keep_every_us),
            )
            removed = int(cursor.rowcount)
            cursor.execute(
                self._sql(
                    "DELETE FROM versions WHERE version < ? AND version NOT IN (SELECT version FROM advances)"
                    " AND version NOT IN (SELECT added_version FROM files)"
                ),
                (newest,),
            )
            cursor.execute(self._sql("UPDATE state SET thinned = ? WHERE id = 1"), (newest,))
        return removed

    # --- steps of a change ------------------------------------------------------------------------------------------

    def _next_version(self, cursor: Any, change_id: str) -> tuple[int, bool]:
        """(version, whether this change was applied before). Takes the lock that orders all changes."""
        cursor.execute(self._sql("UPDATE state SET version = version + 1 WHERE id = 1 RETURNING version"))
        version = int(cursor.fetchone()[0])
        cursor.execute(self._sql("SELECT version FROM versions WHERE id = ?"), (change_id,))
        row = cursor.fetchone()
        if row is None:
            return version, False
        cursor.execute(self._sql("UPDATE state SET version = version - 1 WHERE id = 1"))
        return int(row[0]), True

    def _advance(self, cursor: Any, advances: Sequence[Advance], version: int) -> None:
        statement = self._sql(
            "UPDATE offsets SET next_offset = ? WHERE topic = ? AND partition = ? AND next_offset = ? AND epoch = ?"
        )
        for step in sorted(advances, key=lambda step: (step.topic, step.partition)):
            if step.next < step.expected:
                raise CommitRefused(
                    f"{step.topic}[{step.partition}] would move back from {step.expected} to {step.next}."
                )
            cursor.execute(statement, (step.next, step.topic, step.partition, step.expected, step.epoch))
            if cursor.rowcount == 1:
                if step.next > step.expected:
                    self._record_advance(cursor, step.topic, step.partition, version, step.next)
                continue
            cursor.execute(
                self._sql("SELECT next_offset, epoch, owner FROM offsets WHERE topic = ? AND partition = ?"),
                (step.topic, step.partition),
            )
            row = cursor.fetchone()
            found = f"offset {row[0]}, epoch {row[1]}, owner {row[2]}" if row else "no such partition"
            raise CommitRefused(
                f"{step.topic}[{step.partition}] is not at offset {step.expected}, epoch {step.epoch} any more:"
                f" the manifest has {found}.",
                "Drop the batch, claim the partition again if it is still assigned, and read from the manifest's offset.",
            )

    def _record_advance(self, cursor: Any, topic: str, partition: int, version: int, next_offset: int) -> None:
        cursor.execute(self._sql("INSERT INTO advances VALUES (?, ?, ?, ?)"), (topic, partition, version, next_offset))

    def _add_files(self, cursor: Any, files: Sequence[NewFile], version: int) -> None:
        if not files:
            return
        for chunk in _chunks([file.path for file in files]):
            cursor.execute(
                self._sql(f"SELECT path FROM files WHERE path IN ({_marks(chunk)})"),  # noqa: S608 - placeholders
                chunk,
            )
            row = cursor.fetchone()
            if row is not None:
                raise CommitRefused(f"The file {row[0]} is in the manifest already.", "Write under a new name.")
        cursor.executemany(
            self._sql(
                f"INSERT INTO files ({_FILE_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
            ),
            [
                (
                    file.path,
                    file.table,
                    file.hour_us,
                    file.rows,
                    file.bytes,
                    file.min_time_us,
                    file.max_time_us,
                    file.sha256,
                    file.kind,
                    file.supersedes,
                    None if file.pending and file.supersedes else version,
                    file.erased,
                    version,
                    file.min_time_us if file.since_us is None else file.since_us,
                )
                for file in files
            ],
        )
        spans = [(file.path, *_span_values(span)) for file in files for span in file.spans]
        if spans:
            cursor.executemany(self._sql("INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?)"), spans)

    def _retire(self, cursor: Any, paths: Sequence[str], version: int) -> int:
        """Retires live files; returns their rows. Raises CommitRefused if one is not live (any more)."""
        rows = 0
        for chunk in _chunks(sorted(set(paths))):
            cursor.execute(
                self._sql(
                    "UPDATE files SET retired_version = ?, retired_us = ?"  # noqa: S608 - only placeholders are inserted
                    f" WHERE path IN ({_marks(chunk)}) AND retired_version IS NULL RETURNING rows"
                ),
                (version, now_us(), *chunk),
            )
            found = cursor.fetchall()
            if len(found) != len(chunk):
                raise CommitRefused(
                    f"{len(chunk) - len(found)} of the files to replace are not live any more, among"
                    f" {chunk[0]} … {chunk[-1]}.",
                    "Plan the change again from the newest version.",
                )
            rows += sum(row[0] for row in found)
        return rows

    def _mark_applied(self, cursor: Any, paths: Sequence[str], version: int) -> None:
        for chunk in _chunks(list(paths)):
            cursor.execute(
                self._sql(
                    "UPDATE files SET applied_version = ?"  # noqa: S608 - only placeholders are inserted
                    f" WHERE path IN ({_marks(chunk)}) AND applied_version IS NULL"
                ),
                (version, *chunk),
            )

    def _add_counts(self, cursor: Any, counts: Sequence[HourCount]) -> None:
        if counts:
            cursor.executemany(
                self._sql(
                    "INSERT INTO counts (topic, hour_us, consumed, duplicates, rows, dead_letters, removed)"
                    " VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (topic, hour_us) DO UPDATE SET"
                    " consumed = counts.consumed + excluded.consumed, duplicates = counts.duplicates + excluded.duplicates,"
                    " rows = counts.rows + excluded.rows, dead_letters = counts.dead_letters + excluded.dead_letters"
                ),
                [(c.topic, c.hour_us, c.consumed, c.duplicates, c.rows, c.dead_letters) for c in counts],
            )

    def _insert_gap(self, cursor: Any, gap: Gap) -> bool:
        cursor.execute(
            self._sql(f"INSERT INTO gaps ({_GAP_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"),  # noqa: S608
            (
                gap.id,
                gap.source_host,
                gap.start_us,
                gap.end_us,
                gap.reason,
                gap.detail,
                gap.detected_us,
                gap.first_seq,
                gap.last_seq,
            ),
        )
        return bool(cursor.rowcount == 1)

    def _add_version(
        self,
        cursor: Any,
        version: int,
        reason: str,
        change_id: str,
        files: Sequence[NewFile],
        files_retired: int,
        rows_retired: int,
    ) -> None:
        cursor.execute(
            self._sql("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?)"),
            (
                version,
                now_us(),
                reason,
                change_id,
                len(files),
                files_retired,
                sum(file.rows for file in files),
                rows_retired,
            ),
        )


class SqlSnapshot:
    """See `lake.manifest.Snapshot`."""

    def __init__(self, manifest: SqlManifest, version: int, created_us: int) -> None:
        self._manifest = manifest
        self._version = version
        self._created_us = created_us

    @property
    def version(self) -> int:
        """See `Snapshot.version`."""
        return self._version

    @property
    def created_us(self) -> int:
        """See `Snapshot.created_us`."""
        return self._created_us

    def tables(self) -> list[str]:
        """See `Snapshot.tables`."""
        rows = self._query(
            f"SELECT DISTINCT table_name FROM files WHERE {_LIVE_AT} ORDER BY table_name",  # noqa: S608 - constants
            (self._version, self._version),
        )
        return [row[0] for row in rows]

    def files(self, table: str, start_us: int | None = None, end_us: int | None = None) -> list[LiveFile]:
        """See `Snapshot.files`."""
        where, values = _range(start_us, end_us)
        return self._files(f"table_name = ? AND {_LIVE_AT}{where}", [table, self._version, self._version, *values])

    def superseding(self, table: str, start_us: int | None = None, source: str | None = None) -> list[LiveFile]:
        """See `Snapshot.superseding`."""
        where, values = _range(start_us, None)
        oldest = self._query(
            f"SELECT min(since_us) FROM files WHERE table_name = ? AND kind = 'small' AND {_LIVE_AT}{where}",  # noqa: S608
            [table, self._version, self._version, *values],
        )[0][0]
        # No live file is that late: only pending ones count.
        checked_to = (1 << 62) if oldest is None else hour_of(oldest) - HOUR_US
        return self._files(
            f"table_name = ? AND supersedes > 0 AND {_LIVE_AT}"
            " AND (applied_version IS NULL OR applied_version > ? OR hour_us >= ?)",
            [source or table, self._version, self._version, self._version, checked_to],
        )

    def totals(self, table: str) -> TableTotals:
        """See `Snapshot.totals`."""
        row = self._query(
            "SELECT sum(rows), sum(bytes), count(*), sum(erased), min(min_time_us), max(max_time_us) FROM files"  # noqa: S608
            f" WHERE table_name = ? AND {_LIVE_AT}",
            (table, self._version, self._version),
        )[0]
        return TableTotals(int(row[0] or 0), int(row[1] or 0), int(row[2]), int(row[3] or 0), row[4], row[5])

    def total_rows(self, table: str) -> int:
        """See `Snapshot.total_rows`."""
        return self.totals(table).rows

    def positions(self, topics: Collection[str] | None = None) -> dict[TopicPartition, int]:
        """See `Snapshot.positions`."""
        thinned = self._manifest._query("SELECT thinned FROM state WHERE id = 1")[0][0]
        if self._version < thinned and not self._manifest._query(
            "SELECT 1 FROM versions WHERE version = ?", (self._version,)
        ):
            raise SnapshotExpired(
                f"The offsets of version {self._version} were thinned out.", "Ask for a version of `lake versions`."
            )
        rows = self._manifest._query(
            "SELECT a.topic, a.partition, a.next_offset FROM advances a JOIN (SELECT topic, partition, max(version) AS v"
            " FROM advances WHERE version <= ? GROUP BY topic, partition) newest"
            " ON a.topic = newest.topic AND a.partition = newest.partition AND a.version = newest.v",
            (self._version,),
        )
        return {
            TopicPartition(topic, number): offset for topic, number, offset in rows if not topics or topic in topics
        }

    def gaps(self, start_us: int, end_us: int) -> list[Gap]:
        """See `Snapshot.gaps`."""
        return self._manifest.gaps(start_us, end_us)

    def _files(self, where: str, values: Sequence[object]) -> list[LiveFile]:
        rows = self._query(f"SELECT {_FILE_COLUMNS} FROM files WHERE {where} ORDER BY hour_us, path", values)  # noqa: S608
        return [_live_file(row, self._version) for row in rows]

    def _query(self, sql: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        rows = self._manifest._query(sql, values)
        # Looked at after the read: files of this version were complete then, or this raises.
        horizon = self._manifest._query("SELECT horizon FROM state WHERE id = 1")[0][0]
        if self._version < horizon:
            raise SnapshotExpired(f"Files of version {self._version} were unlinked.", "Read the newest version.")
        return rows


def now_us() -> int:
    """The wall clock in microseconds."""
    return time.time_ns() // 1000


def _live_file(row: Sequence[Any], version: int | None) -> LiveFile:
    applied = row[10]
    pending = applied is None or (version is not None and applied > version)
    return LiveFile(*(*row[:10], pending and row[9] > 0, *row[11:14]))


def _span_values(span: Span) -> tuple[object, ...]:
    return span.topic, span.partition, span.first_offset, span.last_offset, span.rows


def _range(start_us: int | None, end_us: int | None) -> tuple[str, list[object]]:
    where, values = "", list[object]()
    if start_us is not None:
        # The hour bound lets the index prune; the file's own maximum is exact.
        where += " AND hour_us >= ? AND max_time_us >= ?"
        values += [hour_of(start_us), start_us]
    if end_us is not None:
        where += " AND hour_us < ? AND min_time_us < ?"
        values += [end_us, end_us]
    return where, values


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _chunks(values: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(values), _CHUNK):
        yield list(values[start : start + _CHUNK])

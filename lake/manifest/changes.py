"""The steps of a change to the manifest: each is a few statements on the cursor of an open write transaction.

SQL is written with `?` placeholders; the cursor of PostgreSQL translates them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from lake.errors import CommitRefused
from lake.manifest.facts import Advance, Gap, HourCount, NewFile, Span
from lake.manifest.rows import FILE_COLUMNS, GAP_COLUMNS, chunks, marks


class Cursor(Protocol):
    """The part of a DB-API cursor that is used here."""

    @property
    def rowcount(self) -> int:
        """Rows that the last statement changed."""

    def execute(self, sql: str, values: Sequence[object] = ..., /) -> object:
        """Runs one statement."""

    def executemany(self, sql: str, values: Sequence[Sequence[object]], /) -> object:
        """Runs one statement for each row of values."""

    def fetchone(self) -> Any:
        """The next row of the answer; None after the last."""

    def fetchall(self) -> Any:
        """The remaining rows of the answer."""


def now_us() -> int:
    """The wall clock in microseconds."""
    return time.time_ns() // 1000


def next_version(cursor: Cursor, change_id: str) -> tuple[int, bool]:
    """(version, whether this change was applied before). Takes the lock that orders all changes."""
    cursor.execute("UPDATE state SET version = version + 1 WHERE id = 1 RETURNING version")
    version = int(cursor.fetchone()[0])
    cursor.execute("SELECT version FROM versions WHERE id = ?", (change_id,))
    row = cursor.fetchone()
    if row is None:
        return version, False
    cursor.execute("UPDATE state SET version = version - 1 WHERE id = 1")
    return int(row[0]), True


def advance(cursor: Cursor, advances: Sequence[Advance], version: int) -> None:
    """Moves offsets; raises CommitRefused for the first one that another owner moved or claimed."""
    statement = "UPDATE offsets SET next_offset = ? WHERE topic = ? AND partition = ? AND next_offset = ? AND epoch = ?"
    for step in sorted(advances, key=lambda step: (step.topic, step.partition)):
        if step.next < step.expected:
            raise CommitRefused(f"{step.topic}[{step.partition}] would move back from {step.expected} to {step.next}.")
        cursor.execute(statement, (step.next, step.topic, step.partition, step.expected, step.epoch))
        if cursor.rowcount == 1:
            if step.next > step.expected:
                record_advance(cursor, step.topic, step.partition, version, step.next)
            continue
        cursor.execute(
            "SELECT next_offset, epoch, owner FROM offsets WHERE topic = ? AND partition = ?",
            (step.topic, step.partition),
        )
        row = cursor.fetchone()
        found = f"offset {row[0]}, epoch {row[1]}, owner {row[2]}" if row else "no such partition"
        raise CommitRefused(
            f"{step.topic}[{step.partition}] is not at offset {step.expected}, epoch {step.epoch} any more:"
            f" the manifest has {found}.",
            "Drop the batch, claim the partition again if it is still assigned, and read from the manifest's offset.",
        )


def record_advance(cursor: Cursor, topic: str, partition: int, version: int, next_offset: int) -> None:
    """Notes a position for snapshots of this version and later ones."""
    cursor.execute("INSERT INTO advances VALUES (?, ?, ?, ?)", (topic, partition, version, next_offset))


def add_files(cursor: Cursor, files: Sequence[NewFile], version: int) -> None:
    """Makes files live from this version on. Raises CommitRefused if a path was used before."""
    if not files:
        return
    for chunk in chunks([file.path for file in files]):
        cursor.execute(
            f"SELECT path FROM files WHERE path IN ({marks(chunk)})",  # noqa: S608 - placeholders
            chunk,
        )
        row = cursor.fetchone()
        if row is not None:
            raise CommitRefused(f"The file {row[0]} is in the manifest already.", "Write under a new name.")
    cursor.executemany(
        f"INSERT INTO files ({FILE_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
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
        cursor.executemany("INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?)", spans)


def retire(cursor: Cursor, paths: Sequence[str], version: int) -> int:
    """Retires live files; returns their rows. Raises CommitRefused if one is not live (any more)."""
    rows = 0
    for chunk in chunks(sorted(set(paths))):
        cursor.execute(
            "UPDATE files SET retired_version = ?, retired_us = ?"  # noqa: S608 - only placeholders are inserted
            f" WHERE path IN ({marks(chunk)}) AND retired_version IS NULL RETURNING rows",
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


def mark_applied(cursor: Cursor, paths: Sequence[str], version: int) -> None:
    """Says that the superseding rows of these live files have been applied everywhere."""
    for chunk in chunks(list(paths)):
        cursor.execute(
            "UPDATE files SET applied_version = ?"  # noqa: S608 - only placeholders are inserted
            f" WHERE path IN ({marks(chunk)}) AND applied_version IS NULL",
            (version, *chunk),
        )


def add_counts(cursor: Cursor, counts: Sequence[HourCount]) -> None:
    """Adds to the totals of the reconciliation."""
    if counts:
        cursor.executemany(
            "INSERT INTO counts (topic, hour_us, consumed, duplicates, rows, dead_letters, removed)"
            " VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (topic, hour_us) DO UPDATE SET"
            " consumed = counts.consumed + excluded.consumed, duplicates = counts.duplicates + excluded.duplicates,"
            " rows = counts.rows + excluded.rows, dead_letters = counts.dead_letters + excluded.dead_letters",
            [(c.topic, c.hour_us, c.consumed, c.duplicates, c.rows, c.dead_letters) for c in counts],
        )


def insert_gap(cursor: Cursor, gap: Gap) -> bool:
    """Stores a gap; False if one of this id was there."""
    cursor.execute(
        f"INSERT INTO gaps ({GAP_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",  # noqa: S608
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


def add_version(
    cursor: Cursor,
    version: int,
    reason: str,
    change_id: str,
    files: Sequence[NewFile],
    files_retired: int,
    rows_retired: int,
) -> None:
    """Lists the change under its id, by which a repeated one is recognised."""
    cursor.execute(
        "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
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


def forget(cursor: Cursor, paths: Sequence[str]) -> int:
    """Removes those of `paths` that are retired; versions that needed them cannot be read any more. Returns how many."""
    forgotten = 0
    for chunk in chunks(paths):
        cursor.execute(
            "SELECT path, retired_version FROM files"  # noqa: S608 - only placeholders are inserted
            f" WHERE path IN ({marks(chunk)}) AND retired_version IS NOT NULL",
            chunk,
        )
        rows = cursor.fetchall()
        if not rows:
            continue
        known = [row[0] for row in rows]
        horizon = max(row[1] for row in rows)
        cursor.execute("UPDATE state SET horizon = ? WHERE id = 1 AND horizon < ?", (horizon, horizon))
        for table in ("files", "spans"):
            cursor.execute(f"DELETE FROM {table} WHERE path IN ({marks(known)})", known)  # noqa: S608 - see above
        forgotten += len(known)
    return forgotten


def thin(cursor: Cursor, first: int, last: int) -> int:
    """Of the versions `first` to `last` keeps the last one, where the positions of all partitions belong together.

    Returns the positions removed.
    """
    cursor.execute("SELECT topic, partition FROM offsets")
    removed = 0
    for topic, partition in cursor.fetchall():
        # Each partition keeps its last move: others count from it.
        cursor.execute(
            "DELETE FROM advances WHERE topic = ? AND partition = ? AND version >= ? AND version < (SELECT max(version)"
            " FROM advances WHERE topic = ? AND partition = ? AND version BETWEEN ? AND ?)",
            (topic, partition, first, topic, partition, first, last),
        )
        removed += max(0, cursor.rowcount)
    cursor.execute("DELETE FROM versions WHERE version >= ? AND version < ?", (first, last))
    cursor.execute("UPDATE state SET thinned = ? WHERE id = 1 AND thinned < ?", (last, last))
    return removed


def _span_values(span: Span) -> tuple[object, ...]:
    return span.topic, span.partition, span.first_offset, span.last_offset, span.rows

"""The manifest in one SQLite file: WAL, synchronous=FULL, every change one BEGIN IMMEDIATE transaction.

Several processes of one host share it. Readers never block writers, writers queue for at most the busy timeout. The file
must lie on a local disk: WAL needs shared memory, which network file systems do not give.
"""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from lake.errors import CommitOutcomeUnknown, LockHeld, ManifestFull, ManifestUnavailable, ManifestVersionError
from lake.manifest.opening import ConnectionPool, ManifestOptions, has_to_migrate, no_manifest
from lake.manifest.schema import SCHEMA_VERSION, migrations
from lake.manifest.sql import SqlManifest
from lake.paths import sync_folder
from lake.steps import CommitStep

_APPLICATION_ID = 0x424C414B
"""Marks the file as ours in SQLite's header ("BLAK")."""
_LOOK_PAUSE_S = 0.05
_BUSY_PAUSE_S = 0.001
"""Between two attempts to begin a change. SQLite's own waits grow to 100 ms, twenty times as long as a commit takes."""
_LOG_PAGES = 16_384
"""Of the write-ahead log (64 MiB), after which a commit has to copy it into the database: only without maintenance."""


class SqliteManifest(SqlManifest):
    """See `lake.manifest.Manifest`."""

    def __init__(self, path: str | Path, options: ManifestOptions) -> None:
        self._path = Path(path).absolute()
        self._options = options
        self._pool = ConnectionPool(str(self._path), self._connect)
        if not self._path.exists() and (options.read_only or not options.create):
            raise no_manifest(str(self._path))
        if options.create and not options.read_only:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """See `Manifest.url`."""
        return str(self._path)

    def close(self) -> None:
        """See `Manifest.close`."""
        self._pool.close()

    @contextmanager
    def hold(self, name: str, owner: str) -> Generator[None]:
        """See `Manifest.hold`: an flock on a file beside the manifest; its content names the holder."""
        path = self._path.with_name(f"{self._path.name}.{name}.lock")
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise LockHeld(
                    f"The lock {name!r} of {self._path} is held by {file.read().strip() or 'another process'}.",
                    "Let that process finish or stop it; the lock frees itself when it ends.",
                ) from error
            file.truncate(0)
            file.write(owner)
            file.flush()
            yield

    def checkpoint(self) -> None:
        """See `Manifest.checkpoint`: copies what the write-ahead log holds into the database, beside readers and writers."""
        self._query("PRAGMA wal_checkpoint(PASSIVE)")

    def backup(self, target: Path) -> None:
        """Copies a consistent manifest to `target` while others go on writing (SQLite's backup API)."""
        with closing(sqlite3.connect(target)) as copy, self._pool.lease() as connection:
            connection.backup(copy)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        with self._pool.lease() as connection, closing(connection.cursor()) as cursor:
            self._execute(cursor, "BEGIN IMMEDIATE")
            try:
                yield cursor
                self._options.hook(CommitStep.MANIFEST_OPEN)
            except BaseException as error:
                # Also for a KeyboardInterrupt: a transaction left open would block every other writer.
                connection.rollback()
                if isinstance(error, sqlite3.OperationalError):
                    raise self._refused(error, "a change") from error
                raise
            try:
                self._commit_transaction(cursor)
            except sqlite3.OperationalError as error:
                if connection.in_transaction:
                    connection.rollback()
                    raise self._refused(error, "a commit") from error
                raise CommitOutcomeUnknown(f"The manifest {self._path} answered a COMMIT with: {error}.") from error

    def _refused(self, error: sqlite3.OperationalError, what: str) -> ManifestUnavailable:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            return ManifestFull(
                f"The volume of the manifest {self._path} is full.",
                "Free space or grow the volume; taking in resumes by itself, nothing is lost.",
            )
        return ManifestUnavailable(
            f"The manifest {self._path} refused {what}: {error}.", "Look for a broken disk or wrong permissions."
        )

    def _commit_transaction(self, cursor: sqlite3.Cursor) -> None:
        """The one statement after which a change is visible; tests replace it to lose its answer."""
        cursor.execute("COMMIT")

    def _query(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._pool.lease() as connection, closing(connection.cursor()) as cursor:
            self._execute(cursor, sql, values)
            return cursor.fetchall()

    def _execute(self, cursor: sqlite3.Cursor, sql: str, values: Sequence[object] = ()) -> None:
        """Runs a statement outside a transaction, again and again while others hold a lock that it needs."""
        deadline = time.monotonic() + self._options.busy_timeout_s
        while True:
            try:
                cursor.execute(sql, values)
                return
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise ManifestUnavailable(
                        f"The manifest {self._path} did not answer within {self._options.busy_timeout_s:g} s: {error}.",
                        "Look for a process that holds it, for a full disk, or for wrong permissions.",
                    ) from error
            time.sleep(_BUSY_PAUSE_S)

    def _connect(self) -> sqlite3.Connection:
        mode = "ro" if self._options.read_only else "rwc" if self._options.create else "rw"
        try:
            # The pool gives a connection to one thread at a time, but not always to the same.
            connection = sqlite3.connect(
                f"{self._path.as_uri()}?mode={mode}",
                uri=True,
                timeout=self._options.busy_timeout_s,
                isolation_level=None,
                check_same_thread=False,
            )
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
            connection.execute("PRAGMA cache_size=-16000")
            connection.execute("PRAGMA temp_store=MEMORY")
            # From here on `_execute` waits, in shorter steps.
            connection.execute("PRAGMA busy_timeout=0")
        except sqlite3.DatabaseError as error:
            raise ManifestUnavailable(
                f"The manifest {self._path} cannot be opened: {error}.",
                "If the file is damaged, move it away and run `post-explorer lake rebuild`.",
            ) from error
        return connection

    def _look(self) -> tuple[int, int, int]:
        """Number of objects, application id and schema version; the objects first, for they come with the other two."""
        try:
            objects = self._query("SELECT count(*) FROM sqlite_master")[0][0]
            application_id = self._query("PRAGMA application_id")[0][0]
            found = self._query("PRAGMA user_version")[0][0]
        except sqlite3.DatabaseError as error:
            raise ManifestUnavailable(
                f"The manifest {self._path} is not a readable SQLite file: {error}.",
                "Move it away and run `post-explorer lake rebuild`.",
            ) from error
        return objects, application_id, found

    def _migrate(self) -> None:
        objects, application_id, found = self._look()
        if self._options.read_only:
            # The writer makes the file first and its tables in one transaction after it.
            deadline = time.monotonic() + self._options.busy_timeout_s
            while not objects and time.monotonic() < deadline:
                time.sleep(_LOOK_PAUSE_S)
                objects, application_id, found = self._look()
        if objects and application_id != _APPLICATION_ID:
            raise ManifestVersionError(
                f"{self._path} is a SQLite file of something else.", "Correct EXPLORER_MANIFEST."
            )
        if not has_to_migrate(self.url, found, self._options):
            return
        with self._pool.lease() as connection, closing(connection.cursor()) as cursor:
            self._execute(cursor, "PRAGMA journal_mode=WAL")
        with self._transaction() as cursor:
            # Another process may have migrated between the look above and the lock.
            current = cursor.execute("PRAGMA user_version").fetchone()[0]
            for number, statements in migrations():
                if number > current:
                    for statement in statements:
                        cursor.execute(statement)
            cursor.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            cursor.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        sync_folder(self._path.parent)

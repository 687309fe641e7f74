"""The manifest in PostgreSQL, for writers on several hosts. Needs the extra `postgres` (psycopg 3).

Every change takes the row lock of `state` first, so that changes have one order; reads take no lock. The tables live in the
schema that the URL's `options=-csearch_path=…` names, or in the default one.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lake.errors import CommitOutcomeUnknown, LockHeld, ManifestUnavailable
from lake.manifest.opening import ConnectionPool, ManifestOptions, has_to_migrate, no_manifest
from lake.manifest.schema import SCHEMA_VERSION, migrations
from lake.manifest.sql import SqlManifest
from lake.steps import CommitStep

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
except ImportError as missing:
    raise ManifestUnavailable(
        "A PostgreSQL manifest needs psycopg.", "Install it: pip install 'bluesky-post-explorer[postgres]'."
    ) from missing

_MIGRATION_LOCK = 0x424C414B


class _Cursor(psycopg.Cursor[tuple[Any, ...]]):
    """Takes the statements of `lake.manifest.sql`, which have `?` for a value."""

    def execute(self, query: Any, params: Any = None, **how: Any) -> _Cursor:
        return super().execute(query.replace("?", "%s"), params, **how)

    def executemany(self, query: Any, params_seq: Any, **how: Any) -> None:
        super().executemany(query.replace("?", "%s"), params_seq, **how)


_Connection = psycopg.Connection[tuple[Any, ...]]


class PostgresManifest(SqlManifest):
    """See `lake.manifest.Manifest`. A connection that broke is replaced by a new one."""

    def __init__(self, url: str, options: ManifestOptions) -> None:
        self._conninfo = url
        self._options = options
        self._pool = ConnectionPool(self.url, lambda: self._connect("post-explorer manifest"))
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """See `Manifest.url`."""
        parts = conninfo_to_dict(self._conninfo)
        return f"postgresql://{parts.get('host', '')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"

    def close(self) -> None:
        """See `Manifest.close`."""
        self._pool.close()

    @contextmanager
    def hold(self, name: str, owner: str) -> Generator[None]:
        """See `Manifest.hold`: an advisory lock on a connection of its own; PostgreSQL frees it when that ends."""
        connection = self._connect(application_name=f"{name}: {owner}"[:60])
        key = _lock_key(name)
        try:
            row = connection.execute("SELECT pg_try_advisory_lock(?, ?)", (_MIGRATION_LOCK, key)).fetchone()
            if row is None or not row[0]:
                holder = connection.execute(
                    "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid"
                    " WHERE l.locktype = 'advisory' AND l.granted AND l.classid::bigint = ? AND l.objid::bigint = ?",
                    (_MIGRATION_LOCK, key & 0xFFFFFFFF),
                ).fetchone()
                raise LockHeld(
                    f"The lock {name!r} of {self.url} is held by {holder[0] if holder else 'another process'}.",
                    "Let that process finish or stop it; the lock frees itself when it ends.",
                )
            yield
        finally:
            connection.close()

    def checkpoint(self) -> None:
        """See `Manifest.checkpoint`: the server does it by itself."""

    def outcome(self, commit_id: str) -> int | None:
        """See `Manifest.outcome`."""
        with self._transaction() as cursor:
            # Waits for a transaction whose answer was lost and which the server may still be committing.
            cursor.execute("SELECT version FROM state WHERE id = 1 FOR UPDATE")
            cursor.execute("SELECT version FROM versions WHERE id = ?", (commit_id,))
            row = cursor.fetchone()
        return None if row is None else int(row[0])

    @contextmanager
    def _transaction(self) -> Iterator[_Cursor]:
        with self._pool.lease() as connection:
            cursor = _Cursor(connection)
            try:
                cursor.execute("BEGIN")
                yield cursor
                self._options.hook(CommitStep.MANIFEST_OPEN)
            except BaseException as error:
                self._roll_back(connection)
                if isinstance(error, psycopg.Error):
                    raise ManifestUnavailable(
                        f"The manifest {self.url} refused a change: {error}.",
                        "Look at the PostgreSQL server and its log.",
                    ) from error
                raise
            try:
                self._commit_transaction(cursor)
            except psycopg.Error as error:
                self._pool.discard(connection)
                raise CommitOutcomeUnknown(f"The manifest {self.url} did not answer a COMMIT: {error}.") from error

    def _commit_transaction(self, cursor: _Cursor) -> None:
        """The one statement after which a change is visible; tests replace it to lose its answer."""
        cursor.execute("COMMIT")

    def _query(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._pool.lease() as connection:
            try:
                return connection.execute(sql, values).fetchall()
            except psycopg.OperationalError as error:
                self._pool.discard(connection)
                raise self._no_answer(error) from error

    def _connect(self, application_name: str) -> _Connection:
        milliseconds = int(self._options.busy_timeout_s * 1000)
        given = conninfo_to_dict(self._conninfo).get("options") or ""
        options = (
            f"{given} -c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
            f" -c idle_in_transaction_session_timeout={milliseconds * 6} -c synchronous_commit=on"
        )
        if self._options.read_only:
            options += " -c default_transaction_read_only=on"
        try:
            return psycopg.connect(
                self._conninfo,
                autocommit=True,
                connect_timeout=max(2, int(self._options.busy_timeout_s)),
                application_name=application_name,
                options=options.strip(),
                cursor_factory=_Cursor,
            )
        except psycopg.OperationalError as error:
            raise ManifestUnavailable(
                f"The manifest {self.url} cannot be reached: {error}.",
                "Start PostgreSQL or correct EXPLORER_MANIFEST.",
            ) from error

    def _roll_back(self, connection: _Connection) -> None:
        try:
            connection.rollback()
        except psycopg.Error:
            self._pool.discard(connection)

    def _no_answer(self, error: Exception) -> ManifestUnavailable:
        return ManifestUnavailable(
            f"The manifest {self.url} did not answer: {error}.", "Look at the PostgreSQL server and its log."
        )

    def _migrate(self) -> None:
        found = self._found_version()
        if found == 0 and not self._options.create:
            raise no_manifest(self.url)
        if not has_to_migrate(self.url, found, self._options):
            return
        with self._transaction() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(?)", (_MIGRATION_LOCK,))
            cursor.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BIGINT NOT NULL)")
            cursor.execute("SELECT value FROM meta WHERE key = 'schema_version'")
            row = cursor.fetchone()
            current = row[0] if row else 0
            for number, statements in migrations():
                if number > current:
                    for statement in statements:
                        cursor.execute(statement)
            cursor.execute(
                "INSERT INTO meta VALUES ('schema_version', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (SCHEMA_VERSION,),
            )

    def _found_version(self) -> int:
        with self._pool.lease() as connection:
            try:
                rows = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchall()
            except psycopg.errors.UndefinedTable:
                return 0
            except psycopg.OperationalError as error:
                self._pool.discard(connection)
                raise self._no_answer(error) from error
        return int(rows[0][0]) if rows else 0


def _lock_key(name: str) -> int:
    """A signed 32-bit number for a lock's name: PostgreSQL's advisory locks have no names."""
    value = zlib.crc32(name.encode())
    return value - (1 << 32) if value >= 1 << 31 else value

"""The one module that knows DuckDB: a locked-down connection, sessions that can be cancelled, and its errors.

Reasons for its rules (measured on DuckDB 2.0.0): `interrupt` works only on the cursor that runs the query, and one that
arrives before execution starts is lost, so it is repeated until the worker is done; the Arrow path of `execute` copies
the whole result, that of `sql` streams but plans the statement twice, 3 ms for each file that is a branch of it; the settings
lock still allows COPY inside an allowed folder, so that no text from a client may ever be SQL.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

Parameters = Mapping[str, Any]

# `Session.few` copies on purpose.
warnings.filterwarnings("ignore", "Arrow output on a DB-API result", UserWarning)


class CancelReason(StrEnum):
    """Why a query was stopped before its end."""

    TIMEOUT = "timeout"
    DISCONNECTED = "disconnected"
    STOPPING = "stopping"
    CANCELLED = "cancelled"


class QueryCancelled(Exception):  # noqa: N818 - an outcome
    """The query was stopped on purpose."""

    def __init__(self, reason: CancelReason) -> None:
        super().__init__(reason)
        self.reason = reason


class QueryOutOfMemory(Exception):  # noqa: N818 - an outcome
    """The memory and spill limits do not allow the query at the moment."""


class FileGone(Exception):  # noqa: N818 - an outcome
    """A file of the snapshot is not there: it was replaced since and a newer snapshot has its rows, or it was lost."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        quoted = re.search('"([^"]+)"', message)
        self.path = quoted.group(1) if quoted else None
        """The file as the reader names it, or None where its message does not."""


class FileDamaged(Exception):  # noqa: N818 - an outcome
    """A file of the snapshot is not what was written: the operator has to restore it."""


class Session:
    """One cursor for one request: used by one worker thread, cancelled from any other."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection) -> None:
        self._cursor = cursor
        self._reason: CancelReason | None = None
        self.closed = False

    def cancel(self, reason: CancelReason) -> None:
        """Ask the running query, and every later one of this session, to stop. Repeat it until the worker is done."""
        if self._reason is None:
            self._reason = reason
        if not self.closed:
            self._cursor.interrupt()

    def check(self) -> None:
        """Raise QueryCancelled if the session was cancelled; call it between steps that do not query."""
        if self._reason is not None:
            raise QueryCancelled(self._reason)

    def few(self, sql: str, parameters: Parameters) -> pa.Table:
        """The whole result of a statement that costs more to plan than to copy: many branches, few rows; blocks until it is
        there."""
        with self._translated():
            self.check()
            table: pa.Table = self._cursor.execute(sql, parameters).to_arrow_table()
        self.check()
        return table

    def table(self, sql: str, parameters: Parameters) -> pa.Table:
        """The whole result; blocks until it is there."""
        with self._translated():
            self.check()
            table: pa.Table = self._cursor.sql(sql, params=parameters or None).to_arrow_table()
        # An interrupt between two operators can end a stream early instead of raising.
        self.check()
        return table

    def rows(self, sql: str, parameters: Parameters) -> list[tuple[Any, ...]]:
        """The whole result as Python values; for small results."""
        with self._translated():
            self.check()
            found: list[tuple[Any, ...]] = self._cursor.execute(sql, parameters).fetchall()
        self.check()
        return found

    def batches(self, sql: str, parameters: Parameters, rows: int) -> Iterator[pa.RecordBatch]:
        """The result in batches of at most `rows`, with memory for a few of them only."""
        with self._translated():
            self.check()
            reader = self._cursor.sql(sql, params=parameters or None).to_arrow_reader(rows)
            while True:
                self.check()
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    break
                yield batch
        self.check()

    def register(self, name: str, table: pa.Table) -> None:
        """Make an Arrow table readable as `name` in this session only."""
        with self._translated():
            self._cursor.register(name, table)

    def progress(self) -> float:
        """Percentage of the running query that is done, or -1 when unknown."""
        return float(self._cursor.query_progress())

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except duckdb.OutOfMemoryException as error:
            raise QueryOutOfMemory(str(error)) from error
        except duckdb.InterruptException:
            raise QueryCancelled(self._reason or CancelReason.CANCELLED) from None
        except (duckdb.IOException, duckdb.InvalidInputException, duckdb.SerializationException) as error:
            raise _about_file(error) from error
        except OSError as error:
            # The Arrow reader wraps DuckDB's errors.
            if self._reason is not None or "INTERRUPT" in str(error):
                raise QueryCancelled(self._reason or CancelReason.CANCELLED) from None
            if "Out of Memory" in str(error):
                raise QueryOutOfMemory(str(error)) from error
            raise _about_file(error) from error


_DAMAGE: Final = ("magic bytes", "corrupt", "deserializ", "decompress", "parquet", "zstd", "thrift", "checksum")


def _about_file(error: Exception) -> Exception:
    """What an error of the reader means; other errors stay as they are."""
    text = str(error).lower()
    if "no files found" in text or "no such file" in text or "cannot open file" in text:
        return FileGone(str(error))
    return FileDamaged(str(error)) if any(word in text for word in _DAMAGE) else error


class Engine:
    """One in-memory database over the lake's files; thread-safe."""

    def __init__(
        self, folders: Sequence[Path], *, threads: int, memory_mb: int, spill_mb: int, spill_dir: Path
    ) -> None:
        """Open and lock the database. `folders` are the only ones it can read or write; `spill_dir` is made if absent."""
        spill_dir.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = duckdb.connect(
            ":memory:",
            config={
                "threads": threads,
                "memory_limit": f"{memory_mb}MiB",
                "temp_directory": str(spill_dir),
                "max_temp_directory_size": f"{spill_mb}MiB",
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "allow_community_extensions": False,
                "python_enable_replacements": False,
                # Order comes from ORDER BY alone; keeping file order costs memory.
                "preserve_insertion_order": False,
            },
        )
        # Built in, but its settings are known only once it is loaded. A file never changes, so its footer need not be read again.
        self._connection.execute("LOAD parquet")
        self._connection.execute("SET parquet_metadata_cache = true")
        # Walks put off columns themselves, and DuckDB 2.0.0 fails where it does so for a reader that was asked for row numbers.
        self._connection.execute("SET disabled_optimizers = 'late_materialization'")
        allowed = [f"{folder.resolve()}/" for folder in (*folders, spill_dir)]
        self._connection.execute("SET allowed_directories = $folders", {"folders": allowed})
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session for one request; close it in the thread that used it."""
        with self._lock:
            cursor = self._connection.cursor()
        session = Session(cursor)
        try:
            yield session
        finally:
            session.closed = True
            cursor.close()

    def close(self) -> None:
        """Free the database; no session may be in use."""
        with self._lock:
            self._connection.close()

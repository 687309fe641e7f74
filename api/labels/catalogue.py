"""The catalogue of label tables: one SQLite file that knows owners, versions and columns; the rows are in Parquet files."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from api.labels.columns import Column, columns_from
from schemas.errors import ExplorerError

_APPLICATION_ID: Final = 0x424C424C
"""Marks the file as ours in SQLite's header ("BLBL")."""
_VERSION: Final = 1
_BUSY_SECONDS: Final = 5.0
_SCHEMA: Final = (
    """
CREATE TABLE label_table (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    shared INTEGER NOT NULL,
    description TEXT NOT NULL,
    created REAL NOT NULL,
    next_version INTEGER NOT NULL,
    UNIQUE (owner, name)
) STRICT
""",
    """
CREATE TABLE label_version (
    table_id INTEGER NOT NULL REFERENCES label_table (id) ON DELETE CASCADE,
    version INTEGER NOT NULL,
    file TEXT NOT NULL UNIQUE,
    key TEXT NOT NULL,
    columns TEXT NOT NULL,
    row_count INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    multiple INTEGER NOT NULL,
    created REAL NOT NULL,
    PRIMARY KEY (table_id, version)
) STRICT
""",
)
_SELECT: Final = """
SELECT t.id, t.owner, t.name, t.shared, t.description, t.created,
    v.version, v.file, v.key, v.columns, v.row_count, v.bytes, v.sha256, v.multiple, v.created
FROM label_table t LEFT JOIN label_version v ON v.table_id = t.id
"""
_BY_NAME: Final = _SELECT + "WHERE t.owner = ? AND t.name = ? ORDER BY v.version"
_VISIBLE: Final = _SELECT + "WHERE t.owner = ? OR t.shared = 1 ORDER BY t.name, t.owner, v.version"


class CatalogueError(ExplorerError):
    """The catalogue cannot be used."""


@dataclass(frozen=True, slots=True)
class Version:
    """One upload. `file` is relative to the folder of the tables; `sha256` is that of the uploaded bytes."""

    version: int
    file: str
    key: str
    columns: tuple[Column, ...]
    rows: int
    bytes: int
    sha256: str
    multiple: bool
    created: float


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its versions, oldest first."""

    id: int
    owner: str
    name: str
    shared: bool
    description: str
    created: float
    versions: tuple[Version, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """What one owner stores."""

    tables: int
    bytes: int


class Catalogue:
    """Thread-safe: every call opens the file. Calls may block for 5 s while another writes. Raises CatalogueError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, owner: str, name: str) -> Table | None:
        """The table of this owner with this name."""
        with self._open() as connection:
            found = _tables(connection, _BY_NAME, (owner, name))
        return found[0] if found else None

    def visible(self, owner: str) -> list[Table]:
        """The owner's tables and those that others share, by name."""
        with self._open() as connection:
            return _tables(connection, _VISIBLE, (owner,))

    def usage(self, owner: str) -> Usage:
        """How much an owner stores."""
        with self._open() as connection:
            tables = connection.execute("SELECT count(*) FROM label_table WHERE owner = ?", (owner,)).fetchone()[0]
            size = connection.execute(
                "SELECT coalesce(sum(v.bytes), 0) FROM label_version v JOIN label_table t ON t.id = v.table_id WHERE t.owner = ?",
                (owner,),
            ).fetchone()[0]
        return Usage(tables, size)

    def add(self, owner: str, name: str, version: Version, *, shared: bool, description: str) -> Table:
        """Store a further version, whose number is given here: numbers of deleted versions are not used again."""
        with self._open() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "INSERT INTO label_table (owner, name, shared, description, created, next_version) VALUES (?, ?, ?, ?, ?, 1)"
                " ON CONFLICT (owner, name) DO UPDATE SET shared = excluded.shared, description = excluded.description",
                (owner, name, shared, description, version.created),
            )
            table_id, number = connection.execute(
                "UPDATE label_table SET next_version = next_version + 1 WHERE owner = ? AND name = ?"
                " RETURNING id, next_version - 1",
                (owner, name),
            ).fetchone()
            columns = json.dumps([asdict(column) for column in version.columns])
            connection.execute(
                "INSERT INTO label_version VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    table_id,
                    number,
                    version.file,
                    version.key,
                    columns,
                    version.rows,
                    version.bytes,
                    version.sha256,
                    version.multiple,
                    version.created,
                ),
            )
        found = self.find(owner, name)
        assert found is not None
        return found

    def delete(self, owner: str, name: str, version: int | None) -> list[str] | None:
        """Forget a version, or with None the whole table; the files that are to be unlinked, or None when there is none.

        A table whose last version goes stays known, so that version numbers are not used again.
        """
        with self._open() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            rows = connection.execute(
                "SELECT v.file FROM label_version v JOIN label_table t ON t.id = v.table_id"
                " WHERE t.owner = ? AND t.name = ? AND (? IS NULL OR v.version = ?)",
                (owner, name, version, version),
            ).fetchall()
            if version is None:
                gone = connection.execute(
                    "DELETE FROM label_table WHERE owner = ? AND name = ?", (owner, name)
                ).rowcount
                return [row[0] for row in rows] if gone else None
            connection.executemany("DELETE FROM label_version WHERE file = ?", rows)
        return [row[0] for row in rows] or None

    def files(self) -> set[str]:
        """The files of every version."""
        with self._open() as connection:
            return {row[0] for row in connection.execute("SELECT file FROM label_version")}

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as connection:
                connection.execute("PRAGMA foreign_keys = ON")
                self._prepare(connection)
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise CatalogueError(
                f"The catalogue of label tables {self._path} cannot be used: {error}.",
                "Look for wrong permissions or a full disk; if the file is damaged, move the folder away.",
            ) from error

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if connection.execute("PRAGMA user_version").fetchone()[0] == _VERSION:
            return
        connection.execute("BEGIN IMMEDIATE")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.commit()
        if version not in (0, _VERSION):
            raise CatalogueError(
                f"The catalogue of label tables {self._path} has version {version}; this release knows {_VERSION}.",
                "Use the release that wrote it, or a newer one.",
            )


def _tables(connection: sqlite3.Connection, query: str, values: tuple[object, ...]) -> list[Table]:
    rows = connection.execute(query, values).fetchall()
    found: dict[int, tuple[tuple[Any, ...], list[Version]]] = {}
    for row in rows:
        _, versions = found.setdefault(row[0], (row[:6], []))
        if row[6] is not None:
            number, file, key, columns, count, size, sha256, multiple, created = row[6:]
            stored = columns_from(json.loads(columns))
            versions.append(Version(number, file, key, stored, count, size, sha256, bool(multiple), created))
    return [
        Table(table_id, owner, name, bool(shared), description, created, tuple(versions))
        for (table_id, owner, name, shared, description, created), versions in found.values()
    ]

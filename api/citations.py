"""The versions that answers named, kept for as long as somebody may cite them.

The manifest thins out its history of positions (an hour apart after some days), and a paper cites the exact version of an
answer. So the service keeps the positions of each version that it named, in a SQLite file of its own: about half a kilobyte each.
"""

from __future__ import annotations

import sqlite3
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from lake.manifest import TopicPartition

_SCHEMA: Final = """CREATE TABLE IF NOT EXISTS cited (
    version INTEGER PRIMARY KEY, created_us INTEGER NOT NULL, positions BLOB NOT NULL)"""
_TRIM_EVERY: Final = 1000


@dataclass(frozen=True)
class AsOf:
    """An older version: its rows are those before these offsets, whatever files hold them today."""

    version: int
    created_us: int
    positions: Mapping[TopicPartition, int]


class Citations:
    """Positions by version. Thread-safe; every method may block for the disk."""

    def __init__(self, path: Path, most: int) -> None:
        """`most` versions are kept; beyond that the oldest are forgotten."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._most = most
        self._lock = threading.Lock()
        self._added = 0
        self._last: int | None = None
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        # A power cut may lose the last answers' versions, which the manifest still has for days.
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute(_SCHEMA)

    def add(self, named: AsOf) -> None:
        """Keep a version that an answer names. One of a manifest that was made anew replaces the older one of its number."""
        with self._lock:
            if named.version == self._last:
                return
            self._last = named.version
            values = [(topic, number, offset) for (topic, number), offset in sorted(named.positions.items())]
            self._database.execute(
                "INSERT OR REPLACE INTO cited VALUES (?, ?, ?)",
                (named.version, named.created_us, zlib.compress(msgspec.msgpack.encode(values))),
            )
            if self._added % _TRIM_EVERY == 0:
                self._database.execute(
                    "DELETE FROM cited WHERE version <= (SELECT version FROM cited ORDER BY version DESC LIMIT 1 OFFSET ?)",
                    (self._most,),
                )
            self._added += 1

    def find(self, version: int) -> AsOf | None:
        """The version, or None when no answer named it."""
        with self._lock:
            row = self._database.execute(
                "SELECT created_us, positions FROM cited WHERE version = ?", (version,)
            ).fetchone()
        if row is None:
            return None
        values = msgspec.msgpack.decode(zlib.decompress(row[1]), type=list[tuple[str, int, int]])
        return AsOf(version, row[0], {TopicPartition(topic, number): offset for topic, number, offset in values})

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

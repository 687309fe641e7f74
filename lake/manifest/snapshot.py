"""Reads of one version of the lake."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from lake.errors import SnapshotExpired
from lake.manifest.facts import HOUR_US, Gap, LiveFile, TableTotals, TopicPartition, hour_of
from lake.manifest.rows import FILE_COLUMNS, GAP_COLUMNS, live_file

Query = Callable[[str, Sequence[object]], list[tuple[Any, ...]]]

_LIVE_AT = "added_version <= ? AND (retired_version IS NULL OR retired_version > ?)"


class SqlSnapshot:
    """See `lake.manifest.Snapshot`."""

    def __init__(self, query: Query, version: int, created_us: int) -> None:
        self._query_any = query
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
        return positions_of(self._query_any, self._version, topics)

    def gaps(self, start_us: int, end_us: int) -> list[Gap]:
        """See `Snapshot.gaps`."""
        return gaps_between(self._query_any, start_us, end_us)

    def _files(self, where: str, values: Sequence[object]) -> list[LiveFile]:
        rows = self._query(f"SELECT {FILE_COLUMNS} FROM files WHERE {where} ORDER BY hour_us, path", values)  # noqa: S608
        return [live_file(row, self._version) for row in rows]

    def _query(self, sql: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        rows = self._query_any(sql, values)
        # Looked at after the read: files of this version were complete then, or this raises.
        horizon = self._query_any("SELECT horizon FROM state WHERE id = 1", ())[0][0]
        if self._version < horizon:
            raise SnapshotExpired(f"Files of version {self._version} were unlinked.", "Read the newest version.")
        return rows


def positions_of(query: Query, version: int, topics: Collection[str] | None) -> dict[TopicPartition, int]:
    """See `Manifest.positions`."""
    thinned = query("SELECT thinned FROM state WHERE id = 1", ())[0][0]
    if version < thinned and not query("SELECT 1 FROM versions WHERE version = ?", (version,)):
        below, above = query(
            "SELECT (SELECT max(version) FROM versions WHERE version < ?), (SELECT min(version) FROM versions"
            " WHERE version > ?)",
            (version, version),
        )[0]
        near = " and ".join(str(number) for number in (below, above) if number is not None)
        raise SnapshotExpired(
            f"The offsets of version {version} were thinned out; the nearest that were kept are of {near}.",
            "Ask for one of them.",
        )
    rows = query(
        "SELECT o.topic, o.partition, (SELECT a.next_offset FROM advances a WHERE a.topic = o.topic"
        " AND a.partition = o.partition AND a.version <= ? ORDER BY a.version DESC LIMIT 1) FROM offsets o",
        (version,),
    )
    return {
        TopicPartition(topic, number): offset
        for topic, number, offset in rows
        if offset is not None and (not topics or topic in topics)
    }


def gaps_between(query: Query, start_us: int, end_us: int) -> list[Gap]:
    """See `Manifest.gaps`."""
    rows = query(
        f"SELECT {GAP_COLUMNS} FROM gaps"  # noqa: S608 - constants
        " WHERE (start_us IS NULL OR start_us < ?) AND (end_us IS NULL OR end_us > ?) ORDER BY start_us, id",
        (end_us, start_us),
    )
    return [Gap(*row) for row in rows]


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

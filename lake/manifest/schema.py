"""The tables of the manifest, the same in SQLite and PostgreSQL, and the steps that lead to them."""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = 2

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


_VERSION_2 = (
    "CREATE INDEX files_small ON files (hour_us, table_name) WHERE kind = 'small' AND retired_version IS NULL",
    "CREATE INDEX files_newest ON files (max_time_us) WHERE retired_version IS NULL",
)
"""So that a look for work costs what there is to do and not what there is."""


def migrations() -> list[tuple[int, tuple[str, ...]]]:
    """Every step of the manifest's schema, oldest first: (version it leads to, statements). Released steps never change."""
    return [(1, _VERSION_1), (2, _VERSION_2)]

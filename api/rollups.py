"""Counts of whole hours that were computed before: what makes counts over months quick.

An hour is kept for its one rolled file, named by the file's digest, so that a replaced file is counted anew. What ended when
it was counted is not in it; what ended since is, until the file is rewritten or the count is a day old. An answer that
uses this says so.
"""
# ruff: noqa: S608 - statements are made of constants and names of bound values

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from api.engine import Session
from api.filters import Clock, PostFilters
from api.posts_query import Selection, prepare
from api.relation import Lake
from api.snapshots import Scan
from api.times import to_micros
from lake.manifest import HOUR_US, LiveFile

LEAST_US: Final = 7 * 24 * HOUR_US
"""Shorter ranges are counted exactly."""
_MOST_AGE_S: Final = 86_400.0
_ALL: Final = "*"
_HOURS_AT_ONCE: Final = 48
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS counted (sha256 TEXT PRIMARY KEY, at REAL NOT NULL)",
    """CREATE TABLE IF NOT EXISTS posts (sha256 TEXT NOT NULL, lang TEXT NOT NULL, count INTEGER NOT NULL,
        PRIMARY KEY (sha256, lang)) WITHOUT ROWID""",
)


@dataclass(frozen=True)
class RolledCounts:
    """Posts by hour from roll-ups, and the scan of what still has to be counted in files."""

    hours: dict[int, int]
    rest: Scan


def language_of(filters: PostFilters) -> str | None:
    """What roll-ups are asked for: `*` for all posts, a language, or None when they cannot answer the filter."""
    asked = filters.model_dump(
        exclude_defaults=True, include=set(PostFilters.model_fields) - {"start", "end", "resync"}
    )
    if filters.clock is not Clock.ARRIVAL or filters.resync is not False:
        return None
    if not asked:
        return _ALL
    if set(asked) == {"lang"} and len(filters.lang) == 1 and "-" not in filters.lang[0]:
        return filters.lang[0]
    return None


class Rollups:
    """The kept counts, in a SQLite file of the API's own. Thread-safe."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        for statement in _SCHEMA:
            self._database.execute(statement)

    def counts(self, session: Session, lake: Lake, plan: Scan, filters: PostFilters, language: str) -> RolledCounts:
        """Counts of the hours that lie wholly in the range and have one rolled file; counts what is missing first, which
        blocks for the reads. `language` is what `language_of` gave."""
        rolled = _whole_hours(plan, filters)
        missing = self._missing(rolled)
        for start in range(0, len(missing), _HOURS_AT_ONCE):
            session.check()
            self._count(session, lake, plan, missing[start : start + _HOURS_AT_ONCE])
        kept = {file.path for file in rolled}
        rest = replace(plan, files=tuple(file for file in plan.files if file.path not in kept))
        return RolledCounts(self._read(rolled, language), rest)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _missing(self, files: Sequence[LiveFile]) -> list[LiveFile]:
        with self._lock:
            known = dict(self._database.execute("SELECT sha256, at FROM counted"))
        oldest = time.time() - _MOST_AGE_S
        return [file for file in files if known.get(file.sha256, 0.0) < oldest]

    def _count(self, session: Session, lake: Lake, plan: Scan, files: Sequence[LiveFile]) -> None:
        by_hour = {file.hour_us: file for file in files}
        source = prepare(session, lake, replace(plan, files=tuple(files)), Selection(PostFilters(resync=False)))
        values = {**source.bound.values, "files": lake.paths(files)}
        hour = "date_trunc('hour', r.time)"
        found: dict[tuple[int, str], int] = {}
        for moment, count in session.rows(
            f"SELECT {hour} AS hour, count(*) FROM {source.relation} WHERE {source.condition} GROUP BY ALL", values
        ):
            found[to_micros(moment), _ALL] = count
        tags = "unnest(list_distinct(list_transform(langs, lambda tag: string_split(lower(tag), '-')[1])))"
        statement = (
            f"SELECT hour, tag, count(*) FROM (SELECT {hour} AS hour, {tags} AS tag FROM {source.relation}"
            f" WHERE {source.condition}) GROUP BY ALL"
        )
        for moment, tag, count in session.rows(statement, values):
            if tag is not None and tag != _ALL:
                found[to_micros(moment), tag] = count
        rows = [(by_hour[hour_us].sha256, tag, count) for (hour_us, tag), count in found.items() if hour_us in by_hour]
        digests = [(file.sha256,) for file in files]
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany("DELETE FROM posts WHERE sha256 = ?", digests)
                self._database.executemany("INSERT INTO posts VALUES (?, ?, ?)", rows)
                now = time.time()
                self._database.executemany(
                    "INSERT OR REPLACE INTO counted VALUES (?, ?)", [(file.sha256, now) for file in files]
                )
                self._database.execute("COMMIT")
            except BaseException:
                self._database.execute("ROLLBACK")
                raise

    def _read(self, files: Sequence[LiveFile], language: str) -> dict[int, int]:
        with self._lock:
            counts = dict(self._database.execute("SELECT sha256, count FROM posts WHERE lang = ?", (language,)))
        return {file.hour_us: counts.get(file.sha256, 0) for file in files}


def _whole_hours(plan: Scan, filters: PostFilters) -> list[LiveFile]:
    """The rolled files of hours that lie wholly in the range, where an hour has exactly one."""
    hours: dict[int, list[LiveFile]] = {}
    for file in plan.files:
        if file.kind == "rolled":
            hours.setdefault(file.hour_us, []).append(file)
    return [
        files[0]
        for hour, files in sorted(hours.items())
        if len(files) == 1
        and (filters.start is None or filters.start <= hour)
        and (filters.end is None or filters.end >= hour + HOUR_US)
    ]

"""Counts of whole hours that were computed before: what makes counts over months quick.

An hour is kept for its one rolled file, named by the file's digest, so that a replaced file is counted anew. The kept numbers
are those of the file's records, whatever ended them since; rows that pending deletions, edits and account states end are
subtracted from each answer, so that it is exact.
"""
# ruff: noqa: S608 - statements are made of constants and names of bound values

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from api.current import IS_RECORD
from api.ended_rows import EndedRows
from api.engine import Session
from api.filters import Clock, PostFilters
from api.relation import READ_FILES, Lake
from api.snapshots import Scan
from api.times import to_micros
from lake.commit import TID_CLOCK_BITS
from lake.manifest import HOUR_US, LiveFile

LEAST_US: Final = 7 * 24 * HOUR_US
"""Shorter ranges are counted exactly."""
_ALL: Final = "*"
_HOURS_AT_ONCE: Final = 48
_KEYS_AT_ONCE: Final = 500
_SCHEMA: Final = (
    # Counts of an earlier release left out what had ended by then; they cannot be told from the ones below.
    "DROP TABLE IF EXISTS counted",
    "DROP TABLE IF EXISTS posts",
    # It named files whose odd keys were not kept.
    "DROP TABLE IF EXISTS counted_files",
    "CREATE TABLE IF NOT EXISTS hours (sha256 TEXT PRIMARY KEY)",
    # Keys of records that arrived in another hour than the key says, or a neighbour of it.
    "CREATE TABLE IF NOT EXISTS odd (tid INTEGER NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (tid, sha256)) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS records (sha256 TEXT NOT NULL, lang TEXT NOT NULL, count INTEGER NOT NULL,
        PRIMARY KEY (sha256, lang)) WITHOUT ROWID""",
)


_HOUR: Final = "date_trunc('hour', r.time)"
_COUNTED: Final = f"{IS_RECORD} AND NOT r.resync"
_HOUR_OF_KEY: Final = f"date_trunc('hour', make_timestamp(r.rkey_tid >> {TID_CLOCK_BITS}))"
_IS_ODD: Final = f"r.rkey_tid IS NOT NULL AND abs(epoch_us({_HOUR}) - epoch_us({_HOUR_OF_KEY})) > {HOUR_US}"
_TAGS: Final = "list_distinct(list_transform(r.langs, lambda tag: string_split(lower(tag), '-')[1]))"


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
        self._ended = EndedRows(_COUNTED, self._odd)
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        for statement in _SCHEMA:
            self._database.execute(statement)

    def missing(self, plan: Scan, filters: PostFilters) -> list[LiveFile]:
        """The files that `counts` would have to read first."""
        files = _whole_hours(plan, filters)
        with self._lock:
            known = {sha256 for (sha256,) in self._database.execute("SELECT sha256 FROM hours")}
        return [file for file in files if file.sha256 not in known]

    def to_read(self, session: Session, lake: Lake, plan: Scan, filters: PostFilters) -> list[LiveFile]:
        """The files that `counts` would read now, each as often: those not counted before, and those in which it looks for what
        pending deletions, edits and account states end. Blocks while what ended is read for the first time."""
        ended = self._ended.to_read(session, lake, plan.snapshot, _whole_hours(plan, filters))
        return self.missing(plan, filters) + ended

    def counts(self, session: Session, lake: Lake, plan: Scan, filters: PostFilters, language: str) -> RolledCounts:
        """Counts of the hours that lie wholly in the range and have one rolled file; counts what is missing first, which
        blocks for the reads. `language` is what `language_of` gave."""
        rolled = _whole_hours(plan, filters)
        self._complete(session, lake, plan, filters)
        hours = self._read(rolled, language)
        for hour_us, count in self._ended_by_hour(session, lake, plan, rolled, language).items():
            hours[hour_us] = hours.get(hour_us, 0) - count
        kept = {file.path for file in rolled}
        rest = replace(plan, files=tuple(file for file in plan.files if file.path not in kept))
        return RolledCounts(hours, rest)

    def prepare(self, session: Session, lake: Lake, plan: Scan, filters: PostFilters) -> None:
        """Read beforehand what `counts` of the same plan would read; blocks for the reads."""
        self._complete(session, lake, plan, filters)
        self._ended.find(session, lake, plan.snapshot, _whole_hours(plan, filters))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _complete(self, session: Session, lake: Lake, plan: Scan, filters: PostFilters) -> None:
        missing = self.missing(plan, filters)
        for start in range(0, len(missing), _HOURS_AT_ONCE):
            session.check()
            self._count(session, lake, missing[start : start + _HOURS_AT_ONCE])

    def _count(self, session: Session, lake: Lake, files: Sequence[LiveFile]) -> None:
        by_hour = {file.hour_us: file for file in files}
        values = {"files": lake.paths(files)}
        found: dict[tuple[int, str], int] = {}
        for moment, count in session.rows(
            f"SELECT {_HOUR} AS hour, count(*) FROM {READ_FILES} AS r WHERE {_COUNTED} GROUP BY ALL", values
        ):
            found[to_micros(moment), _ALL] = count
        statement = (
            f"SELECT hour, tag, count(*) FROM (SELECT {_HOUR} AS hour, unnest({_TAGS}) AS tag FROM {READ_FILES} AS r"
            f" WHERE {_COUNTED}) GROUP BY ALL"
        )
        for moment, tag, count in session.rows(statement, values):
            if tag is not None and tag != _ALL:
                found[to_micros(moment), tag] = count
        statement = f"SELECT DISTINCT {_HOUR}, r.rkey_tid FROM {READ_FILES} AS r WHERE {_COUNTED} AND {_IS_ODD}"
        odd = [(tid, to_micros(moment)) for moment, tid in session.rows(statement, values)]
        rows = [(by_hour[hour_us].sha256, tag, count) for (hour_us, tag), count in found.items() if hour_us in by_hour]
        digests = [(file.sha256,) for file in files]
        odd_rows = [(tid, by_hour[hour_us].sha256) for tid, hour_us in odd if hour_us in by_hour]
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", rows)
                self._database.executemany("INSERT OR REPLACE INTO odd VALUES (?, ?)", odd_rows)
                self._database.executemany("INSERT OR REPLACE INTO hours VALUES (?)", digests)
                self._database.execute("COMMIT")
            except BaseException:
                self._database.execute("ROLLBACK")
                raise

    def _read(self, files: Sequence[LiveFile], language: str) -> dict[int, int]:
        with self._lock:
            counts = dict(self._database.execute("SELECT sha256, count FROM records WHERE lang = ?", (language,)))
        return {file.hour_us: counts.get(file.sha256, 0) for file in files}

    def _odd(self, tids: Sequence[int]) -> set[str]:
        """The files in which one of these record keys is odd."""
        found: set[str] = set()
        for start in range(0, len(tids), _KEYS_AT_ONCE):
            some = tids[start : start + _KEYS_AT_ONCE]
            marks = ", ".join("?" * len(some))
            with self._lock:
                found |= {
                    row[0] for row in self._database.execute(f"SELECT sha256 FROM odd WHERE tid IN ({marks})", some)
                }
        return found

    def _ended_by_hour(
        self, session: Session, lake: Lake, plan: Scan, files: Sequence[LiveFile], language: str
    ) -> dict[int, int]:
        """Counted rows that something pending ends, by hour."""
        session.register("ended", self._ended.find(session, lake, plan.snapshot, files))
        condition, values = "TRUE", {}
        if language != _ALL:
            condition, values = f"list_contains({_TAGS}, $language)", {"language": language}
        statement = (
            f"SELECT date_trunc('hour', time), count(*) FROM (SELECT any_value(r.time) AS time FROM ended AS r WHERE {condition}"
            " GROUP BY r.kafka_partition, r.kafka_offset) GROUP BY ALL"
        )
        return {to_micros(moment): count for moment, count in session.rows(statement, values)}


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

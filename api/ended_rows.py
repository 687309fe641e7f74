"""Which rows of rolled files of posts something pending ends, carried from one state of the lake to the next.

Finding all of them reads every file. From one answer to the next a few records are deleted or edited, so that only those are
looked for, in the few files that can have them: a record lies in the hour that its key names as its time, unless its key is
known to be odd; an account in the files whose bloom filter has it.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from api.current import Ends
from api.engine import Session
from api.identifiers import POST
from api.key_skip import holding
from api.relation import Lake
from api.snapshots import Scan
from lake.commit import TID_CLOCK_BITS
from lake.convert import lake_schema
from lake.manifest import HOUR_US, LiveFile, Snapshot, hour_of

_COLUMNS: Final = ("did", "collection", "rkey_tid", "rkey_text", "langs", "time", "kafka_partition", "kafka_offset")
_CAUSES: Final = ("records", "accounts", "syncs")
_SUBJECTS: Final = {
    "records": ("did", "collection", "rkey_tid", "rkey_text"),
    "accounts": ("did",),
    "syncs": ("did",),
}
"""What an ending of each kind is about; rows that it ends have the same values."""
_MOST_CHANGED: Final = 2_000
"""Looking for more changed records than this costs as much as for all."""

Odd = Callable[[Sequence[int]], set[str]]
"""The digests of the files that have one of these record keys although the key's time is not near the file's hour."""


_SHAPE: Final = pa.schema(
    [
        *(lake_schema(POST).field(name) for name in _COLUMNS),
        pa.field("filename", pa.string()),
        pa.field("cause", pa.string()),
    ]
)


@dataclass(frozen=True)
class _State:
    """The ended rows of some files, once for each cause, and what they were found by."""

    paths: frozenset[str]
    ends: Ends
    rows: pa.Table


class EndedRows:
    """Remembers the newest state. Thread-safe: one update at a time."""

    def __init__(self, condition: str, odd: Odd) -> None:
        """`condition`: the rows (alias r) that are wanted at all."""
        self._condition = condition
        self._odd = odd
        self._lock = threading.Lock()
        self._state: _State | None = None

    def find(self, session: Session, lake: Lake, snapshot: Snapshot, files: Sequence[LiveFile]) -> pa.Table:
        """The rows of `files` (rolled files of posts, one of an hour) that something pending ends in this snapshot, each once for
        each way in which it ends. Blocks for reading what is new."""
        with self._lock:
            ends = lake.current.ends(session, snapshot, POST, None)
            state = self._carried(session, lake, snapshot, ends)
            fresh = [file for file in files if file.path not in state.paths]
            if fresh:
                found = self._read(session, lake, ends, fresh)
                paths = state.paths | {file.path for file in fresh}
                state = _State(paths, ends, pa.concat_tables([state.rows, found]))
            self._state = state
        paths = pa.array(lake.paths(files), pa.string())
        return state.rows.filter(pc.is_in(state.rows["filename"], value_set=paths))

    def to_read(self, session: Session, lake: Lake, snapshot: Snapshot, files: Sequence[LiveFile]) -> list[LiveFile]:
        """The files that `find` would read now, each as often. Blocks while what ended is read for the first time."""
        state, ends = self._state, lake.current.ends(session, snapshot, POST, None)
        changes = None if state is None else _changes(session, state.ends, ends)
        reads: list[LiveFile] = []
        fresh = list(files)
        if state is not None and changes is not None:
            known = [file for file in snapshot.files(POST) if file.path in state.paths]
            fresh = [file for file in files if file.path not in state.paths]
            for cause, changed in changes.items():
                if _about(session, getattr(ends, cause), changed).num_rows:
                    reads += self._holding(lake, snapshot, known, cause, changed)
        causes = [cause for cause in _CAUSES if getattr(ends, cause).num_rows]
        return reads + fresh * len(causes)

    def _carried(self, session: Session, lake: Lake, snapshot: Snapshot, ends: Ends) -> _State:
        """The last state as it is in this snapshot; empty where there is none or too much has changed."""
        old = self._state
        changes = None if old is None else _changes(session, old.ends, ends)
        if old is None or changes is None:
            return _State(frozenset(), ends, _SHAPE.empty_table())
        files = [file for file in snapshot.files(POST) if file.path in old.paths]
        known = pa.array(lake.paths(files), pa.string())
        rows = old.rows.filter(pc.is_in(old.rows["filename"], value_set=known))
        for cause, changed in changes.items():
            rows = _without(session, rows, cause, changed)
            again = _about(session, getattr(ends, cause), changed)
            if again.num_rows:
                some = self._holding(lake, snapshot, files, cause, changed)
                rows = pa.concat_tables([rows, self._of(session, lake, ends, cause, again, some)])
        return _State(frozenset(file.path for file in files), ends, rows)

    def _holding(
        self, lake: Lake, snapshot: Snapshot, files: list[LiveFile], cause: str, changed: pa.Table
    ) -> list[LiveFile]:
        """The files that can have what changed."""
        if cause != "records":
            return list(holding(lake, Scan(snapshot, POST, tuple(files)), {"did": changed["did"].to_pylist()}).files)
        if changed["rkey_tid"].null_count:
            return files
        keys = changed["rkey_tid"].to_pylist()
        hours = {hour_of(key >> TID_CLOCK_BITS) + near for key in keys for near in (-HOUR_US, 0, HOUR_US)}
        odd = self._odd(keys)
        return [file for file in files if file.hour_us in hours or file.sha256 in odd]

    def _read(self, session: Session, lake: Lake, ends: Ends, files: Sequence[LiveFile]) -> pa.Table:
        parts = [self._of(session, lake, ends, cause, getattr(ends, cause), files) for cause in _CAUSES]
        return pa.concat_tables(parts)

    def _of(
        self, session: Session, lake: Lake, ends: Ends, cause: str, some: pa.Table, files: Sequence[LiveFile]
    ) -> pa.Table:
        """The rows of files that some endings of one kind end."""
        if not files or not some.num_rows:
            return _SHAPE.empty_table()
        only = replace(ends, **{name: getattr(ends, name).slice(0, 0) for name in _CAUSES if name != cause})
        only = replace(only, **{cause: some})
        columns = (*_COLUMNS, "filename")
        found = only.ended_rows(session, lake.paths(files), columns, self._condition, {})
        return found.append_column("cause", pa.repeat(pa.scalar(cause), found.num_rows)).cast(_SHAPE)


def _changes(session: Session, old: Ends, new: Ends) -> dict[str, pa.Table] | None:
    """What changed, by the kind of ending; None when that is too much to look for by itself."""
    found = {}
    for cause in _CAUSES:
        changed = _changed(session, getattr(old, cause), getattr(new, cause), _SUBJECTS[cause])
        if changed.num_rows > _MOST_CHANGED:
            return None
        if changed.num_rows:
            found[cause] = changed
    return found


def _changed(session: Session, old: pa.Table, new: pa.Table, subjects: Sequence[str]) -> pa.Table:
    """What the endings are about that only one of two tables has, as `subjects`."""
    if old is new:
        return new.select(list(subjects)).slice(0, 0)
    session.register("old_endings", old)
    session.register("new_endings", new)
    names = ", ".join(subjects)
    statement = (
        f"SELECT DISTINCT {names} FROM ((FROM new_endings EXCEPT FROM old_endings)"
        " UNION ALL (FROM old_endings EXCEPT FROM new_endings))"
    )
    return session.table(statement, {})


def _same(alias: str, subjects: Sequence[str]) -> str:
    return " AND ".join(f"c.{name} IS NOT DISTINCT FROM {alias}.{name}" for name in subjects)


def _without(session: Session, rows: pa.Table, cause: str, changed: pa.Table) -> pa.Table:
    session.register("kept_rows", rows)
    session.register("changed_subjects", changed)
    statement = (
        f"SELECT r.* FROM kept_rows AS r ANTI JOIN changed_subjects AS c"
        f" ON {_same('r', changed.column_names)} AND r.cause = $cause"
    )
    return session.table(statement, {"cause": cause}).cast(_SHAPE)


def _about(session: Session, endings: pa.Table, changed: pa.Table) -> pa.Table:
    session.register("all_endings", endings)
    session.register("changed_subjects", changed)
    return session.table(
        f"SELECT e.* FROM all_endings AS e SEMI JOIN changed_subjects AS c ON {_same('e', changed.column_names)}", {}
    )

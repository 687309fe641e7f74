"""What became of records that somebody has a copy of: still there, edited, or gone, without telling what they said."""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import pyarrow as pa

from api.citations import AsOf
from api.columns import publish
from api.engagement import same_record
from api.engine import Session
from api.identifiers import RecordUri, tid_value
from api.records import standings, table_of
from api.relation import READ_FILES, Lake
from api.snapshots import scan
from api.sql import Bound, any_of
from api.tabular import time_texts
from lake.convert import ERASED, lake_schema
from lake.fold import ENDING_SQL, NEWER_SQL
from lake.manifest import Snapshot
from schemas.topics import TABLE_TOPICS


class Fate(StrEnum):
    """What became of a record."""

    CURRENT = "current"
    EDITED = "edited"
    DELETED = "deleted"
    HIDDEN = "hidden"
    UNKNOWN = "unknown"


KEY_COLUMNS: Final = ("did", "collection", "rkey_tid", "rkey_text", "rev_tid", "time", "cid", "cid_text")
"""What an export keeps beside its rows, to know later which of them ended."""

_NEWER: Final = NEWER_SQL.replace("t.", "r.")


def fates(
    session: Session, lake: Lake, snapshot: Snapshot, uris: Sequence[RecordUri], cids: Sequence[str | None]
) -> list[tuple[Fate, str | None]]:
    """For each uri (authority a DID) what became of it, and when its last operation came. With a cid, a current record of
    another cid counts as edited."""
    answers: list[tuple[Fate, str | None]] = [(Fate.UNKNOWN, None)] * len(uris)
    by_table: dict[str, list[int]] = {}
    for number, uri in enumerate(uris):
        by_table.setdefault(table_of(uri.collection), []).append(number)
    for table, numbers in by_table.items():
        for number, fate in _fates_in(session, lake, snapshot, table, numbers, uris, cids).items():
            answers[number] = fate
    return answers


def _fates_in(
    session: Session,
    lake: Lake,
    snapshot: Snapshot,
    table: str,
    numbers: Sequence[int],
    uris: Sequence[RecordUri],
    cids: Sequence[str | None],
) -> dict[int, tuple[Fate, str | None]]:
    plan = scan(snapshot, table, None, None)
    if not plan.files:
        return {}
    values = [tid_value(uris[number].rkey) for number in numbers]
    keys = pa.table(
        {
            "number": pa.array(numbers, pa.int64()),
            "did": pa.array([uris[number].authority for number in numbers], pa.string()),
            "collection": pa.array([uris[number].collection for number in numbers], pa.string()),
            "rkey_tid": pa.array(values, pa.int64()),
            "rkey_text": pa.array(
                [uris[number].rkey if value is None else None for number, value in zip(numbers, values, strict=True)],
                pa.string(),
            ),
        }
    )
    session.register("asked", keys)
    columns = ", ".join(f"r.{name}" for name in (*KEY_COLUMNS, "operation", ERASED))
    rows = session.table(
        f"SELECT a.number, {columns} FROM {READ_FILES} AS r JOIN asked AS a ON {same_record('a', 'r')}"
        " AND a.collection = r.collection ORDER BY r.rev_tid, r.time",
        {"files": lake.paths(plan.files)},
    )
    if not rows.num_rows:
        return {}
    states = standings(session, lake, plan, rows)
    hidden = _hidden(session, lake, snapshot, table)
    found: dict[int, tuple[Fate, str | None]] = {}
    times = time_texts(rows["time"]).to_pylist()
    published = publish(table, rows, ("cid",))["cid"].to_pylist()
    for number, state, moment, cid, did in zip(
        rows["number"].to_pylist(), states, times, published, rows["did"].to_pylist(), strict=True
    ):
        fate = Fate.HIDDEN if did in hidden else Fate.DELETED
        if state == "current":
            asked = cids[number]
            fate = Fate.EDITED if asked is not None and asked != cid else Fate.CURRENT
        found[number] = (fate, moment)
    return found


def _hidden(session: Session, lake: Lake, snapshot: Snapshot, table: str) -> set[str]:
    session.register("account_ends", lake.current.ends(session, snapshot, table, None).accounts)
    return {did for (did,) in session.rows("SELECT did FROM account_ends WHERE hidden", {})}


@dataclass(frozen=True)
class Change:
    """A row of a copy (its position) that is not as it was."""

    position: int
    fate: Fate


def changes_since(session: Session, lake: Lake, snapshot: Snapshot, table: str, then: AsOf, keys: str) -> list[Change]:
    """Which rows of a copy made at `then` ended since. `keys` is the path of a Parquet file with KEY_COLUMNS and `position`."""
    topic = TABLE_TOPICS[table]
    bound = Bound()
    after = [
        f"kafka_partition = {bound.bind(partition)} AND kafka_offset >= {bound.bind(offset)}"
        for (name, partition), offset in sorted(then.positions.items())
        if name == topic
    ]
    known = [partition for (name, partition) in then.positions if name == topic]
    after += [f"kafka_partition NOT IN ({', '.join(bound.bind(number) for number in known)})"] if known else ["TRUE"]
    # A row that was committed after `then` lies in a file that was added after it, rolled since or not.
    files = [file for file in snapshot.files(table) if file.added_version > then.version]
    names = ("did", "collection", "rkey_tid", "rkey_text", "rev_tid", "time", "operation", "cid", "cid_text")
    if files:
        ending = session.table(
            f"SELECT {', '.join(names)} FROM {READ_FILES} WHERE {ENDING_SQL} AND ({any_of(after)})",
            {**bound.values, "files": lake.paths(files)},
        )
    else:
        ending = lake_schema(table).empty_table().select(list(names))
    session.register("since_records", ending)
    ends = lake.current.ends(session, snapshot, table, None)
    session.register("since_accounts", ends.accounts)
    session.register("since_syncs", lake.current.syncs(session, snapshot))
    fates_found: dict[int, Fate] = {}
    read = "read_parquet($keys, hive_partitioning = false)"
    values = {"keys": [keys]}
    replaced = session.rows(
        "SELECT r.position, arg_max(s.operation, (s.rev_tid, s.time)) AS operation,"
        " arg_max(coalesce(s.cid = r.cid, s.cid_text = r.cid_text, FALSE), (s.rev_tid, s.time)) AS same"
        f" FROM {read} AS r JOIN since_records AS s ON {same_record('s', 'r')} AND s.collection = r.collection AND {_NEWER}"
        " GROUP BY r.position",
        values,
    )
    unchanged = set()
    for position, operation, same in replaced:
        if operation == "delete":
            fates_found[position] = Fate.DELETED
        elif same:
            unchanged.add(position)
        else:
            fates_found[position] = Fate.EDITED
    synced = session.rows(
        f"SELECT DISTINCT r.position FROM {read} AS r JOIN since_syncs AS s ON s.did = r.did AND {_NEWER}", values
    )
    for (position,) in synced:
        if position not in unchanged:
            fates_found.setdefault(position, Fate.DELETED)
    ended = session.rows(
        "SELECT DISTINCT r.position, a.hidden"
        f" FROM {read} AS r JOIN since_accounts AS a ON a.did = r.did AND r.time <= a.until",
        values,
    )
    for position, hidden in ended:
        fates_found[position] = Fate.HIDDEN if hidden else Fate.DELETED
    return [Change(position, fates_found[position]) for position in sorted(fates_found)]


def summary(found: Sequence[tuple[Fate, Any]]) -> dict[str, int]:
    """How many records met each fate."""
    counts = dict.fromkeys((str(fate) for fate in Fate), 0)
    for fate, _ in found:
        counts[str(fate)] += 1
    return counts

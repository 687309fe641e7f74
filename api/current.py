"""What is current: which rows of the live files an answer must leave out, because something later ended their life.

Maintenance removes ended rows from the files (column `erased`); until then the rows that ended them are pending, and every
answer applies them itself. The rules are those of reference "folding to current state" of the Jetstream protocol:

* an update, a delete or a create of a re-download (resync) ends every older version of the same record;
* a sync ends all older records of the account: what still exists follows it as new rows;
* an account event with status `deleted` ends all rows of the account up to its time;
* while the last account event says inactive (deactivated, suspended, taken down, deleted), all its rows are hidden.

What "older" means is `lake.fold.NEWER_SQL`, the rule that erasure follows too.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from api.citations import AsOf
from api.engine import Session
from api.identifiers import POST
from api.snapshots import as_of_predicate
from api.sql import Bound
from lake.convert import lake_schema
from lake.fold import ENDING_SQL, NEWER_SQL
from lake.manifest import LiveFile, Snapshot

_READ: Final = "FROM read_parquet($files, hive_partitioning = false)"
_KEYS: Final = f"SELECT did, collection, rkey_tid, rkey_text, rev_tid, time {_READ} WHERE {ENDING_SQL}"
_SYNCS: Final = f"SELECT did, rev_tid, time, kafka_partition, kafka_offset {_READ}"
_ACCOUNTS: Final = """
    SELECT did, time, coalesce(relay_seq, 0) AS relay_seq, coalesce(active, FALSE) AS active, coalesce(status, '') AS status,
        kafka_partition, kafka_offset
    FROM read_parquet($files, hive_partitioning = false)
"""
_ACCOUNT_ENDS: Final = """
    SELECT did, until, coalesce(until = TIMESTAMP 'infinity' AND status <> 'deleted', FALSE) AS hidden FROM (
        SELECT did, arg_max(status, (time, relay_seq)) AS status,
            CASE
                WHEN NOT arg_max(active, (time, relay_seq))
                    AND arg_max(status, (time, relay_seq)) NOT IN ('desynchronized', 'throttled')
                THEN TIMESTAMP 'infinity'
                ELSE max(time) FILTER (NOT active AND status = 'deleted')
            END AS until
        FROM account_rows WHERE {visible} GROUP BY did)
    WHERE until IS NOT NULL
"""

_ALWAYS: Final = np.iinfo(np.int64).max
"""DuckDB's infinite time, as Arrow has it."""
_NEWER: Final = NEWER_SQL.replace("t.", "r.")
_ACCOUNT_JOIN: Final = "ANTI JOIN ended_accounts AS a ON a.did = r.did AND r.time <= a.until"
_SYNC_JOIN: Final = f"ANTI JOIN ended_syncs AS s ON s.did = r.did AND {_NEWER}"
_RECORD_JOIN: Final = (
    "ANTI JOIN ended_records AS s ON s.did = r.did AND s.rkey_tid IS NOT DISTINCT FROM r.rkey_tid"
    f" AND s.rkey_text IS NOT DISTINCT FROM r.rkey_text AND s.collection IS NOT DISTINCT FROM r.collection AND {_NEWER}"
)
_PLACE_JOIN: Final = (
    "ANTI JOIN ended_places AS p ON p.kafka_offset = r.kafka_offset AND p.kafka_partition = r.kafka_partition"
)
ENDING_KEYS: Final = ("did", "collection", "rkey_tid", "rkey_text", "rev_tid", "time")
"""The columns of a row that tell what can end it."""
IS_RECORD: Final = "operation IN ('create', 'update') AND erased IS NULL"
"""Rows that hold a record's content."""


@dataclass(frozen=True)
class Ends:
    """What ended or hides rows, as of one snapshot; `attach` makes it part of a query."""

    records: pa.Table
    accounts: pa.Table
    syncs: pa.Table

    def attach(self, session: Session, prefix: str = "ended") -> str:
        """Register the relations in a session; returns the joins that leave out ended and hidden rows of alias r.

        prefix: tells the relations of two tables in one session apart.
        """
        joins = []
        for name, table, join in (
            ("records", self.records, _RECORD_JOIN),
            ("accounts", self.accounts, _ACCOUNT_JOIN),
            ("syncs", self.syncs, _SYNC_JOIN),
        ):
            if table.num_rows:
                session.register(f"{prefix}_{name}", table)
                joins.append(join.replace(f"ended_{name}", f"{prefix}_{name}"))
        return " ".join(joins)

    def about(self, accounts: pa.Array) -> Ends:
        """What ends or hides rows of these accounts (DIDs)."""
        tables = (self.records, self.accounts, self.syncs)
        return Ends(*(table.filter(pc.is_in(table["did"], value_set=accounts)) for table in tables))

    def hides(self, accounts: Iterable[str]) -> bool:
        """Whether all rows of all these accounts (DIDs) are left out, whenever they came."""
        hidden = self.accounts.filter(pc.equal(self.accounts["until"].cast(pa.int64()), _ALWAYS))["did"]
        return bool(pc.all(pc.is_in(pa.array(accounts, pa.string()), value_set=hidden)).as_py())

    def standing(self, session: Session, rows: pa.Table) -> list[int]:
        """Numbers, from 0, of the rows that did not end and are not hidden; `rows` have the columns ENDING_KEYS.

        For the few rows of a page: what ended is searched for their accounts first, which takes about a millisecond.
        """
        joins = self.about(pc.unique(rows["did"])).attach(session, "standing")
        if not joins:
            return list(range(rows.num_rows))
        numbered = rows.select(list(ENDING_KEYS)).append_column("number", pa.array(range(rows.num_rows), pa.int64()))
        session.register("standing_rows", numbered)
        kept = session.rows(f"SELECT r.number FROM standing_rows AS r {joins} ORDER BY r.number", {})  # noqa: S608
        return [number for (number,) in kept]

    def attach_places(self, session: Session, paths: Sequence[str]) -> str:
        """The same joins for queries that keep most rows of some files: where the ended rows lie is looked up first.

        Looking for the few ended rows reads little of a file; an anti join by account and key hashes both for every row.
        """
        places = self.ended_rows(session, paths, [name for name, _ in _PLACE], "TRUE", {})
        if not places.num_rows:
            return ""
        session.register("ended_places", places)
        return _PLACE_JOIN

    def ended_rows(
        self, session: Session, paths: Sequence[str], columns: Sequence[str], condition: str, values: Mapping[str, Any]
    ) -> pa.Table:
        """The rows of some files (alias r in `condition`) that ended or are hidden, each once; `columns` tell them apart."""
        self.attach(session)
        selected = ", ".join(f"r.{name}" for name in columns)
        found = [
            f"SELECT {selected} {_READ} AS r SEMI JOIN {name} ON {ends} WHERE {condition}"
            for name, ends in self._ending_conditions()
        ]
        if not found or not paths:
            return lake_schema(POST).empty_table().select(list(columns))
        return session.table(" UNION ".join(found), {**values, "files": list(paths)})

    def _ending_conditions(self) -> list[tuple[str, str]]:
        """Relation with alias, and condition: one for each way in which a row r ends."""
        found = []
        if self.records.num_rows:
            same = f"s.did = r.did AND s.collection IS NOT DISTINCT FROM r.collection AND {_NEWER}"
            # Equality lets the scan skip by key; it finds no null, so that keys that are no TID have a branch of their own.
            found.append(("ended_records AS s", f"s.rkey_tid = r.rkey_tid AND {same}"))
            if self.records["rkey_tid"].null_count:
                same = f"s.rkey_text IS NOT DISTINCT FROM r.rkey_text AND {same}"
                found.append(("ended_records AS s", f"s.rkey_tid IS NULL AND r.rkey_tid IS NULL AND {same}"))
        if self.accounts.num_rows:
            found.append(("ended_accounts AS a", "a.did = r.did AND r.time <= a.until"))
        if self.syncs.num_rows:
            found.append(("ended_syncs AS s", f"s.did = r.did AND {_NEWER}"))
        return found


_PLACE: Final = (("kafka_partition", pa.int32()), ("kafka_offset", pa.int64()))


class CurrentState:
    """Reads and caches what ended rows; files never change, so that each is read once. Thread-safe."""

    def __init__(self, root: Path, cache_bytes: int) -> None:
        self._root = root
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._parts: OrderedDict[str, pa.Table] = OrderedDict()
        self._size = 0
        self._combined: OrderedDict[tuple[str, ...], pa.Table] = OrderedDict()

    def ends(self, session: Session, snapshot: Snapshot, table: str, start_us: int | None) -> Ends:
        """What ends rows of `table` at or after `start_us` in this snapshot. Blocks while new files are read."""
        with self._lock:
            records = self._combine(session, "records", _KEYS, snapshot.superseding(table, start_us))
            syncs = self._combine(session, "syncs", _SYNCS, snapshot.superseding(table, start_us, "sync"))
            accounts = self._accounts(session, snapshot.files("account"))
        return Ends(records, accounts, syncs)

    def syncs(self, session: Session, snapshot: Snapshot, as_of: AsOf | None = None) -> pa.Table:
        """Every sync of the snapshot, also those that were applied to the files; or those that an older one had."""
        with self._lock:
            found = self._combine(session, "syncs", _SYNCS, snapshot.files("sync"))
        if as_of is None:
            return found
        session.register("sync_rows", found)
        bound = Bound()
        return session.table(f"SELECT * FROM sync_rows WHERE {as_of_predicate(as_of, 'sync', bound)}", bound.values)  # noqa: S608

    def accounts(self, session: Session, snapshot: Snapshot, as_of: AsOf | None = None) -> pa.Table:
        """Which accounts ended, until when, and which are hidden: now, or in an older snapshot."""
        with self._lock:
            return self._accounts(session, snapshot.files("account"), as_of)

    def _accounts(self, session: Session, files: Sequence[LiveFile], as_of: AsOf | None = None) -> pa.Table:
        key = (f"account ends {as_of.version if as_of else ''}", *(file.path for file in files))
        if key not in self._combined:
            session.register("account_rows", self._combine(session, "accounts", _ACCOUNTS, files))
            bound = Bound()
            visible = "TRUE" if as_of is None else as_of_predicate(as_of, "account", bound)
            self._remember(key, session.table(_ACCOUNT_ENDS.replace("{visible}", visible), bound.values))
        return self._combined[key]

    def _combine(self, session: Session, name: str, sql: str, files: Sequence[LiveFile]) -> pa.Table:
        key = (name, *(file.path for file in files))
        if key not in self._combined:
            parts = [self._part(session, sql, file) for file in files] or [self._empty(name)]
            self._remember(key, pa.concat_tables(parts))
        self._combined.move_to_end(key)
        return self._combined[key]

    def _part(self, session: Session, sql: str, file: LiveFile) -> pa.Table:
        found = self._parts.get(file.path)
        if found is None:
            found = session.table(sql, {"files": [str(self._root / file.path)]})
            self._parts[file.path] = found
            self._size += found.nbytes
            while self._size > self._cache_bytes and len(self._parts) > 1:
                _, dropped = self._parts.popitem(last=False)
                self._size -= dropped.nbytes
        else:
            self._parts.move_to_end(file.path)
        return found

    def _remember(self, key: tuple[str, ...], table: pa.Table) -> None:
        self._combined[key] = table
        # One entry per table and relation of the newest snapshot, and those of requests that still run.
        while len(self._combined) > 32:
            self._combined.popitem(last=False)

    @staticmethod
    def _empty(name: str) -> pa.Table:
        columns = {
            "records": [
                ("did", pa.string()),
                ("collection", pa.string()),
                ("rkey_tid", pa.int64()),
                ("rkey_text", pa.string()),
                ("rev_tid", pa.int64()),
                ("time", pa.timestamp("us")),
            ],
            "syncs": [("did", pa.string()), ("rev_tid", pa.int64()), ("time", pa.timestamp("us")), *_PLACE],
            "accounts": [
                ("did", pa.string()),
                ("time", pa.timestamp("us")),
                ("relay_seq", pa.int64()),
                ("active", pa.bool_()),
                ("status", pa.string()),
                *_PLACE,
            ],
        }[name]
        return pa.schema(columns).empty_table()

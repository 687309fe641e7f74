"""What is current: which rows of the live files an answer must leave out, because something later ended their life.

Maintenance removes ended rows from the files (column `erased`); until then the rows that ended them are pending, and every
answer applies them itself. The rules are those of reference "folding to current state" of the Jetstream protocol:

* an update, a delete or a create of a re-download (resync) ends every version of the same record with a smaller rev;
* an account event with status `deleted` ends all rows of the account up to its time;
* while the last account event says inactive (deactivated, suspended, taken down, deleted), all its rows are hidden;
* a sync ends all rows of the account with a smaller rev: what still exists follows it as new rows.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from api.engine import Session
from lake.manifest import LiveFile, Snapshot

_KEYS: Final = """
    SELECT did, collection, rkey_tid, rkey_text, coalesce(rev_tid, 9223372036854775807) AS rev
    FROM read_parquet($files, hive_partitioning = false) WHERE operation IN ('update', 'delete') OR resync
"""
_SYNCS: Final = """
    SELECT did, coalesce(rev_tid, 9223372036854775807) AS rev
    FROM read_parquet($files, hive_partitioning = false)
"""
_ACCOUNTS: Final = """
    SELECT did, time, coalesce(relay_seq, 0) AS relay_seq, coalesce(active, FALSE) AS active, coalesce(status, '') AS status
    FROM read_parquet($files, hive_partitioning = false)
"""
_ACCOUNT_ENDS: Final = """
    SELECT did, until FROM (
        SELECT did,
            CASE
                WHEN NOT arg_max(active, (time, relay_seq))
                    AND arg_max(status, (time, relay_seq)) NOT IN ('desynchronized', 'throttled')
                THEN TIMESTAMP 'infinity'
                ELSE max(time) FILTER (NOT active AND status = 'deleted')
            END AS until
        FROM account_rows GROUP BY did)
    WHERE until IS NOT NULL
"""

NOT_ENDED: Final = """
    ANTI JOIN ended_accounts AS a ON a.did = r.did AND r.time <= a.until
    ANTI JOIN ended_syncs AS s ON s.did = r.did AND coalesce(r.rev_tid, 0) < s.rev
"""
"""Joins that leave out the rows (alias r) of accounts that ended or are hidden."""
NOT_SUPERSEDED: Final = """
    ANTI JOIN ended_records AS k ON k.did = r.did AND k.rkey_tid IS NOT DISTINCT FROM r.rkey_tid
        AND k.rkey_text IS NOT DISTINCT FROM r.rkey_text AND k.collection IS NOT DISTINCT FROM r.collection
        AND coalesce(r.rev_tid, 0) < k.rev
"""
"""Join that leaves out the rows (alias r) of records that a later row of the same table replaced or removed."""
IS_RECORD: Final = "operation IN ('create', 'update') AND erased IS NULL"
"""Rows that hold a record's content."""


@dataclass(frozen=True)
class Ends:
    """What ended or hides rows, as of one snapshot; `attach` makes it readable by the joins of this module."""

    records: pa.Table
    accounts: pa.Table
    syncs: pa.Table

    def attach(self, session: Session) -> None:
        """Register the three relations in a session."""
        session.register("ended_records", self.records)
        session.register("ended_accounts", self.accounts)
        session.register("ended_syncs", self.syncs)


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
            syncs = self._combine(session, "syncs", _SYNCS, snapshot.superseding("sync", start_us))
            accounts = self._accounts(session, snapshot.files("account"))
        return Ends(records, accounts, syncs)

    def _accounts(self, session: Session, files: Sequence[LiveFile]) -> pa.Table:
        key = ("account ends", *(file.path for file in files))
        if key not in self._combined:
            session.register("account_rows", self._combine(session, "accounts", _ACCOUNTS, files))
            self._remember(key, session.table(_ACCOUNT_ENDS, {}))
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
        while len(self._combined) > 64:
            self._combined.popitem(last=False)

    @staticmethod
    def _empty(name: str) -> pa.Table:
        columns = {
            "records": [
                ("did", pa.string()),
                ("collection", pa.string()),
                ("rkey_tid", pa.int64()),
                ("rkey_text", pa.string()),
                ("rev", pa.int64()),
            ],
            "syncs": [("did", pa.string()), ("rev", pa.int64())],
            "accounts": [
                ("did", pa.string()),
                ("time", pa.timestamp("us")),
                ("relay_seq", pa.int64()),
                ("active", pa.bool_()),
                ("status", pa.string()),
            ],
        }[name]
        return pa.schema(columns).empty_table()

"""Which rows ended the life of which others: the one rule behind current answers and erasure.

A row t of a record is ended by a row s of the same record (did, collection, rkey) when s is an update, a delete or a create
of a resync, and s is newer. Every row of an account is ended by its account event with status "deleted" (rows up to that
time), every record of it by a sync (rows older than it; what still exists follows as new rows). s is newer than t if its rev
is greater, where both have a TID as rev, else if its time is later. (Bluesky's folding rules; a delete that arrives before
its create ends it too.)

As SQL, for rows `t` and the rows `s` of the files that `Snapshot.superseding` names: see NEWER_SQL.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lake.convert import EDIT, ERASED, contract, lake_schema
from lake.manifest import HOUR_US, LiveFile, Snapshot, hour_of
from lake.store import LakeStore, read_columns
from schemas.tables import PROVENANCE

NEWER_SQL: Final = "(s.rev_tid > t.rev_tid OR ((s.rev_tid IS NULL OR t.rev_tid IS NULL) AND s.time > t.time))"
"""True where row s is newer than row t."""

ENDING_SQL: Final = "(operation IN ('update', 'delete') OR resync)"
"""True for the rows of a table of records that can end others."""

RECORD_KEY: Final = ("did", "collection", "rkey_tid", "rkey_text")
ENDING_COLUMNS: Final = (*RECORD_KEY, "rev_tid", "time", "operation", "resync")

_KEPT: Final = frozenset(
    {
        "time",
        "did",
        "kind",
        "operation",
        "collection",
        "rkey_tid",
        "rkey_text",
        "rev_tid",
        "rev_text",
        "source_host",
        "protocol",
        "seq",
        "received",
        "replayed",
        "resync",
        "relay_seq",
        "relay_time",
        "active",
        "status",
        *(name for name, _ in PROVENANCE),
        ERASED,
    }
)
"""What a tombstone keeps: identity, times and provenance; and an account's state, which hides its rows."""

_UNTIL: Final = ("max_rev", "max_time_without_rev", "max_time")


def content_columns(table: str) -> list[str]:
    """Columns that erasure empties."""
    return [name for name in contract(table).arrow.names if name not in _KEPT]


@dataclass(frozen=True, slots=True)
class Endings:
    """Rows that end others, reduced to the newest of each record or account.

    records: one row per record; accounts: `did`, `until`; syncs: one row per account.
    """

    records: pl.DataFrame
    accounts: pl.DataFrame
    syncs: pl.DataFrame

    @property
    def empty(self) -> bool:
        """Whether nothing ends."""
        return self.records.is_empty() and self.accounts.is_empty() and self.syncs.is_empty()


def endings_of(
    records: Iterable[pa.Table] = (), accounts: Iterable[pa.Table] = (), syncs: Iterable[pa.Table] = ()
) -> Endings:
    """Reduces lake rows of one table of records, and of the tables account and sync.

    Rows that end nothing may be among them.
    """
    ends = pl.col("operation").is_in(["update", "delete"]) | pl.col("resync")
    rows = _concat([table.select(ENDING_COLUMNS) for table in records], _schema("app.bsky.feed.like", ENDING_COLUMNS))
    account_names = ("did", "time", "active", "status")
    states = _concat([table.select(account_names) for table in accounts], _schema("account", account_names))
    sync_names = ("did", "rev_tid", "time")
    moments = _concat([table.select(sync_names) for table in syncs], _schema("sync", sync_names))
    return Endings(
        rows.filter(ends).sort("time").group_by(RECORD_KEY).agg(*_newest(), reason=pl.col("operation").last()),
        states.filter(~pl.col("active") & (pl.col("status") == "deleted"))
        .group_by("did")
        .agg(until=pl.col("time").max()),
        moments.group_by("did").agg(*_newest()),
    )


def ended(rows: pa.Table, endings: Endings) -> pl.Series:
    """Why each of `rows` has ended: delete, update, account, sync; null while it is current.

    rows: lake rows of the table whose records `endings` holds, with at least ENDING_COLUMNS (identity, account and sync
    rows: did, rev_tid, time). Deletes themselves never count as ended by records. A row erased already is judged again.
    """
    frame = pl.from_arrow(rows.select([name for name in ENDING_COLUMNS if name in rows.column_names]))
    assert isinstance(frame, pl.DataFrame)
    reason = pl.lit(None, pl.String)
    if not endings.records.is_empty():
        frame = frame.join(endings.records, on=list(RECORD_KEY), how="left", nulls_equal=True, maintain_order="left")
        named = pl.when(pl.col("reason") == "delete").then(pl.lit("delete")).otherwise(pl.lit("update"))
        reason = pl.when(_newer_than_row("")).then(named).otherwise(reason)
    if not endings.syncs.is_empty():
        syncs = endings.syncs.rename({name: f"sync_{name}" for name in _UNTIL})
        frame = frame.join(syncs, on="did", how="left", maintain_order="left")
        reason = pl.when(_newer_than_row("sync_")).then(pl.lit("sync")).otherwise(reason)
    if not endings.accounts.is_empty():
        frame = frame.join(endings.accounts, on="did", how="left", maintain_order="left")
        reason = pl.when(pl.col("time") <= pl.col("until")).then(pl.lit("account")).otherwise(reason)
    return frame.select(reason=reason).to_series()


def may_have_ended(rows: pa.Table, endings: Endings) -> npt.NDArray[np.bool_]:
    """A quick look at keys and accounts: false only for rows that `ended` says null for. Columns may be dictionaries."""
    found = np.zeros(rows.num_rows, np.bool_)
    for name, series in (("rkey_tid", endings.records["rkey_tid"]), ("rkey_text", endings.records["rkey_text"])):
        found |= _is_in(rows, name, series.drop_nulls())
    return found | _is_in(rows, "did", pl.concat([endings.accounts["did"], endings.syncs["did"]]))


def _is_in(rows: pa.Table, name: str, values: pl.Series) -> npt.NDArray[np.bool_]:
    if values.is_empty() or name not in rows.column_names or rows.column(name).null_count == rows.num_rows:
        return np.zeros(rows.num_rows, np.bool_)
    column = rows.column(name)
    wanted = values.to_arrow(compat_level=pl.CompatLevel.oldest())
    if not pa.types.is_dictionary(column.type):
        return np.asarray(pc.is_in(column, wanted.cast(column.type)))
    parts = [np.zeros(0, np.bool_)]
    for chunk in column.chunks:
        known = np.append(np.asarray(pc.is_in(chunk.dictionary, wanted.cast(chunk.dictionary.type))), False)
        parts.append(known[np.asarray(chunk.indices.fill_null(len(known) - 1))])
    return np.concatenate(parts)


def current(rows: pa.Table, endings: Endings) -> pa.Table:
    """The rows that are records as they stand: neither ended, nor deletes, nor erased."""
    reasons = ended(rows, endings)
    frame = pl.from_arrow(rows.select(["operation", ERASED]))
    assert isinstance(frame, pl.DataFrame)
    keep = reasons.is_null() & frame["operation"].is_in(["create", "update"]) & frame[ERASED].is_null()
    return rows.filter(pa.array(keep.to_numpy()))


def blank(table: str, rows: pa.Table, reasons: pl.Series) -> pa.Table:
    """`rows` marked with their reasons and emptied of content; EDIT marks without emptying. Null reasons change nothing."""
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    gone = (reasons != EDIT).fill_null(False)
    emptied = frame.with_columns(
        *(pl.when(gone).then(None).otherwise(pl.col(name)).alias(name) for name in content_columns(table)),
        pl.coalesce(reasons, pl.col(ERASED)).alias(ERASED),
    )
    return emptied.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(lake_schema(table))


def erasable(table: str, rows: pa.Table, endings: Endings, *, keep_edits: bool = False) -> pl.Series:
    """What `blank` shall do to each row: the reason it ended, null for tombstones, deletes and current rows.

    keep_edits: rows replaced by a newer version of their record get EDIT instead. Account states are never erased: they hide.
    """
    if table == "account":
        return pl.Series("reason", [None] * rows.num_rows, pl.String)
    frame = pl.from_arrow(rows.select(["kind", "operation", ERASED]))
    assert isinstance(frame, pl.DataFrame)
    reasons = ended(rows, endings)
    if keep_edits:
        reasons = reasons.replace("update", EDIT)
    # What is left to do: a row kept as an edit may still be erased, and nothing is marked twice.
    marked = frame[ERASED].is_not_null() & ((frame[ERASED] != EDIT) | (reasons == EDIT).fill_null(False))
    holds = (frame["kind"] != "commit") | frame["operation"].is_in(["create", "update"])
    return reasons.set(marked | ~holds.fill_null(False), None)


def read_endings(store: LakeStore, snapshot: Snapshot, table: str, since_us: int | None = None) -> Endings:
    """The endings that act on `table`: of all pending files, and with `since_us` of every file from an hour before it on.

    The first is what erasure applies, the second what a merge of files with that `since_us` applies. Blocks for the reads.
    Raises FileDamaged.
    """
    start = None if since_us is None else hour_of(since_us) - HOUR_US
    of_records = table not in ("identity", "account", "sync")
    records = _files(snapshot, table, start) if of_records else []
    # A sync is about the repository: it ends records, not what the account event or identity event said.
    syncs = _files(snapshot, "sync", start) if of_records else []
    return endings_of(
        (read_ending_rows(store, file) for file in records),
        (store.read(file.path, ["did", "time", "active", "status"]) for file in _files(snapshot, "account", start)),
        (store.read(file.path, ["did", "rev_tid", "time"]) for file in syncs),
    )


def read_ending_rows(store: LakeStore, file: LiveFile) -> pa.Table:
    """ENDING_COLUMNS of the rows of a file of records that end others. Raises FileDamaged.

    Row group by row group, and the keys only of those that have such rows: mostly a fiftieth of a file ends anything.
    """
    schema = _schema(file.table, ENDING_COLUMNS)
    parts = [schema.empty_table()]
    with store.open(file.path, [name for name in RECORD_KEY if schema.field(name).type == pa.string()]) as parquet:
        for number in range(parquet.num_row_groups):
            if _ends_nothing(parquet.metadata.row_group(number)):
                continue
            marks = read_columns(parquet, file.path, ["operation", "resync"], groups=[number])
            edits = pc.is_in(marks.column("operation"), pa.array(["update", "delete"]))
            ends = pc.or_kleene(edits, marks.column("resync"))
            if pc.any(ends).as_py():
                rows = parquet.read_row_group(number, list(ENDING_COLUMNS), use_threads=False)
                parts.append(rows.filter(ends).select(ENDING_COLUMNS).cast(schema))
    return pa.concat_tables(parts)


def _ends_nothing(group: pq.RowGroupMetaData) -> bool:
    """Whether the statistics of a row group prove that it holds plain creates only."""
    found = {}
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema in ("operation", "resync") and column.statistics and column.statistics.has_min_max:
            found[column.path_in_schema] = (column.statistics.min, column.statistics.max)
    return found == {"operation": ("create", "create"), "resync": (False, False)}


def _files(snapshot: Snapshot, table: str, start_us: int | None) -> list[LiveFile]:
    files = [file for file in snapshot.files(table) if file.supersedes]
    if start_us is None:
        return [file for file in files if file.pending]
    return [file for file in files if file.pending or file.hour_us >= start_us]


def _newest() -> list[pl.Expr]:
    return [
        pl.col("rev_tid").max().alias("max_rev"),
        pl.col("time").filter(pl.col("rev_tid").is_null()).max().alias("max_time_without_rev"),
        pl.col("time").max().alias("max_time"),
    ]


def _newer_than_row(prefix: str) -> pl.Expr:
    """NEWER_SQL for some s of a reduced ending."""
    rev, time = pl.col("rev_tid"), pl.col("time")
    with_rev = (pl.col(f"{prefix}max_rev") > rev).fill_null(False)
    without = (pl.col(f"{prefix}max_time_without_rev") > time).fill_null(False)
    by_time = rev.is_null() & (pl.col(f"{prefix}max_time") > time).fill_null(False)
    return with_rev | without | by_time


def _schema(table: str, names: Iterable[str]) -> pa.Schema:
    full = lake_schema(table)
    return pa.schema([full.field(name) for name in names])


def _concat(tables: list[pa.Table], schema: pa.Schema) -> pl.DataFrame:
    frame = pl.from_arrow(pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in tables)]))
    assert isinstance(frame, pl.DataFrame)
    return frame

"""Writes the rows of a selection into the client's file, hour by hour, oldest first, and beside it what belongs to them.

The keys tell later which rows ended; they have the order of the rows. Rows are read as Arrow tables, sorted and written
natively, in threads: nothing here is done per row.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from api.columns import lake_columns, publish
from api.compliance import KEY_COLUMNS
from api.engagement import ENGAGEMENT, candidates, count_engagement, same_record
from api.engine import Session
from api.exports.render import Output, keys_writer, parquet_options
from api.extras import EXTRA_FIELDS, HANDLE
from api.fetch import PLACE
from api.handles import handles_of_accounts
from api.identifiers import POST
from api.labels.sql import LabelColumn, label_join
from api.posts_query import Reader, Selection, prepare
from api.relation import Lake, Source
from api.snapshots import Scan
from lake.convert import lake_schema

STEP_ROWS: Final = 100_000
"""An hour: what is read at once, so that the writers run beside the next read."""
SLICE_ROWS: Final = 100_000
"""What is sorted into place and written at once: a row group of the file. The allocator keeps buffers of this size for the
next slice; larger ones it gives back, and taking fresh pages for them cost more than the sorting."""
_COLLECTION: Final = "collection"
"""The same in every row of posts, so that it is never sorted, and read for label tables only."""
_AHEAD: Final = 3
"""Slices that may wait for the writers."""


@dataclass(frozen=True)
class ExportPlan:
    """What to write: public fields, extras and labels in the order of `columns`, at most `limit` rows."""

    scan: Scan
    selection: Selection
    columns: tuple[str, ...]
    labels: dict[str, LabelColumn]
    limit: int

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that files have."""
        return tuple(name for name in self.columns if name not in EXTRA_FIELDS and name not in self.labels)


@dataclass(frozen=True)
class Targets:
    """Where an export goes: the client's file, a Parquet copy of its rows (None if that file is one), and their keys."""

    output: Output
    rows: Path | None
    keys: Path


def produce(
    session: Session, lake: Lake, plan: ExportPlan, targets: Targets, report: Callable[[float], None]
) -> tuple[int, list[tuple[str, str]]]:
    """Write rows and keys; returns the number of rows and the columns with their types. The caller finishes `targets.output`.

    Blocks until done. `report` gets the share of rows scanned. Memory holds one step of hours and a few slices.
    """
    source = prepare(session, lake, plan.scan, plan.selection, reader=Reader.ALL)
    extra_columns, joins = _extras(session, lake, plan, source)
    wanted = tuple(
        name for name in dict.fromkeys((*lake_columns(POST, plan.fields), *KEY_COLUMNS, *PLACE)) if name != _COLLECTION
    )
    selected = ", ".join((*(f"r.{name}" for name in wanted), *extra_columns))
    label_columns, label_joins = _label_columns(plan, source)
    # Label tables join by collection too; without one the column is not read.
    inner = ", ".join(f"r.{name}" for name in (*wanted, _COLLECTION))
    outer = ", ".join((selected, *label_columns))
    written = scanned = 0
    total = max(1, plan.scan.rows)
    columns: list[tuple[str, str]] = []
    with _Writers(plan, targets) as writers:
        for step in plan.scan.steps(newest_first=False, first_rows=STEP_ROWS, largest_rows=STEP_ROWS):
            reading, values = lake.reading(replace(plan.scan, files=step), f"{inner} {source.joins} {source.condition}")
            statement = (
                f"WITH matching AS (SELECT {inner} FROM {source.over(reading)} WHERE {source.condition})"
                f" SELECT {outer} FROM matching AS r {joins} {label_joins}"
            )
            found = session.table(statement, {**source.bound.values, **values})
            for rows in _by_arrival(found, plan.limit - written):
                session.check()
                columns = writers.write(rows, written)
                written += rows.num_rows
            scanned += sum(file.rows for file in step)
            report(scanned / total)
            if written >= plan.limit:
                break
        if not written:
            columns = writers.write(_empty(plan), 0)
        writers.wait()
    return written, columns


class _Writers:
    """The files of an export, each written in order by a thread of its own; a context that waits for the threads and then
    closes rows and keys."""

    def __init__(self, plan: ExportPlan, targets: Targets) -> None:
        self._plan = plan
        self._targets = targets
        self._files = ExitStack()
        self._threads = [ThreadPoolExecutor(1, "export") for _ in range(3)]
        self._running: deque[list[Future[None]]] = deque()
        self._rows: pq.ParquetWriter | None = None
        self._keys: pq.ParquetWriter | None = None

    def __enter__(self) -> _Writers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A file that is closed while a thread still writes to it takes the whole process down.
        for thread in self._threads:
            thread.shutdown(wait=True, cancel_futures=True)
        self._files.close()

    def write(self, found: pa.Table, first: int) -> list[tuple[str, str]]:
        """Queue rows whose first has this position; returns the public columns. Blocks while `_AHEAD` slices wait; raises
        what a writer raised."""
        while len(self._running) >= _AHEAD:
            self._wait_for_one()
        public = _public(self._plan, found)
        positions = pa.array(np.arange(first, first + found.num_rows, dtype=np.int64))
        keys = found.select(list(KEY_COLUMNS)).append_column("position", positions)
        if self._keys is None:
            self._keys = self._files.enter_context(keys_writer(self._targets.keys, keys.schema))
            if self._targets.rows is not None:
                self._rows = self._files.enter_context(
                    pq.ParquetWriter(self._targets.rows, public.schema, **parquet_options(public.schema, "zstd"))
                )
        queued = [
            self._threads[0].submit(self._targets.output.write, public),
            self._threads[1].submit(self._keys.write_table, keys),
        ]
        if self._rows is not None:
            queued.append(self._threads[2].submit(self._rows.write_table, public))
        self._running.append(queued)
        return [(field.name, str(field.type)) for field in public.schema]

    def wait(self) -> None:
        """Returns when everything is written; raises what a writer raised."""
        while self._running:
            self._wait_for_one()

    def _wait_for_one(self) -> None:
        for future in self._running[0]:
            future.result()
        self._running.popleft()


def _by_arrival(rows: pa.Table, limit: int) -> Iterator[pa.Table]:
    """The first `limit` rows in the order of PLACE, in slices; equal times are rare, so that sorting by time does nearly
    all."""
    rows = rows.combine_chunks()
    times = np.asarray(rows["time"].cast(pa.int64()))
    order = np.argsort(times, kind="stable")
    sorted_times = times[order]
    tied = np.zeros(len(times), np.bool_)
    tied[1:] = sorted_times[1:] == sorted_times[:-1]
    tied[:-1] |= tied[1:]
    if tied.any():
        some = order[tied]
        partitions, offsets = (np.asarray(rows[name].take(pa.array(some))) for name in PLACE[1:])
        order[tied] = some[np.lexsort((offsets, partitions, times[some]))]
    order = order[:limit]
    for start in range(0, len(order), SLICE_ROWS):
        taken = rows.take(pa.array(order[start : start + SLICE_ROWS]))
        yield taken.append_column(_COLLECTION, pa.repeat(pa.scalar(POST), taken.num_rows))


def _extras(session: Session, lake: Lake, plan: ExportPlan, source: Source) -> tuple[list[str], str]:
    """Columns and joins of what is computed for all selected posts beforehand."""
    asked = [name for name in plan.columns if name in EXTRA_FIELDS]
    if not asked:
        return [], ""
    columns, joins = [], []
    keys = candidates(session, lake, plan.scan, source)
    for name in asked:
        if name == HANDLE:
            known = handles_of_accounts(session, lake.root, plan.scan.snapshot, set(keys["did"].to_pylist()))
            table = pa.table(
                {"did": pa.array(list(known), pa.string()), "handle": pa.array(list(known.values()), pa.string())}
            )
            session.register("extra_handle", table)
            columns.append("xh.handle AS x_handle")
            joins.append("LEFT JOIN extra_handle AS xh ON xh.did = r.did")
            continue
        counts = count_engagement(session, lake, plan.scan, plan.selection.filters, keys, name)
        session.register(f"extra_{name}", counts)
        columns.append(f"coalesce(x_{name}.count, 0) AS x_{name}_count")
        joins.append(f"LEFT JOIN extra_{name} AS x_{name} ON {same_record(f'x_{name}', 'r')}")
    return columns, " ".join(joins)


def _label_columns(plan: ExportPlan, source: Source) -> tuple[list[str], str]:
    columns, joins = [], []
    for number, column in enumerate(plan.labels.values()):
        join = label_join(column, source.bound, name=f"l{number}")
        columns.append(f"{join.expression} AS x_label{number}")
        joins.append(join.sql)
    return columns, " ".join(joins)


def _public(plan: ExportPlan, table: pa.Table) -> pa.Table:
    fields = publish(POST, table, plan.fields)
    numbers = {name: number for number, name in enumerate(plan.labels)}
    columns = {}
    for name in plan.columns:
        if name in numbers:
            columns[name] = table[f"x_label{numbers[name]}"]
        elif name == HANDLE:
            columns[name] = table["x_handle"]
        elif name in ENGAGEMENT:
            columns[name] = table[f"x_{name}_count"]
        else:
            columns[name] = fields[name]
    return pa.table(columns)


def _empty(plan: ExportPlan) -> pa.Table:
    schema = lake_schema(POST)
    names: Sequence[str] = list(dict.fromkeys((*lake_columns(POST, plan.fields), *KEY_COLUMNS)))
    table = pa.schema([schema.field(name) for name in names]).empty_table()
    for number in range(len(plan.labels)):
        table = table.append_column(f"x_label{number}", pa.array([], pa.string()))
    for name in EXTRA_FIELDS:
        column = "x_handle" if name == HANDLE else f"x_{name}_count"
        table = table.append_column(column, pa.array([], pa.string() if name == HANDLE else pa.int64()))
    return table

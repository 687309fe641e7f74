"""Writes the rows of a selection and their keys into two Parquet files, hour by hour, oldest first.

`rows.parquet` holds the public columns, `keys.parquet` what tells later which rows ended; both have the same order.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from api.columns import lake_columns, publish
from api.compliance import KEY_COLUMNS
from api.engagement import ENGAGEMENT, candidates, count_engagement, same_record
from api.engine import Session
from api.extras import EXTRA_FIELDS, HANDLE
from api.fetch import PLACE
from api.handles import handles_of_accounts
from api.identifiers import POST
from api.labels.sql import LabelColumn, label_join
from api.posts_query import Selection, prepare
from api.relation import Lake, Source
from api.snapshots import Scan
from api.walk import order_by
from lake.convert import lake_schema

STEP_ROWS: Final = 1_000_000
_BATCH_ROWS: Final = 131_072


@dataclass(frozen=True)
class ExportPlan:
    """What to write: public fields, extras and labels in the order of `columns`, at most `limit` rows."""

    scan: Scan
    selection: Selection
    columns: tuple[str, ...]
    labels: dict[str, LabelColumn]
    limit: int
    compression: str

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that files have."""
        return tuple(name for name in self.columns if name not in EXTRA_FIELDS and name not in self.labels)


def produce(
    session: Session, lake: Lake, plan: ExportPlan, rows_path: Path, keys_path: Path, report: Callable[[float], None]
) -> tuple[int, list[tuple[str, str]]]:
    """Write both files; returns the number of rows and the columns with their types.

    Blocks until done. `report` gets the share of rows scanned. Memory holds one step of hours at a time.
    """
    source = prepare(session, lake, plan.scan, plan.selection)
    extra_columns, joins = _extras(session, lake, plan, source)
    wanted = tuple(dict.fromkeys((*lake_columns(POST, plan.fields), *KEY_COLUMNS, *PLACE)))
    selected = ", ".join((*(f"r.{name}" for name in wanted), *extra_columns))
    label_columns, label_joins = _label_columns(plan, source)
    statement = (
        f"WITH matching AS (SELECT {', '.join(f'r.{name}' for name in wanted)} FROM {source.relation}"
        f" WHERE {source.condition} ORDER BY {order_by(newest_first=False)} LIMIT $count)"
        f" SELECT {', '.join((selected, *label_columns))} FROM matching AS r {joins} {label_joins}"
        " ORDER BY r.time, r.kafka_partition, r.kafka_offset"
    )
    written = scanned = 0
    total = max(1, plan.scan.rows)
    with ExitStack() as files:
        writers: list[pq.ParquetWriter] = []
        for step in plan.scan.steps(newest_first=False, first_rows=STEP_ROWS, largest_rows=STEP_ROWS):
            values = {**source.bound.values, "files": lake.paths(step), "count": plan.limit - written}
            for batch in session.batches(statement, values, _BATCH_ROWS):
                table = pa.Table.from_batches([batch])
                public = _public(plan, table)
                keys = table.select(list(KEY_COLUMNS)).append_column(
                    "position", pa.array(range(written, written + table.num_rows), pa.int64())
                )
                if not writers:
                    writers = _open(files, plan, (rows_path, public.schema), (keys_path, keys.schema))
                writers[0].write_table(public)
                writers[1].write_table(keys)
                written += table.num_rows
            scanned += sum(file.rows for file in step)
            report(scanned / total)
            if written >= plan.limit:
                break
        if not writers:
            public, keys = _empty(plan)
            writers = _open(files, plan, (rows_path, public.schema), (keys_path, keys.schema))
    schema = pq.read_schema(rows_path)
    return written, [(name, str(schema.field(name).type)) for name in schema.names]


def _open(files: ExitStack, plan: ExportPlan, *targets: tuple[Path, pa.Schema]) -> list[pq.ParquetWriter]:
    return [
        files.enter_context(pq.ParquetWriter(path, schema, compression=plan.compression)) for path, schema in targets
    ]


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


def _empty(plan: ExportPlan) -> tuple[pa.Table, pa.Table]:
    schema = lake_schema(POST)
    names: Sequence[str] = list(dict.fromkeys((*lake_columns(POST, plan.fields), *KEY_COLUMNS)))
    table = pa.schema([schema.field(name) for name in names]).empty_table()
    for number in range(len(plan.labels)):
        table = table.append_column(f"x_label{number}", pa.array([], pa.string()))
    for name in EXTRA_FIELDS:
        column = "x_handle" if name == HANDLE else f"x_{name}_count"
        table = table.append_column(column, pa.array([], pa.string() if name == HANDLE else pa.int64()))
    keys = table.select(list(KEY_COLUMNS)).append_column("position", pa.array([], pa.int64()))
    return _public(plan, table), keys

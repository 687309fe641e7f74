"""Columns that no file has: engagement seen by the archive and the account's handle, for the rows of a page or an export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa

from api.engagement import ENGAGEMENT, KEYS, count_subjects, same_record
from api.engine import Session
from api.handles import handles_of_accounts
from api.relation import Lake
from api.snapshots import Scan
from api.times import to_micros
from lake.manifest import HOUR_US

HANDLE: Final = "handle"
EXTRA_FIELDS: Final = (*ENGAGEMENT, HANDLE)
"""Fields of posts that are computed on request."""


def page_extras(session: Session, lake: Lake, plan: Scan, rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """The extra columns `names` for post rows with the columns time, did, rkey_tid and rkey_text, in their order."""
    if not rows.num_rows:
        return pa.table({name: pa.nulls(0, pa.string() if name == HANDLE else pa.int64()) for name in names})
    keys = rows.select(KEYS.names)
    # The earliest row bounds what has to be read: nothing can point at a post long before it arrived.
    start = min(to_micros(moment) for moment in rows["time"].to_pylist()) - HOUR_US
    session.register("page_rows", keys.append_column("position", pa.array(range(rows.num_rows))))
    columns: dict[str, pa.ChunkedArray] = {}
    for name in names:
        if name == HANDLE:
            known = handles_of_accounts(session, lake.root, plan.snapshot, set(rows["did"].to_pylist()))
            columns[name] = pa.chunked_array(
                [pa.array([known.get(did) for did in rows["did"].to_pylist()], pa.string())]
            )
            continue
        session.register(f"page_{name}", count_subjects(session, lake, plan, start, keys, name))
        found = session.table(
            f"SELECT coalesce(e.count, 0) AS count FROM page_rows AS p LEFT JOIN page_{name} AS e"  # noqa: S608
            f" ON {same_record('e', 'p')} ORDER BY p.position",
            {},
        )
        columns[name] = found["count"]
    return pa.table(columns)

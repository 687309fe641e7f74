"""Events that a host delivers long after they were made, and where an earlier copy of them would lie.

An event's time is when its host witnessed it, so a host that is hours behind gives the same event another hour. When it was made
every host tells alike (the rev of a commit or sync is a TID, of the others there is the relay's time), so a copy from a host that
kept up lies within an hour of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from lake.commit import LATE_US, TID_CLOCK_BITS
from lake.manifest import HOUR_US

Hours = npt.NDArray[np.int64]

_OF_RELAYS: Final = ("identity", "account")


def made_columns(table: str) -> list[str]:
    """What `made_hours` looks at."""
    return ["time", "relay_time" if table in _OF_RELAYS else "rev_tid"]


def made_hours(table: str, rows: pa.Table) -> Hours:
    """The hour in which each of `rows` (of `lake_schema`) was made, as far as it tells; else that of its time."""
    times = rows.column("time").cast(pa.int64())
    if table in _OF_RELAYS:
        said = pl.Series(rows.column("relay_time").cast(pa.string())).cast(pl.String)
        told = said.str.to_datetime(time_unit="us", time_zone="UTC", strict=False).dt.epoch("us").to_arrow()
    else:
        told = pc.shift_right(rows.column("rev_tid"), TID_CLOCK_BITS)
    made = np.asarray(pc.coalesce(pa.chunked_array([told]) if isinstance(told, pa.Array) else told, times))
    hours: Hours = made - made % HOUR_US
    return hours


def earlier_homes(hour_us: int, made: Hours) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """For rows that lie under `hour_us` and were made in the hours `made`: (hour, which of them a copy under it may repeat).

    Only hours before those that are compared in any case (`lake.dedupe`), and only rows made within the last week.
    """
    for hour in np.unique(made[(made < hour_us - HOUR_US) & (made >= hour_us - LATE_US)]).tolist():
        places = np.flatnonzero(made == hour)
        for home in (hour - HOUR_US, hour, hour + HOUR_US):
            if home < hour_us - HOUR_US:
                yield home, places

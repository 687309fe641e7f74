"""Event identity: which rows of a batch the lake already has.

Identities are 64-bit hashes of the columns that `schemas.identity` names, kept per table and hour. A repeated event
carries the time its host witnessed it, so a fail-over copy may lie in a neighbouring hour: each row is compared with the
hour before, its own, and the hour after; one from a host that is further behind also with the hours around the one in which it
was made (`lake.lagging`), and a prompt one with the late rows of later hours (`lake.late_copies`). A hash seen before is checked by
nothing else: with 64 bits, two events of three hours (4 M rows) are mixed up once in about two million hours.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from lake.bloom import FilterIndex, Value
from lake.ended_keys import LATE_HORIZON_US, bury_late
from lake.lagging import Hours, earlier_homes, made_hours
from lake.late_copies import LateCopies, later_files
from lake.manifest import HOUR_US, LiveFile, Manifest
from lake.store import LakeStore

Hashes = npt.NDArray[np.uint64]

_COMMIT: Final = ("did", "collection", "rkey_tid", "rkey_text", "rev_tid", "rev_text", "operation")
_RELAY: Final = ("kind", "did", "relay_seq", "relay_time")
_SYNC: Final = ("did", "rev_tid", "rev_text")
_SEED: Final = 0x5EED
_ASKED: Final = 256
"""Rows of one hour up to which bloom filters are asked before all of it is read; more come from a host that repeats everything."""
_EARLIER_SHARE: Final = 8
"""Of the rows kept in memory, for hours that only lagging hosts' rows are compared with; as many again for late rows."""


def identity_columns(table: str) -> tuple[str, ...]:
    """The lake columns whose values are the identity of a row of `table`."""
    return {"identity": _RELAY, "account": _RELAY, "sync": _SYNC}.get(table, _COMMIT)


def identity_hashes(table: str, rows: pa.Table) -> Hashes:
    """One 64-bit hash of the event identity per row; never stored, since a release may hash otherwise."""
    frame = pl.from_arrow(rows.select(list(identity_columns(table))))
    assert isinstance(frame, pl.DataFrame)
    if "relay_seq" in frame.columns:
        # The relay's sequence is the identity; its time only stands in where the sequence is 0 or missing.
        with_seq = pl.col("relay_seq").fill_null(0) != 0
        frame = frame.with_columns(
            relay_seq=pl.when(with_seq).then("relay_seq").otherwise(0),
            relay_time=pl.when(with_seq).then(None).otherwise(pl.col("relay_time").fill_null("")),
        )
    return _mix([_column_hash(frame.get_column(name)) for name in identity_columns(table)])


def _column_hash(series: pl.Series) -> Hashes:
    if series.dtype == pl.Int64:
        values = series.fill_null(-1).to_numpy().astype(np.uint64)
        return _avalanche(values)
    return series.hash(_SEED).to_numpy()


def _avalanche(values: Hashes) -> Hashes:
    # The finaliser of SplitMix64: every input bit changes half of the output bits.
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _mix(columns: list[Hashes]) -> Hashes:
    mixed = np.zeros_like(columns[0])
    for position, column in enumerate(columns):
        mixed = _avalanche(mixed * np.uint64(0x9E3779B97F4A7C15) + column + np.uint64(position))
    return mixed


@dataclass(frozen=True, slots=True)
class HourRows:
    """The new rows of one hour with their identities; `consumed` counts the rows before duplicates were dropped."""

    hour_us: int
    rows: pa.Table
    hashes: Hashes
    consumed: int
    duplicates: int


@dataclass(slots=True)
class _Hour:
    """Sorted hashes of the committed rows of one table and hour, and those added since the last sort."""

    hashes: Hashes
    recent: list[Hashes]

    def rows(self) -> int:
        return len(self.hashes) + sum(map(len, self.recent))

    def contains(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Which of `hashes` are known; eight times as fast when they are sorted, as each search begins at the last."""
        if len(self.recent) > 32:
            self.hashes = np.sort(np.concatenate([self.hashes, *self.recent]))
            self.recent.clear()
        found = np.zeros(len(hashes), np.bool_)
        for known in (self.hashes, *self.recent):
            if len(known):
                position = np.searchsorted(known, hashes)
                position[position == len(known)] = 0
                found |= known[position] == hashes
        return found


class DedupeWindow:
    """Identities of the hours that a writer touches, loaded from the lake when first needed.

    max_rows bounds the memory (8 bytes a row, and a quarter more for lagging hosts): the hours touched longest ago are dropped
    and loaded again on demand. One writer per window; other writers of the same partitions are fenced by the manifest, after
    which `forget` is called.
    late_us: how far back to look for the end of rows that arrive long after they were written (`lake.ended_keys`).
    """

    def __init__(
        self, store: LakeStore, manifest: Manifest, max_rows: int = 40_000_000, late_us: int = LATE_HORIZON_US
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._max_rows = max_rows
        self._late_us = late_us
        self._hours: OrderedDict[tuple[str, int], _Hour] = OrderedDict()
        self._earlier: OrderedDict[tuple[str, int], _Hour] = OrderedDict()
        self._filters = FilterIndex(store.root)
        self._late = LateCopies(store, identity_hashes, identity_columns, max_rows // _EARLIER_SHARE)

    def split(self, table: str, rows: pa.Table) -> list[HourRows]:
        """Splits rows of `table` by hour, drops those that the lake has or that repeat an earlier row of `rows`, and empties
        those that had ended long before they arrived.

        Blocks while it reads the identities of hours that are not loaded. Raises FileDamaged. The rows count as known
        only after `add`.
        """
        if rows.num_rows == 0:
            return []
        hashes = identity_hashes(table, rows)
        order = np.argsort(hashes)
        ordered = hashes[order]
        repeats = ordered[1:] == ordered[:-1]
        if repeats.any():
            # Of equal rows the one that came first is kept.
            order = np.argsort(hashes, kind="stable")
        fresh = order[np.concatenate(([True], ~repeats))]
        times = np.asarray(rows.column("time").cast(pa.int64()))
        row_hours = times - times % HOUR_US
        made = made_hours(table, rows)
        result = []
        for hour_us in np.unique(row_hours).tolist():
            consumed = int(np.count_nonzero(row_hours == hour_us))
            kept = fresh[row_hours[fresh] == hour_us]
            for near in (hour_us - HOUR_US, hour_us, hour_us + HOUR_US):
                kept = kept[~self._hour(table, near).contains(hashes[kept])]
            kept = kept[~self._is_known_from_earlier(table, hour_us, rows, hashes, made, kept)]
            if len(kept) and (later := later_files(self._manifest.snapshot(), table, hour_us)):
                kept = kept[~self._late.known(table, hour_us, hashes[kept], made[kept], later)]
            kept.sort()
            part = rows if len(kept) == rows.num_rows else rows.take(pa.array(kept))
            part = bury_late(self._store, self._manifest.snapshot(), table, part, self._late_us)
            result.append(HourRows(hour_us, part, hashes[kept], consumed, consumed - len(kept)))
        return result

    def add(self, table: str, hour_us: int, hashes: Hashes) -> None:
        """Remembers rows that were committed; call after the commit, never before."""
        self._hour(table, hour_us).recent.append(np.sort(hashes))
        self._earlier.pop((table, hour_us), None)
        self._evict()

    def forget(self) -> None:
        """Drops everything: after a rebalance, a refused commit or a replay the lake is read again."""
        self._hours.clear()
        self._earlier.clear()
        self._late.forget()

    @property
    def rows(self) -> int:
        """Identities in memory."""
        return sum(hour.rows() for hour in self._hours.values())

    def _hour(self, table: str, hour_us: int) -> _Hour:
        key = (table, hour_us)
        found = self._hours.get(key)
        if found is None:
            found = self._hours[key] = self._read(table, self._files(table, hour_us))
        self._hours.move_to_end(key)
        return found

    def _files(self, table: str, hour_us: int) -> list[LiveFile]:
        return self._manifest.snapshot().files(table, hour_us, hour_us + HOUR_US)

    def _read(self, table: str, files: Sequence[LiveFile]) -> _Hour:
        columns = list(identity_columns(table))
        parts = [identity_hashes(table, self._store.read(file.path, columns)) for file in files]
        return _Hour(np.sort(np.concatenate(parts)) if parts else np.empty(0, np.uint64), [])

    def _is_known_from_earlier(
        self, table: str, hour_us: int, rows: pa.Table, hashes: Hashes, made: Hours, kept: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Which of the rows at `kept` another host delivered more than an hour before the time that they have here."""
        found = np.zeros(len(kept), np.bool_)
        for home, places in earlier_homes(hour_us, made[kept]):
            earlier = self._hours.get((table, home)) or self._earlier_hour(table, home, rows, kept[places])
            if earlier is not None:
                found[places] |= earlier.contains(hashes[kept[places]])
        return found

    def _earlier_hour(self, table: str, hour_us: int, rows: pa.Table, places: npt.NDArray[np.int64]) -> _Hour | None:
        """The identities of an hour; None where its files say by their bloom filters that they have none of the rows."""
        key = (table, hour_us)
        found = self._earlier.get(key)
        if found is None:
            files = self._files(table, hour_us)
            if len(places) <= _ASKED and not self._filters.may_hold(files, _wanted(rows, places)):
                return None
            found = self._earlier[key] = self._read(table, files)
        self._earlier.move_to_end(key)
        while (
            len(self._earlier) > 3 and sum(e.rows() for e in self._earlier.values()) > self._max_rows // _EARLIER_SHARE
        ):
            self._earlier.popitem(last=False)
        return found

    def _evict(self) -> None:
        # The three hours of the row at hand stay, whatever the bound says.
        while len(self._hours) > 3 and self.rows > self._max_rows:
            self._hours.popitem(last=False)


def _wanted(rows: pa.Table, places: npt.NDArray[np.int64]) -> dict[str, Sequence[Value]]:
    """What bloom filters are asked about rows: their accounts, and their keys if all of those are TIDs."""
    picked = rows.take(pa.array(places))
    wanted: dict[str, Sequence[Value]] = {"did": picked.column("did").cast(pa.string()).unique().to_pylist()}
    if "rkey_tid" in rows.column_names and not picked.column("rkey_tid").null_count:
        wanted["rkey_tid"] = picked.column("rkey_tid").unique().to_pylist()
    return wanted

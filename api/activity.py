"""What an account did, by collection: from the index of accounts, and from the files that it does not know.

An active account is in every hour, and to count its rows means to read a column of accounts of each. The index has the counts; read
are the files in which the account's first and last rows are, those that lie partly in the range or are not rolled yet, and
those that have what a pending deletion or edit of the account ends.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from api.current import ENDING_KEYS, IS_RECORD, Ends
from api.engine import Session
from api.few_rows import few_rows
from api.key_skip import holding
from api.relation import READ_FILES, Lake
from api.snapshots import Scan
from api.sql import Bound, all_of, range_predicates
from api.times import format_time, to_micros
from lake.account_index import Activity
from lake.convert import ERASED
from lake.manifest import HOUR_US, LiveFile

_DAY_US: Final = 24 * HOUR_US
_FEW_KEYS: Final = 2_000
"""Looking for more ended records than this by key costs as much as reading the files."""
_MOMENTS: Final = ("collection", "time_min", "time_max")
_RECORDS: Final = ("create", "update")
_ENDED: Final = ("kafka_partition", "kafka_offset", "collection")


@dataclass(frozen=True)
class Share:
    """What is known of one table: files with what the account has in them, and `rest`, the files that have to be read."""

    known: Sequence[tuple[LiveFile, Sequence[Activity]]]
    rest: Scan

    @property
    def bytes_to_read(self) -> int:
        """Compressed bytes of the files that have to be read whole."""
        return self.rest.bytes


@dataclass
class _Total:
    creates: int = 0
    updates: int = 0
    deletes: int = 0
    current: int = 0
    first: Any = None
    last: Any = None

    def moments(self, first: Any, last: Any) -> None:
        self.first = first if self.first is None else min(self.first, first)
        self.last = last if self.last is None else max(self.last, last)


@dataclass(frozen=True)
class Actor:
    """An account, by its DID, and a stretch of arrival time."""

    did: str
    start_us: int | None
    end_us: int | None

    def condition(self, bound: Bound) -> str:
        """That a row r is of the account and of that time."""
        times = range_predicates(self.start_us, self.end_us, "r.time", bound)
        return all_of([f"r.did = {bound.bind(self.did)}", *times])

    def covers(self, file: LiveFile) -> bool:
        """Whether every row of a file is of that time."""
        return (self.start_us is None or self.start_us <= file.min_time_us) and (
            self.end_us is None or file.max_time_us < self.end_us
        )


def share_of(lake: Lake, plan: Scan, actor: Actor) -> Share:
    """What the index knows of one table. May block for reading it."""
    known, rest = [], []
    for file in plan.files:
        found = lake.accounts.activity(file, actor.did) if actor.covers(file) else None
        if found is None:
            rest.append(file)
        elif found:
            known.append((file, found))
    return Share(known, holding(lake, replace(plan, files=tuple(rest)), {"did": [actor.did]}))


def activity(session: Session, lake: Lake, shares: Iterable[Share], actor: Actor) -> list[dict[str, Any]]:
    """Operations by collection as they arrived, and how many records of them stand. Blocks for the reads."""
    found = []
    for share in shares:
        totals: dict[str, _Total] = {}
        for _, parts in share.known:
            for part in parts:
                _add(totals, str(part.collection), *part[1:])
        _read(session, lake, share, actor, totals)
        _moments(session, lake, share, actor, totals)
        if totals:
            _leave_out(session, lake, share, actor, totals)
        found += [
            {
                "collection": collection,
                "creates": total.creates,
                "updates": total.updates,
                "deletes": total.deletes,
                "current": total.current,
                "first": format_time(to_micros(total.first)),
                "last": format_time(to_micros(total.last)),
            }
            for collection, total in sorted(totals.items())
        ]
    return found


def daily(session: Session, lake: Lake, shares: Iterable[Share], actor: Actor) -> list[dict[str, Any]]:
    """Creates by day (UTC) and collection. Blocks for the reads."""
    days: dict[str, dict[str, int]] = {}

    def add(day: str, collection: str, count: int) -> None:
        of_day = days.setdefault(day, {})
        of_day[collection] = of_day.get(collection, 0) + count

    for share in shares:
        read = list(share.rest.files)
        for file, parts in share.known:
            if file.min_time_us // _DAY_US != file.max_time_us // _DAY_US:
                read.append(file)
                continue
            day = format_time(file.min_time_us)[:10]
            for part in parts:
                if part.creates:
                    add(day, str(part.collection), part.creates)
        if not read:
            continue
        bound = Bound()
        statement = (
            f"SELECT strftime(r.time, '%Y-%m-%d') AS day, collection, count(*) FROM {READ_FILES} AS r"
            f" WHERE {actor.condition(bound)} AND operation = 'create' GROUP BY ALL"
        )
        for day, collection, count in session.rows(statement, {**bound.values, "files": lake.paths(read)}):
            add(day, collection, count)
    return [{"day": day, "creates": dict(sorted(days[day].items()))} for day in sorted(days)]


def _add(totals: dict[str, _Total], collection: str, creates: int, updates: int, deletes: int, current: int) -> _Total:
    total = totals.setdefault(collection, _Total())
    total.creates += creates
    total.updates += updates
    total.deletes += deletes
    total.current += current
    return total


def _read(session: Session, lake: Lake, share: Share, actor: Actor, totals: dict[str, _Total]) -> None:
    """Add what the files have that the index does not know."""
    if not share.rest.files:
        return
    bound = Bound()
    statement = (
        "SELECT collection, count(*) FILTER (operation = 'create'), count(*) FILTER (operation = 'update'),"
        f" count(*) FILTER (operation = 'delete'), count(*) FILTER ({IS_RECORD}), min(time), max(time)"
        f" FROM {READ_FILES} AS r WHERE {actor.condition(bound)} GROUP BY ALL"
    )
    for collection, *counts, first, last in session.rows(
        statement, {**bound.values, "files": lake.paths(share.rest.files)}
    ):
        _add(totals, collection, *counts).moments(first, last)


def _moments(session: Session, lake: Lake, share: Share, actor: Actor, totals: dict[str, _Total]) -> None:
    """Add the first and last times of what the index counted."""
    of_collection: dict[str | None, list[LiveFile]] = {}
    for file, parts in share.known:
        for part in parts:
            of_collection.setdefault(part.collection, []).append(file)
    read: dict[str, LiveFile] = {}
    for files in of_collection.values():
        # The first row is no later than the end of any file that has one, the last no earlier than any beginning.
        earliest, latest = min(file.max_time_us for file in files), max(file.min_time_us for file in files)
        read |= {file.path: file for file in files if file.min_time_us <= earliest or file.max_time_us >= latest}
    if not read:
        return
    rows, rest = few_rows(session, lake, _of_account(share, actor, [*read.values()]), ("collection", "time"))
    if rows is not None:
        found = rows.group_by("collection").aggregate([("time", "min"), ("time", "max")])
        for collection, first, last in zip(*(found[name].to_pylist() for name in _MOMENTS), strict=True):
            totals[str(collection)].moments(first, last)
    if rest.files:
        statement = f"SELECT collection, min(time), max(time) FROM {READ_FILES} AS r WHERE r.did = $did GROUP BY ALL"
        for collection, first, last in session.rows(statement, {"did": actor.did, "files": lake.paths(rest.files)}):
            totals[str(collection)].moments(first, last)


def _of_account(share: Share, actor: Actor, files: Sequence[LiveFile]) -> Scan:
    """Files of a share, with how many rows the account has in those that the index knows."""
    counts = {
        file.path: sum(part.creates + part.updates + part.deletes for part in parts) for file, parts in share.known
    }
    return replace(share.rest, files=tuple(files), counts=counts, accounts=(actor.did,))


def _leave_out(session: Session, lake: Lake, share: Share, actor: Actor, totals: dict[str, _Total]) -> None:
    """Take from the current records what is pending to end or hides."""
    plan = share.rest
    ends = lake.current.ends(session, plan.snapshot, plan.table, actor.start_us).about(pa.array([actor.did]))
    if ends.hides([actor.did]):
        for total in totals.values():
            total.current = 0
        return
    files = _files_of_ended(lake, share, actor, ends)
    if not files:
        return
    rows, rest = few_rows(session, lake, _of_account(share, actor, files), (*ENDING_KEYS, "operation", ERASED))
    if rows is not None:
        records = rows.filter(pc.and_(pc.is_in(rows["operation"], pa.array(_RECORDS)), pc.is_null(rows[ERASED])))
        standing = set(ends.standing(session, records))
        for number, collection in enumerate(records["collection"].to_pylist()):
            totals[collection].current -= number not in standing
    if rest.files:
        bound = Bound()
        condition = f"{actor.condition(bound)} AND {IS_RECORD}"
        ended = ends.ended_rows(session, lake.paths(rest.files), _ENDED, condition, bound.values)
        for collection in ended["collection"].to_pylist():
            totals[collection].current -= 1


def _files_of_ended(lake: Lake, share: Share, actor: Actor, ends: Ends) -> list[LiveFile]:
    """The files that can have rows that something ends."""
    if not (ends.records.num_rows or ends.accounts.num_rows or ends.syncs.num_rows):
        return []
    files = [*(file for file, parts in share.known if any(part.standing for part in parts)), *share.rest.files]
    keys = ends.records["rkey_tid"]
    if ends.accounts.num_rows or ends.syncs.num_rows or keys.null_count or len(keys) > _FEW_KEYS:
        return files
    return lake.filters.may_hold(files, {"rkey_tid": keys.to_pylist()})

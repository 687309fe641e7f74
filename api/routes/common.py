"""What the routes that select posts share: the snapshot they read, the files they plan, and how they say so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlencode

import pyarrow as pa
from fastapi import Request
from starlette.responses import Response

from api.access import charge_bytes, principal
from api.citations import AsOf
from api.columns import public_fields
from api.cursors import Cursor, CursorError, query_digest
from api.engine import Session
from api.errors import ApiError, FieldError, Problem, unknown_parameter
from api.filters import Clock, PostQuery
from api.handles import handles_of, resolve, with_dids
from api.identifiers import POST
from api.key_skip import narrow_by_keys
from api.labels.service import labels_of
from api.labels.sql import LabelCondition
from api.posts_query import Selection, narrow
from api.relation import Lake
from api.services import Services
from api.snapshots import Scan, coverage_json, scan, snapshot_json
from api.tabular import MEDIA_TYPES, TableFormat, table_bytes
from api.throughput import Reading
from api.walk import Page
from lake.errors import SnapshotExpired
from lake.manifest import Snapshot

T = TypeVar("T")


@dataclass(frozen=True)
class Planned:
    """The snapshot and the files of one request: `scan` those that may hold a match, `whole` all of the range."""

    snapshot: Snapshot
    as_of: AsOf | None
    scan: Scan
    whole: Scan
    query: PostQuery
    labels: tuple[LabelCondition, ...]
    not_labels: tuple[LabelCondition, ...]

    def narrowed(self, lake: Lake, selection: Selection) -> Scan:
        """`scan` without what a selection rules out whose handles are resolved. May block for the files' filters where the query
        named handles: of everything else they were asked before."""
        return narrow_by_keys(lake, self.scan, selection.filters) if handles_of(self.query) else self.scan

    def meaning(self) -> dict[str, Any]:
        """What was asked, as JSON values that mean the same for ever: label tables stand with their versions."""
        found = self.query.meaning()
        for name, conditions in (("label", self.labels), ("not_label", self.not_labels)):
            if conditions:
                found[name] = [condition.pinned for condition in conditions]
        return found

    def digest(self, **more: Any) -> str:
        """Digest of what was asked, which a cursor is bound to."""
        return query_digest({"filters": self.meaning(), "as_of": self.query.as_of, **more})

    def about(self) -> dict[str, Any]:
        """The member `snapshot` of an answer."""
        return snapshot_json(self.snapshot, self.as_of)


async def snapshot_of(here: Services, as_of: int | None) -> tuple[Snapshot, AsOf | None]:
    """The newest snapshot, and the older one that is asked about. ApiError 410 when that is not known any more."""
    snapshot, _ = await asyncio.to_thread(here.snapshots.cited)
    if as_of is None:
        return snapshot, None
    try:
        return snapshot, await asyncio.to_thread(here.snapshots.as_of, as_of)
    except SnapshotExpired as error:
        detail = f"{error.message} {error.remedy}"
        raise ApiError(Problem.SNAPSHOT_GONE, f"as_of: {detail}", errors=[FieldError("as_of", detail)]) from None


async def plan_posts(request: Request, here: Services, query: PostQuery, *, by_text: bool = True) -> Planned:
    """The files that can hold what a query selects; by_text: False leaves it to `narrowed_by_text` what its text rules out.
    ApiError 410 for a snapshot that is not kept, 422 for an unknown label."""
    snapshot, older = await snapshot_of(here, query.as_of)
    arrival = query.clock is Clock.ARRIVAL
    start, end = (query.start, query.end) if arrival else (None, None)
    whole = await asyncio.to_thread(scan, snapshot, POST, start, end, older)
    files = await asyncio.to_thread(narrow, here.lake, whole, query) if by_text else whole
    files = await asyncio.to_thread(narrow_by_keys, here.lake, files, query)
    wanted, unwanted = await asyncio.to_thread(_conditions, request, query)
    return Planned(snapshot, older, files, whole, query, wanted, unwanted)


async def narrowed_by_text(here: Services, planned: Planned) -> Planned:
    """A plan without what its text rules out."""
    return replace(planned, scan=await asyncio.to_thread(narrow, here.lake, planned.scan, planned.query))


def _conditions(request: Request, query: PostQuery) -> tuple[tuple[LabelCondition, ...], tuple[LabelCondition, ...]]:
    if not query.label and not query.not_label:
        return (), ()
    labels, who = labels_of(request), principal(request)
    return (
        tuple(labels.conditions(query.label, who)),
        tuple(labels.conditions(query.not_label, who, "not_label")),
    )


def reading_of(query: PostQuery) -> Reading:
    """What a query reads of every row."""
    return Reading.COLUMNS if query.text is None else Reading.TEXT


async def run_posts(
    request: Request,
    here: Services,
    planned: Planned,
    work: Callable[[Session, Selection], T],
    *,
    reads_all: bool = False,
    heavy: bool | None = None,
    charged: bool = False,
) -> T:
    """Run work with the filters' handles resolved, in the lane that fits the plan; charges the bytes it may read.

    reads_all: the work reads every planned file, so that its time tells how fast reading is. heavy: the lane, where the
    caller knows better than the size of the files. charged: the bytes of this plan were charged before.
    """
    query = planned.query
    if not charged:
        charge_bytes(request, planned.scan.bytes)

    def with_resolved(session: Session) -> T:
        started = time.monotonic()
        dids = resolve(session, here.lake.root, planned.snapshot, handles_of(query))
        found = work(session, Selection(with_dids(query, dids), planned.labels, planned.not_labels))
        if reads_all:
            files = planned.scan.files
            here.throughput.observe(reading_of(query), planned.scan.rows, len(files), time.monotonic() - started)
        return found

    return await here.query(
        request, with_resolved, heavy=planned.scan.bytes > here.settings.heavy_bytes if heavy is None else heavy
    )


async def coverage_of(planned: Planned, tables: list[str], start_us: int | None, end_us: int | None) -> dict[str, Any]:
    """The member `coverage` of an answer."""
    return await asyncio.to_thread(coverage_json, planned.snapshot, tables, start_us, end_us)


def chosen_fields(
    fields: tuple[str, ...], table: str, default: tuple[str, ...], extra: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """The columns a client asked for; ApiError 422 names the nearest known one for an unknown."""
    check_fields(fields, table, extra)
    return fields or default


def check_fields(names: Sequence[str], table: str, extra: tuple[str, ...]) -> None:
    """ApiError 422 for a field that a table does not have, naming the nearest one."""
    known = (*public_fields(table), *extra)
    for name in names:
        if name not in known:
            detail = unknown_parameter(name, known).detail.replace("parameter", "field")
            raise ApiError(Problem.INVALID_PARAMETER, f"fields: {detail}", errors=[FieldError("fields", detail)])


def decode_cursor(here: Services, text: str | None, digest: str) -> Cursor | None:
    """The cursor of a request; ApiError 400 when it cannot be used."""
    if text is None:
        return None
    try:
        return here.cursors.decode(text, digest)
    except CursorError as error:
        raise ApiError(Problem.INVALID_CURSOR, f"cursor: {error}", errors=[FieldError("cursor", str(error))]) from None


async def rows_as_file(
    rows: list[dict[str, Any]], form: TableFormat, version: int, headers: Mapping[str, str] | None = None
) -> Response:
    """The rows of an answer as CSV, NDJSON or Parquet, for a client that asks so in its Accept header."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    content = await asyncio.to_thread(table_bytes, table, form, {"snapshot": str(version)})
    told = {"X-Snapshot": str(version), "Vary": "Accept", **(headers or {})}
    return Response(content, media_type=MEDIA_TYPES[form], headers=told)


def next_link(request: Request, cursor: str | None) -> str | None:
    """Path and query of the next page."""
    if cursor is None:
        return None
    items = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    return f"{request.url.path}?{urlencode([*items, ('cursor', cursor)])}"


def page_meta(count: int, page: Page, cursor: str | None, link: str | None, started: float) -> dict[str, Any]:
    """The member `meta` of a page; `started` is the monotonic time at which the request came."""
    return {
        "count": count,
        "next_cursor": cursor,
        "next": link,
        "complete": page.complete,
        "total": None,
        "total_relation": None,
        "files_read": page.files_read,
        "rows_scanned": page.rows_scanned,
        "seconds": round(time.monotonic() - started, 4),
    }

"""GET /search and /export: the contract that the lab's own frontend was written for, as thin aliases of /v1.

Differences from /v1/search: `username` is one handle or DID; `%` is a wildcard as `*` is; a plain date as `end` includes
that day; `feature_filters` is a JSON object of /v1/search's filters; rows have `timestamp`, `username`, `text`.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any, Final

import msgspec
import pyarrow as pa
from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from api.answers import QUERY_PROBLEMS, Answer, Coverage, SnapshotInfo, json_answer
from api.columns import publish, to_json
from api.cursors import MAX_CHARACTERS, Cursor
from api.engine import Session
from api.errors import ApiError, FieldError, Problem, bad_parameter, unknown_parameter
from api.extras import HANDLE, page_extras
from api.filters import PostFilters, PostQuery
from api.identifiers import POST
from api.parameters import known_parameters
from api.posts_query import Selection
from api.routes.common import Planned, coverage_of, decode_cursor, next_link, plan_posts, run_posts
from api.search import SearchPlan, Sort, run_search
from api.services import Services, services
from api.tabular import MEDIA_TYPES, TableFormat, table_bytes, time_texts
from api.times import parse_time
from api.walk import Page

router = APIRouter(tags=["lab"], dependencies=[Depends(known_parameters)])

_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_DAY_US: Final = 86_400_000_000
_FIELDS: Final = ("time", "did", "text", "uri")


class LabQuery(BaseModel):
    """The lab's parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str | None = Field(None, max_length=2000, description="As `text` of /v1/search; `%` is a wildcard too.")
    username: str | None = Field(None, max_length=300, description="Handle or DID of the author.")
    start: str | None = Field(None, max_length=64, description="Earliest date or time, inclusive.")
    end: str | None = Field(None, max_length=64, description="Latest time, exclusive; a plain date includes that day.")
    exact: bool = Field(False, description="Whole words and phrases only.")
    feature_filters: str | None = Field(
        None,
        max_length=8000,
        description="JSON object of filters of /v1/search under their names.",
        examples=['{"lang": ["en"], "media": ["images"], "reply": false}'],
    )


class LabSearchQuery(LabQuery):
    """One page."""

    limit: int = Field(50, ge=1, le=1000, description="Rows of a page.")
    cursor: str | None = Field(None, max_length=MAX_CHARACTERS, description="`meta.next_cursor` of the page before.")


class LabRow(Answer):
    """One post."""

    timestamp: str
    username: str = Field(description="Handle of the author as far as it was seen, else the DID.")
    text: str
    uri: str


class LabMeta(Answer):
    """About the page."""

    count: int
    next_cursor: str | None
    next: str | None
    capped: bool = Field(description="Whether the cap on rows ended the results before their end.")


class LabPage(Answer):
    """What the lab's frontend expects, with snapshot and coverage beside it."""

    results: list[LabRow]
    meta: LabMeta
    snapshot: SnapshotInfo
    coverage: Coverage


def _given(text: str | None) -> str | None:
    """A form that was left empty sends an empty text."""
    return text.strip() or None if text is not None else None


def to_post_query(query: LabQuery) -> PostQuery:
    """The same query in the words of /v1/search; ApiError 422 names the lab's parameter."""
    values: dict[str, Any] = {"exact": query.exact}
    if (words := _given(query.text)) is not None:
        values["text"] = words.replace("%", "*")
    if (username := _given(query.username)) is not None:
        values["author"] = [username]
    for name, text in (("start", _given(query.start)), ("end", _given(query.end))):
        if text is None:
            continue
        try:
            moment = parse_time(text)
        except ValueError as error:
            raise bad_parameter(name, str(error)) from None
        values[name] = moment + (_DAY_US if name == "end" and _DATE.fullmatch(text.strip()) else 0)
    if (features := _given(query.feature_filters)) is not None:
        values = _features(features) | values
    try:
        return PostQuery.model_validate(values)
    except ValidationError as error:
        names = {"author": "username", "": "start"}
        found = []
        for item in error.errors():
            name = str(item["loc"][0]) if item["loc"] else ""
            parameter = names.get(name, name if name in LabQuery.model_fields else "feature_filters")
            message = str(item["msg"]).removeprefix("Value error, ")
            found.append(FieldError(parameter, message if parameter == name else f"{name}: {message}"))
        detail = "; ".join(f"{item.parameter}: {item.detail}" for item in found)
        raise ApiError(Problem.INVALID_PARAMETER, detail, errors=found) from None


def _features(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise bad_parameter(
            "feature_filters", f'it is not JSON ({error}); write an object such as {{"lang": ["en"]}}'
        ) from None
    if not isinstance(found, dict):
        raise bad_parameter("feature_filters", 'it is not a JSON object; write one such as {"lang": ["en"]}')
    allowed = set(PostFilters.model_fields) - {"text", "exact", "start", "end"}
    for name in found:
        if name not in allowed:
            detail = unknown_parameter(name, allowed).detail.replace("parameter", "filter")
            raise bad_parameter("feature_filters", detail)
    return found


@router.get(
    "/search", operation_id="lab_search", summary="The lab's search", response_model=LabPage, responses=QUERY_PROBLEMS
)
async def lab_search(
    request: Request, query: Annotated[LabSearchQuery, Query()], here: Annotated[Services, Depends(services)]
) -> Response:
    """Posts, newest first, 50 a page; at most as many in all as the operator's cap allows."""
    planned = await plan_posts(request, here, to_post_query(query))
    digest = planned.digest(alias="lab")
    cursor = decode_cursor(here, query.cursor, digest)
    seen = int(cursor.key[0]) if cursor is not None else 0
    cap = here.settings.lab_row_cap
    limit = min(query.limit, cap - seen) if cap else query.limit
    page, rows = await _rows(request, here, planned, limit, Cursor(cursor.key[1:]) if cursor is not None else None)
    capped = bool(cap) and page.next is not None and seen + rows.num_rows >= cap
    following = None
    if page.next is not None and not capped:
        following = here.cursors.encode(Cursor((seen + rows.num_rows, *page.next.key)), digest)
    results = [
        {"timestamp": row["time"], "username": row[HANDLE] or row["did"], "text": row["text"] or "", "uri": row["uri"]}
        for row in to_json(rows)
    ]
    body = {
        "results": results,
        "meta": {
            "count": len(results),
            "next_cursor": following,
            "next": next_link(request, following),
            "capped": capped,
        },
        "snapshot": planned.about(),
        "coverage": await coverage_of(planned, [POST], planned.query.start, planned.query.end),
    }
    return json_answer(body)


@router.get(
    "/export",
    operation_id="lab_export",
    summary="The lab's CSV download",
    response_class=Response,
    responses=QUERY_PROBLEMS | {200: {"content": {MEDIA_TYPES[TableFormat.CSV]: {}}, "description": "CSV"}},
)
async def lab_export(
    request: Request, query: Annotated[LabQuery, Query()], here: Annotated[Services, Depends(services)]
) -> Response:
    """The newest matching posts as CSV with the columns timestamp, username, text, uri. For more than a few rows use
    /v1/exports, which is resumable. The headers X-Rows and X-Truncated say what the file holds."""
    planned = await plan_posts(request, here, to_post_query(query))
    limit = here.settings.lab_row_cap or here.settings.lab_export_rows
    page, rows = await _rows(request, here, planned, limit, None)
    names = [handle or did for handle, did in zip(rows[HANDLE].to_pylist(), rows["did"].to_pylist(), strict=True)]
    table = pa.table(
        {
            "timestamp": time_texts(rows["time"]),
            "username": pa.array(names, pa.string()),
            "text": rows["text"],
            "uri": rows["uri"],
        }
    )
    content = await asyncio.to_thread(table_bytes, table, TableFormat.CSV, {})
    headers = {
        "Content-Disposition": f'attachment; filename="results_{planned.snapshot.version}.csv"',
        "X-Rows": str(rows.num_rows),
        "X-Truncated": str(page.next is not None).lower(),
        "X-Snapshot": str(planned.snapshot.version),
    }
    return Response(content, media_type=MEDIA_TYPES[TableFormat.CSV], headers=headers)


async def _rows(
    request: Request, here: Services, planned: Planned, limit: int, cursor: Cursor | None
) -> tuple[Page, pa.Table]:
    def work(session: Session, selection: Selection) -> tuple[Page, pa.Table]:
        plan = SearchPlan(
            planned.narrowed(here.lake, selection),
            selection,
            Sort.NEWEST,
            _FIELDS,
            max(1, limit),
            cursor,
            here.settings.page_seconds,
        )
        page = run_search(session, here.lake, plan)
        rows = publish(POST, page.rows, _FIELDS)
        handles = page_extras(session, here.lake, planned.scan, page.rows, (HANDLE,))
        return page, rows.append_column(HANDLE, handles[HANDLE])

    return await run_posts(request, here, planned, work)

"""GET /v1/search: posts by text and features, newest first."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Annotated, Any, Final

import pyarrow as pa
from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field, model_validator
from starlette.responses import Response

from api.answers import QUERY_PROBLEMS, TABLE_ANSWERS, Page, json_answer
from api.columns import FieldNames, publish, to_json
from api.cursors import MAX_CHARACTERS
from api.engine import Session
from api.errors import bad_parameter
from api.extras import EXTRA_FIELDS, page_extras
from api.filters import PostQuery
from api.identifiers import POST
from api.negotiate import wanted_format
from api.parameters import known_parameters
from api.posts_query import Selection
from api.routes.common import (
    chosen_fields,
    coverage_of,
    decode_cursor,
    narrowed_by_text,
    next_link,
    page_meta,
    plan_posts,
    run_posts,
)
from api.search import SearchPlan, Sort, run_search
from api.services import Services, services
from api.since import Since, posts_since
from api.tabular import MEDIA_TYPES, table_bytes
from api.totals import Total, TotalMode, run_total
from api.walk import Page as FoundPage
from api.walk import front, joined

router = APIRouter(tags=["search"])

DEFAULT_FIELDS: Final = (
    "uri",
    "cid",
    "did",
    "time",
    "created_at",
    "text",
    "langs",
    "reply_parent_uri",
    "reply_root_uri",
    "quote_uri",
    "embed_type",
    "media_kind",
    "media_count",
    "links",
    "hashtags",
    "mentions",
    "self_labels",
    "operation",
)
"""What a row has unless the client chooses."""


class SearchQuery(PostQuery):
    """A search: filters, order, page and columns."""

    sort: Sort = Field(
        Sort.NEWEST,
        description="Order by arrival, `newest` or `oldest` first, or `engaged`: most likes, reposts and replies first, as far "
        "as this archive saw them. The last reads the whole range.",
    )
    total: TotalMode = Field(
        TotalMode.NONE,
        description="How many posts match in all: `exact` (`at_least` when time runs out) or a quick `estimate`.",
    )
    sample: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="That many random matches instead of a page; the same `seed` draws the same ones.",
    )
    seed: str = Field("", max_length=64, description="What the random sample is drawn with.")
    limit: int | None = Field(
        None, ge=1, le=1000, description="Rows of the page; 50 unless the service is set otherwise."
    )
    cursor: str | None = Field(
        None, max_length=MAX_CHARACTERS, description="`next_cursor` of the page before; repeat every other parameter."
    )
    fields: FieldNames = Field(
        (),
        description="Columns of the rows, separated by commas or repeated; `likes`, `reposts`, `replies`, `quotes` (as seen by "
        "this archive) and `handle` are computed on request.",
        examples=[["uri,time,text,likes"]],
    )

    @model_validator(mode="after")
    def _seed_of_a_sample(self) -> SearchQuery:
        if self.seed and self.sample is None:
            raise ValueError("seed is for a random sample: give sample too, or leave it out")
        return self


@router.get(
    "/search",
    operation_id="search",
    summary="Search posts",
    response_model=Page,
    responses=QUERY_PROBLEMS | TABLE_ANSWERS,
    dependencies=[Depends(known_parameters)],
)
async def search(
    request: Request, query: Annotated[SearchQuery, Query()], here: Annotated[Services, Depends(services)]
) -> Response:
    """Posts that meet every filter, one page at a time; deleted, edited-away and hidden posts never appear.

    A page is read by walking the hours from the newest (or oldest), so that common words answer at once. When the time
    for a page is over before it is full, `meta.complete` is false and the cursor continues the walk. With `Accept: text/csv`
    (or NDJSON, Parquet) the page comes as a file, and the next page's address in the header Link.
    """
    started = time.monotonic()
    form = wanted_format(request)
    settings = here.settings
    limit = min(query.sample or query.limit or settings.page_default, settings.page_max)
    chosen = chosen_fields(query.fields, POST, DEFAULT_FIELDS, EXTRA_FIELDS)
    fields = tuple(name for name in chosen if name not in EXTRA_FIELDS)
    extras = tuple(name for name in chosen if name in EXTRA_FIELDS)
    if query.sample is not None and (query.cursor is not None or query.limit is not None):
        raise bad_parameter("sample", "a sample is one page: leave cursor and limit out")
    # The words of most searches fill a page from the newest hours, however large the range is.
    walks = query.sort is not Sort.ENGAGED and not (
        query.sample or query.engagement or extras or query.as_of is not None
    )
    fronted = walks and query.text is not None and query.total is TotalMode.NONE
    planned = await plan_posts(request, here, query, by_text=not fronted)
    digest = planned.digest(sort=query.sort)
    cursor = decode_cursor(here, query.cursor, digest)

    since: Since | None = None
    seed = None if query.sample is None else query.seed

    begun: FoundPage | None = None

    def read(session: Session, selection: Selection, seconds: float) -> FoundPage:
        missing, place = (limit, cursor) if begun is None else (limit - begun.rows.num_rows, begun.next)
        narrowed = planned.narrowed(here.lake, selection)
        plan = SearchPlan(narrowed, selection, query.sort, fields, missing, place, seconds, seed)
        page = run_search(session, here.lake, plan)
        return page if begun is None else joined(begun, page)

    def begin(session: Session, selection: Selection) -> tuple[FoundPage, pa.Table, Total | None]:
        nonlocal begun
        page = read(session, selection, settings.light_seconds)
        if page.complete or page.rows.num_rows == limit:
            begun = None
            return finish(session, selection, page)
        begun = page
        return page, page.rows, None

    def work(session: Session, selection: Selection) -> tuple[FoundPage, pa.Table, Total | None]:
        spent = 0.0 if begun is None else settings.light_seconds
        return finish(session, selection, read(session, selection, max(0.0, settings.page_seconds - spent)))

    def finish(session: Session, selection: Selection, page: FoundPage) -> tuple[FoundPage, pa.Table, Total | None]:
        nonlocal since
        rows = publish(POST, page.rows, fields)
        if extras:
            added = page_extras(session, here.lake, planned.scan, page.rows, extras)
            columns = {name: rows[name] if name in fields else added[name] for name in chosen}
            rows = pa.table(columns)
        if planned.as_of is not None and cursor is None:
            since = posts_since(session, here.lake, planned.whole, selection.filters)
        total = None
        if query.total is not TotalMode.NONE:
            total = run_total(session, here.lake, planned.scan, selection, query.total, settings.total_seconds)
        return page, rows, total

    answer: tuple[FoundPage, pa.Table, Total | None] | None = None
    if fronted:
        # To ask the text index about a month of files costs more than a page of a word that is in each of them.
        everything = planned
        ahead, edge = front(planned.scan, cursor, newest_first=query.sort is Sort.NEWEST)
        planned = await narrowed_by_text(here, replace(planned, scan=ahead))
        answer = await run_posts(request, here, planned, begin, heavy=False)
        page = answer[0]
        if edge is not None and page.next is None and page.rows.num_rows < limit:
            begun = replace(page, next=edge, complete=False)
        if begun is not None or (edge is not None and page.next is None):
            answer = None
            planned = await narrowed_by_text(here, everything)
    if answer is None and walks and planned.scan.bytes > settings.heavy_bytes:
        answer = await run_posts(request, here, planned, begin, heavy=False)
    if answer is None or begun is not None:
        answer = await run_posts(request, here, planned, work, charged=answer is not None)
    found, rows, total = answer
    following = here.cursors.encode(found.next, digest) if found.next is not None else None
    link = next_link(request, following)
    links = {"Link": f'<{link}>; rel="next"'} if link else {}
    if form is not None:
        content = await asyncio.to_thread(table_bytes, rows, form, {})
        headers = links | {"X-Snapshot": str(planned.about()["version"]), "X-Complete": str(found.complete).lower()}
        return Response(content, media_type=MEDIA_TYPES[form], headers=headers | {"Vary": "Accept"})
    results = to_json(rows)
    meta = page_meta(len(results), found, following, link, started)
    if total is not None:
        meta |= {"total": total.count, "total_relation": total.relation}
    body: dict[str, Any] = {
        "results": results,
        "meta": meta,
        "snapshot": planned.about(),
        "coverage": await coverage_of(planned, [POST], query.start, query.end),
    }
    if since is not None:
        body["since"] = since.json()
    return json_answer(body, headers=links | {"Vary": "Accept"})

"""GET /v1/posts/{uri} and /v1/threads/{uri}: one post with its history, and the conversation it started."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from api.access import charge_bytes
from api.aggregates import Interval
from api.answers import QUERY_PROBLEMS, Answer, Coverage, Page, SnapshotInfo, json_answer, problem_answers
from api.columns import FieldNames, publish, to_json
from api.cursors import MAX_CHARACTERS, query_digest
from api.engagement import ENGAGEMENT, count_subjects
from api.engine import Session
from api.errors import ApiError, FieldError, Problem
from api.filters import PostFilters
from api.handles import resolve
from api.identifiers import POST, RecordUri, is_did, parse_record_uri
from api.key_skip import holding, key_of, narrow_by_keys
from api.parameters import known_parameters
from api.posts import FoundPost, engagement_series, find_post, key_table, thread_depths
from api.posts_query import Selection
from api.routes.common import chosen_fields, decode_cursor, next_link, page_meta, snapshot_of
from api.routes.search import DEFAULT_FIELDS
from api.search import SearchPlan, Sort, run_search
from api.services import Services, services
from api.snapshots import coverage_json, scan, snapshot_json
from api.walk import Page as FoundPage
from lake.manifest import HOUR_US, Snapshot

router = APIRouter(tags=["posts"], dependencies=[Depends(known_parameters)])

_NOT_SEEN: Final = problem_answers(Problem.NOT_FOUND)
UriPath = Annotated[
    str,
    Path(
        description="at-uri of the post, percent-encoded or not; the authority may be a handle.",
        examples=["at://did:plc:ewvi7nxzyoun6zhxrhs64oiz/app.bsky.feed.post/3l6oveex3ii2l"],
    ),
]


def post_uri(text: str) -> RecordUri:
    """The uri of a path; ApiError 422 when it is none of a post."""
    # Proxies fold the two slashes of `at://` into one.
    text = text if "://" in text else text.replace("at:/", "at://", 1)
    try:
        uri = parse_record_uri(text)
    except ValueError as error:
        raise _bad_uri(str(error)) from None
    if uri.collection != POST:
        raise _bad_uri(f"it names a record of {uri.collection}; /v1/records?collection=…&rkey=… has those")
    return uri


def _bad_uri(detail: str) -> ApiError:
    return ApiError(Problem.INVALID_PARAMETER, f"uri: {detail}", errors=[FieldError("uri", detail, "path")])


def with_did(session: Session, here: Services, snapshot: Snapshot, uri: RecordUri) -> RecordUri:
    """The uri with its handle resolved."""
    if is_did(uri.authority):
        return uri
    dids = resolve(session, here.lake.root, snapshot, {uri.authority})
    return RecordUri(dids[uri.authority], uri.collection, uri.rkey)


class PostQuery(BaseModel):
    """What to tell about a post."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fields: FieldNames = Field((), description="Columns of `post`, separated by commas or repeated.")
    series: Interval | None = Field(None, description="Also give engagement over time, by this interval.")


class Version(Answer):
    """One operation on the post. `standing`: `current`, `delete`, or `removed`, which has no cid."""

    operation: str
    time: str
    rev: str | None
    cid: str | None
    standing: str
    resync: bool


class Moments(Answer):
    """Records of a stretch of time."""

    start: str
    count: int


class PostAnswer(Answer):
    """Everything known about a post."""

    uri: str
    standing: str = Field(
        description="`current`; `deleted` by its author; `hidden` while its account is inactive; `account_deleted`; or `removed` "
        "by a re-download of its repository. Only a current post has content."
    )
    post: dict[str, Any] | None
    record: Any = Field(description="The record as the network had it.")
    versions: list[Version]
    engagement: dict[str, int] = Field(
        description="Likes, reposts, replies and quotes that this archive saw and that stand."
    )
    series: dict[str, list[Moments]] | None = None
    seconds: float
    snapshot: SnapshotInfo
    coverage: Coverage = Field(description="Since the post was first seen.")


_FEW_FILES: Final = 48
"""A post that so few files may have is read as quickly as a small range, however large the lake is."""


@router.get(
    "/posts/{uri:path}",
    operation_id="post",
    summary="One post",
    response_model=PostAnswer,
    responses=QUERY_PROBLEMS | _NOT_SEEN,
)
async def post(
    request: Request, uri: UriPath, query: Annotated[PostQuery, Query()], here: Annotated[Services, Depends(services)]
) -> Response:
    """A post's standing, content, versions and engagement. A post that is gone has a tombstone without content."""
    started = time.monotonic()
    wanted = post_uri(uri)
    fields = chosen_fields(query.fields, POST, DEFAULT_FIELDS)
    snapshot, _ = await snapshot_of(here, None)
    posts = await asyncio.to_thread(scan, snapshot, POST, None, None)
    charge_bytes(request, posts.bytes)
    # Whom a handle names is looked up as a query, so that the files are not known yet.
    heavy = posts.bytes > here.settings.heavy_bytes
    if heavy and is_did(wanted.authority):
        posts = await asyncio.to_thread(holding, here.lake, posts, key_of(wanted))
        heavy = len(posts.files) > _FEW_FILES

    def work(session: Session) -> tuple[RecordUri, FoundPost, dict[str, int], dict[str, Any] | None]:
        resolved = with_did(session, here, snapshot, wanted)
        found = find_post(session, here.lake, posts, resolved, fields)
        if found is None:
            raise ApiError(
                Problem.NOT_FOUND,
                f"no event of this archive is about {resolved}",
                errors=[FieldError("uri", "not seen", "path")],
            )
        counts = {}
        for kind in ENGAGEMENT:
            rows = count_subjects(session, here.lake, posts, found.first_us - HOUR_US, key_table(resolved), kind)
            counts[kind] = rows["count"][0].as_py() if rows.num_rows else 0
        series = None
        if query.series is not None:
            series = engagement_series(session, here.lake, snapshot, resolved, found.first_us, query.series)
        return resolved, found, counts, series

    resolved, found, counts, series = await here.query(request, work, heavy=heavy)
    body: dict[str, Any] = {
        "uri": str(resolved),
        "standing": found.standing,
        "post": found.row,
        "record": found.record,
        "versions": found.versions,
        "engagement": counts,
        "series": series,
        "seconds": round(time.monotonic() - started, 4),
        "snapshot": snapshot_json(snapshot),
        "coverage": await asyncio.to_thread(coverage_json, snapshot, [POST], found.first_us, None),
    }
    return json_answer(body)


class ThreadQuery(BaseModel):
    """Which page of a thread."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fields: FieldNames = Field((), description="Columns of the posts, separated by commas or repeated.")
    limit: int | None = Field(
        None, ge=1, le=1000, description="Posts of the page; 50 unless the service is set otherwise."
    )
    cursor: str | None = Field(None, max_length=MAX_CHARACTERS, description="`next_cursor` of the page before.")


_TREE_FIELDS: Final = ("uri", "reply_parent_uri")
_TREE_POSTS: Final = 50_000
"""Posts from the beginning of a thread among which depths are looked up for its later pages."""


@router.get(
    "/threads/{uri:path}",
    operation_id="thread",
    summary="The replies under a post",
    response_model=Page,
    responses=QUERY_PROBLEMS,
)
async def thread(
    request: Request, uri: UriPath, query: Annotated[ThreadQuery, Query()], here: Annotated[Services, Depends(services)]
) -> Response:
    """The post, if it stands, and every current post that names it as the root of its thread, oldest first.

    `depth` is 0 for the root; null when a post between has not been seen or is gone.
    """
    started = time.monotonic()
    wanted = post_uri(uri)
    fields = tuple(dict.fromkeys((*chosen_fields(query.fields, POST, DEFAULT_FIELDS), *_TREE_FIELDS)))
    digest = query_digest({"thread": str(wanted)})
    cursor = decode_cursor(here, query.cursor, digest)
    snapshot, _ = await snapshot_of(here, None)
    posts = await asyncio.to_thread(scan, snapshot, POST, None, None)
    charge_bytes(request, posts.bytes)
    limit = min(query.limit or here.settings.page_default, here.settings.page_max)

    def work(session: Session) -> tuple[RecordUri, FoundPage, list[dict[str, Any]]]:
        resolved = with_did(session, here, snapshot, wanted)
        selection = Selection(PostFilters.model_construct(thread=resolved))
        held = narrow_by_keys(here.lake, posts, selection.filters)
        plan = SearchPlan(held, selection, Sort.OLDEST, fields, limit, cursor, here.settings.page_seconds)
        page = run_search(session, here.lake, plan)
        before: list[dict[str, Any]] = []
        if cursor is not None:
            # The depth of a reply depends on posts of earlier pages.
            tree = replace(plan, fields=_TREE_FIELDS, limit=_TREE_POSTS, cursor=None)
            before = to_json(publish(POST, run_search(session, here.lake, tree).rows, _TREE_FIELDS))
        return resolved, page, before

    resolved, page, before = await here.query(request, work, heavy=posts.bytes > here.settings.heavy_bytes)
    found = to_json(publish(POST, page.rows, fields))
    depths = await asyncio.to_thread(thread_depths, [*before, *found], str(resolved))
    rows = [row | {"depth": depths[row["uri"]]} for row in found]
    following = here.cursors.encode(page.next, digest) if page.next is not None else None
    link = next_link(request, following)
    body = {
        "results": rows,
        "meta": page_meta(len(rows), page, following, link, started),
        "snapshot": snapshot_json(snapshot),
        "coverage": await asyncio.to_thread(coverage_json, snapshot, [POST], None, None),
    }
    return json_answer(body)

"""GET /v1/counts and /v1/aggregate: how many posts meet a filter, over time or by group."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AfterValidator, Field, WithJsonSchema
from starlette.responses import Response

from api.access import principal
from api.aggregates import (
    LABEL,
    Bucket,
    CountPlan,
    Group,
    GroupPlan,
    Interval,
    bucket_start,
    check_buckets,
    default_interval,
    run_counts,
    run_groups,
)
from api.answers import (
    QUERY_PROBLEMS,
    TABLE_ANSWERS,
    Answer,
    Coverage,
    SinceInfo,
    SnapshotInfo,
    TotalRelation,
    json_answer,
)
from api.engine import Session
from api.errors import bad_parameter
from api.filters import Clock, PostQuery
from api.identifiers import POST
from api.labels.service import labels_of
from api.labels.sql import LabelColumn
from api.negotiate import wanted_format
from api.parameters import known_parameters
from api.posts_query import Selection
from api.rollups import LEAST_US, language_of
from api.routes.common import Planned, coverage_of, plan_posts, rows_as_file, run_posts
from api.services import Services, services
from api.since import Since, posts_since
from api.times import to_datetime, to_micros

router = APIRouter(tags=["counts"], dependencies=[Depends(known_parameters)])


class CountsQuery(PostQuery):
    """What to count, and in which buckets."""

    interval: Interval | None = Field(
        None, description="Width of a bucket; by default minutes for up to 3 hours, hours for up to a week, else days."
    )
    authors: bool = Field(False, description="Also count distinct authors.")
    share: bool = Field(False, description="Also count all posts of each bucket, and give the share that matches.")
    rollups: bool = Field(
        True,
        description="Whether ranges of a week and more may be answered from counts of hours that were made before, where the "
        "filter (none, or one language) and the interval (hour or wider) allow it. `source` says whether it was done.",
    )
    resync: bool | None = Field(
        False,
        description="Rows of a repository's re-download, whose time is that of the download: left out unless asked for.",
    )


class CountBucket(Answer):
    """Posts of one stretch of time."""

    start: str = Field(description="Start of the bucket, UTC.")
    count: int
    authors: int | None = None
    all_posts: int | None = None
    share: float | None = None


class Counts(Answer):
    """Counts over time, every bucket of the range in order."""

    counts: list[CountBucket]
    total: int = Field(description="Sum of the counts.")
    total_relation: TotalRelation
    source: str = Field(description="`files`, or `rollups` where counts of whole hours made before were used.")
    total_authors: int | None = Field(None, description="Distinct authors over the whole range.")
    interval: Interval
    clock: Clock
    seconds: float
    snapshot: SnapshotInfo
    coverage: Coverage
    since: SinceInfo | None = Field(None, description="With `as_of`.")


def range_of(query: PostQuery, planned: Planned) -> tuple[int, int]:
    """The range to count over: as asked, else from the first event to the end of the last."""
    files = planned.whole.files
    now = time.time_ns() // 1000
    start = query.start if query.start is not None else min((file.min_time_us for file in files), default=now)
    newest = max((file.max_time_us for file in files), default=now)
    end = query.end if query.end is not None else newest + 1
    return start, max(end, start + 1)


@router.get(
    "/counts",
    operation_id="counts",
    summary="Count posts over time",
    response_model=Counts,
    responses=QUERY_PROBLEMS | TABLE_ANSWERS,
)
async def counts(
    request: Request, query: Annotated[CountsQuery, Query()], here: Annotated[Services, Depends(services)]
) -> Response:
    """Exact counts of the current posts that meet every filter, by minute, hour, day, week or month. With `Accept: text/csv` (or
    NDJSON, Parquet) the buckets come as a file."""
    started = time.monotonic()
    form = wanted_format(request)
    planned = await plan_posts(request, here, query)
    if query.clock is Clock.CREATED and (query.start is None or query.end is None):
        raise bad_parameter("start", "give start and end when counting on the authors' clock, which can say any year")
    start, end = range_of(query, planned)
    interval = query.interval or default_interval(start, end)
    check_buckets(interval, start, end)

    since: Since | None = None

    language = None
    # A week has more minutes than an answer may have buckets: the interval is an hour at least.
    if query.rollups and not (query.authors or query.share or query.as_of):
        language = language_of(query) if end - start >= LEAST_US else None

    def work(session: Session, selection: Selection) -> tuple[list[Bucket], int | None]:
        nonlocal since
        if language is not None:
            found = here.rollups.counts(session, here.lake, planned.whole, selection.filters, language)
            plan = CountPlan(found.rest, selection, interval, start, end, authors=False)
            return run_counts(session, here.lake, plan, found.hours)
        if planned.as_of is not None:
            since = posts_since(session, here.lake, planned.whole, selection.filters)
        plan = CountPlan(
            planned.scan, selection, interval, start, end, query.authors, planned.whole if query.share else None
        )
        return run_counts(session, here.lake, plan)

    heavy = None
    if language is not None:
        missing = await asyncio.to_thread(here.rollups.missing, planned.whole, query)
        heavy = sum(file.bytes for file in missing) > here.settings.heavy_bytes
    buckets, people = await run_posts(request, here, planned, work, reads_all=language is None, heavy=heavy)
    if form is not None:
        return await rows_as_file([bucket.json() for bucket in buckets], form, planned.about()["version"])
    body: dict[str, Any] = {
        "counts": [bucket.json() for bucket in buckets],
        "total": sum(bucket.count for bucket in buckets),
        "total_relation": TotalRelation.EXACT,
        "source": "files" if language is None else "rollups",
        "total_authors": people,
        "interval": interval,
        "clock": query.clock,
        "seconds": round(time.monotonic() - started, 4),
        "snapshot": planned.about(),
        "coverage": await coverage_of(planned, [POST], to_micros(bucket_start(to_datetime(start), interval)), end),
    }
    if since is not None:
        body["since"] = since.json()
    return json_answer(body)


def _group_key(value: str) -> str:
    if value.startswith(LABEL):
        return value
    try:
        return str(Group(value))
    except ValueError:
        raise ValueError(f"it is none of {', '.join(Group)}, nor label:<table>") from None


GroupKey = Annotated[
    str,
    AfterValidator(_group_key),
    Field(max_length=1000),
    WithJsonSchema({"type": "string", "examples": [str(group) for group in Group]}),
]


class AggregateQuery(PostQuery):
    """What to group, and by what."""

    by: tuple[GroupKey, ...] = Field(
        min_length=1,
        max_length=2,
        description="One or two keys; repeat the parameter for two. `label:[owner/]name[.column][@version]` groups by a label "
        "table.",
    )
    limit: int = Field(50, ge=1, le=10_000, description="Groups to return, the largest first.")
    authors: bool = Field(False, description="Also count the distinct authors of each group.")
    missing: bool = Field(False, description="Also return the group of posts that have no value, under null.")
    resync: bool | None = Field(
        False,
        description="Rows of a repository's re-download, whose time is that of the download: left out unless asked for.",
    )


class Aggregate(Answer):
    """The largest groups."""

    groups: list[dict[str, Any]] = Field(
        description="The keys under their names, `count`, and `authors` when asked for."
    )
    total_groups: int = Field(description="How many groups there are; more than `groups` holds when cut at the limit.")
    truncated: bool
    by: list[str]
    seconds: float
    snapshot: SnapshotInfo
    coverage: Coverage
    since: SinceInfo | None = Field(None, description="With `as_of`.")


@router.get(
    "/aggregate",
    operation_id="aggregate",
    summary="Group posts",
    response_model=Aggregate,
    responses=QUERY_PROBLEMS | TABLE_ANSWERS,
)
async def aggregate(
    request: Request, query: Annotated[AggregateQuery, Query()], here: Annotated[Services, Depends(services)]
) -> Response:
    """The posts that meet every filter, counted by language, hashtag, domain, author, time of day and more.

    A post with several values (languages, hashtags, domains) counts once for each of them. With `Accept: text/csv` (or NDJSON,
    Parquet) the groups come as a file.
    """
    started = time.monotonic()
    form = wanted_format(request)
    if len(set(query.by)) != len(query.by):
        raise bad_parameter("by", "the two keys are the same: name one only")
    planned = await plan_posts(request, here, query)
    labels: dict[str, LabelColumn] = {}
    for name in query.by:
        if name.startswith(LABEL):
            column = name.removeprefix(LABEL)
            labels[name] = await asyncio.to_thread(labels_of(request).column, column, principal(request), "by")

    since: Since | None = None

    def work(session: Session, selection: Selection) -> tuple[list[dict[str, Any]], int]:
        nonlocal since
        if planned.as_of is not None:
            since = posts_since(session, here.lake, planned.whole, selection.filters)
        plan = GroupPlan(planned.scan, selection, query.by, query.limit, query.authors, query.missing, labels)
        return run_groups(session, here.lake, plan)

    groups, total = await run_posts(request, here, planned, work, reads_all=True)
    if form is not None:
        told = {"X-Truncated": str(total > len(groups)).lower()}
        return await rows_as_file(groups, form, planned.about()["version"], told)
    body: dict[str, Any] = {
        "groups": groups,
        "total_groups": total,
        "truncated": total > len(groups),
        "by": list(query.by),
        "seconds": round(time.monotonic() - started, 4),
        "snapshot": planned.about(),
        "coverage": await coverage_of(planned, [POST], query.start, query.end),
    }
    if since is not None:
        body["since"] = since.json()
    return json_answer(body)

"""GET /v1/explain: what a query would read and how long that would take, before it runs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import Response

from api.answers import QUERY_PROBLEMS, Answer, Coverage, SnapshotInfo, TotalRelation, json_answer
from api.columns import publish
from api.engagement import ENGAGEMENT
from api.engine import Session
from api.filters import Clock, PostQuery
from api.identifiers import POST
from api.parameters import known_parameters
from api.posts_query import Selection
from api.rollups import LEAST_US, language_of
from api.routes.common import Planned, coverage_of, plan_posts, reading_of, run_posts
from api.routes.counts import range_of
from api.routes.search import DEFAULT_FIELDS
from api.search import SearchPlan, Sort, run_search
from api.services import Services, services
from api.snapshots import scan
from api.tabular import TableFormat, table_bytes
from api.throughput import Reading
from api.totals import Total, TotalMode, run_total
from lake.manifest import HOUR_US

router = APIRouter(tags=["explain"], dependencies=[Depends(known_parameters)])
_ESTIMATE_SECONDS: Final = 1.0
_SAMPLE: Final = 200
_ANSWER_SECONDS: Final = 0.05
"""What an answer takes that has to read nothing: counts of a week or a month from roll-ups."""


class Target(StrEnum):
    """What the filters are for."""

    SEARCH = "search"
    COUNTS = "counts"
    EXPORT = "export"


class ExplainQuery(PostQuery):
    """Filters of a query that is not run."""

    target: Target = Field(
        Target.SEARCH, description="A search ends when its page is full; counts and exports read all."
    )
    format: TableFormat = Field(TableFormat.CSV, description="Format of an export, for its size.")


class ReadTable(Answer):
    """What is read of one table."""

    table: str
    files: int
    rows: int
    bytes: int = Field(description="Compressed bytes of the files; a query reads the columns it needs of them.")


class Explanation(Answer):
    """What a query would do."""

    target: Target
    reads: list[ReadTable]
    files: int
    rows: int
    bytes: int
    skipped_files: int = Field(
        description="Files of posts in the range in which the text cannot occur, as the text index knows."
    )
    lane: str = Field(
        description="`light` queries and `heavy` ones wait in queues of their own; exports run as jobs. A search in order of "
        "time begins as a light one, unless it asks for extra fields, minimum counts or as_of."
    )
    expected_seconds: float = Field(
        description="For reading everything; a search with frequent matches ends much earlier."
    )
    time_limit_seconds: float
    matches: int = Field(description="How many posts match.")
    matches_relation: TotalRelation
    expected_bytes: int | None = Field(description="Size of the file, for an export.")
    snapshot: SnapshotInfo
    coverage: Coverage


@router.get(
    "/explain",
    operation_id="explain",
    summary="What a query would read",
    response_model=Explanation,
    responses=QUERY_PROBLEMS,
)
async def explain(
    request: Request, query: Annotated[ExplainQuery, Query()], here: Annotated[Services, Depends(services)]
) -> Response:
    """Files, rows, bytes and expected time of a query from the manifest, and a quick estimate of its matches from about a second
    of counting."""
    planned = await plan_posts(request, here, query)
    reads = _reads(query, planned)
    size = sum(read["bytes"] for read in reads)

    def work(session: Session, selection: Selection) -> tuple[Total, int | None, float]:
        total = run_total(session, here.lake, planned.scan, selection, TotalMode.ESTIMATE, _ESTIMATE_SECONDS)
        size = _file_size(session, here, planned, selection, query, total)
        return total, size, _expected(session, here, query, planned, reads)

    total, file_size, expected = await run_posts(request, here, planned, work)
    heavy = size > here.settings.heavy_bytes
    limits = {Target.EXPORT: here.settings.export_seconds}
    body: dict[str, Any] = {
        "target": query.target,
        "reads": reads,
        "files": sum(read["files"] for read in reads),
        "rows": sum(read["rows"] for read in reads),
        "bytes": size,
        "skipped_files": len(planned.whole.files) - len(planned.scan.files),
        "lane": "export" if query.target is Target.EXPORT else "heavy" if heavy else "light",
        "expected_seconds": round(expected, 3),
        "time_limit_seconds": limits.get(query.target, here.settings.query_seconds),
        "matches": total.count,
        "matches_relation": total.relation,
        "expected_bytes": file_size,
        "snapshot": planned.about(),
        "coverage": await coverage_of(planned, [POST], query.start, query.end),
    }
    return json_answer(body)


def _expected(
    session: Session, here: Services, query: ExplainQuery, planned: Planned, reads: list[dict[str, Any]]
) -> float:
    """Seconds for an answer and for reading everything; for counts that roll-ups can give, of the files that were not counted
    before, and of those in which is looked for what ended since."""
    posts, *others = reads
    rows, files = posts["rows"], posts["files"]
    start, end = range_of(query, planned)
    counted = query.model_copy(update={"resync": False}) if query.resync is None else query
    if query.target is Target.COUNTS and query.as_of is None and end - start >= LEAST_US and language_of(counted):
        read = here.rollups.to_read(session, here.lake, planned.whole, query)
        rows, files = sum(file.rows for file in read), len(read)
    expected = _ANSWER_SECONDS + here.throughput.seconds(reading_of(query), rows, files)
    return expected + sum(here.throughput.seconds(Reading.COLUMNS, one["rows"], one["files"]) for one in others)


def _reads(query: ExplainQuery, planned: Planned) -> list[dict[str, Any]]:
    scans = [planned.scan]
    for kind in query.engagement:
        table, _ = ENGAGEMENT[kind]
        arrival = query.clock is Clock.ARRIVAL and query.start is not None
        scans.append(
            scan(planned.snapshot, table, (query.start or 0) - HOUR_US if arrival else None, None, planned.as_of)
        )
    return [{"table": one.table, "files": len(one.files), "rows": one.rows, "bytes": one.bytes} for one in scans]


def _file_size(
    session: Session, here: Services, planned: Planned, selection: Selection, query: ExplainQuery, total: Total
) -> int | None:
    """The size of an export with the default columns, from the newest matches."""
    if query.target is not Target.EXPORT:
        return None
    plan = SearchPlan(
        planned.narrowed(here.lake, selection), selection, Sort.NEWEST, DEFAULT_FIELDS, _SAMPLE, None, _ESTIMATE_SECONDS
    )
    rows = publish(POST, run_search(session, here.lake, plan).rows, DEFAULT_FIELDS)
    if not rows.num_rows:
        return 0
    per_row = len(table_bytes(rows, query.format, {})) / int(rows.num_rows)
    return round(per_row * total.count)

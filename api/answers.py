"""Shapes of answers, as the OpenAPI document shows them, and the encoder that writes them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from api.errors import MEDIA_TYPE, Problem
from api.tabular import MEDIA_TYPES


class Answer(BaseModel):
    """Base of every documented shape."""

    model_config = ConfigDict(extra="forbid")


class SnapshotInfo(Answer):
    """The version of the lake that an answer was computed from."""

    version: int = Field(description="Manifest version; pass it as `as_of` to ask again about the same data.")
    created: str = Field(description="When that version was committed.")
    current_version: int = Field(
        description="Newest version: what was removed up to it is left out, also with `as_of`."
    )


class GapInfo(Answer):
    """A range of time for which the source could not give everything."""

    start: str | None
    end: str | None
    source: str
    reason: str
    filled: bool = Field(
        description="Whether it was filled from an archive since: what was deleted or replaced meanwhile is not in that."
    )


class Coverage(Answer):
    """What the archive has of the range asked for."""

    start: str | None = Field(description="Start of the range asked for; null = open.")
    end: str | None = Field(description="End of the range asked for, exclusive; null = open.")
    oldest_event: str | None = Field(description="Oldest event in the tables that were read.")
    newest_event: str | None = Field(description="Newest event in the tables that were read: nothing later can match.")
    lag_seconds: float | None = Field(description="Age of that event when the answer was made.")
    gaps: list[GapInfo] = Field(description="Known holes that overlap the range.")


class TotalRelation(StrEnum):
    """How a total is meant."""

    EXACT = "exact"
    AT_LEAST = "at_least"
    ESTIMATE = "estimate"


class PageMeta(Answer):
    """About a page of results."""

    count: int = Field(description="Rows in this page.")
    next_cursor: str | None = Field(description="Pass it as `cursor` for the next page; null after the last.")
    next: str | None = Field(description="Path and query of the next page.")
    complete: bool = Field(
        description="False when the time limit ended the page before it was full: go on with the cursor."
    )
    total: int | None = Field(None, description="How many rows match, when asked for.")
    total_relation: TotalRelation | None = Field(None, description="How `total` is meant.")
    files_read: int = Field(description="Files that were read for this page.")
    rows_scanned: int = Field(description="Rows in those files.")
    seconds: float = Field(description="Time the query took.")


class SinceInfo(Answer):
    """What became of the records that stood in an older snapshot."""

    stood_then: int
    removed_since: int
    edited_since: int
    basis: str = Field(description="Which records the numbers are about.")


class Page(Answer):
    """A page of rows."""

    results: list[dict[str, Any]] = Field(description="One object per row, with the chosen fields.")
    meta: PageMeta
    snapshot: SnapshotInfo
    coverage: Coverage
    since: SinceInfo | None = Field(None, description="On the first page of a search with `as_of`.")


class FieldProblem(BaseModel):
    """What is wrong with one input."""

    parameter: str
    location: str
    detail: str
    pointer: str | None = None


class ProblemBody(BaseModel):
    """RFC 9457 problem details, the shape of every error."""

    type: str = Field(description="Stable path that explains this kind of problem.")
    title: str
    status: int
    detail: str = Field(description="What was wrong and what to do about it.")
    instance: str
    request_id: str | None = None
    errors: list[FieldProblem] | None = None


def problem_answers(*problems: Problem) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route for these problems, by status."""
    found: dict[int | str, dict[str, Any]] = {}
    for problem in problems:
        text = f"`{problem.slug}`: {problem.title}"
        known = found.get(problem.status)
        found[problem.status] = {
            "model": ProblemBody,
            "description": f"{known['description']}; {text}" if known else text,
            "content": {MEDIA_TYPE: {}},
        }
    return found


QUERY_PROBLEMS = problem_answers(
    Problem.UNKNOWN_PARAMETER,
    Problem.INVALID_QUERY,
    Problem.INVALID_CURSOR,
    Problem.INVALID_PARAMETER,
    Problem.UNKNOWN_HANDLE,
    Problem.SNAPSHOT_GONE,
    Problem.TOO_LARGE,
    Problem.UNAUTHORIZED,
    Problem.FORBIDDEN,
    Problem.RATE_LIMITED,
    Problem.OVER_CAPACITY,
    Problem.UNAVAILABLE,
    Problem.QUERY_TIMEOUT,
)
"""What any query can answer instead of a result."""


TABLE_ANSWERS = problem_answers(Problem.NOT_ACCEPTABLE) | {
    200: {"content": {media: {} for media in MEDIA_TYPES.values()}}
}
"""What a route adds to its `responses` that also answers as CSV, NDJSON or Parquet."""


def json_answer(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer; `body` holds plain values only."""
    return Response(msgspec.json.encode(body), status, dict(headers or {}), media_type="application/json")

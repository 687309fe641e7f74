"""/v1/exports: jobs that write what a query selects into a file, and the file itself."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Path, Request
from starlette.responses import FileResponse, Response

from api.access import Principal, Scope, principal
from api.aggregates import LABEL
from api.answers import QUERY_PROBLEMS, json_answer, problem_answers
from api.errors import ApiError, FieldError, Problem
from api.exports.model import Compression, ExportInfo, ExportList, ExportRequest, Job, State
from api.exports.provenance import provenance
from api.exports.service import Exports
from api.extras import EXTRA_FIELDS
from api.identifiers import POST
from api.labels.service import labels_of
from api.parameters import known_parameters
from api.routes.common import check_fields, plan_posts
from api.routes.search import DEFAULT_FIELDS
from api.services import Services, services
from api.tabular import MEDIA_TYPES, TableFormat

router = APIRouter(tags=["exports"], dependencies=[Depends(known_parameters)])
_PROBLEMS: Final = QUERY_PROBLEMS | problem_answers(Problem.NOT_FOUND, Problem.INVALID_BODY)
_ETAG: Final = re.compile(r'"([0-9]+)-[0-9a-f]{64}"')
_RANGE: Final = re.compile(r"bytes=(\d{1,18})-(\d{0,18})|bytes=-(\d{1,18})")
_COMPRESSED: Final = {Compression.ZSTD: "application/zstd", Compression.GZIP: "application/gzip"}


def exports_of(request: Request) -> Exports:
    """The export jobs of the service."""
    found: Exports = request.app.state.exports
    return found


HereExports = Annotated[Exports, Depends(exports_of)]


def own_job(exports: Exports, who: Principal, export_id: str, parameter: str = "id", location: str = "path") -> Job:
    """The export of an id, if the caller may see it; ApiError 404 otherwise, also for another's."""
    job = exports.store.find(export_id)
    if job is None or (job.owner != who.owner and not who.may(Scope.ADMIN)):
        detail = "there is no export of yours with this id: GET /v1/exports lists them"
        raise ApiError(Problem.NOT_FOUND, detail, errors=[FieldError(parameter, detail, location)])
    return job


def job_of_path(
    request: Request,
    id: Annotated[str, Path(description="Id of an export.", examples=["3f0c9a4be1d2475f8a6b7c8d9e0f1a2b"])],  # noqa: A002 - the path's name
    exports: HereExports,
) -> Job:
    """The caller's export that the path names; ApiError 404."""
    return own_job(exports, principal(request), id)


OwnJob = Annotated[Job, Depends(job_of_path)]


@router.post(
    "/exports",
    operation_id="create_export",
    summary="Start an export",
    status_code=202,
    response_model=ExportInfo,
    responses=_PROBLEMS | problem_answers(Problem.CONFLICT, Problem.RATE_LIMITED),
)
async def create_export(
    request: Request,
    body: ExportRequest,
    here: Annotated[Services, Depends(services)],
    exports: HereExports,
    idempotency_key: Annotated[
        str | None, Header(max_length=200, description="Repeating a request with the same key gives the same export.")
    ] = None,
) -> Response:
    """Queue a job that writes every selected post, oldest first, into a CSV, NDJSON or Parquet file.

    The answer's Location tells its progress. Posts that are removed after the file was made are taken out of it before the
    next download begins.
    """
    who = principal(request)
    names = _columns(body)
    planned = await plan_posts(request, here, body)
    labels = [name for name in names if name.startswith(LABEL)]
    columns = labels_of(request).column
    pinned = {}
    for name in labels:
        found = await asyncio.to_thread(columns, name.removeprefix(LABEL), who, "fields")
        pinned[name] = found.pinned
    meaning = planned.meaning() | {"fields": names} | ({"label_columns": pinned} if pinned else {})
    job = await asyncio.to_thread(exports.create, body, meaning, who.owner, idempotency_key)
    exports.launch(job)
    return json_answer(job.info().model_dump(mode="json"), status=202, headers={"Location": f"/v1/exports/{job.id}"})


def _columns(body: ExportRequest) -> list[str]:
    check_fields([name for name in body.fields if not name.startswith(LABEL)], POST, EXTRA_FIELDS)
    return list(body.fields or DEFAULT_FIELDS)


@router.get(
    "/exports",
    operation_id="exports",
    summary="Your exports",
    response_model=ExportList,
    responses=problem_answers(Problem.UNAUTHORIZED, Problem.FORBIDDEN, Problem.UNKNOWN_PARAMETER, Problem.RATE_LIMITED),
)
async def list_exports(request: Request, exports: HereExports) -> Response:
    """Every export of the caller that is still known, the newest first."""
    owner = principal(request).owner
    jobs = [job.info().model_dump(mode="json") for job in exports.store.all() if job.owner == owner]
    return json_answer({"exports": jobs})


@router.get(
    "/exports/{id}",
    operation_id="export",
    summary="An export",
    response_model=ExportInfo,
    responses=_PROBLEMS,
)
async def export(job: OwnJob) -> Response:
    """State and progress."""
    return json_answer(job.info().model_dump(mode="json"))


@router.delete(
    "/exports/{id}",
    operation_id="delete_export",
    summary="Cancel or delete an export",
    status_code=204,
    responses=_PROBLEMS,
)
async def delete_export(job: OwnJob, exports: HereExports) -> Response:
    """Stop the job if it waits or runs, and remove its file."""
    await exports.cancel(job)
    await asyncio.to_thread(exports.store.remove, job.id)
    return Response(status_code=204)


def done(job: Job) -> Job:
    """The job if its file is there; ApiError 409 or 410 otherwise."""
    if job.state is State.DONE:
        return job
    if job.state is State.EXPIRED:
        raise ApiError(Problem.GONE, "the export has expired and its file is gone: start it again")
    raise ApiError(
        Problem.CONFLICT,
        f"the export is {job.state}: its file is there once it is done",
        extension={"state": job.state},
    )


@router.get(
    "/exports/{id}/provenance",
    operation_id="export_provenance",
    summary="Where an export came from",
    response_model=dict[str, Any],
    responses=_PROBLEMS | problem_answers(Problem.CONFLICT, Problem.GONE),
)
async def export_provenance(job: OwnJob) -> Response:
    """Query, snapshot, coverage, columns, number of rows, digest and a text to cite."""
    job = done(job)
    headers = {"Content-Disposition": f'attachment; filename="{job.file_name}.metadata.json"'}
    return json_answer(provenance(job, job.sha256), headers=headers)


@router.head("/exports/{id}/data", include_in_schema=False)
@router.get(
    "/exports/{id}/data",
    operation_id="export_data",
    summary="The file of an export",
    response_class=Response,
    responses=_PROBLEMS
    | problem_answers(Problem.CONFLICT, Problem.GONE, Problem.RANGE_NOT_SATISFIABLE)
    | {
        200: {
            "content": {media: {} for media in (*MEDIA_TYPES.values(), *_COMPRESSED.values())},
            "description": "The file",
        },
        206: {"description": "The part of the file that Range names"},
        304: {"description": "The file that If-None-Match names is the current one"},
    },
)
async def export_data(request: Request, job: OwnJob, exports: HereExports) -> Response:
    """The file, whole or by Range. Its strong ETag names its content; send it in If-Range to resume a download.

    A download that begins has nothing in it that was removed before; a resumed one goes on with the file it began with.
    """
    job = done(job)
    wanted = request.headers.get("range")
    resumed = _generation(request.headers.get("if-range")) if wanted else None
    found, path = await exports.current_file(job, resumed)
    generation = int(path.name.rpartition(".")[2])
    size = (await asyncio.to_thread(path.stat)).st_size
    digest = found.sha256 if generation == found.generation else await asyncio.to_thread(_digest, exports, path)
    etag = f'"{generation}-{digest}"'
    media = _COMPRESSED.get(found.info().compression)
    form = TableFormat(found.info().format)
    headers = {
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(digest or '')).decode()}:",
        "Cache-Control": "private, no-cache",
        "X-Rows": str(found.rows),
    }
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    if wanted is not None:
        _check_range(request, wanted, size)
    return FileResponse(
        path,
        headers=headers,
        media_type=MEDIA_TYPES[form] if form is TableFormat.PARQUET or media is None else media,
        filename=found.file_name,
    )


def _generation(etag: str | None) -> int | None:
    match = _ETAG.fullmatch(etag or "")
    return int(match[1]) if match else None


def _digest(exports: Exports, path: Any) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_range(request: Request, text: str, size: int) -> None:
    """ApiError 416 for a range outside the file; any other form than one byte range is left out, as RFC 9110 allows."""
    match = _RANGE.fullmatch(text.strip())
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        request.scope["headers"] = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
    elif (match[1] is not None and int(match[1]) >= size) or (match[3] is not None and int(match[3]) == 0):
        raise ApiError(
            Problem.RANGE_NOT_SATISFIABLE,
            f"the file has {size} bytes: the range {text} is not part of it",
            headers={"Content-Range": f"bytes */{size}"},
        )

"""/v1/labels: upload, list, show and delete label tables."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from api.access import Principal, principal
from api.answers import Answer, json_answer, problem_answers
from api.errors import ApiError, Problem
from api.labels.catalogue import Table
from api.labels.names import NAME
from api.labels.service import Labels, labels_of
from api.labels.uploads import Upload
from api.parameters import known_parameters
from api.times import format_time

router = APIRouter(prefix="/labels", tags=["labels"], dependencies=[Depends(known_parameters)])

_PARQUET_TYPES: Final = ("application/vnd.apache.parquet", "application/x-parquet")
_CSV: Final = "text/csv"
_COMMON = (
    Problem.UNKNOWN_PARAMETER,
    Problem.INVALID_PARAMETER,
    Problem.UNAUTHORIZED,
    Problem.FORBIDDEN,
    Problem.RATE_LIMITED,
)


class ColumnInfo(Answer):
    """A value column."""

    name: str
    kind: str = Field(description="`text`, `integer`, `number` or `boolean`.")
    summary: dict[str, Any] = Field(description="Missing and distinct values, the frequent ones, smallest and largest.")


class VersionInfo(Answer):
    """One upload of a table."""

    version: int
    key: str = Field(description="`uri`: rows are about records. `did`: about accounts.")
    rows: int
    bytes: int
    multiple: bool = Field(description="Whether a record or account may have several rows.")
    sha256: str = Field(description="Digest of the uploaded bytes.")
    created: str
    columns: list[ColumnInfo]


class TableInfo(Answer):
    """A label table."""

    name: str
    owner: str = Field(description="Key id of the owner; others write `owner/name` for a shared table.")
    shared: bool
    description: str
    created: str
    versions: list[VersionInfo] = Field(description="Oldest first; filters use the last one unless they name another.")


class TableList(Answer):
    """The tables that the client may use."""

    labels: list[TableInfo]


def _json(table: Table) -> dict[str, Any]:
    return {
        "name": table.name,
        "owner": table.owner,
        "shared": table.shared,
        "description": table.description,
        "created": format_time(int(table.created * 1e6)),
        "versions": [
            {
                "version": item.version,
                "key": item.key,
                "rows": item.rows,
                "bytes": item.bytes,
                "multiple": item.multiple,
                "sha256": item.sha256,
                "created": format_time(int(item.created * 1e6)),
                "columns": [{"name": c.name, "kind": c.kind, "summary": c.summary} for c in item.columns],
            }
            for item in table.versions
        ],
    }


TableName = Annotated[
    str, Path(pattern=f"^{NAME}$", description="Name of the table: a to z, 0 to 9, - and _.", examples=["toxicity"])
]
OfOwner = Annotated[
    str | None, Query(max_length=32, description="Key id of another owner; for the scope `admin` only.")
]
Here = Annotated[Labels, Depends(labels_of)]
Who = Annotated[Principal, Depends(principal)]


@router.get(
    "",
    operation_id="list_labels",
    summary="Label tables",
    response_model=TableList,
    responses=problem_answers(*_COMMON),
)
async def list_labels(here: Here, who: Who) -> Response:
    """Your tables, and those that others share, with their columns and versions."""
    tables = await asyncio.to_thread(here.catalogue.visible, who.owner)
    return json_answer({"labels": [_json(table) for table in tables]})


@router.get(
    "/{name}",
    operation_id="get_label",
    summary="One label table",
    response_model=TableInfo,
    responses=problem_answers(*_COMMON, Problem.NOT_FOUND),
)
async def get_label(
    name: TableName,
    here: Here,
    who: Who,
    owner: Annotated[
        str | None, Query(max_length=32, description="Key id of the owner of a shared table; yours if unset.")
    ] = None,
) -> Response:
    """A table's versions and columns."""
    return json_answer(_json(await asyncio.to_thread(lambda: here.table(name, who, owner=owner))))


@router.put(
    "/{name}",
    operation_id="put_label",
    summary="Upload a label table",
    response_model=TableInfo,
    responses={
        201: {"model": TableInfo, "description": "A new version was stored."},
        **problem_answers(
            *_COMMON,
            Problem.INVALID_BODY,
            Problem.UNSUPPORTED_MEDIA_TYPE,
            Problem.TOO_LARGE,
            Problem.CONFLICT,
            Problem.OVER_CAPACITY,
        ),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                _CSV: {
                    "schema": {"type": "string", "minLength": 1},
                    "example": "uri,mood\nat://did:plc:ewvi7nxzyoun6zhxrhs64oiz/app.bsky.feed.post/3l6oveex3ii2l,angry\n",
                },
                _PARQUET_TYPES[0]: {"schema": {"type": "string", "format": "binary", "minLength": 1}},
            },
        }
    },
)
async def put_label(
    request: Request,
    name: TableName,
    here: Here,
    who: Who,
    multiple: Annotated[bool, Query(description="Whether a record or account may have several rows.")] = False,
    shared: Annotated[bool, Query(description="Whether other keys may filter and group by the table.")] = False,
    description: Annotated[
        str, Query(max_length=1000, description="What the table is, for you and those you share it with.")
    ] = "",
) -> Response:
    """Upload a table with a column `uri` (records) or `did` (accounts) and any number of value columns, as CSV or Parquet.

    A table that exists gets a further version; the same bytes again do not make one (200 instead of 201). Filter by it with
    `label=name:value`; errors name the row and the column.
    """
    kind = re.split(r"[;\s]", request.headers.get("content-type", "").lower())[0]
    if kind not in (_CSV, *_PARQUET_TYPES):
        raise ApiError(
            Problem.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Type: send {_CSV} or {_PARQUET_TYPES[0]}, not {kind[:80] or 'nothing'}",
        )
    upload = Upload(name, kind != _CSV, multiple, shared, description)
    table, new = await here.upload(request, upload, who)
    return json_answer(_json(table), status=201 if new else 200, headers={"Location": f"/v1/labels/{name}"})


@router.delete(
    "/{name}",
    operation_id="delete_label",
    summary="Delete a label table",
    status_code=204,
    responses=problem_answers(*_COMMON, Problem.NOT_FOUND),
)
async def delete_label(name: TableName, here: Here, who: Who, owner: OfOwner = None) -> Response:
    """Delete a table of yours with all its versions and files, at once and for good."""
    await asyncio.to_thread(lambda: here.delete(name, None, who, owner=owner))
    return Response(status_code=204)


@router.delete(
    "/{name}/versions/{version}",
    operation_id="delete_label_version",
    summary="Delete one version",
    status_code=204,
    responses=problem_answers(*_COMMON, Problem.NOT_FOUND),
)
async def delete_label_version(
    name: TableName, version: Annotated[int, Path(ge=1, le=2**31)], here: Here, who: Who, owner: OfOwner = None
) -> Response:
    """Delete one version of a table of yours; its number is not used again."""
    await asyncio.to_thread(lambda: here.delete(name, version, who, owner=owner))
    return Response(status_code=204)

"""Every error a client can get: one shape (RFC 9457, application/problem+json), stable types, a remedy in the detail."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api.wording import expected_of, explain, nearest
from lake.errors import LakeError, ManifestUnavailable, ManifestVersionError, SnapshotExpired
from schemas.errors import ExplorerError

LOGGER = logging.getLogger("explorer.api")
MEDIA_TYPE = "application/problem+json"


class Problem(Enum):
    """The problem types: (status, title, remedy). A type's URI is `/problems/<name>`, which explains it."""

    INVALID_PARAMETER = (
        422,
        "A parameter has a value that is not allowed",
        "`errors` names each parameter and what it accepts.",
    )
    UNKNOWN_PARAMETER = (
        400,
        "A parameter is unknown",
        "`suggestion` is the nearest known name, `allowed` lists all of them: nothing is ignored silently.",
    )
    INVALID_QUERY = (
        400,
        "The query text cannot be read",
        "`detail` names the position in the text and how to repair it; quote an operator to search for it.",
    )
    INVALID_CURSOR = (
        400,
        "The cursor cannot be used",
        "Repeat every other parameter of the first page and pass `next_cursor` unchanged, or start again without a cursor.",
    )
    INVALID_BODY = (400, "The request body cannot be read", "Send well-formed JSON of the documented shape.")
    RANGE_TOO_WIDE = (
        422,
        "The time range or the work asked for is too large",
        "Narrow the time range, or make the query an export.",
    )
    UNKNOWN_HANDLE = (
        404,
        "No account with this handle was seen",
        "Use the DID of the account; handles are known from identity events only.",
    )
    NOT_FOUND = (404, "There is nothing at this address", "/docs lists every address.")
    METHOD_NOT_ALLOWED = (405, "The address does not answer this method", "The header Allow lists the methods.")
    NOT_ACCEPTABLE = (
        406,
        "The answer does not exist in this format",
        "Ask for one of the formats that `detail` lists.",
    )
    CONFLICT = (
        409,
        "The request conflicts with the state of the resource",
        "Read the resource again before changing it.",
    )
    GONE = (410, "The resource existed and is gone", "Make it anew if you still need it.")
    SNAPSHOT_GONE = (
        410,
        "The snapshot is not kept any more",
        "Repeat the request without `as_of`, or with a newer version.",
    )
    TOO_LARGE = (413, "The request or its answer is too large", "Split the request, or make the query an export.")
    UNSUPPORTED_MEDIA_TYPE = (
        415,
        "The request body has a type that is not read here",
        "Send one of the types that `detail` lists, uncompressed.",
    )
    RANGE_NOT_SATISFIABLE = (
        416,
        "The byte range is not part of the file",
        "The header Content-Range names the size of the file.",
    )
    UNAUTHORIZED = (
        401,
        "A valid API key is needed",
        "Send the header Authorization: Bearer <key>; keys never go into an address.",
    )
    FORBIDDEN = (
        403,
        "The request is not allowed",
        "Ask the operator for a key with the scope that `detail` names.",
    )
    RATE_LIMITED = (429, "Too many requests", "Wait for the seconds in Retry-After.")
    OVER_CAPACITY = (503, "The service is busy", "Wait for the seconds in Retry-After; narrow queries wait less.")
    UNAVAILABLE = (
        503,
        "The lake cannot be read at the moment",
        "Wait for the seconds in Retry-After; the operator sees why at /health/ready.",
    )
    QUERY_TIMEOUT = (
        504,
        "The query took longer than allowed",
        "Narrow the time range or the filters, or make the query an export.",
    )
    INTERNAL = (500, "The service failed", "Report the request_id to the operator: the cause is in the log.")

    @property
    def slug(self) -> str:
        """The name in URIs, such as `unknown-parameter`."""
        return self.name.lower().replace("_", "-")

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.value[0])

    @property
    def title(self) -> str:
        """The fixed summary."""
        return str(self.value[1])

    @property
    def remedy(self) -> str:
        """What a client does about it, in general."""
        return str(self.value[2])


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one input: `location` is query, path, header or body; `pointer` a JSON pointer inside a body."""

    parameter: str
    detail: str
    location: str = "query"
    pointer: str | None = None

    def json(self) -> dict[str, str]:
        """The member of `errors`."""
        found = {"parameter": self.parameter, "location": self.location, "detail": self.detail}
        return found if self.pointer is None else {**found, "pointer": self.pointer}


class ServiceError(ExplorerError):
    """The API process cannot start or go on."""


class ApiError(Exception):
    """An answer that is an error; any code on the way may raise it.

    `detail` names the input and the remedy; `extension` adds members to the body; `headers` to the answer.
    """

    def __init__(
        self,
        problem: Problem,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        extension: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail
        self.errors = tuple(errors)
        self.extension = dict(extension or {})
        self.headers = dict(headers or {})


def bad_parameter(name: str, detail: str, *, location: str = "query") -> ApiError:
    """The error for one parameter whose value cannot be used."""
    return ApiError(Problem.INVALID_PARAMETER, f"{name}: {detail}", errors=[FieldError(name, detail, location)])


def over_capacity(detail: str, retry_after: int) -> ApiError:
    """503 that tells when to come back (seconds)."""
    return ApiError(
        Problem.OVER_CAPACITY, detail, extension={"retry_after": retry_after}, headers={"Retry-After": str(retry_after)}
    )


def unknown_parameter(name: str, allowed: Iterable[str], *, location: str = "query") -> ApiError:
    """400 that names the nearest allowed parameter, or all of them."""
    known = sorted(allowed)
    near = nearest(name, known)
    remedy = f"did you mean {near!r}?" if near else f"the parameters are: {', '.join(known) or 'none'}"
    if near == "cursor":
        remedy = "there are no page numbers: pass the answer's `next_cursor` as `cursor`"
    detail = f"there is no parameter {name!r}: {remedy}"
    return ApiError(
        Problem.UNKNOWN_PARAMETER,
        detail,
        errors=[FieldError(name, detail, location)],
        extension={"allowed": known} | ({"suggestion": near} if near else {}),
    )


def problem_response(request: Request, error: ApiError) -> JSONResponse:
    """The answer for an error."""
    problem = error.problem
    body: dict[str, Any] = {
        "type": f"/problems/{problem.slug}",
        "title": problem.title,
        "status": problem.status,
        "detail": error.detail,
        "instance": request.url.path,
    }
    request_id = request.scope.get("explorer.request_id")
    if request_id:
        body["request_id"] = request_id
    if error.errors:
        body["errors"] = [item.json() for item in error.errors]
    return JSONResponse(
        {**error.extension, **body},
        status_code=problem.status,
        headers={"Cache-Control": "no-store", **error.headers},
        media_type=MEDIA_TYPE,
    )


def _validation_error(request: Request, error: RequestValidationError) -> ApiError:
    found: list[FieldError] = []
    for item in error.errors():
        place, *path = [str(part) for part in item["loc"]] or ["body"]
        if item["type"] == "json_invalid":
            return ApiError(
                Problem.INVALID_BODY,
                f"the body is not JSON: {item.get('ctx', {}).get('error', item['msg'])}",
                errors=[FieldError("body", item["msg"], "body")],
            )
        name = next((part for part in path if not part.isdigit()), place)
        known = _fields_of(request, place)
        if item["type"] == "extra_forbidden" and len(path) == 1 and known:
            return unknown_parameter(name, known, location=place)
        pointer = (
            "/" + "/".join(part.replace("~", "~0").replace("/", "~1") for part in path) if place == "body" else None
        )
        message = ""
        if not path and item["type"] == "value_error":
            # A rule about several parameters: its text begins with the one to change.
            name, _, message = str(item["msg"]).removeprefix("Value error, ").partition(" ")
        if item["type"] == "too_short" and any(other.parameter == name for other in found):
            continue  # the values that were wrong are not in the list any more
        info = known.get(name)
        expected = expected_of(info.annotation, info.description) if info is not None else ""
        found.append(FieldError(name, message or explain(item, expected), place, pointer))
    detail = "; ".join(f"{item.parameter}: {item.detail}" for item in found[:5])
    return ApiError(Problem.INVALID_PARAMETER, detail, errors=found)


def _fields_of(request: Request, place: str) -> dict[str, FieldInfo]:
    """The inputs of the request's route that come in the query or the body, by name."""
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return {}
    body = [route.body_field] if route.body_field is not None else []
    found: dict[str, FieldInfo] = {}
    for field in body if place == "body" else route.dependant.query_params:
        annotation = field.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found |= annotation.model_fields
        else:
            found[field.name] = field.field_info
    return found


def _methods(request: Request) -> str:
    """Every method that the address answers: the framework names those of the first route only."""
    routes = request.app.router.routes
    found = [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return ", ".join(found)


def _http_error(request: Request, error: HTTPException) -> ApiError:
    headers = dict(error.headers or {})
    match error.status_code:
        case 404:
            near = difflib.get_close_matches(request.url.path, request.app.openapi()["paths"], n=1, cutoff=0.7)
            hint = f"did you mean {near[0]}?" if near else "/docs lists every one"
            return ApiError(Problem.NOT_FOUND, f"no such address: {hint}", headers=headers)
        case 405:
            allowed = _methods(request)
            return ApiError(
                Problem.METHOD_NOT_ALLOWED, f"use one of these methods: {allowed}", headers={"Allow": allowed}
            )
        case 413:
            return ApiError(Problem.TOO_LARGE, str(error.detail), headers=headers)
        case status if 400 <= status < 500:
            return ApiError(Problem.INVALID_BODY, str(error.detail) or HTTPStatus(status).phrase, headers=headers)
        case _:
            return ApiError(
                Problem.INTERNAL, "the failure is in the service's log under this request_id", headers=headers
            )


def from_lake(error: ExplorerError) -> ApiError:
    """The client's view of a lake error; what an operator must know is logged, not sent."""
    if isinstance(error, SnapshotExpired):
        return ApiError(Problem.SNAPSHOT_GONE, f"{error.message} {error.remedy}")
    if isinstance(error, ManifestUnavailable):
        return ApiError(
            Problem.UNAVAILABLE,
            "the manifest does not answer: try again in a few seconds",
            extension={"retry_after": 5},
            headers={"Retry-After": "5"},
        )
    if isinstance(error, ManifestVersionError):
        return ApiError(
            Problem.UNAVAILABLE,
            "the lake is of another release than this service: its operator has to bring both to one",
            extension={"retry_after": 60},
            headers={"Retry-After": "60"},
        )
    return ApiError(Problem.INTERNAL, "the failure is in the service's log under this request_id")


def install_handlers(app: FastAPI) -> None:
    """Make every failing path of the application answer in the one shape."""

    @app.exception_handler(ApiError)
    async def _api(request: Request, error: ApiError) -> JSONResponse:
        return problem_response(request, error)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return problem_response(request, _validation_error(request, error))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return problem_response(request, _http_error(request, error))

    @app.exception_handler(LakeError)
    async def _lake(request: Request, error: LakeError) -> JSONResponse:
        if not isinstance(error, SnapshotExpired):
            level = logging.WARNING if isinstance(error, ManifestUnavailable) else logging.ERROR
            LOGGER.log(level, "lake error", extra={"error": str(error), "path": request.url.path})
        return problem_response(request, from_lake(error))

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        LOGGER.error(
            "unexpected error",
            exc_info=error,
            extra={"path": request.url.path, "request_id": request.scope.get("explorer.request_id")},
        )
        return problem_response(
            request, ApiError(Problem.INTERNAL, "the failure is in the service's log under this request_id")
        )

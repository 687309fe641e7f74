"""The web page at `/`, the reference at `/docs` and the explanations at `/problems/…`: files of our own, nothing from elsewhere."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from api.errors import ApiError, Problem

router = APIRouter(include_in_schema=False)

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
_FILES: Final = ("page.js", "dom.js", "chart.js", "export.js", "docs.js", "style.css", "icon.svg")
_CACHE: Final = {"Cache-Control": "public, max-age=300"}


@cache
def _content(name: str) -> bytes:
    return (files("api") / "static" / name).read_bytes()


def _file(name: str) -> Response:
    return Response(_content(name), media_type=_TYPES[name.rpartition(".")[2]], headers=_CACHE)


@router.get("/")
async def index() -> Response:
    """The search page."""
    return _file("index.html")


@router.get("/docs")
async def docs() -> Response:
    """The reference of the API, drawn from /openapi.json."""
    return _file("docs.html")


@router.get("/static/{name}")
async def static(name: str) -> Response:
    """Scripts and styles of the two pages."""
    if name not in _FILES:
        raise ApiError(Problem.NOT_FOUND, "no such file: the page is at /")
    return _file(name)


@router.get("/problems/{slug}")
async def problem(slug: str) -> Response:
    """What a problem type means."""
    for candidate in Problem:
        if candidate.slug == slug:
            text = f"{candidate.slug}\n\n{candidate.title} (HTTP {candidate.status}).\n{candidate.remedy}\n"
            return Response(text, media_type="text/plain; charset=utf-8", headers=_CACHE)
    raise ApiError(Problem.NOT_FOUND, f"no such problem type: they are {', '.join(item.slug for item in Problem)}")

"""Which format a client wants, by the Accept header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from typing import Final

from fastapi import Request

from api.errors import ApiError, Problem
from api.tabular import TableFormat

_OFFERED: Final[dict[str, TableFormat | None]] = {
    "application/json": None,
    "text/csv": TableFormat.CSV,
    "application/x-ndjson": TableFormat.NDJSON,
    "application/vnd.apache.parquet": TableFormat.PARQUET,
}


def wanted_format(request: Request) -> TableFormat | None:
    """The table format with the highest preference, or None for JSON. ApiError 406 when nothing on offer is accepted."""
    header = request.headers.get("accept", "").strip()
    if not header:
        return None
    best: tuple[float, int] | None = None
    chosen: TableFormat | None = None
    for order, (media, form) in enumerate(_OFFERED.items()):
        quality = _quality(header, media)
        if quality > 0 and (best is None or (quality, -order) > best):
            best, chosen = (quality, -order), form
    if best is None:
        raise ApiError(
            Problem.NOT_ACCEPTABLE, f"the Accept header asks for {header[:200]!r}; on offer are: {', '.join(_OFFERED)}"
        )
    return chosen


def _quality(header: str, media: str) -> float:
    """The preference for a media type: the most specific range that covers it decides."""
    found, specific = 0.0, -1
    for part in header.split(","):
        name, *parameters = [piece.strip() for piece in part.split(";")]
        name = name.lower()
        depth = 2 if name == media else 1 if name == media.split("/")[0] + "/*" else 0 if name == "*/*" else -1
        if depth <= specific:
            continue
        quality = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "q":
                try:
                    quality = min(1.0, max(0.0, float(value)))
                except ValueError:
                    quality = 0.0
        found, specific = quality, depth
    return found

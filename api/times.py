"""Points in time as clients write them, read into microseconds since 1970-01-01 UTC."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RELATIVE: Final = re.compile(r"(\d{1,6})([smhdw])", re.ASCII)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_ABSOLUTE: Final = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d{1,9})?)?( ?Z|z|[+-]\d\d:?\d\d| \d\d:\d\d)?)?", re.ASCII
)
_LOST_PLUS: Final = re.compile(r" (\d\d:\d\d)$", re.ASCII)
_EARLIEST: Final = -62_135_596_800_000_000
_LATEST: Final = 253_402_300_799_999_999
_FORMS: Final = "2026-11-23, 2026-11-23T16:30Z, 2026-11-23T16:30:00+01:00 or 7d (that long ago; s, m, h, d, w)"


def parse_time(value: Any, *, now_us: int | None = None) -> int:
    """Read a date (its midnight), a date and time (UTC unless it has an offset) or an age such as `7d`.

    ValueError with the accepted forms otherwise. `now_us` is what an age is counted from (None = the clock).
    """
    micros = _micros(value, now_us)
    if not _EARLIEST <= micros <= _LATEST:
        raise ValueError(f"it is outside the years 1 to 9999; write {_FORMS}")
    return micros


def _micros(value: Any, now_us: int | None) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).strip()
    if match := _RELATIVE.fullmatch(text):
        base = now_us if now_us is not None else time.time_ns() // 1000
        return base - int(match[1]) * _UNITS[match[2]] * 1_000_000
    if not _ABSOLUTE.fullmatch(text):
        raise ValueError(f"it is not a time; write {_FORMS}")
    if "T" in text or text.count(":") > 1:
        # A `+` that nobody percent-encoded arrives as a space.
        text = _LOST_PLUS.sub(r"+\1", text) if len(text) > 16 else text
    text = re.sub(r"([.,]\d{6})\d+", r"\1", text).replace(",", ".").replace(" Z", "Z").replace("z", "Z")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"it is not a time ({error}); write {_FORMS}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def format_time(micros: int) -> str:
    """RFC 3339 in UTC with six fractional digits and `Z`."""
    return (_EPOCH + timedelta(microseconds=micros)).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def to_datetime(micros: int) -> datetime:
    """The naive UTC datetime, as the lake's timestamp columns hold it."""
    return (_EPOCH + timedelta(microseconds=micros)).replace(tzinfo=None)


def to_micros(moment: datetime) -> int:
    """Microseconds of a naive UTC datetime from the lake."""
    return (moment.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


Moment = Annotated[
    int,
    BeforeValidator(parse_time),
    PlainSerializer(format_time, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["2026-11-23", "2026-11-23T16:30:00Z", "7d"]}),
]
"""A parameter that is a point in time."""

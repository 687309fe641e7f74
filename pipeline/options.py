"""Option types that several commands share."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any

import click

_AGO = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Instant(click.ParamType[int]):
    """A point in time as microseconds since 1970: RFC 3339 (UTC when no offset is given) or "2h" for two hours ago."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The microseconds; fails with both accepted forms named."""
        if isinstance(value, int):
            return value
        ago = _AGO.fullmatch(str(value))
        if ago:
            return int((time.time() - float(ago[1]) * _SECONDS[ago[2]]) * 1_000_000)
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(
                f"{value!r} is no time: write 2026-07-04T12:00:00Z, or 90s, 15m, 2h, 1d for that long ago", param, ctx
            )
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1_000_000)


INSTANT = Instant()


def show_time(time_us: int | None) -> str:
    """Microseconds as RFC 3339 in UTC; a dash for None."""
    if time_us is None:
        return "–"
    return datetime.fromtimestamp(time_us / 1_000_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

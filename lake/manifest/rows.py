"""How facts lie in the manifest's rows, for those that write them and those that read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from lake.manifest.facts import LiveFile

FILE_COLUMNS: Final = (
    "path, table_name, hour_us, rows, bytes, min_time_us, max_time_us, sha256, kind, supersedes, applied_version, erased,"
    " added_version, since_us"
)
GAP_COLUMNS: Final = "id, source_host, start_us, end_us, reason, detail, detected_us, first_seq, last_seq"
VERSION_COLUMNS: Final = "version, created_us, reason, id, files_added, files_retired, rows_added, rows_retired"

_CHUNK: Final = 500
"""Values per IN list: below the 999 variables that old SQLite builds allow."""


def live_file(row: Sequence[Any], version: int | None) -> LiveFile:
    """The file of a row of FILE_COLUMNS, as it stood in `version` (None = the newest)."""
    applied = row[10]
    pending = applied is None or (version is not None and applied > version)
    return LiveFile(*(*row[:10], pending and row[9] > 0, *row[11:14]))


def marks(values: Sequence[object]) -> str:
    """A placeholder for each value."""
    return ", ".join("?" * len(values))


def chunks(values: Sequence[str]) -> Iterator[list[str]]:
    """Lists that are short enough for one statement."""
    for start in range(0, len(values), _CHUNK):
        yield list(values[start : start + _CHUNK])

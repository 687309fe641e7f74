"""Reads one upload in a process of its own, with little memory and time: `python -m api.labels.worker <request>`.

The request is JSON (see `WorkRequest`); the answer is one line of JSON on standard output: the description of the table
written to `target`, or `detail` and `errors` of an upload that is not one.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypedDict

_CRASHED: Final = 3


class WorkRequest(TypedDict):
    """What the worker is asked."""

    source: str
    target: str
    parquet: bool
    multiple: bool
    rows: int
    columns: int
    value_characters: int
    memory_bytes: int
    seconds: int


def main(text: str) -> int:
    """Do it; exit status 0 with an answer, anything else without one."""
    request: WorkRequest = json.loads(text)
    resource.setrlimit(resource.RLIMIT_AS, (request["memory_bytes"], request["memory_bytes"]))
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"] + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = _convert(request)
    except MemoryError:
        answer = {
            "detail": "the table needs more memory than an upload may take: send fewer or shorter values",
            "errors": [],
        }
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    # Not an ordinary exit: destructors of a library that ran out of memory may hang.
    os._exit(0)


def _convert(request: WorkRequest) -> dict[str, Any]:
    # After the limits, so that they hold for everything these libraries allocate.
    from api.labels.reading import read_upload
    from api.labels.table import BadTable, Limits, write

    limits = Limits(
        request["rows"], request["columns"], request["value_characters"], expanded_bytes=request["memory_bytes"] // 4
    )
    try:
        table = read_upload(
            Path(request["source"]), parquet=request["parquet"], limits=limits, multiple=request["multiple"]
        )
    except BadTable as error:
        return {"detail": error.detail, "errors": error.errors}
    write(table, Path(request["target"]))
    return {
        "key": table.key,
        "rows": table.rows.num_rows,
        "columns": [asdict(column) for column in table.columns],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) if len(sys.argv) == 2 else _CRASHED)

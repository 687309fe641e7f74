"""One upload on its way: its body into a file, the file through the worker process into a stored table."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastapi import Request

from api.errors import ApiError, FieldError, Problem
from api.labels.config import LabelSettings
from api.labels.worker import WorkRequest

LOGGER = logging.getLogger("explorer.api")
_CHUNK: Final = 2**20
_PARQUET_MAGIC: Final = b"PAR1"


@dataclass(frozen=True, slots=True)
class Upload:
    """What a client asked for with an upload."""

    name: str
    parquet: bool
    multiple: bool
    shared: bool
    description: str


async def receive(request: Request, path: Path, settings: LabelSettings, *, parquet: bool) -> str:
    """The SHA-256 of the body, which is in the file afterwards. ApiError for one that is too slow or of no use."""
    try:
        async with asyncio.timeout(settings.receive_seconds):
            return await _receive(request, path, settings.upload_bytes, parquet=parquet)
    except TimeoutError:
        raise ApiError(
            Problem.TOO_LARGE,
            f"the table did not arrive within {settings.receive_seconds:g} s: split it, or send Parquet",
        ) from None


async def convert(settings: LabelSettings, upload: Upload, source: Path, target: Path) -> dict[str, Any]:
    """Have the worker read, check and store a file; its description of the table. Raises ApiError."""
    request: WorkRequest = {
        "source": str(source),
        "target": str(target),
        "parquet": upload.parquet,
        "multiple": upload.multiple,
        "rows": settings.rows,
        "columns": settings.columns,
        "value_characters": settings.value_characters,
        "memory_bytes": settings.parse_memory_mb * 2**20,
        "seconds": max(1, round(settings.parse_seconds)),
    }
    async with _child([sys.executable, "-m", "api.labels.worker", json.dumps(request)]) as process:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(settings.parse_seconds):
                # Everything, because a pipe that nobody empties would block the worker; it answers with a few kB.
                out = await process.stdout.read()
                status = await process.wait()
        except TimeoutError:
            raise ApiError(
                Problem.TOO_LARGE,
                f"reading the table took longer than {settings.parse_seconds:g} s: split it into several",
            ) from None
    if status != 0 or not out:
        LOGGER.warning("the reader of an upload died", extra={"status": status, "bytes": source.stat().st_size})
        raise ApiError(
            Problem.INVALID_BODY,
            "the table cannot be read with the memory an upload may take: split it, or send it as CSV",
        )
    answer: dict[str, Any] = json.loads(out)
    if "detail" in answer:
        raise ApiError(
            Problem.INVALID_BODY,
            f"the table cannot be used: {answer['detail']}",
            extension={"rows": answer["errors"]},
            errors=[_field_error(item) for item in answer["errors"]],
        )
    return answer


def _field_error(item: dict[str, Any]) -> FieldError:
    pointer = "" if item["row"] is None else f"/{item['row']}"
    pointer += "" if item["column"] is None else f"/{item['column'].replace('~', '~0').replace('/', '~1')}"
    return FieldError(item["column"] or "body", item["detail"], "body", pointer or None)


async def _receive(request: Request, path: Path, limit: int, *, parquet: bool) -> str:
    """Write the body to a file; its SHA-256. Raises ApiError for one that is empty, too large, or not what it says."""
    digest = hashlib.sha256()
    size = 0
    start = b""
    with path.open("xb") as file:
        pending = bytearray()
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise ApiError(Problem.TOO_LARGE, f"the table may have {limit} bytes: split it into several")
            pending += chunk
            start = start or bytes(pending[:4])
            if len(pending) >= _CHUNK:
                digest.update(pending)
                await asyncio.to_thread(file.write, bytes(pending))
                pending.clear()
        start = start or bytes(pending[:4])
        digest.update(pending)
        await asyncio.to_thread(file.write, bytes(pending))
    if not size:
        raise ApiError(Problem.INVALID_BODY, "the body is empty: send the table as CSV or Parquet")
    if parquet != (start[:4] == _PARQUET_MAGIC):
        raise ApiError(
            Problem.INVALID_BODY,
            "the body is not a Parquet file, which Content-Type says"
            if parquet
            else "the body is a Parquet file: send it with Content-Type application/vnd.apache.parquet",
        )
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Make a new file and its name durable; blocks for the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def _child(command: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child process that is gone when the block ends."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={
            "PATH": os.defpath,
            # Memory that the libraries reserve for threads and arenas would count against the limit.
            "ARROW_DEFAULT_MEMORY_POOL": "system",
            "MALLOC_ARENA_MAX": "2",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        },
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

"""Where the lake's files lie, and folders that are durable.

Folders are `<table>/date=YYYY-MM-DD/hour=HH/` below the root (event time, UTC), readable by any engine that knows Hive
partitions.
"""

from __future__ import annotations

import hashlib
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from lake.manifest.facts import HOUR_US, FileKind

_OUR_PATH: Final = re.compile(
    r"(?P<table>[A-Za-z][A-Za-z0-9.-]*)/date=(?P<date>\d{4}-\d{2}-\d{2})/hour=(?P<hour>\d{2})/"
    r"(?P<kind>small|rolled)-[a-z0-9-]+\.parquet"
)


def folder_of(table: str, hour_us: int) -> str:
    """The folder of a table's hour, relative to the root."""
    hour = datetime.fromtimestamp(hour_us // 1_000_000, UTC)
    return f"{table}/date={hour:%Y-%m-%d}/hour={hour:%H}"


def parse_path(path: str) -> tuple[str, int, FileKind] | None:
    """(table, hour, kind) of a path that this room could have written; None for a foreign one."""
    match = _OUR_PATH.fullmatch(path)
    if match is None:
        return None
    try:
        day = datetime.strptime(match["date"], "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None
    if int(match["hour"]) > 23:
        return None
    hour_us = int(day.timestamp()) * 1_000_000 + int(match["hour"]) * HOUR_US
    return match["table"], hour_us, "rolled" if match["kind"] == "rolled" else "small"


def sha256_of(file: Path) -> str:
    """Digest of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Returns when the folder's entries are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Puts a small file in place as a whole, durably, also beside other processes that do: the last one wins. Blocks for the disk;
    raises OSError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)


def make_folder(folder: Path, root: Path) -> None:
    """Makes a folder and every missing one above it, each durable in its parent."""
    if folder.is_dir():
        return
    if folder != root:
        make_folder(folder.parent, root)
        folder.mkdir(exist_ok=True)
    else:
        folder.mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)

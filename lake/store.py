"""Files of the lake on a local file system: written durably under a temporary name, then renamed into place.

Folders are `<table>/date=YYYY-MM-DD/hour=HH/` below the root (event time, UTC), readable by any engine that knows Hive
partitions. A file that lies there is not in the lake before the manifest says so.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lake.convert import EDIT, ERASED, lake_schema
from lake.dictionaries import dictionary_columns, merge_schema
from lake.errors import DiskFull, FileDamaged, LakeError
from lake.layout import Compression, row_group_rows, writer_options
from lake.manifest import HOUR_US, FileKind
from lake.steps import CommitStep, Hook, no_hook
from schemas.tables import TABLE_VERSION

FOOTER_KEY: Final = b"explorer"
"""Key of our JSON in a Parquet file's key-value metadata; `lake.rebuild` reads it."""

_TEMPORARY: Final = ".tmp"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,120}")
_OUR_PATH: Final = re.compile(
    r"(?P<table>[A-Za-z][A-Za-z0-9.-]*)/date=(?P<date>\d{4}-\d{2}-\d{2})/hour=(?P<hour>\d{2})/"
    r"(?P<kind>small|rolled)-[a-z0-9-]+\.parquet"
)


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A durable file; both times are 0 if it has no rows. erased: rows without their content."""

    path: str
    rows: int
    bytes: int
    sha256: str
    min_time_us: int
    max_time_us: int
    erased: int


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


class LakeStore:
    """The folder that holds the lake's files. Thread-safe: holds no state but its settings."""

    def __init__(self, root: str | Path, compression: Compression | None = None) -> None:
        self.root = Path(root).absolute()
        self.compression = compression or Compression()

    def absolute(self, path: str) -> Path:
        """The file behind a manifest path; raises LakeError for a path that leaves the root."""
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts:
            raise LakeError(f"The path {path!r} leaves the lake.", "The manifest was tampered with; restore it.")
        return self.root / parts

    def write_table(
        self,
        rows: pa.Table,
        table: str,
        hour_us: int,
        name: str,
        *,
        kind: FileKind = "small",
        footer: dict[str, Any] | None = None,
        hook: Hook = no_hook,
    ) -> WrittenFile:
        """Writes all of `rows` as one durable file; blocks for the fsync. Raises DiskFull (nothing is left behind)."""
        with self.writer(table, hour_us, name, kind=kind, rows=rows.num_rows, hook=hook) as writer:
            writer.write(rows)
            writer.footer.update(footer or {})
        return writer.result()

    @contextmanager
    def writer(
        self,
        table: str,
        hour_us: int,
        name: str,
        *,
        kind: FileKind,
        rows: int,
        rewritten: bool = False,
        hook: Hook = no_hook,
    ) -> Generator[FileWriter]:
        """A file to be filled piece by piece; durable and in place at the end of the block, gone after an exception.

        name: lower-case letters, digits, hyphens; unique within the table's hour. rows: about how many it will have;
        rewritten: see `Compression`. Raises DiskFull.
        """
        if not _NAME.fullmatch(name):
            raise LakeError(f"{name!r} is not a usable file name.")
        folder = folder_of(table, hour_us)
        path = f"{folder}/{kind}-{name}.parquet"
        final = self.absolute(path)
        temporary = self.root / _TEMPORARY / f"{name}-{hour_us}-{table}.parquet"
        writer: FileWriter | None = None
        try:
            with _disk_errors(final):
                _make_folder(temporary.parent, self.root)
                _make_folder(final.parent, self.root)
                options = writer_options(table, kind, self.compression, rows, rewritten=rewritten)
                writer = FileWriter(path, temporary, table, hour_us, kind, options)
                yield writer
                writer.finish()
                hook(CommitStep.FILE_WRITTEN)
                writer.sync()
                hook(CommitStep.FILE_SYNCED)
                temporary.rename(final)
                hook(CommitStep.FILE_RENAMED)
                sync_folder(final.parent)
        except BaseException:
            if writer is not None:
                writer.abandon()
            temporary.unlink(missing_ok=True)
            raise

    def open(self, path: str, dictionaries: list[str] | None = None) -> pq.ParquetFile:
        """A live file for reading, the named columns as dictionaries; raises FileDamaged if it is missing or no Parquet file."""
        try:
            return pq.ParquetFile(
                self.absolute(path), memory_map=False, page_checksum_verification=True, read_dictionary=dictionaries
            )
        except FileNotFoundError as error:
            raise FileDamaged(
                f"{path} is missing.", "Run `post-explorer lake verify`; restore it from a backup."
            ) from error
        except (pa.ArrowException, OSError) as error:
            raise FileDamaged(
                f"{path} cannot be read: {error}.", "Run `post-explorer lake verify`; restore it from a backup."
            ) from error

    def read(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """All rows of a file; columns that an older layout lacks are null. Raises FileDamaged."""
        with self.open(path) as file:
            return read_columns(file, path, columns)

    def read_merging(self, path: str) -> pa.Table:
        """All rows of a file as `lake.dictionaries.merge_schema`, to be merged. Raises FileDamaged."""
        parsed = parse_path(path)
        assert parsed is not None
        with self.open(path, dictionary_columns(parsed[0])) as file:
            return read_columns(file, path, schema=merge_schema(parsed[0]))

    def footer(self, path: str) -> dict[str, Any]:
        """Our metadata in a file's footer; empty for a file that has none. Raises FileDamaged."""
        with self.open(path) as file:
            return footer_of(file)

    def unlink(self, paths: Iterable[str]) -> list[str]:
        """Removes files (missing ones count as removed) and hour folders that became empty; returns the paths."""
        removed = []
        for path in paths:
            file = self.absolute(path)
            file.unlink(missing_ok=True)
            removed.append(path)
            self._remove_empty(file.parent)
        return removed

    def sweep(self, writer: str) -> list[str]:
        """Removes temporary files that an earlier life of `writer` left; call it under that writer's own lock."""
        folder = self.root / _TEMPORARY
        if not folder.is_dir():
            return []
        found = sorted(file for file in folder.iterdir() if file.name.startswith(f"{writer}-"))
        for file in found:
            file.unlink(missing_ok=True)
        return [file.name for file in found]

    def walk(self) -> Iterator[tuple[str, os.stat_result]]:
        """Every file below the root except temporary and hidden ones, with its status; order as the disk gives it."""
        pending = [self.root]
        while pending:
            folder = pending.pop()
            try:
                entries = list(os.scandir(folder))
            except FileNotFoundError:
                continue
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield Path(entry.path).relative_to(self.root).as_posix(), status

    def _remove_empty(self, folder: Path) -> None:
        while folder != self.root and folder.is_relative_to(self.root):
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent


class FileWriter:
    """One Parquet file being written; made by `LakeStore.writer`. `footer` may be filled until the block ends."""

    def __init__(
        self, path: str, temporary: Path, table: str, hour_us: int, kind: FileKind, options: dict[str, Any]
    ) -> None:
        self.path = path
        self.footer: dict[str, Any] = {
            "table": table,
            "table_version": TABLE_VERSION,
            "hour_us": hour_us,
            "kind": kind,
        }
        self._kind = kind
        self._schema = lake_schema(table)
        self._sink = _HashingFile(temporary.open("wb"))
        self._options = options
        self._parquet: pq.ParquetWriter | None = None
        self._rows = 0
        self._min = 1 << 62
        self._max = -(1 << 62)
        self._erased = 0

    def write(self, rows: pa.Table) -> None:
        """Appends rows in the given order, as `lake_schema` or as `merge_schema`, but always the same."""
        if self._parquet is None:
            # Without Arrow's own schema in the footer: it costs kilobytes and would tell readers about our dictionaries.
            self._parquet = pq.ParquetWriter(self._sink, rows.schema, store_schema=False, **self._options)
        if rows.num_rows == 0:
            return
        limits = pc.min_max(rows.column("time").cast(pa.int64()))
        self._min = min(self._min, limits["min"].as_py())
        self._max = max(self._max, limits["max"].as_py())
        self._rows += rows.num_rows
        self._erased += int(pc.sum(pc.not_equal(rows.column(ERASED).cast(pa.string()), EDIT)).as_py() or 0)
        self._parquet.write_table(rows, row_group_size=row_group_rows(self._kind))

    def finish(self) -> None:
        """Writes the footer."""
        if self._parquet is None:
            self.write(self._schema.empty_table())
        assert self._parquet is not None
        self._parquet.add_key_value_metadata({FOOTER_KEY: json.dumps(self.footer, separators=(",", ":")).encode()})
        self._parquet.close()

    def sync(self) -> None:
        """Returns when the bytes are on the disk."""
        self._sink.sync()

    def abandon(self) -> None:
        """Frees the descriptor of a file that is not wanted."""
        self._sink.discard()

    def result(self) -> WrittenFile:
        """Facts about the finished file."""
        return WrittenFile(
            self.path,
            self._rows,
            self._sink.written,
            self._sink.hexdigest(),
            self._min if self._rows else 0,
            self._max if self._rows else 0,
            self._erased,
        )


class _HashingFile:
    """A write-only file that digests what passes through; pyarrow calls write, flush, tell and close."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.written = 0
        self.closed = False

    def write(self, data: Any) -> int:
        with memoryview(data) as view:
            self._digest.update(view)
            self._file.write(view)
            self.written += view.nbytes
            return view.nbytes

    def tell(self) -> int:
        return self.written

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.flush()
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        # A second flush of a full disk would raise again; the bytes are not wanted.
        with suppress(OSError):
            self._file.close()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def read_columns(
    file: pq.ParquetFile, path: str, columns: list[str] | None = None, schema: pa.Schema | None = None
) -> pa.Table:
    """Rows of an open lake file in today's shape (or `schema`): columns that an older layout lacks are null."""
    parsed = parse_path(path)
    assert parsed is not None
    shape = schema or lake_schema(parsed[0])
    wanted = columns or shape.names
    have = set(file.schema_arrow.names)
    try:
        rows = file.read([name for name in wanted if name in have], use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise FileDamaged(
            f"{path} cannot be read: {error}.", "Run `post-explorer lake verify`; restore it from a backup."
        ) from error
    fields = [shape.field(name) for name in wanted]
    arrays = [rows.column(f.name) if f.name in have else pa.nulls(rows.num_rows, f.type) for f in fields]
    return pa.table(arrays, names=wanted).cast(pa.schema(fields))


def footer_of(file: pq.ParquetFile) -> dict[str, Any]:
    """Our metadata in an open file's footer; empty if it has none."""
    metadata = file.metadata.metadata or {}
    found = json.loads(metadata.get(FOOTER_KEY, b"{}"))
    return found if isinstance(found, dict) else {}


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


def _make_folder(folder: Path, root: Path) -> None:
    """Makes a folder and every missing one above it, each durable in its parent."""
    if folder.is_dir():
        return
    if folder != root:
        _make_folder(folder.parent, root)
        folder.mkdir(exist_ok=True)
    else:
        folder.mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"The volume of {target.parent} is full.",
                "Free space or grow the volume; taking in resumes by itself, nothing is lost.",
            ) from error
        raise

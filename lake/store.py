"""Files of the lake on a local file system: written durably under a temporary name, then renamed into place.

A file that lies in one of the folders (see `lake.paths`) is not in the lake before the manifest says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lake.convert import lake_schema
from lake.dictionaries import dictionary_columns, merge_schema
from lake.errors import FileDamaged, LakeError
from lake.file_batch import TEMPORARY, FileBatch
from lake.file_writer import FOOTER_KEY, FileWriter, WrittenFile
from lake.layout import Compression
from lake.manifest import FileKind
from lake.paths import parse_path
from lake.steps import Hook, no_hook


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

    @contextmanager
    def batch(self, hook: Hook = no_hook) -> Generator[FileBatch]:
        """Several files; at the end of the block all are durable and in place, after an exception before that all are gone.

        Raises DiskFull. What has its final name when an error occurs stays: the caller knows whether it may be live.
        """
        batch = FileBatch(self.root, self.compression, hook)
        try:
            yield batch
            batch.place()
        except BaseException:
            batch.abandon()
            raise

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
        with (
            self.batch(hook) as batch,
            batch.writer(table, hour_us, name, kind=kind, rows=rows, rewritten=rewritten) as writer,
        ):
            yield writer

    def write_table(
        self,
        rows: pa.Table,
        table: str,
        hour_us: int,
        name: str,
        *,
        kind: FileKind,
        footer: dict[str, Any] | None = None,
    ) -> WrittenFile:
        """Writes all of `rows` as one durable file; blocks for the disk. Raises DiskFull (nothing is left behind)."""
        with self.writer(table, hour_us, name, kind=kind, rows=rows.num_rows) as writer:
            writer.write(rows)
            writer.footer.update(footer or {})
        return writer.result()

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
        folder = self.root / TEMPORARY
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


def read_columns(
    file: pq.ParquetFile,
    path: str,
    columns: list[str] | None = None,
    schema: pa.Schema | None = None,
    groups: Sequence[int] | None = None,
) -> pa.Table:
    """Rows of an open lake file (of some row groups) in today's shape (or `schema`): columns that an older layout lacks are
    null. Raises FileDamaged."""
    parsed = parse_path(path)
    assert parsed is not None
    shape = schema or lake_schema(parsed[0])
    wanted = columns or shape.names
    have = set(file.schema_arrow.names)
    try:
        numbers = range(file.num_row_groups) if groups is None else groups
        rows = file.read_row_groups(numbers, [name for name in wanted if name in have], use_threads=False)
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

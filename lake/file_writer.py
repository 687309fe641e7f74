"""One Parquet file being written: rows in, digest and facts out."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lake.chunks import Parts, write_parts
from lake.convert import EDIT, ERASED, lake_schema
from lake.manifest.facts import FileKind
from schemas.tables import TABLE_VERSION

FOOTER_KEY: Final = b"explorer"
"""Key of our JSON in a Parquet file's key-value metadata; `lake.rebuild` reads it."""


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


@dataclass(frozen=True, slots=True)
class Spliced:
    """The content of a file in pieces, and the facts about its rows. erased: rows without their content."""

    parts: Parts
    rows: int
    min_time_us: int
    max_time_us: int
    erased: int


class FileWriter:
    """One Parquet file being written; made by `FileBatch.writer`.

    path: its final one, below the root; temporary: where it is now; group_rows: most rows of a row group. `footer` may be
    filled until the block ends.
    """

    def __init__(
        self,
        path: str,
        temporary: Path,
        table: str,
        hour_us: int,
        kind: FileKind,
        options: dict[str, Any],
        *,
        group_rows: int,
    ) -> None:
        self.path = path
        self.temporary = temporary
        self.footer: dict[str, Any] = {
            "table": table,
            "table_version": TABLE_VERSION,
            "hour_us": hour_us,
            "kind": kind,
        }
        self._group_rows = group_rows
        self._schema = lake_schema(table)
        self._sink = _HashingFile(temporary.open("wb"))
        self._options = options
        self._parquet: pq.ParquetWriter | None = None
        self._spliced: Spliced | None = None
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
        self._parquet.write_table(rows, row_group_size=self._group_rows)

    def splice(self, spliced: Spliced) -> None:
        """Makes a file of pieces of others; instead of rows."""
        self._spliced = spliced
        self._rows, self._erased = spliced.rows, spliced.erased
        self._min, self._max = spliced.min_time_us, spliced.max_time_us

    def finish(self) -> None:
        """Writes the footer, and what was given in pieces."""
        entries = {FOOTER_KEY: json.dumps(self.footer, separators=(",", ":")).encode()}
        if self._spliced is not None:
            write_parts(self._sink.write, self._spliced.parts, entries)
            self._sink.close()
            return
        if self._parquet is None:
            self.write(self._schema.empty_table())
        assert self._parquet is not None
        self._parquet.add_key_value_metadata(entries)
        self._parquet.close()

    def sync(self) -> None:
        """Returns when the bytes are on the disk."""
        self._sink.sync()

    def abandon(self) -> None:
        """Removes a file that is not wanted, unless it has its final name already."""
        self._sink.discard()
        self.temporary.unlink(missing_ok=True)

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

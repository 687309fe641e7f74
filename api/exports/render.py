"""The file that a client downloads: filled table by table, digest on the way; and its rows without those that ended since."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from api.exports.model import Compression
from api.tabular import TableFormat, flat, ndjson, write_csv

_BATCH_ROWS: Final = 131_072


class _Digesting:
    """A file that knows the SHA-256 and the size of what was written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Write and count."""
        self.digest.update(data)
        self.size += memoryview(data).nbytes
        return self._file.write(data)

    def flush(self) -> None:
        """Nothing is held back here."""

    def close(self) -> None:
        """The file is its owner's to close."""


class Output:
    """A file of an export while it is written; a context that closes it. Used by one thread at a time."""

    def __init__(self, path: Path, form: TableFormat, compression: Compression, *, spreadsheet_safe: bool) -> None:
        self._form = form
        self._compression = compression
        self._spreadsheet_safe = spreadsheet_safe
        self._stack = ExitStack()
        self._sink = _Digesting(self._stack.enter_context(path.open("wb")))
        self._inner = self._stack.enter_context(ExitStack())
        self._stream: Any = None if form is TableFormat.PARQUET else self._inner.enter_context(self._compressed())
        self._parquet: pq.ParquetWriter | None = None
        self._first = True

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def write(self, rows: pa.Table) -> None:
        """Append rows of public columns, always the same ones; blocks for compressing and writing. Raises OSError."""
        if self._form is TableFormat.PARQUET:
            if self._parquet is None:
                self._parquet = self._inner.enter_context(
                    pq.ParquetWriter(
                        pa.PythonFile(self._sink, mode="w"),
                        rows.schema,
                        # Arrow's own copy of the schema would hide the metadata that comes at the end.
                        store_schema=False,
                        **parquet_options(rows.schema, str(self._compression)),
                    )
                )
            self._parquet.write_table(rows)
        elif self._form is TableFormat.NDJSON:
            self._stream.write(ndjson(rows))
        else:
            table = flat(rows, spreadsheet_safe=self._spreadsheet_safe)
            write_csv(table, _Digesting(self._stream), header=self._first)
        self._first = False

    def finish(self, metadata: dict[str, str]) -> tuple[int, str]:
        """Complete the file, which must have been written to; returns size and SHA-256. `metadata` goes into a Parquet footer."""
        if self._parquet is not None:
            self._parquet.add_key_value_metadata(metadata)
        self._inner.close()
        self._stack.close()
        return self._sink.size, self._sink.digest.hexdigest()

    def _compressed(self) -> AbstractContextManager[Any]:
        if self._compression is Compression.ZSTD:
            return zstandard.ZstdCompressor(level=3).stream_writer(self._sink, closefd=False)  # type: ignore[arg-type]
        if self._compression is Compression.GZIP:
            return gzip.GzipFile(fileobj=self._sink, mode="wb", compresslevel=6, mtime=0)
        return nullcontext(self._sink)


_NEVER_REPEATED: Final = frozenset({"uri", "text", "cid", "rkey", "rev", "time", "received", "created_at"})
_WITHOUT_RANGES: Final = frozenset({"uri", "text", "cid"})
"""Columns whose smallest and largest value help no reader of a file that is in the order of arrival."""


def parquet_options(schema: pa.Schema, compression: str) -> dict[str, Any]:
    """How rows are written. Dictionaries only where values repeat: trying one for others costs a third of the writing."""
    repeated = [name for name in schema.names if name not in _NEVER_REPEATED and not name.endswith("_json")]
    ranged = [name for name in schema.names if name not in _WITHOUT_RANGES and not name.endswith("_json")]

    def leaves(names: list[str]) -> list[str]:
        return [f"{name}.list.element" if pa.types.is_list(schema.field(name).type) else name for name in names]

    return {
        "compression": compression,
        "use_dictionary": leaves(repeated) or False,
        "write_statistics": leaves(ranged) or False,
    }


def keys_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of an export's keys: no compression but for accounts, because numbers are packed and content ids do not shrink."""
    packed = [field.name for field in schema if pa.types.is_integer(field.type) or pa.types.is_timestamp(field.type)]
    return pq.ParquetWriter(
        path,
        schema,
        compression={name: "zstd" if name == "did" else "none" for name in schema.names},
        use_dictionary=["did", "collection"],
        column_encoding=dict.fromkeys(packed, "DELTA_BINARY_PACKED"),
        write_statistics=packed,
    )


def rows_of(folder: Path, generation: int) -> Path:
    """The rows of an export as Parquet: a Parquet export's own file, any other's copy."""
    rows = folder / f"rows.{generation}"
    return rows if rows.exists() else folder / f"data.{generation}"


def render(rows: Path, output: Output, metadata: dict[str, str]) -> tuple[int, str]:
    """Write the file of an export from its rows and finish it; see `Output.finish`."""
    with pq.ParquetFile(rows) as source:
        for table in _tables(source):
            output.write(table)
    return output.finish(metadata)


def _tables(source: pq.ParquetFile) -> Iterator[pa.Table]:
    """The rows in tables, without the metadata of their file; one empty table when there are none, for the header."""
    some = False
    for batch in source.iter_batches(_BATCH_ROWS):
        some = True
        yield pa.Table.from_batches([batch]).replace_schema_metadata(None)
    if not some:
        yield source.schema_arrow.empty_table().replace_schema_metadata(None)


def without(paths: tuple[Path, Path], gone: list[int], targets: tuple[Path, Path]) -> int:
    """Copy rows and keys without some positions; returns how many rows remain. Positions count anew."""
    rows_path, keys_path = paths
    removed = np.array(sorted(gone), np.int64)
    kept_rows = 0
    with (
        pq.ParquetFile(rows_path) as rows,
        pq.ParquetFile(keys_path) as keys,
        pq.ParquetWriter(targets[0], rows.schema_arrow, **parquet_options(rows.schema_arrow, "zstd")) as rows_out,
        keys_writer(targets[1], keys.schema_arrow) as keys_out,
    ):
        positions = []
        for batch in keys.iter_batches(_BATCH_ROWS):
            own = np.asarray(batch["position"])
            mask = ~np.isin(own, removed)
            positions.append(mask)
            kept = pa.Table.from_batches([batch]).filter(pa.array(mask))
            numbers = pa.array(np.arange(kept_rows, kept_rows + kept.num_rows, dtype=np.int64))
            keys_out.write_table(kept.set_column(kept.schema.get_field_index("position"), "position", numbers))
            kept_rows += kept.num_rows
        mask = np.concatenate(positions) if positions else np.zeros(0, np.bool_)
        start = 0
        for batch in rows.iter_batches(_BATCH_ROWS):
            own_mask = mask[start : start + batch.num_rows]
            rows_out.write_table(pa.Table.from_batches([batch]).filter(pa.array(own_mask)))
            start += batch.num_rows
    return kept_rows

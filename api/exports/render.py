"""From the rows of an export to the file a client downloads, without the rows that ended since; digest on the way."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from api.exports.model import Compression
from api.tabular import TableFormat, flat, ndjson, write_csv

_BATCH_ROWS = 65_536


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


def render(
    rows: Path,
    target: Path,
    form: TableFormat,
    compression: Compression,
    *,
    spreadsheet_safe: bool,
    metadata: dict[str, str],
) -> tuple[int, str]:
    """Write the file of an export; returns its size and SHA-256. `metadata` goes into a Parquet footer."""
    with pq.ParquetFile(rows) as source, target.open("wb") as file:
        sink = _Digesting(file)
        if form is TableFormat.PARQUET:
            schema = source.schema_arrow.with_metadata(metadata)
            inside = {Compression.NONE: "none", Compression.ZSTD: "zstd", Compression.GZIP: "gzip"}[compression]
            with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression=inside) as writer:
                for batch in source.iter_batches(_BATCH_ROWS):
                    writer.write_batch(batch.cast(schema) if batch.schema != schema else batch)
        else:
            with _compressed(sink, compression) as out:
                first = True
                for table in _tables(source):
                    if form is TableFormat.NDJSON:
                        out.write(ndjson(table))
                    else:
                        write_csv(flat(table, spreadsheet_safe=spreadsheet_safe), _Sink(out), header=first)
                    first = False
        file.flush()
        return sink.size, sink.digest.hexdigest()


class _Sink(_Digesting):
    """What pyarrow's CSV writer needs of a stream that must stay open."""

    def __init__(self, out: Any) -> None:
        super().__init__(out)


def _compressed(sink: _Digesting, compression: Compression) -> AbstractContextManager[Any]:
    if compression is Compression.ZSTD:
        return zstandard.ZstdCompressor(level=3).stream_writer(sink, closefd=False)  # type: ignore[arg-type]
    if compression is Compression.GZIP:
        return gzip.GzipFile(fileobj=sink, mode="wb", compresslevel=6, mtime=0)
    return _Plain(sink)


class _Plain:
    def __init__(self, sink: _Digesting) -> None:
        self._sink = sink

    def __enter__(self) -> _Digesting:
        return self._sink

    def __exit__(self, *_: object) -> None:
        return None


def _tables(source: pq.ParquetFile) -> Iterator[pa.Table]:
    """The rows in tables; one empty table when there are none, so that a header is written."""
    some = False
    for batch in source.iter_batches(_BATCH_ROWS):
        some = True
        yield pa.Table.from_batches([batch])
    if not some:
        yield source.schema_arrow.empty_table()


def without(paths: tuple[Path, Path], gone: list[int], targets: tuple[Path, Path]) -> int:
    """Copy rows and keys without some positions; returns how many rows remain. Positions count anew."""
    rows_path, keys_path = paths
    removed = np.array(sorted(gone), np.int64)
    kept_rows = 0
    with (
        pq.ParquetFile(rows_path) as rows,
        pq.ParquetFile(keys_path) as keys,
        pq.ParquetWriter(targets[0], rows.schema_arrow, compression="zstd") as rows_out,
        pq.ParquetWriter(targets[1], keys.schema_arrow, compression="zstd") as keys_out,
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

"""How each table lies in Parquet: sort order, encodings, row groups, compression.

The choices were measured; docs/decisions/010-parquet-layout.md has the figures and what was rejected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from lake.convert import lake_schema
from lake.manifest import FileKind

TIME_LIKE: Final = frozenset({"time", "received", "seq", "kafka_offset", "relay_seq"})
"""Columns that grow with arrival: stored as differences."""


@dataclass(frozen=True, slots=True)
class Compression:
    """zstd level per kind of file: small files live for minutes, rolled ones for years."""

    small: int = 1
    rolled: int = 9


def sort_keys(table: str) -> list[tuple[str, str]]:
    """Sort order of rolled files of `table`, for pyarrow's sort_by."""
    names = lake_schema(table).names
    if "subject_cid" in names:
        # Rows with one subject lie together: its CID, 32 bytes that do not compress, is stored once.
        return [("subject_did", "ascending"), ("subject_rkey_tid", "ascending"), ("time", "ascending")]
    return [("time", "ascending"), ("kafka_partition", "ascending"), ("kafka_offset", "ascending")]


def writer_options(table: str, kind: FileKind, compression: Compression) -> dict[str, Any]:
    """Arguments of `pyarrow.parquet.ParquetWriter` for a file of `table`."""
    schema = lake_schema(table)
    dictionary, encodings = [], {}
    for field in schema:
        if field.name in TIME_LIKE or field.name.endswith("_tid") or pa.types.is_timestamp(field.type):
            encodings[field.name] = "DELTA_BINARY_PACKED"
        elif field.name in ("cid", "text") or field.name.endswith("_json"):
            # Values that hardly ever repeat: a dictionary only costs time.
            continue
        elif not pa.types.is_boolean(field.type):
            dictionary.append(_leaf(field))
    return {
        "version": "2.6",
        "compression": "zstd",
        "compression_level": compression.small if kind == "small" else compression.rolled,
        "use_dictionary": dictionary,
        "column_encoding": encodings,
        "dictionary_pagesize_limit": 4 << 20,
        "write_statistics": True,
        "write_page_checksum": True,
    }


def row_group_rows(kind: FileKind) -> int:
    """Most rows of one row group."""
    return 1 << 17


def _leaf(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else str(field.name)

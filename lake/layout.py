"""How each table lies in Parquet: sort order, encodings, row groups, compression, bloom filters.

The choices were measured; docs/decisions/010-parquet-layout.md has the figures and what was rejected.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from lake.convert import lake_schema
from lake.manifest import FileKind

_ROLLED_GROUP_ROWS: Final = 1 << 20
"""One row group for nearly every hour: accounts and subjects repeat all through it, and each is stored once per group."""

_POSTS: Final = "app.bsky.feed.post"
_POST_GROUPS: Final = 2
_LEAST_POST_ROWS: Final = 16_384
"""An hour of posts is two row groups, one for each core that reads it; smaller ones repeat more than posts may cost."""

POST_PAGES: Final = 8
"""Pages of a column in an hour of posts, which are the blocks of the text index: readers can leave pages out."""
_LEAST_PAGE_ROWS: Final = 4096

PARQUET_VERSION: Final = "2.6"

_SMALL_GROUP_ROWS: Final = 1 << 17

_PAGE_BYTES: Final = 8 << 20
"""Large pages: zstd finds repeated text only within a page."""

_BATCH_ROWS: Final = 8192
"""Rows that the encoder takes at once: with its own choice of 1,024 it looks for the least and greatest value of each dictionary
eight times as often, for the same bytes."""

_DICTIONARY_BYTES: Final = 64 << 20
"""Most bytes of a dictionary before a column falls back to plain values: more than an hour's distinct CIDs."""

_DIFFERENCES: Final = frozenset({"time", "received", "seq", "kafka_offset", "relay_seq", "created_at"})
"""Columns that grow with arrival, more or less: stored as differences to the row before."""

_BYTE_PLANES: Final = frozenset({"rkey_tid", "rev_tid"})
"""TIDs of the row itself: the upper bytes hardly change and the lower ones are noise, so each byte is stored apart.

Differences would be as short if a few old record keys did not stretch whole blocks.
"""

_NEVER_REPEATED: Final = frozenset({"cid", "text"})
"""No dictionary: its values occur once. JSON columns neither."""

_LINKS: Final = frozenset(
    f"app.bsky.{name}"
    for name in ("feed.like", "feed.repost", "graph.follow", "graph.block", "graph.listitem", "graph.listblock")
)
"""Tables of identifiers and numbers, without text worth mentioning."""

_LOOKED_UP: Final = {
    _POSTS: {
        "did": 0.1,
        "rkey_tid": 0.05,
        "reply_root_rkey_tid": 0.02,
        "reply_parent_rkey_tid": 0.02,
        "quote_rkey_tid": 0.02,
    },
    "app.bsky.feed.like": {"subject_rkey_tid": 0.02},
    "app.bsky.feed.repost": {"subject_rkey_tid": 0.02},
    "app.bsky.graph.follow": {"subject": 0.02},
}
"""Columns with a bloom filter in rolled files, and of how many files without the value one may be read for nothing: which record it
is, what it is about (`lake.bloom` asks them). Who wrote it is in the index of accounts (`lake.account_index`); of posts a reader
leaves out a row group by it."""

_BLOOM_FROM_ROWS: Final = 10_000
"""Of files of 19,000 rows a filter is asked in a tenth of the time that reading the column takes; smaller files save less."""

_STATISTICS: Final = ("time", "operation", "resync", "rkey_tid", "kafka_offset", "erased")

ARRIVAL: Final = [("kafka_partition", "ascending"), ("kafka_offset", "ascending")]
"""The sort order of most tables."""

_LANGUAGE: Final = "language"
_IS_REPLY: Final = "is_reply"


@dataclass(frozen=True, slots=True)
class Compression:
    """zstd levels of rolled files; small ones, which live for minutes, are LZ4: half the work for a fifth more bytes.

    links: files of numbers and identifiers, which a higher level makes no smaller; texts: files with text and JSON, where one pays
    for years; rewritten: those when something is erased from them, which happens again and again and should be fast.
    """

    links: int = 1
    texts: int = 9
    rewritten: int = 3


def sort_keys(table: str) -> list[tuple[str, str]]:
    """Sort order of rolled files of `table`, for pyarrow; see `with_sort_columns` for keys that are no columns."""
    if table == _POSTS:
        # Posts of one language and kind lie together: their text and JSON compress a tenth better. Replies are apart, so that what
        # they name repeats in few row groups.
        return [
            (_IS_REPLY, "ascending"),
            (_LANGUAGE, "ascending"),
            ("embed_type", "ascending"),
            ("time", "ascending"),
        ]
    return ARRIVAL


def with_sort_columns(table: str, rows: pa.Table) -> pa.Table:
    """`rows` with the columns that sort keys need and the table does not have; drop them before writing."""
    if table != _POSTS:
        return rows
    is_reply = pc.or_(rows.column("reply_root_rkey_tid").is_valid(), rows.column("reply_root_uri_text").is_valid())
    return rows.append_column(_LANGUAGE, first_of_list(rows.column("langs"))).append_column(
        _IS_REPLY, is_reply.cast(pa.int8())
    )


def first_of_list(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    """The first element of each list; null for a missing or empty one."""
    chunks = []
    for chunk in lists.chunks:
        filled = pc.if_else(pc.greater(pc.list_value_length(chunk), 0), chunk, pa.scalar(None, chunk.type))
        places = pc.if_else(filled.is_valid(), chunk.offsets[:-1], pa.scalar(None, pa.int32()))
        chunks.append(chunk.values.take(places))
    return pa.chunked_array(chunks, lists.type.value_type)


def writer_options(
    table: str, kind: FileKind, compression: Compression, rows: int, *, rewritten: bool = False
) -> dict[str, Any]:
    """Arguments of `pyarrow.parquet.ParquetWriter` for a file of `table`; rows: about how many it
    will have."""
    schema = lake_schema(table)
    dictionary, encodings = [], {}
    for field in schema:
        name = field.name
        if name in _DIFFERENCES:
            encodings[name] = "DELTA_BINARY_PACKED"
        elif name in _BYTE_PLANES:
            encodings[name] = "BYTE_STREAM_SPLIT"
        elif name not in _NEVER_REPEATED and not name.endswith("_json") and not pa.types.is_boolean(field.type):
            dictionary.append(_leaf(field))
    texts = compression.rewritten if rewritten else compression.texts
    rolled = compression.links if table in _LINKS else texts
    options: dict[str, Any] = {
        "version": PARQUET_VERSION,
        "compression": "lz4" if kind == "small" else "zstd",
        "compression_level": None if kind == "small" else rolled,
        "use_dictionary": dictionary,
        "column_encoding": encodings,
        "dictionary_pagesize_limit": _DICTIONARY_BYTES,
        "data_page_size": _PAGE_BYTES,
        "write_batch_size": _BATCH_ROWS,
        "write_page_checksum": True,
    }
    if kind == "small":
        # Everything about a file that lives for minutes is read: statistics only cost time.
        options["write_statistics"] = [name for name in _STATISTICS if name in schema.names]
        options["write_page_checksum"] = False
        return options
    if table == _POSTS:
        options["max_rows_per_page"] = max(_LEAST_PAGE_ROWS, -(-rows // POST_PAGES))
    if rows >= _BLOOM_FROM_ROWS and table in _LOOKED_UP:
        # Sized for all values being different; the writer folds a filter that is too large for those it got.
        shares, values = _LOOKED_UP[table], min(rows, row_group_rows(table, kind, rows))
        options["bloom_filter_options"] = {name: {"ndv": values, "fpp": share} for name, share in shares.items()}
    return options


def of_columns(options: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`writer_options` for a file that has only some of the table's columns."""
    narrowed = dict(options)
    narrowed["use_dictionary"] = [leaf for leaf in options["use_dictionary"] if leaf.partition(".")[0] in names]
    for option in ("column_encoding", "bloom_filter_options"):
        if option in options:
            narrowed[option] = {name: value for name, value in options[option].items() if name in names}
    return narrowed


def row_group_rows(table: str, kind: FileKind, rows: int) -> int:
    """Most rows of one row group of a file that has about `rows`."""
    if kind == "small":
        return _SMALL_GROUP_ROWS
    if table == _POSTS:
        return min(_ROLLED_GROUP_ROWS, max(_LEAST_POST_ROWS, -(-rows // _POST_GROUPS)))
    return _ROLLED_GROUP_ROWS


def _leaf(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else str(field.name)

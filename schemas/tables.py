"""The lake's table shapes: which columns hold each Avro field, and the Arrow schema of every table.

A compact column is used where the value has an exact compact form, a `_text` column beside it holds every other value, and at
most one of the two is set:

| field | columns |
|---|---|
| record key, rev | `<f>_tid` int64 (the 64-bit TID), `<f>_text` |
| CID | `<f>` 32-byte sha-256 digest of a CIDv1 dag-cbor CID, `<f>_text` |
| at-uri `<s>_uri` | `<s>_did`, `<s>_collection`, `<s>_rkey_tid` of `at://did/collection/tid`, `<s>_uri_text` |
| `created_at` | the parsed time; `created_at_text` unless it is the parsed time as `…SS.mmmZ` |
| `time_us`, `received_us` | `time`, `received`, UTC without zone |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from schemas.lexicons import Field, Kind
from schemas.records import EVENT_FIELDS

TABLE_VERSION: Final = 1
"""Version of the column layout, written into every file's footer."""

DIGEST: Final = pa.binary(32)
TIMESTAMP: Final = pa.timestamp("us")
MILLIS: Final = pa.timestamp("ms")
"""What clients write for `created_at`; finer digits stay in its text column. Saves a byte per event over microseconds."""
_PLAIN: Final[dict[Kind, pa.DataType]] = {
    Kind.TEXT: pa.string(),
    Kind.DID: pa.string(),
    Kind.JSON: pa.string(),
    Kind.INTEGER: pa.int64(),
    Kind.BOOLEAN: pa.bool_(),
    Kind.STRINGS: pa.list_(pa.string()),
}
_MICROS_COLUMN: Final = {"time_us": "time", "received_us": "received"}

PROVENANCE: Final = (("kafka_partition", pa.int32()), ("kafka_offset", pa.int64()))


@dataclass(frozen=True, slots=True)
class ColumnGroup:
    """The lake columns of one Avro field, (name, type) in table order."""

    field: Field
    columns: tuple[tuple[str, pa.DataType], ...]


def columns_of(field: Field) -> ColumnGroup:
    """The columns that hold `field`."""
    name = field.name
    match field.kind:
        case Kind.TID:
            return ColumnGroup(field, ((f"{name}_tid", pa.int64()), (f"{name}_text", pa.string())))
        case Kind.CID:
            return ColumnGroup(field, ((name, DIGEST), (f"{name}_text", pa.string())))
        case Kind.URI:
            stem = name.removesuffix("_uri")
            return ColumnGroup(
                field,
                (
                    (f"{stem}_did", pa.string()),
                    (f"{stem}_collection", pa.string()),
                    (f"{stem}_rkey_tid", pa.int64()),
                    (f"{name}_text", pa.string()),
                ),
            )
        case Kind.DATETIME:
            return ColumnGroup(field, ((name, MILLIS), (f"{name}_text", pa.string())))
        case Kind.MICROS:
            return ColumnGroup(field, ((_MICROS_COLUMN[name], TIMESTAMP),))
        case _:
            return ColumnGroup(field, ((name, _PLAIN[field.kind]),))


@dataclass(frozen=True, slots=True)
class Table:
    """One lake table: its groups in Avro field order and its full Arrow schema, provenance last."""

    name: str
    groups: tuple[ColumnGroup, ...]
    arrow: pa.Schema


def _table(name: str, fields: tuple[Field, ...]) -> Table:
    groups = tuple(columns_of(field) for field in fields)
    columns = [column for group in groups for column in group.columns] + list(PROVENANCE)
    return Table(name, groups, pa.schema(columns))


TABLES: Final[dict[str, Table]] = {name: _table(name, fields) for name, fields in EVENT_FIELDS.items()}

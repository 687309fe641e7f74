"""The fields of every Avro record we publish, in the order of the wire; `schemas/avro/*.avsc` must agree with them."""

from __future__ import annotations

from typing import Any, Final

from schemas.lexicons import LEXICONS, Field, Kind

REQUIRED: Final = frozenset({"time_us", "did", "kind", "source_host", "protocol", "received_us", "replayed", "resync"})
"""Envelope fields that are never null."""

ENVELOPE: Final = (
    Field("time_us", Kind.MICROS),
    Field("did", Kind.DID),
    Field("kind", Kind.TEXT),
    Field("operation", Kind.TEXT),
    Field("collection", Kind.TEXT),
    Field("rkey", Kind.TID),
    Field("rev", Kind.TID),
    Field("cid", Kind.CID),
    Field("source_host", Kind.TEXT),
    Field("protocol", Kind.TEXT),
    Field("seq", Kind.INTEGER),
    Field("received_us", Kind.MICROS),
    Field("replayed", Kind.BOOLEAN),
    Field("resync", Kind.BOOLEAN),
    Field("envelope_json", Kind.JSON),
    Field("record_type", Kind.TEXT),
)
"""Event time, identity, provenance; `envelope_json` holds the members of the frame that nobody has a field for."""

EXTRA: Final = Field("extra_json", Kind.JSON)

_RELAY = (Field("relay_seq", Kind.INTEGER), Field("relay_time", Kind.TEXT))

EVENT_FIELDS: dict[str, tuple[Field, ...]] = {
    **{nsid: (*ENVELOPE, *lexicon.fields, EXTRA) for nsid, lexicon in LEXICONS.items()},
    "other": (*ENVELOPE, Field("record_json", Kind.JSON)),
    "identity": (*ENVELOPE, Field("handle", Kind.TEXT), *_RELAY, EXTRA),
    "account": (*ENVELOPE, Field("active", Kind.BOOLEAN), Field("status", Kind.TEXT), *_RELAY, EXTRA),
    "sync": (*ENVELOPE, Field("blocks", Kind.TEXT), Field("relay_rev", Kind.TEXT), *_RELAY, EXTRA),
}
"""Schema name → fields, for every table of events."""

_LONG, _TEXT = ["null", "long"], ["null", "string"]

SERVICE_RECORDS: dict[str, list[tuple[str, Any]]] = {
    "dead-letter": [
        ("reason", "string"),
        ("detail", "string"),
        ("stage", "string"),
        ("received_us", "long"),
        ("source_host", _TEXT),
        ("protocol", _TEXT),
        ("time_us", _LONG),
        ("seq", _LONG),
        ("did", _TEXT),
        ("collection", _TEXT),
        ("topic", _TEXT),
        ("partition", _LONG),
        ("offset", _LONG),
        ("raw", "bytes"),
    ],
    "jetstream-cursor": [
        ("host", "string"),
        ("protocol", "string"),
        ("seq", _LONG),
        ("time_us", _LONG),
        ("updated_us", "long"),
        ("made_us", _LONG),
    ],
    "gap": [
        ("host", "string"),
        ("reason", "string"),
        ("from_us", _LONG),
        ("to_us", _LONG),
        ("from_seq", _LONG),
        ("to_seq", _LONG),
        ("detail", "string"),
        ("noticed_us", "long"),
    ],
}
"""Schema name → (field, Avro type) of the records that are not events."""

_AVRO_TYPE: dict[Kind, Any] = {
    Kind.INTEGER: "long",
    Kind.MICROS: "long",
    Kind.BOOLEAN: "boolean",
    Kind.STRINGS: {"type": "array", "items": "string"},
}


def avro_schema(name: str) -> dict[str, Any]:
    """Build the Avro schema of `name` from the field tables, as it must stand in `schemas/avro`.

    Strings, longs, booleans and arrays of strings only: the native decoder (polars) panics on a nullable enum and this
    keeps every field readable by every engine. KeyError when no record has that name.
    """
    if name in SERVICE_RECORDS:
        fields = [
            {"name": field, "type": kind, **({"default": None} if isinstance(kind, list) else {})}
            for field, kind in SERVICE_RECORDS[name]
        ]
    else:
        fields = []
        for field in EVENT_FIELDS[name]:
            kind = _AVRO_TYPE.get(field.kind, "string")
            if field.name in REQUIRED:
                fields.append({"name": field.name, "type": kind})
            else:
                fields.append({"name": field.name, "type": ["null", kind], "default": None})
    # An NSID segment may hold a hyphen, an Avro name may not.
    parts = name.replace("-", "_").split(".")
    return {"type": "record", "name": parts[-1], "namespace": ".".join(["bluesky", *parts[:-1]]), "fields": fields}

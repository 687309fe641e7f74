"""The way back: from a decoded Avro event to the record and to the Jetstream frames it came from, equal as JSON values.

JSON text that was stored as it came is put back as it came, never parsed: it may nest deeper than a parser goes, or hold a number
beyond a double.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from schemas.codec import ABSENT
from schemas.json_members import split_object
from schemas.json_text import dumps, loads
from schemas.lexicons import LEXICONS, Kind, Member

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_V2: Final = "network.bsky.jetstream.subscribeEvents#"

Texts = dict[str, str]
"""Members of a JSON object: name to the text of the value."""


class _Absent:
    """The record of a frame that has none."""


ABSENT_RECORD: Final = _Absent()


def record_text(row: Mapping[str, Any]) -> str | None:
    """The JSON text of a commit's record; None for a delete that had none.

    `row` is a decoded Avro event. A create without its record cannot exist: the encoder refuses it.
    """
    collection = row["collection"]
    if collection not in LEXICONS:
        text: str | None = row["record_json"]
        return text
    extra: str | None = row["extra_json"]
    if extra is not None and not extra.startswith("{"):
        return extra
    record: Texts = {}
    if row["record_type"] is not None:
        record["$type"] = dumps(row["record_type"])
    for member in LEXICONS[collection].members:
        value = _member_text(member, row)
        if value is not None:
            record[member.name] = value
    record |= _split(extra)
    if not record and row["operation"] == "delete" and row["cid"] is None:
        return None
    return _object(record)


def record_json(row: Mapping[str, Any]) -> Any:
    """The record of a commit as a JSON value; ABSENT_RECORD for a delete that had none.

    Raises BadRecord (TOO_DEEP, NUMBER_OUT_OF_RANGE) for a record that Python cannot hold; `record_text` still gives its text.
    """
    text = record_text(row)
    return ABSENT_RECORD if text is None else loads(text)


def upstream_text(row: Mapping[str, Any]) -> str:
    """The JSON text of the nested upstream object of an identity, account or sync event."""
    names = {
        "identity": (("handle", "handle"), ("seq", "relay_seq"), ("time", "relay_time")),
        "account": (("active", "active"), ("status", "status"), ("seq", "relay_seq"), ("time", "relay_time")),
        "sync": (("rev", "relay_rev"), ("seq", "relay_seq"), ("time", "relay_time")),
    }[row["kind"]]
    upstream = {
        "did": dumps(row["did"]),
        **{name: dumps(row[field]) for name, field in names if row[field] is not None},
    }
    if row["kind"] == "sync" and row["blocks"] is not None:
        upstream["blocks"] = dumps({"$bytes": row["blocks"]})
    extra = _split(row["extra_json"])
    for name in loads(extra.pop(ABSENT, "[]")):
        upstream.pop(name, None)
    return _object(upstream | extra)


def rfc3339(time_us: int) -> str:
    """Unix microseconds as the v2 wire writes them: UTC, six fractional digits, `Z`."""
    return (_EPOCH + timedelta(microseconds=time_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def frame_v1(row: Mapping[str, Any]) -> str | None:
    """The v1 frame of an event as JSON text; None for a sync event and for the creates of a repository that was read again after
    one, which v1 hides.

    For an event taken from v1 this equals the source frame as a JSON value; for one taken from v2 it is the frame that v2 software
    sends on its v1 endpoint.
    """
    kind = row["kind"]
    if kind == "sync" or row["resync"]:
        return None
    frame = {"did": dumps(row["did"]), "time_us": dumps(row["time_us"])}
    if row["seq"] is not None:
        frame["cursor"] = dumps(row["seq"])
    frame["kind"] = dumps(kind)
    unknown = _unknown_members(row, "v1")
    if kind == "commit":
        frame[kind] = _object(_commit(row) | _split(unknown.pop(kind, None)))
    else:
        frame[kind] = upstream_text(row)
    return _object(frame | unknown)


def frame_v2(row: Mapping[str, Any]) -> str:
    """The v2 frame of an event as JSON text, `seq` left out where the source had none."""
    kind = row["kind"]
    payload = {"$type": dumps(_V2 + kind), "did": dumps(row["did"]), "time": dumps(rfc3339(row["time_us"]))}
    if row["seq"] is not None:
        payload["seq"] = dumps(row["seq"])
    if kind == "commit":
        payload |= _commit(row)
    else:
        payload[kind] = upstream_text(row)
    unknown = _unknown_members(row, "v2")
    payload |= _split(unknown.pop("payload", None))
    return _object({"$type": dumps("message"), "payload": _object(payload), **unknown})


def _commit(row: Mapping[str, Any]) -> Texts:
    names = ("rev", "operation", "collection", "rkey", "cid")
    commit = {name: dumps(row[name]) for name in names if row[name] is not None}
    record = record_text(row)
    if record is not None:
        commit["record"] = record
    return commit


def _unknown_members(row: Mapping[str, Any], protocol: str) -> Texts:
    # What one wire has beside our fields means nothing on the other.
    return _split(row["envelope_json"]) if row["protocol"] == protocol else {}


def _member_text(member: Member, row: Mapping[str, Any]) -> str | None:
    """The text of the member's value, None when the typed fields do not hold it."""
    values = [row[field.name] for field in member.fields]
    if values[0] is None:
        return None
    match member.kind:
        case Kind.REF:
            return dumps({"uri": values[0], "cid": values[1]})
        case Kind.REPLY:
            return dumps({"root": {"uri": values[0], "cid": values[1]}, "parent": {"uri": values[2], "cid": values[3]}})
        case Kind.JSON:
            text: str = values[0]
            return text
        case _:
            return dumps(values[0])


def _split(text: str | None) -> Texts:
    if text is None:
        return {}
    return {name: value.decode() for name, value in split_object(text.encode()).items()}


def _object(members: Texts) -> str:
    return "{" + ",".join(f"{dumps(name)}:{text}" for name, text in members.items()) + "}"

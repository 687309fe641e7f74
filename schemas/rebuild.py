"""The way back: from a decoded Avro event to the record and to the Jetstream frames it came from, equal as JSON values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from schemas.codec import ABSENT
from schemas.lexicons import LEXICONS, Kind, Member

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_V2: Final = "network.bsky.jetstream.subscribeEvents#"
V1_FRAME: Final = "v1"
V2_FRAME: Final = "v2"


class _Absent:
    """The record of a frame that has none."""


ABSENT_RECORD: Final = _Absent()


def _member_value(member: Member, row: Mapping[str, Any]) -> Any:
    """The member's JSON value, or ABSENT_RECORD when the typed fields do not hold it."""
    values = [row[field.name] for field in member.fields]
    if values[0] is None:
        return ABSENT_RECORD
    match member.kind:
        case Kind.REF:
            return {"uri": values[0], "cid": values[1]}
        case Kind.REPLY:
            return {"root": {"uri": values[0], "cid": values[1]}, "parent": {"uri": values[2], "cid": values[3]}}
        case Kind.JSON:
            return json.loads(values[0])
        case Kind.STRINGS:
            return list(values[0])
        case _:
            return values[0]


def record_json(row: Mapping[str, Any]) -> Any:
    """The record of a commit as a JSON value; ABSENT_RECORD for a delete that had none.

    `row` is a decoded Avro event. A create without its record cannot exist: the encoder refuses it.
    """
    collection = row["collection"]
    if collection not in LEXICONS:
        text = row["record_json"]
        return ABSENT_RECORD if text is None else json.loads(text)
    record: dict[str, Any] = {}
    if row["record_type"] is not None:
        record["$type"] = row["record_type"]
    for member in LEXICONS[collection].members:
        value = _member_value(member, row)
        if value is not ABSENT_RECORD:
            record[member.name] = value
    if row["extra_json"] is not None:
        extra = json.loads(row["extra_json"])
        if not isinstance(extra, dict):
            return extra
        record.update(extra)
    if not record and row["operation"] == "delete" and row["cid"] is None:
        return ABSENT_RECORD
    return record


def upstream_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """The nested upstream object of an identity, account or sync event."""
    names = {
        "identity": (("handle", "handle"), ("seq", "relay_seq"), ("time", "relay_time")),
        "account": (("active", "active"), ("status", "status"), ("seq", "relay_seq"), ("time", "relay_time")),
        "sync": (("rev", "relay_rev"), ("seq", "relay_seq"), ("time", "relay_time")),
    }[row["kind"]]
    upstream = {"did": row["did"], **{name: row[field] for name, field in names if row[field] is not None}}
    if row["kind"] == "sync" and row["blocks"] is not None:
        upstream["blocks"] = {"$bytes": row["blocks"]}
    extra = json.loads(row["extra_json"]) if row["extra_json"] is not None else {}
    for name in extra.pop(ABSENT, ()):
        upstream.pop(name, None)
    return upstream | extra


def rfc3339(time_us: int) -> str:
    """Unix microseconds as the v2 wire writes them: UTC, six fractional digits, `Z`."""
    return (_EPOCH + timedelta(microseconds=time_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _commit_json(row: Mapping[str, Any]) -> dict[str, Any]:
    commit = {name: row[name] for name in ("rev", "operation", "collection", "rkey", "cid") if row[name] is not None}
    record = record_json(row)
    if record is not ABSENT_RECORD:
        commit["record"] = record
    return commit


def _merge(frame: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Put the unknown members of the frame back, object by object."""
    for name, value in extra.items():
        if isinstance(value, dict) and isinstance(frame.get(name), dict):
            _merge(frame[name], value)
        else:
            frame[name] = value
    return frame


def _envelope_extra(row: Mapping[str, Any], protocol: str) -> dict[str, Any]:
    # What one wire has beside our fields means nothing on the other.
    if row["envelope_json"] is None or row["protocol"] != protocol:
        return {}
    extra: dict[str, Any] = json.loads(row["envelope_json"])
    return extra


def frame_v1(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The v1 frame of an event; None for a sync event, which v1 never sends.

    For an event taken from v1 this equals the source frame as a JSON value; for one taken from v2 it is the frame that v2 software
    sends on its v1 endpoint.
    """
    kind = row["kind"]
    if kind == "sync":
        return None
    frame: dict[str, Any] = {"did": row["did"], "time_us": row["time_us"], "kind": kind}
    if row["seq"] is not None:
        frame["cursor"] = row["seq"]
    frame[kind] = _commit_json(row) if kind == "commit" else upstream_json(row)
    return _merge(frame, _envelope_extra(row, "v1"))


def frame_v2(row: Mapping[str, Any]) -> dict[str, Any]:
    """The v2 frame of an event, `seq` left out where the source had none."""
    kind = row["kind"]
    payload: dict[str, Any] = {"$type": _V2 + kind, "did": row["did"], "time": rfc3339(row["time_us"])}
    if row["seq"] is not None:
        payload["seq"] = row["seq"]
    if kind == "commit":
        payload |= _commit_json(row)
    else:
        payload[kind] = upstream_json(row)
    return _merge({"$type": "message", "payload": payload}, _envelope_extra(row, "v2"))

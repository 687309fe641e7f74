"""The ledger: what the simulator has sent or will send, read from its log; the truth that tests compare with.

It needs no server and may be read while one runs: it sees whole blocks only, and a block is in the log before any of it is sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from simulator.events import ACCOUNT, IDENTITY, KIND_NAMES, RESYNC, SYNC, UNKNOWN
from simulator.log import COUNT_NAMES, Block, BlockInfo, Counts, add_counts, read_block, read_infos, segment_paths
from simulator.mix import KNOWN
from simulator.wire import V2_COMMIT


@dataclass(frozen=True)
class LedgerEvent:
    """One event as sent. For identity, account and sync `record` is the nested upstream object and the commit members are None.

    `resync` marks creates that follow a sync, which v1 never carries. `flaw` above 0 means that the wire carried a broken frame
    instead, so no consumer can know the event. `raw` is the sound v2 frame. `record` is None for a delete, and for a record
    that JSON parsers refuse (`unparsable`); `record_json` is its exact text.
    """

    position: int
    seq: int
    time_us: int
    kind: str
    did: str
    collection: str | None
    operation: str | None
    rkey: str | None
    rev: str | None
    cid: str | None
    record: Any
    record_json: bytes | None
    resync: bool
    flaw: int
    unparsable: bool
    raw: bytes

    @property
    def table(self) -> str:
        """The lake's table for it: the collection if known, else `other`; or the kind."""
        if self.collection is None:
            return self.kind
        return self.collection if self.collection in KNOWN else "other"


class Ledger:
    """Reads the log under `data_dir`; opening costs nothing, `counts` reads headers only."""

    def __init__(self, data_dir: Path | str) -> None:
        self._folder = Path(data_dir) / "log"

    def counts(self) -> dict[str, dict[str, int]]:
        """Per table (`identity`, `account`, `sync`, `other` and the known collections) the numbers of sound events, of which
        creates, updates and deletes, and of malformed frames (not among the events). Unreadable blocks: LogDamagedError."""
        total: Counts = {}
        for info in self.blocks():
            add_counts(total, info.counts)
        return {table: dict(zip(COUNT_NAMES, row, strict=True)) for table, row in sorted(total.items())}

    def total(self) -> int:
        """Frames of all kinds together: events, malformed and unknown ones."""
        return sum(info.events for info in self.blocks())

    def blocks(self) -> Iterator[BlockInfo]:
        """Headers of all whole blocks, in order."""
        paths = segment_paths(self._folder)
        for path in paths:
            yield from read_infos(path, tail=path == paths[-1])

    def events(self, table: str | None = None, *, malformed: bool = False) -> Iterator[LedgerEvent]:
        """Sound events in order, of one table or all; with `malformed` the broken ones as well."""
        for info in self.blocks():
            if table is not None and table not in info.counts:
                continue
            for event in block_events(read_block(info)):
                if (malformed or not event.flaw) and (table is None or event.table == table):
                    yield event


_NESTED = {IDENTITY: "identity", ACCOUNT: "account", SYNC: "sync"}
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def block_events(block: Block) -> Iterator[LedgerEvent]:
    """The events of a decoded block; frames of unknown kinds are none."""
    for at, frame in enumerate(block.frames):
        kind = block.kinds[at]
        if kind == UNKNOWN:
            continue
        nested = _NESTED.get(kind)
        match = None if nested else V2_COMMIT.fullmatch(frame)
        if match is not None:
            # By pattern, because parsers refuse frames with records that are nested too deep or hold half a surrogate pair.
            parts: tuple[bytes | None, ...] = match.groups()
            raw = parts[4]
            cid, collection, did, operation, rev, rkey = (
                None if part is None else part.decode() for part in (*parts[:4], *parts[5:7])
            )
        else:
            members = _members(_members(frame)["payload"])
            body = members.get(nested or "record")
            raw = None if body is None else bytes(body)
            names = ("cid", "collection", "did", "operation", "rev", "rkey")
            cid, collection, did, operation, rev, rkey = (_text(members, name) for name in names)
        record, unparsable = _value(raw)
        yield LedgerEvent(
            position=block.info.position + at,
            seq=block.seqs[at],
            time_us=block.times[at],
            kind=KIND_NAMES[kind],
            did=did or "",
            collection=collection,
            operation=operation,
            rkey=rkey,
            rev=rev,
            cid=cid,
            record=record,
            record_json=raw,
            resync=kind == RESYNC,
            flaw=block.flaws[at],
            unparsable=unparsable,
            raw=frame,
        )


def _text(members: dict[str, msgspec.Raw], name: str) -> str | None:
    raw = members.get(name)
    return None if raw is None else msgspec.json.decode(raw, type=str)


def _value(raw: bytes | None) -> tuple[Any, bool]:
    """The JSON value by the standard library, which is exact on integers and lets half surrogate pairs pass."""
    if raw is None:
        return None, False
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None, True
    return (None, True) if b":1e400" in raw else (value, False)

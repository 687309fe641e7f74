"""The archive of a v2 server: sealed log segments as segment files, made on demand and kept on disk."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from simulator.cursors import VisibleSegment
from simulator.dag_cbor import encode
from simulator.events import ACCOUNT, CREATE, DELETE, RESYNC, SYNC, UNKNOWN, UPDATE
from simulator.ledger import LedgerEvent, block_events
from simulator.log import read_block
from simulator.network import Network
from simulator.segment_file import Row, SegmentSummary, encode_segment

BLOCK_EVENTS = 512
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
_KEPT_SUMMARIES = 256
_NAME = re.compile(r"seg_[0-9a-z]{10}\.jss")


@dataclass(frozen=True)
class ArchivedSegment:
    """One segment of the archive: its name, number, summary and file contents' place."""

    name: str
    index: int
    part: VisibleSegment
    summary: SegmentSummary


class Archive:
    """Makes segment files from the visible, sealed part of a network's log. Its methods do I/O: call them off the loop."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._folder = network.settings.data_dir / "archive"
        self._lock = threading.Lock()
        self._summaries: OrderedDict[str, SegmentSummary] = OrderedDict()
        self._latest: tuple[int, dict[tuple[str, str, str], int], dict[str, int]] | None = None

    def parts(self) -> list[tuple[int, VisibleSegment]]:
        """Sealed visible segments with their index in the archive, oldest first."""
        segments = {segment.path: at for at, segment in enumerate(self._network.log.segments)}
        return [(segments[part.segment.path], part) for part in self._network.cursors.segments() if not part.active]

    def segment(self, index: int, part: VisibleSegment) -> ArchivedSegment | None:
        """The archived form of a part, made now if need be; None if no row of it is left."""
        with self._lock:
            key = self._key(index, part)
            summary = self._summaries.get(key)
            if summary is None or not (self._folder / key).exists():
                rows = list(self._rows(part))
                if not rows:
                    return None
                data, summary = encode_segment(rows, BLOCK_EVENTS)
                self._folder.mkdir(parents=True, exist_ok=True)
                temporary = self._folder / f"{key}.tmp"
                temporary.write_bytes(data)
                temporary.replace(self._folder / key)
                self._summaries[key] = summary
                if len(self._summaries) > _KEPT_SUMMARIES:
                    self._summaries.popitem(last=False)
            return ArchivedSegment(segment_name(index), index, part, summary)

    def named(self, name: str) -> ArchivedSegment | None:
        """The segment of that name, None if there is none (any more); ValueError for what is no segment name."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"malformed segment name: {name[:100]}")
        wanted = int(name[4:14], 36)
        for index, part in self.parts():
            if index == wanted:
                return self.segment(index, part)
        return None

    def read(self, segment: ArchivedSegment) -> bytes:
        """The bytes of a segment file."""
        return (self._folder / self._key(segment.index, segment.part)).read_bytes()

    def _key(self, index: int, part: VisibleSegment) -> str:
        compacted = self._network.compactions if part.end <= self._network.compacted_to else 0
        return f"{segment_name(index)}.{part.start}-{part.end}.{compacted}"

    def _rows(self, part: VisibleSegment) -> Iterator[Row]:
        compacted = part.end <= self._network.compacted_to
        for info in self._network.infos(part.segment):
            if info.position + info.events <= part.start or info.position >= part.end:
                continue
            block = read_block(info)
            for event in block_events(block):
                kind = block.kinds[event.position - info.position]
                if part.start <= event.position < part.end and kind != UNKNOWN and not event.flaw:
                    if compacted and self._superseded(event):
                        continue
                    row = _row(event, kind)
                    if row is not None:
                        yield row

    def _superseded(self, event: LedgerEvent) -> bool:
        """Whether a later row replaces this one: the same record written again, its account deleted or resynced."""
        if self._latest is None or self._latest[0] != self._network.compactions:
            self._latest = (self._network.compactions, *self._survey())
        _, records, accounts = self._latest
        if event.collection is None or event.rkey is None:
            return False
        key = (event.did, event.collection, event.rkey)
        return records[key] > event.position or accounts.get(event.did, -1) > event.position

    def _survey(self) -> tuple[dict[tuple[str, str, str], int], dict[str, int]]:
        records: dict[tuple[str, str, str], int] = {}
        accounts: dict[str, int] = {}
        for _, part in self.parts():
            for info in self._network.infos(part.segment):
                block = read_block(info)
                for event in block_events(block):
                    kind = block.kinds[event.position - info.position]
                    if kind in (CREATE, UPDATE, DELETE, RESYNC):
                        records[event.did, event.collection or "", event.rkey or ""] = event.position
                    elif kind == SYNC or (kind == ACCOUNT and event.record.get("status") == "deleted"):
                        accounts[event.did] = event.position
        return records, accounts


def segment_name(index: int) -> str:
    """`seg_`, the index in base 36 with ten digits, `.jss`."""
    digits = ""
    while index:
        index, digit = divmod(index, 36)
        digits = _BASE36[digit] + digits
    return f"seg_{digits:0>10}.jss"


def _row(event: LedgerEvent, kind: int) -> Row | None:
    """None for an event whose record DAG-CBOR cannot hold: no real server could have archived it."""
    payload = b""
    if kind != DELETE:
        try:
            payload = encode(event.record)
        except (ValueError, RecursionError, msgspec.MsgspecError):
            return None
        if event.unparsable:
            return None
    names = (event.collection or "", event.did, event.rkey or "", event.rev or "")
    collection, did, rkey, rev = (name.encode() for name in names)
    if len(collection) > 255 or len(rkey) > 255:
        return None
    return Row(event.seq, event.time_us, kind, collection, did, rkey, rev, payload)

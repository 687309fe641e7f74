"""Events as v2 frames: the kinds, a batch of them, and the writer that gives each its sequence number."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np

from simulator.dag_cbor import record_cid
from simulator.ids import random_cids
from simulator.mix import KNOWN

# The numbers are those of the archive's segment files; UNKNOWN stands for frames of a kind that no client knows.
CREATE, UPDATE, DELETE, IDENTITY, ACCOUNT, SYNC, RESYNC, UNKNOWN = 1, 2, 3, 4, 5, 6, 7, 8
OPERATIONS = {CREATE: b"create", UPDATE: b"update", DELETE: b"delete", RESYNC: b"create"}
KIND_NAMES = {
    CREATE: "commit",
    UPDATE: "commit",
    DELETE: "commit",
    IDENTITY: "identity",
    ACCOUNT: "account",
    SYNC: "sync",
    RESYNC: "commit",
    UNKNOWN: "unknown",
}
RELAY_SEQ = 31_000_000_000  # the relay's numbering is another one than Jetstream's

HEAD = b'{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#'
COMMIT_FRAME = (
    HEAD
    + b'commit","cid":"%b","collection":"%b","did":"%b","operation":"%b","record":%b,"rev":"%b","rkey":"%b","seq":%d,"time":"%b"}}'
)
_DELETE = (
    HEAD + b'commit","collection":"%b","did":"%b","operation":"delete","rev":"%b","rkey":"%b","seq":%d,"time":"%b"}}'
)
_IDENTITY = HEAD + b'identity","did":"%b","identity":{"did":"%b",%b"seq":%d,"time":"%b"},"seq":%d,"time":"%b"}}'
_ACCOUNT = (
    HEAD + b'account","account":{"active":%b,"did":"%b","seq":%d,%b"time":"%b"},"did":"%b","seq":%d,"time":"%b"}}'
)
_SYNC = (
    HEAD
    + b'sync","did":"%b","seq":%d,"sync":{"blocks":{"$bytes":"%b"},"did":"%b","rev":"%b","seq":%d,"time":"%b"},"time":"%b"}}'
)
_UNKNOWN = HEAD + b'label","did":"%b","label":{"did":"%b","val":"spam"},"seq":%d,"time":"%b"}}'
_UNKNOWN_ENVELOPE = (
    b'{"$type":"heartbeat","payload":{"$type":"network.bsky.jetstream.subscribeEvents#tick","seq":%d,"time":"%b"}}'
)


@dataclass
class Batch:
    """Consecutive events: their v2 frames and what the log and the ledger need to know without parsing them."""

    frames: list[bytes] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    kinds: bytearray = field(default_factory=bytearray)
    flaws: bytearray = field(default_factory=bytearray)  # 0 = sound, otherwise how the wire breaks the frame
    tables: list[str] = field(default_factory=list)

    def add(self, frame: bytes, seq: int, time_us: int, kind: int, table: str) -> None:
        """Append one sound event."""
        self.frames.append(frame)
        self.seqs.append(seq)
        self.times.append(time_us)
        self.kinds.append(kind)
        self.flaws.append(0)
        self.tables.append(table)

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class Moment:
    """When an event happens: witness time as number and as v2 text."""

    time_us: int
    stamp: bytes

    @property
    def relay_time(self) -> bytes:
        """The upstream time text, with milliseconds."""
        return self.stamp[:23] + b"Z"


class EventWriter:
    """Appends events to batches; `next_seq` is the number of the next one."""

    def __init__(self, first_seq: int, bulk: np.random.Generator, *, content_cids: bool) -> None:
        self.next_seq = first_seq
        self._bulk = bulk
        self._content_cids = content_cids

    def cid(self, record: bytes) -> bytes:
        """The CID of a record: the real one, or a random one where DAG-CBOR cannot hold it or real ones are not asked for."""
        if self._content_cids:
            try:
                return record_cid(record)
            except (ValueError, RecursionError, msgspec.MsgspecError):
                pass
        return random_cids(self._bulk, 1)[0]

    def commit(
        self, out: Batch, kind: int, collection: str, did: bytes, rkey: bytes, rev: bytes, record: bytes, when: Moment
    ) -> bytes:
        """Append one commit event of any operation and return its CID; `record` is ignored for a delete."""
        seq = self._take()
        name = collection.encode()
        cid = b""
        if kind == DELETE:
            frame = _DELETE % (name, did, rev, rkey, seq, when.stamp)
        else:
            cid = self.cid(record)
            frame = COMMIT_FRAME % (cid, name, did, OPERATIONS[kind], record, rev, rkey, seq, when.stamp)
        out.add(frame, seq, when.time_us, kind, collection if collection in KNOWN else "other")
        return cid

    def identity(self, out: Batch, did: bytes, handle: bytes | None, when: Moment) -> None:
        """Append an identity event; most real ones carry no handle."""
        seq = self._take()
        named = b'"handle":"%b",' % handle if handle else b""
        frame = _IDENTITY % (did, did, named, RELAY_SEQ + seq, when.relay_time, seq, when.stamp)
        out.add(frame, seq, when.time_us, IDENTITY, "identity")

    def account(self, out: Batch, did: bytes, active: bool, status: bytes | None, when: Moment) -> None:
        """Append an account event; `status` None leaves the member out."""
        seq = self._take()
        named = b'"status":"%b",' % status if status else b""
        flag = b"true" if active else b"false"
        frame = _ACCOUNT % (flag, did, RELAY_SEQ + seq, named, when.relay_time, did, seq, when.stamp)
        out.add(frame, seq, when.time_us, ACCOUNT, "account")

    def sync(self, out: Batch, did: bytes, rev: bytes, blocks: bytes, when: Moment, *, synthetic: bool = False) -> None:
        """Append a sync event; a synthetic one has relay seq 0 and an empty time, as the v2 server makes them itself."""
        seq = self._take()
        relay_seq, relay_time = (0, b"") if synthetic else (RELAY_SEQ + seq, when.relay_time)
        out.add(
            _SYNC % (did, seq, blocks, did, rev, relay_seq, relay_time, when.stamp), seq, when.time_us, SYNC, "sync"
        )

    def unknown(self, out: Batch, did: bytes, when: Moment, *, envelope: bool) -> None:
        """Append a frame whose payload, or whose envelope, is of a type that does not exist yet. No event for any table."""
        seq = self._take()
        frame = _UNKNOWN_ENVELOPE % (seq, when.stamp) if envelope else _UNKNOWN % (did, did, seq, when.stamp)
        out.add(frame, seq, when.time_us, UNKNOWN, "unknown")

    def _take(self) -> int:
        seq = self.next_seq
        self.next_seq = seq + 1
        return seq

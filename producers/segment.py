"""Archive segment files of a v2 server (`.jss`): header, block index, blocks, rows as events. Pure.

Layout: the v2 server's segment format version 1, all numbers little endian. Decoders take bytes from outside, so every length is
checked; what does not fit is a SegmentError, and a row that cannot be an event is a `Rejected`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec
import xxhash
import zstandard

from producers import dag_cbor
from producers.wire import MAX_SEQ, MAX_TIME_US, MIN_TIME_US, Account, Commit, Event, Identity, Rejected, Sync
from schemas.errors import DeadLetterReason

HEADER_BYTES: Final = 256
MAGIC: Final = b"jss0"
VERSION: Final = 1
MAX_BLOCK_BYTES: Final = 1 << 30
"""Hard limit of one decompressed block, whatever the index says."""

# Small steps bound what one call can inflate before the limit is looked at.
_INPUT_STEP: Final = 64 * 1024

_HEADER: Final = struct.Struct("<4sQHIIIQQqqQQQQQ")
_INDEX_ENTRY: Final = struct.Struct("<QIIIQQqq")
_LENGTH: Final = struct.Struct("<Q")

_CREATE, _UPDATE, _DELETE, _IDENTITY, _ACCOUNT, _SYNC, _RESYNC = range(1, 8)
_OPERATION: Final = {_CREATE: "create", _UPDATE: "update", _DELETE: "delete", _RESYNC: "create"}
_RELAYED: Final[dict[int, type[Identity | Account | Sync]]] = {_IDENTITY: Identity, _ACCOUNT: Account, _SYNC: Sync}


class SegmentError(ValueError):
    """The bytes are no segment, no block, or a damaged one."""


class SegmentHeader(NamedTuple):
    """What the first 256 bytes say; times in unix microseconds."""

    checksum: int
    blocks: int
    events: int
    min_seq: int
    max_seq: int
    min_witnessed: int
    max_witnessed: int
    footer_offset: int
    block_index_offset: int

    @property
    def is_sealed(self) -> bool:
        """Whether the file is complete; the active one has no checksum yet."""
        return self.checksum != 0


class BlockEntry(NamedTuple):
    """One line of the block index; `offset` is that of the length before the zstd frame."""

    offset: int
    compressed: int
    uncompressed: int
    events: int
    min_seq: int
    max_seq: int
    min_witnessed: int
    max_witnessed: int


class Row(NamedTuple):
    """One row of a block: its event, or why it is none, and whether it stems from a repository read again."""

    seq: int
    time_us: int
    event: Event | Rejected
    resync: bool
    payload: bytes


def read_header(data: bytes) -> SegmentHeader:
    """Read the header at the beginning of `data`. Raises SegmentError."""
    if len(data) < HEADER_BYTES:
        raise SegmentError(f"{len(data)} bytes are shorter than a header")
    (magic, checksum, version, blocks, events, _, min_seq, max_seq, min_w, max_w, footer, _, _, _, index) = (
        _HEADER.unpack_from(data)
    )  # fmt: skip
    if magic != MAGIC:
        raise SegmentError(f"starts with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise SegmentError(f"segment version {version} is not known")
    return SegmentHeader(checksum, blocks, events, min_seq, max_seq, min_w, max_w, footer, index)


def verify(data: bytes, header: SegmentHeader) -> None:
    """Compare a sealed file with its own checksum (it covers header and footer; blocks have theirs). Raises SegmentError."""
    if not HEADER_BYTES <= header.footer_offset <= len(data):
        raise SegmentError("the footer lies outside the file")
    computed = xxhash.xxh3_64_intdigest(data[12:HEADER_BYTES] + data[header.footer_offset :])
    if computed != header.checksum:
        raise SegmentError(f"checksum {computed:016x} instead of {header.checksum:016x}")


def read_block_index(data: bytes, header: SegmentHeader) -> tuple[BlockEntry, ...]:
    """The block index of a whole file. Raises SegmentError."""
    end = header.block_index_offset + header.blocks * _INDEX_ENTRY.size
    if header.block_index_offset < HEADER_BYTES or end > len(data):
        raise SegmentError("the block index lies outside the file")
    return tuple(BlockEntry(*entry) for entry in _INDEX_ENTRY.iter_unpack(data[header.block_index_offset : end]))


def blocks_of(data: bytes) -> Iterator[bytes]:
    """The zstd frames of a whole, sealed file, in order. Raises SegmentError."""
    header = read_header(data)
    if header.is_sealed:
        verify(data, header)
    for entry in read_block_index(data, header):
        if entry.offset + _LENGTH.size > len(data):
            raise SegmentError("a block lies outside the file")
        (length,) = _LENGTH.unpack_from(data, entry.offset)
        start = entry.offset + _LENGTH.size
        if length != entry.compressed or start + length > len(data):
            raise SegmentError("a block's length and the index disagree")
        yield data[start : start + length]


def decompress_block(frame: bytes) -> bytes:
    """The body of a block. Raises SegmentError."""
    body = bytearray()
    stream = zstandard.ZstdDecompressor().decompressobj()
    try:
        for start in range(0, len(frame), _INPUT_STEP):
            body += stream.decompress(frame[start : start + _INPUT_STEP])
            if len(body) > MAX_BLOCK_BYTES:
                raise SegmentError(f"a block of more than {MAX_BLOCK_BYTES} bytes")
    except zstandard.ZstdError as error:
        raise SegmentError(f"a block does not decompress: {error}") from None
    if not stream.eof:
        raise SegmentError("a block is cut off")
    return bytes(body)


def rows_of(body: bytes) -> Iterator[Row]:
    """The rows of a decompressed block body, in order of sequence. Raises SegmentError."""
    columns = _Columns(body)
    for at in range(columns.count):
        kind = columns.kinds[at]
        collection, did, rkey, rev, payload = columns.areas(at)
        seq = columns.seqs[at]
        time_us = columns.indexed[at] or columns.witnessed[at]
        event: Event | Rejected
        try:
            event = _event(kind, seq, time_us, collection, did, rkey, rev, payload)
        except (ValueError, RecursionError) as error:
            event = Rejected(DeadLetterReason.UNDECODABLE, f"archive row of kind {kind}: {error}"[:500], seq, time_us)
        yield Row(seq, time_us, event, kind == _RESYNC, payload)


class _Columns:
    """The fixed-width columns of a block and a running position in its byte areas."""

    def __init__(self, body: bytes) -> None:
        if len(body) < 4:
            raise SegmentError("a block without a row count")
        (self.count,) = struct.unpack_from("<I", body)
        count, position = self.count, 4
        columns: list[tuple[int, ...]] = []
        for code, width in (("Q", 8), ("q", 8), ("q", 8), ("B", 1), ("B", 1), ("H", 2), ("B", 1), ("B", 1), ("I", 4)):
            end = position + width * count
            if end > len(body):
                raise SegmentError("a block is shorter than its columns")
            columns.append(struct.unpack_from(f"<{count}{code}", body, position))
            position = end
        self.seqs, self.witnessed, self.indexed, self.kinds, *lengths = columns
        self._lengths = lengths
        self._positions: list[int] = []
        for column in lengths:
            self._positions.append(position)
            position += sum(column)
        if position != len(body):
            raise SegmentError(f"a block of {len(body)} bytes whose columns say {position}")
        self._body = body

    def areas(self, at: int) -> list[bytes]:
        """Collection, did, rkey, rev and payload of the next row; call once per row, in order."""
        parts = []
        for area, column in enumerate(self._lengths):
            start = self._positions[area]
            self._positions[area] = start + column[at]
            parts.append(self._body[start : start + column[at]])
        return parts


def _event(
    kind: int, seq: int, time_us: int, collection: bytes, did: bytes, rkey: bytes, rev: bytes, payload: bytes
) -> Event:
    if seq > MAX_SEQ or not MIN_TIME_US <= time_us <= MAX_TIME_US:
        raise ValueError("sequence or time out of range")
    if kind in _RELAYED:
        upstream = dag_cbor.decode(payload)
        if not isinstance(upstream, dict):
            raise ValueError("the upstream object is none")
        return _RELAYED[kind](seq, time_us, did.decode(), _json(upstream))
    operation = _OPERATION.get(kind)
    if operation is None:
        raise ValueError("unknown kind")
    if kind == _DELETE:
        return Commit(
            seq, time_us, did.decode(), operation, collection.decode(), rkey.decode(), rev.decode(), None, None
        )
    cid = dag_cbor.cid_of(hashlib.sha256(payload).digest())
    record = _json(dag_cbor.decode(payload))
    return Commit(seq, time_us, did.decode(), operation, collection.decode(), rkey.decode(), rev.decode(), cid, record)


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)

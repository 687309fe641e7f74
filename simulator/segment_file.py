"""Archive segment files (`.jss`): section 11.5 of the Jetstream reference. Pure encoding, no I/O."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import xxhash
import zstandard

HEADER_SIZE = 256
_HEADER = struct.Struct("<4sQHIIIQQqqQQQQQ")
_INDEX_ENTRY = struct.Struct("<QIIIQQqq")
_SENTINELS = {4: b"$identity", 5: b"$account", 6: b"$sync"}


@dataclass(frozen=True)
class Row:
    """One archived event; `kind` as in `simulator.events`, `payload` DAG-CBOR or empty."""

    seq: int
    witnessed_us: int
    kind: int
    collection: bytes
    did: bytes
    rkey: bytes
    rev: bytes
    payload: bytes

    @property
    def indexed_as(self) -> bytes:
        """Its entry in the collection index."""
        return _SENTINELS.get(self.kind, self.collection)


@dataclass(frozen=True)
class BlockEntry:
    """One line of the block index."""

    offset: int
    compressed: int
    uncompressed: int
    events: int
    min_seq: int
    max_seq: int
    min_witnessed: int
    max_witnessed: int


@dataclass(frozen=True)
class SegmentSummary:
    """What planning and listing need of a file; `collections` and `dids` are per block, DIDs as short hashes (they over-select)."""

    checksum: str
    size: int
    events: int
    blocks: tuple[BlockEntry, ...]
    collections: tuple[frozenset[bytes], ...]
    dids: tuple[frozenset[int], ...]


def did_hash(did: bytes) -> int:
    """The coarse hash by which blocks are chosen for a DID."""
    return xxhash.xxh32_intdigest(did) & 0xFFFF


def encode_segment(rows: list[Row], block_events: int) -> tuple[bytes, SegmentSummary]:
    """The file of these rows, which are in order of seq and at least one."""
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True, write_content_size=False)
    body = bytearray()
    blocks, collections, dids = [], [], []
    for start in range(0, len(rows), block_events):
        part = rows[start : start + block_events]
        raw = _block(part)
        packed = compressor.compress(raw)
        seqs, times = [row.seq for row in part], [row.witnessed_us for row in part]
        offset = HEADER_SIZE + len(body)
        body += struct.pack("<Q", len(packed)) + packed
        blocks.append(
            BlockEntry(offset, len(packed), len(raw), len(part), min(seqs), max(seqs), min(times), max(times))
        )
        collections.append(frozenset(row.indexed_as for row in part))
        dids.append(frozenset(did_hash(row.did) for row in part))
    footer_offset = HEADER_SIZE + len(body)
    index = b"".join(
        _INDEX_ENTRY.pack(
            entry.offset, entry.compressed, entry.uncompressed, entry.events, entry.min_seq, entry.max_seq,
            entry.min_witnessed, entry.max_witnessed,
        )
        for entry in blocks
    )  # fmt: skip
    blooms = footer_offset + len(index)  # both bloom areas are empty: clients may ignore them
    footer = index + _collection_index(rows, collections)
    header = _HEADER.pack(
        b"jss0", 0, 1, len(blocks), len(rows), len({row.did for row in rows}), blocks[0].min_seq, blocks[-1].max_seq,
        min(entry.min_witnessed for entry in blocks), max(entry.max_witnessed for entry in blocks),
        footer_offset, blooms, blooms, blooms, footer_offset,
    ).ljust(HEADER_SIZE, b"\0")  # fmt: skip
    checksum = xxhash.xxh3_64_intdigest(header[12:] + footer)
    data = header[:4] + struct.pack("<Q", checksum) + header[12:] + bytes(body) + footer
    return data, SegmentSummary(
        f"{checksum:016x}", len(data), len(rows), tuple(blocks), tuple(collections), tuple(dids)
    )


def _block(rows: list[Row]) -> bytes:
    columns = (
        struct.pack("<I", len(rows)),
        np.array([row.seq for row in rows], np.uint64).tobytes(),
        np.array([row.witnessed_us for row in rows], np.int64).tobytes(),
        np.zeros(len(rows), np.int64).tobytes(),
        bytes(row.kind for row in rows),
        np.array([len(row.collection) for row in rows], np.uint8).tobytes(),
        np.array([len(row.did) for row in rows], np.uint16).tobytes(),
        np.array([len(row.rkey) for row in rows], np.uint8).tobytes(),
        np.array([len(row.rev) for row in rows], np.uint8).tobytes(),
        np.array([len(row.payload) for row in rows], np.uint32).tobytes(),
    )
    areas = (
        *(row.collection for row in rows),
        *(row.did for row in rows),
        *(row.rkey for row in rows),
        *(row.rev for row in rows),
        *(row.payload for row in rows),
    )
    return b"".join(columns + areas)


def _collection_index(rows: list[Row], blocks: list[frozenset[bytes]]) -> bytes:
    counts: dict[bytes, int] = {}
    for row in rows:
        counts[row.indexed_as] = counts.get(row.indexed_as, 0) + 1
    names = sorted(counts)
    width = (len(blocks) + 7) // 8
    bitmaps = [
        sum(1 << at for at, present in enumerate(blocks) if name in present).to_bytes(width, "little") for name in names
    ]
    body = b"".join(bytes((len(name),)) + struct.pack("<I", counts[name]) + name for name in names) + b"".join(bitmaps)
    packed = zstandard.ZstdCompressor(level=3).compress(body)
    return struct.pack("<IIII", len(names), len(blocks), width, len(body)) + packed

"""The simulator's append-only log: every event it ever made, in segment files of compressed blocks.

A position is the count of events before an event; it only ever grows, whatever the sequence numbers do. Block on disk (little
endian): a header, the counts as JSON, the zstd body. The body holds, per event, seq and time (as differences), kind, flaw and frame
length, then the frames. A block is written with one call and before anything of it is sent; a torn last block (a killed process)
was therefore never sent and is cut off at the next start.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path

import numpy as np
import xxhash
import zstandard

from simulator.errors import DataFolderError, LogDamagedError
from simulator.events import CREATE, DELETE, RESYNC, UNKNOWN, UPDATE, Batch

_MAGIC = b"jsl1"
_HEADER = struct.Struct("<4sIQQQQqqIIIQ")
_COLUMNS = 8 + 8 + 1 + 1 + 4
Counts = dict[str, list[int]]
COUNT_NAMES = ("events", "creates", "updates", "deletes", "malformed")


@dataclass(frozen=True)
class BlockInfo:
    """Where a block lies and what it covers; `epoch` changes when the served archive starts over."""

    path: Path
    offset: int
    size: int
    position: int
    events: int
    epoch: int
    first_seq: int
    last_seq: int
    min_time: int
    max_time: int
    counts: Counts


@dataclass(frozen=True)
class Block:
    """One decoded block."""

    info: BlockInfo
    seqs: list[int]
    times: list[int]
    kinds: bytes
    flaws: bytes
    frames: list[bytes]


@dataclass(frozen=True)
class SegmentInfo:
    """One segment file; the last one of a log is active and its figures grow."""

    path: Path
    position: int
    events: int
    epoch: int
    first_seq: int
    last_seq: int
    min_time: int
    max_time: int


def count(batch: Batch) -> Counts:
    """Per table: sound events, creates, updates, deletes, and broken frames (which are none of the former).

    Frames of unknown kinds are no events and counted nowhere.
    """
    tallies = Counter(zip(batch.tables, batch.kinds, (flaw > 0 for flaw in batch.flaws), strict=True))
    counts: Counts = {}
    for (table, kind, broken), number in tallies.items():
        if kind == UNKNOWN:
            continue
        row = counts.setdefault(table, [0, 0, 0, 0, 0])
        if broken:
            row[4] += number
            continue
        row[0] += number
        row[1] += number * (kind in (CREATE, RESYNC))
        row[2] += number * (kind == UPDATE)
        row[3] += number * (kind == DELETE)
    return counts


def add_counts(total: Counts, more: Counts) -> None:
    """Add `more` into `total`."""
    for table, row in more.items():
        own = total.setdefault(table, [0, 0, 0, 0, 0])
        for at, number in enumerate(row):
            own[at] += number


def segment_paths(folder: Path) -> list[Path]:
    """Segment files by position."""
    return sorted(folder.glob("segment-*.log"))


def read_infos(path: Path, *, tail: bool) -> Iterator[BlockInfo]:
    """The blocks of a segment by their headers alone.

    `tail` says that this is the last segment, whose last block may be torn or just being written: reading stops there.
    In a sealed segment that is damage: LogDamagedError.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        offset = 0
        while offset < size:
            head = file.read(_HEADER.size)
            if len(head) < _HEADER.size:
                break
            magic, body_size, position, events, first_seq, last_seq, low, high, epoch, counts_size, _, digest = (
                _HEADER.unpack(head)
            )
            if magic != _MAGIC:
                raise _damaged(path, offset, "no block begins here")
            counts = file.read(counts_size)
            end = offset + _HEADER.size + counts_size + body_size
            if end > size:
                break
            if xxhash.xxh3_64_intdigest(head[:-8] + counts) != digest:
                raise _damaged(path, offset, "header checksum does not match")
            yield BlockInfo(
                path, offset, end - offset, position, events, epoch, first_seq, last_seq, low, high, json.loads(counts)
            )
            offset = end
            file.seek(offset)
        if offset < size and not tail:
            raise _damaged(path, offset, "the file ends within a block")


def read_block(info: BlockInfo) -> Block:
    """Decode a block; LogDamagedError if its body does not decompress."""
    with info.path.open("rb") as file:
        file.seek(info.offset)
        data = file.read(info.size)
    fields = _HEADER.unpack_from(data)
    try:
        body = zstandard.ZstdDecompressor().decompress(data[_HEADER.size + fields[9] :], max_output_size=fields[10])
    except zstandard.ZstdError as error:
        raise _damaged(info.path, info.offset, str(error)) from error
    count = info.events
    steps = np.frombuffer(body, np.int64, 2 * count)
    seqs: list[int] = np.cumsum(steps[:count]).tolist()
    times: list[int] = np.cumsum(steps[count:]).tolist()
    at = 16 * count
    kinds, flaws = body[at : at + count], body[at + count : at + 2 * count]
    lengths = np.frombuffer(body, np.uint32, count, at + 2 * count)
    ends: list[int] = (np.cumsum(lengths, dtype=np.int64) + _COLUMNS * count).tolist()
    starts = [_COLUMNS * count, *ends[:-1]]
    frames = [body[start:end] for start, end in zip(starts, ends, strict=True)]
    return Block(info, seqs, times, kinds, flaws, frames)


class LogWriter:
    """Appends blocks; one process at a time (the service holds a lock on the folder)."""

    def __init__(self, folder: Path, segment_events: int) -> None:
        self._folder = folder
        self._segment_events = segment_events
        self._compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.position = 0
        self.epoch = 0
        self.last_seq = 0
        self.last_time = 0
        self.counts: Counts = {}
        self.segments: list[SegmentInfo] = []
        self.blocks: list[BlockInfo] = []  # of the active segment
        self._file = self._recover()

    def append(self, batch: Batch) -> BlockInfo:
        """Write one block; returns when the operating system has it. A full segment is sealed and a new one begun."""
        if self._segment_full():
            self._file.close()
            self.blocks = []
            self._file = self._segment_path(self.position).open("ab")
        counts = count(batch)
        seqs = np.array(batch.seqs, np.int64)
        times = np.array(batch.times, np.int64)
        lengths = np.array([len(frame) for frame in batch.frames], np.uint32)
        columns = (np.diff(seqs, prepend=0), np.diff(times, prepend=0))
        raw = b"".join(
            (
                columns[0].tobytes(),
                columns[1].tobytes(),
                bytes(batch.kinds),
                bytes(batch.flaws),
                lengths.tobytes(),
                *batch.frames,
            )
        )
        body = self._compressor.compress(raw)
        tally = json.dumps(counts, separators=(",", ":")).encode()
        low, high = int(times.min()), int(times.max())
        size = len(batch)
        last_seq = int(seqs.max())
        fields = (
            _MAGIC,
            len(body),
            self.position,
            size,
            batch.seqs[0],
            last_seq,
            low,
            high,
            self.epoch,
            len(tally),
            len(raw),
        )
        head = _HEADER.pack(*fields, 0)[:-8]
        digest = struct.pack("<Q", xxhash.xxh3_64_intdigest(head + tally))
        offset = self._file.tell()
        data = head + digest + tally + body
        path = Path(self._file.name)
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise DataFolderError(
                f"cannot write {path}: {error}", "Free some space, then start again: the log continues"
            ) from error
        info = BlockInfo(
            path, offset, len(data), self.position, size, self.epoch, batch.seqs[0], last_seq, low, high, counts
        )
        self._note(info)
        return info

    def close(self) -> None:
        """Force everything to disk and close."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _note(self, info: BlockInfo) -> None:
        if not self.blocks:
            self.segments.append(
                SegmentInfo(
                    info.path, info.position, 0, info.epoch, info.first_seq, info.last_seq, info.min_time, info.max_time
                )
            )
        self.blocks.append(info)
        last = self.segments[-1]
        self.segments[-1] = SegmentInfo(
            last.path,
            last.position,
            last.events + info.events,
            info.epoch,
            last.first_seq,
            info.last_seq,
            min(last.min_time, info.min_time),
            max(last.max_time, info.max_time),
        )
        self.position = info.position + info.events
        self.last_seq, self.last_time, self.epoch = info.last_seq, max(self.last_time, info.max_time), info.epoch
        add_counts(self.counts, info.counts)

    def _segment_full(self) -> bool:
        if not self.blocks:
            return False
        last = self.segments[-1]
        return last.events >= self._segment_events or self.epoch != last.epoch

    def _segment_path(self, position: int) -> Path:
        return self._folder / f"segment-{position:015d}.log"

    def _recover(self) -> BufferedWriter:
        paths = segment_paths(self._folder)
        for path in paths:
            tail = path == paths[-1]
            self.blocks = []
            end = 0
            for info in read_infos(path, tail=tail):
                self._note(info)
                end = info.offset + info.size
            if tail and end < path.stat().st_size:
                os.truncate(path, end)
        path = paths[-1] if paths else self._segment_path(0)
        return path.open("ab")


def _damaged(path: Path, offset: int, why: str) -> LogDamagedError:
    return LogDamagedError(
        f"{path} is damaged at byte {offset}: {why}",
        "The log is the truth the tests compare with and is never repaired; move the data folder away to start a new network",
    )

"""An index of accounts: which rolled files have rows of an account, and how many records, edits and deletions of it.

Beside each rolled file lies `<lake>/.account-index/<sha256 of the file>.accounts`: every account of the file with the number of
its rows by collection and operation. What an account did over months is then summed up instead of read, and whoever looks for
rows of an account opens only the files that have some. A file without a side file has to be read. Named by the digest of the file
it describes, a side file can be missing but never stale.

Format: b"PXA" + format number 1 (1 byte), number of pages, bytes of the kinds, CRC-32 of the rest of the head; then the rest of
the head: for each page how many accounts it and all before it have, and the kinds. Numbers are 4 bytes, little endian. A kind
is a line of JSON: what an account has, as a list of [collection, creates, updates, deletes, records that are not erased]. Then
the pages, each with the lower 5 bytes (big endian) of what identifies its accounts, in order, the number of each one's kind (1
byte; 255: read the file), and the CRC-32 of both, begun with the number of the page. An account is identified by the XXH64
(seed 0) of its DID: the upper bits, as many as number the pages, name its page, and the next 40 are what it has there. Accounts
of a file that are identified alike are one of kind 255; that an account which a file does not have is taken for one that it
has, happens once in some billion looks.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from lake.convert import ERASED
from lake.manifest import LiveFile, Snapshot
from lake.paths import sync_folder
from lake.store import LakeStore

log = logging.getLogger("explorer.lake")

FOLDER: Final = ".account-index"
_SUFFIX: Final = ".accounts"
_HEADER: Final = b"PXA\x01"
_HEADER_BYTES: Final = 16
_NUMBER: Final = 4
_HASH_BYTES: Final = 5
_ENTRY: Final = _HASH_BYTES + 1
_READ_FILE: Final = 255
_PAGE_ACCOUNTS: Final = 64
"""About as many: a page is read and checked as one."""
_FIRST_READ: Final = 16 << 10
"""The whole head of nearly every side file."""
_COLUMNS: Final = ("did", "collection", "operation", ERASED)


class Activity(NamedTuple):
    """Rows of one account in a file; `standing` are records (creates and updates) that are not erased. `collection` is None, and
    every number 0, for what happened to the account itself."""

    collection: str | None
    creates: int
    updates: int
    deletes: int
    standing: int


class _DamagedError(Exception):
    """A side file is not what was written."""


class AccountIndex:
    """Answers from the side files of one lake. Keeps nothing open; thread-safe."""

    def __init__(self, root: Path) -> None:
        self._folder = f"{root / FOLDER}{os.sep}"

    def activity(self, file: LiveFile, did: str) -> Sequence[Activity] | None:
        """What the file has of an account: empty for no row at all; None when only reading it tells.

        Blocks for some ten microseconds when the side file is in memory, else for two reads.
        """
        return self._look(file, (did,))[0]

    def may_hold(self, files: Iterable[LiveFile], dids: Sequence[str]) -> list[LiveFile]:
        """The files that can have a row of one of the accounts, in their order; never too few."""
        return [file for file in files if any(found is None or found for found in self._look(file, dids))]

    def _look(self, file: LiveFile, dids: Sequence[str]) -> list[Sequence[Activity] | None]:
        if file.kind != "rolled":
            return [None] * len(dids)
        path = f"{self._folder}{file.sha256}{_SUFFIX}"
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return [None] * len(dids)
        try:
            opened = _Opened(descriptor)
            return [opened.activity(did) for did in dids]
        except _DamagedError as error:
            log.warning(
                "a side file of the account index is damaged and not used: remove it, maintenance makes it anew",
                extra={"path": path, "cause": str(error)},
            )
            return [None] * len(dids)
        finally:
            os.close(descriptor)


def build(store: LakeStore, file: LiveFile) -> int:
    """Write the side file of one file, durably; returns its bytes.

    Blocks for reading three columns: about a second per million rows. Raises FileDamaged, OSError.
    """
    encoded = _encoded(_kinds(store, file))
    folder = store.root / FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / f"{file.sha256}{_SUFFIX}"
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as out:
        out.write(encoded)
        out.flush()
        os.fsync(out.fileno())
    temporary.rename(path)
    sync_folder(folder)
    return len(encoded)


def missing(root: Path, snapshot: Snapshot) -> list[LiveFile]:
    """Rolled files without a side file, newest first."""
    have = _names(root)
    files = [file for table in snapshot.tables() for file in snapshot.files(table) if file.kind == "rolled"]
    return sorted(
        (file for file in files if f"{file.sha256}{_SUFFIX}" not in have), key=lambda file: file.hour_us, reverse=True
    )


def sweep(root: Path, snapshot: Snapshot) -> int:
    """Remove side files of files that are not in the lake any more; returns how many. Call under the maintenance lock."""
    wanted = {f"{file.sha256}{_SUFFIX}" for table in snapshot.tables() for file in snapshot.files(table)}
    gone = _names(root) - wanted
    for name in gone:
        (root / FOLDER / name).unlink(missing_ok=True)
    return len(gone)


def _names(root: Path) -> set[str]:
    with suppress(FileNotFoundError):
        return {path.name for path in (root / FOLDER).iterdir()}
    return set()


def _kinds(store: LakeStore, file: LiveFile) -> pl.DataFrame:
    """Each account of a file with its kind."""
    rows = pl.from_arrow(store.read(file.path, list(_COLUMNS)))
    assert isinstance(rows, pl.DataFrame)
    is_record = pl.col("operation").is_in(["create", "update"])
    counted = rows.group_by("did", "collection").agg(
        *((pl.col("operation") == name).sum().alias(name) for name in ("create", "update", "delete")),
        standing=(is_record & pl.col(ERASED).is_null()).sum(),
    )
    names = counted["collection"].unique()
    quoted = pl.col("collection").replace_strict(names, [json.dumps(name) for name in names], return_dtype=pl.String)
    part = pl.format("[{},{},{},{},{}]", quoted, "create", "update", "delete", "standing")
    return (
        counted.sort("collection")
        .select("did", part=part)
        .group_by("did", maintain_order=True)
        .agg(pl.format("[{}]", pl.col("part").str.join(",")).alias("kind"))
    )


def _encoded(accounts: pl.DataFrame) -> bytes:
    """The bytes of a side file of some accounts (`did`, `kind`: a line as the format has it)."""
    codes, lines = _codes(accounts["kind"])
    hashes = np.fromiter(
        (xxhash.xxh64_intdigest(did.encode()) for did in accounts["did"]), np.uint64, count=accounts.height
    )
    bits = max(1, (accounts.height // _PAGE_ACCOUNTS).bit_length())
    order = np.argsort(hashes)
    hashes, codes = hashes[order], codes[order]
    identities = hashes >> np.uint64(64 - bits - 8 * _HASH_BYTES)
    first = np.ones(len(identities), np.bool_)
    first[1:] = identities[1:] != identities[:-1]
    codes[:-1][~first[1:]] = _READ_FILE
    identities, codes = identities[first], codes[first]
    pages = (identities >> np.uint64(8 * _HASH_BYTES)).astype(np.int64)
    ends = np.cumsum(np.bincount(pages, minlength=1 << bits))
    lower = identities.astype(">u8").view(np.uint8).reshape(-1, 8)[:, -_HASH_BYTES:]
    rest = ends.astype("<u4").tobytes() + lines
    head = b"".join([_HEADER, *(number.to_bytes(_NUMBER, "little") for number in (1 << bits, len(lines)))])
    encoded = [head, zlib.crc32(rest, zlib.crc32(head)).to_bytes(_NUMBER, "little"), rest]
    for number, end in enumerate(ends.tolist()):
        begin = int(ends[number - 1]) if number else 0
        page = lower[begin:end].tobytes() + codes[begin:end].tobytes()
        encoded += [page, zlib.crc32(page, number).to_bytes(_NUMBER, "little")]
    return b"".join(encoded)


def _codes(kinds: pl.Series) -> tuple[npt.NDArray[np.uint8], bytes]:
    """For each account the number of its kind, and the kinds: the most frequent ones, a line each."""
    counted = kinds.value_counts().sort("count", "kind", descending=[True, False])
    frequent = counted["kind"].head(_READ_FILE)
    codes = kinds.replace_strict(frequent, np.arange(len(frequent)), default=_READ_FILE, return_dtype=pl.UInt8)
    return codes.to_numpy().copy(), "\n".join(frequent).encode()


class _Opened:
    """An open side file, its head checked."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        head = os.pread(descriptor, _FIRST_READ, 0)
        if len(head) < _HEADER_BYTES or head[:_NUMBER] != _HEADER:
            raise _DamagedError("it does not begin as such a file does")
        self._pages, kinds, crc = (
            int.from_bytes(head[place : place + _NUMBER], "little") for place in range(_NUMBER, _HEADER_BYTES, _NUMBER)
        )
        self._begin = _HEADER_BYTES + _NUMBER * self._pages + kinds
        if self._begin > os.fstat(descriptor).st_size:
            raise _DamagedError("its head is longer than the file")
        if self._begin > len(head):
            head += os.pread(descriptor, self._begin - len(head), len(head))
        rest = memoryview(head)[_HEADER_BYTES : self._begin]
        if zlib.crc32(rest, zlib.crc32(head[: _HEADER_BYTES - _NUMBER])) != crc:
            raise _DamagedError("its head is not as it was written")
        self._head = head

    def activity(self, did: str) -> Sequence[Activity] | None:
        """What the file has of an account; None when the side file does not tell."""
        number, identity = self._place(xxhash.xxh64_intdigest(did.encode()))
        first = self._end(number - 1) if number else 0
        count = self._end(number) - first
        size = _ENTRY * count
        found = os.pread(self._descriptor, size + _NUMBER, self._begin + _ENTRY * first + _NUMBER * number)
        page = found[:size]
        if zlib.crc32(page, number) != int.from_bytes(found[size:], "little"):
            raise _DamagedError(f"page {number} is not as it was written")
        code = _code_of(page, count, identity)
        if code is None:
            return ()
        return None if code == _READ_FILE else self._kind(code)

    def _place(self, hashed: int) -> tuple[int, bytes]:
        bits = self._pages.bit_length() - 1
        identity = (hashed >> (64 - bits - 8 * _HASH_BYTES)) & ((1 << 8 * _HASH_BYTES) - 1)
        return hashed >> (64 - bits), identity.to_bytes(_HASH_BYTES, "big")

    def _end(self, page: int) -> int:
        place = _HEADER_BYTES + _NUMBER * page
        return int.from_bytes(self._head[place : place + _NUMBER], "little")

    def _kind(self, code: int) -> Sequence[Activity]:
        lines = self._head[_HEADER_BYTES + _NUMBER * self._pages : self._begin].split(b"\n")
        return [Activity(*part) for part in json.loads(lines[code])]


def _code_of(page: bytes, count: int, identity: bytes) -> int | None:
    """The kind of an account of a page; None when it is not there."""
    place = page.find(identity, 0, _HASH_BYTES * count)
    while place >= 0 and place % _HASH_BYTES:
        place = page.find(identity, place + 1, _HASH_BYTES * count)
    return None if place < 0 else page[_HASH_BYTES * count + place // _HASH_BYTES]

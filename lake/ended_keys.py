"""What ended long ago, for events that come long after: the keys of every row that ends others, eight bytes each.

A host that lags for weeks delivers a record long after its deletion was applied and its content erased. Answers and merges look
for endings from a week before a row on (`lake.commit.witnessed_since`); rows whose rev is older than that are looked up here
when they are committed, over `horizon_us`, and those that have ended are stored as tombstones at once.

Beside each rolled file that holds ending rows lies `<lake>/.ended/<sha256 of the file>.npy`: sorted int64, the record keys that
are TIDs as they are, of other keys and of accounts a hash with the sign bit. A file without one is read instead. Named by the
digest of the file it describes, a side file can be missing but never stale.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from lake.commit import LATE_US, TID_CLOCK_BITS, superseding_mask
from lake.fold import Endings, blank, endings_of, erasable, read_ending_rows
from lake.manifest import HOUR_US, LiveFile, Snapshot
from lake.paths import sync_folder
from lake.store import LakeStore

FOLDER: Final = ".ended"
LATE_HORIZON_US: Final = 400 * 24 * HOUR_US
"""How far back is looked by default: longer than topics, archives and hosts keep what they may deliver again."""
_OF_ACCOUNTS: Final = ("account", "sync")
_COLUMNS: Final = {
    "account": ["did", "time", "active", "status"],
    "sync": ["did", "rev_tid", "time"],
}
_SIGN: Final = -(1 << 63)

Keys = npt.NDArray[np.int64]


def bury_late(store: LakeStore, snapshot: Snapshot, table: str, rows: pa.Table, horizon_us: int) -> pa.Table:
    """`rows` (of `lake_schema`), emptied where they arrive more than a week after they were written and had ended meanwhile.

    Rows older than `horizon_us` are looked up over that time only. Costs nothing without such rows; else blocks for a
    seventh of a millisecond per file with endings in between. Raises FileDamaged.
    """
    late = np.flatnonzero(_late(rows))
    if table in ("identity", "account") or not len(late):
        return rows
    picked = rows.take(pa.array(late))
    endings = _endings(store, snapshot, table, picked, horizon_us)
    if endings is None:
        return rows
    reasons = erasable(table, picked, endings)
    emptied = blank(table, picked, reasons)
    order = np.arange(rows.num_rows)
    order[late] = rows.num_rows + np.arange(len(late))
    return pa.concat_tables([rows, emptied]).take(pa.array(order))


def missing(store: LakeStore, snapshot: Snapshot) -> list[LiveFile]:
    """Rolled files with ending rows and without a side file, newest first."""
    have = _names(store.root)
    files = [file for table in snapshot.tables() for file in snapshot.files(table)]
    found = [f for f in files if f.kind == "rolled" and f.supersedes and f"{f.sha256}.npy" not in have]
    return sorted(found, key=lambda file: file.hour_us, reverse=True)


def build(store: LakeStore, file: LiveFile) -> int:
    """Writes the side file of one file, durably; returns its bytes. Raises FileDamaged, OSError."""
    keys = np.unique(_keys_of(store, file))
    folder = store.root / FOLDER
    folder.mkdir(exist_ok=True)
    temporary = folder / f"{file.sha256}.{os.getpid()}.tmp"
    with temporary.open("wb") as out:
        np.save(out, keys)
        out.flush()
        os.fsync(out.fileno())
    temporary.rename(_path(store.root, file))
    sync_folder(folder)
    return keys.nbytes


def sweep(store: LakeStore, snapshot: Snapshot) -> int:
    """Removes side files of files that are not in the lake any more; returns how many. Call under the maintenance lock."""
    wanted = {f"{file.sha256}.npy" for table in snapshot.tables() for file in snapshot.files(table)}
    gone = _names(store.root) - wanted
    for name in gone:
        (store.root / FOLDER / name).unlink(missing_ok=True)
    return len(gone)


def _late(rows: pa.Table) -> npt.NDArray[np.bool_]:
    times = rows.column("time").cast(pa.int64())
    written = pc.shift_right(rows.column("rev_tid"), TID_CLOCK_BITS)
    return np.asarray(pc.fill_null(pc.less(written, pc.subtract(times, LATE_US)), False))


def _endings(store: LakeStore, snapshot: Snapshot, table: str, rows: pa.Table, horizon_us: int) -> Endings | None:
    """The endings of some of `rows`, from between their writing and the week that everybody looks through."""
    times = np.asarray(rows.column("time").cast(pa.int64()))
    written = np.asarray(pc.shift_right(rows.column("rev_tid"), TID_CLOCK_BITS))
    low, high = int(np.maximum(written, times - horizon_us).min()) - HOUR_US, int(times.max()) - LATE_US + HOUR_US
    found: dict[str, list[pa.Table]] = {}
    for source in (table, *_OF_ACCOUNTS):
        wanted = np.unique(_record_keys(rows) if source == table else _account_keys(rows))
        for file in snapshot.files(source, low, high):
            if file.supersedes and _any_of(_keys(store, file), wanted):
                found.setdefault(source, []).append(_ending_rows(store, file))
    if not found:
        return None
    return endings_of(*(found.get(source, []) for source in (table, *_OF_ACCOUNTS)))


def _any_of(keys: Keys, wanted: Keys) -> bool:
    """Whether sorted `keys` hold one of `wanted`; touches few pages of a file in memory."""
    if not len(keys):
        return False
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return bool((keys[places] == wanted).any())


def _keys(store: LakeStore, file: LiveFile) -> Keys:
    with suppress(FileNotFoundError, ValueError, EOFError):
        keys: Keys = np.load(_path(store.root, file), mmap_mode="r")
        return keys
    return np.unique(_keys_of(store, file))


def _keys_of(store: LakeStore, file: LiveFile) -> Keys:
    rows = _ending_rows(store, file)
    rows = rows.filter(superseding_mask(file.table, rows))
    return _account_keys(rows) if file.table in _OF_ACCOUNTS else _record_keys(rows)


def _ending_rows(store: LakeStore, file: LiveFile) -> pa.Table:
    if file.table in _OF_ACCOUNTS:
        return store.read(file.path, _COLUMNS[file.table])
    return read_ending_rows(store, file)


def _record_keys(rows: pa.Table) -> Keys:
    numbers = rows.column("rkey_tid")
    keys = np.asarray(pc.fill_null(numbers, 0))
    texts = np.flatnonzero(np.asarray(pc.is_null(numbers)))
    if len(texts):
        keys = keys.copy()
        picked = rows.select(["did", "rkey_text"]).take(pa.array(texts)).to_pylist()
        keys[texts] = _hashed(f"{row['did']}\0{row['rkey_text']}" for row in picked)
    return keys


def _account_keys(rows: pa.Table) -> Keys:
    return _hashed(rows.column("did").to_pylist())


def _hashed(texts: Iterator[str] | Sequence[str]) -> Keys:
    return np.array([(xxhash.xxh3_64_intdigest(text) >> 1) + _SIGN for text in texts], np.int64)


def _path(root: Path, file: LiveFile) -> Path:
    return root / FOLDER / f"{file.sha256}.npy"


def _names(root: Path) -> set[str]:
    with suppress(FileNotFoundError):
        return {path.name for path in (root / FOLDER).iterdir()}
    return set()

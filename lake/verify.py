"""Verification: does every live file exist, whole and unchanged, and do the manifest's numbers agree with it?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake.convert import EDIT, ERASED, lake_schema
from lake.dedupe import Hashes, identity_columns, identity_hashes
from lake.errors import FileDamaged
from lake.manifest import HOUR_US, LiveFile, Manifest, Snapshot, TopicPartition
from lake.paths import parse_path, sha256_of
from lake.retire import Strays, find_strays
from lake.store import LakeStore

_REPEATED: Final = (
    "Stop the writers, put the manifest aside and run `post-explorer lake rebuild`: it keeps every event once."
)
_TORN: Final = re.compile(r"broker (?P<topic>\S+) (?P<partition>\d+) (?P<start>\d+) (?P<end>\d+)")
"""Identity of the gap that stands for offsets which the broker dropped before they were read (`consumers.gaps`)."""
_FOR_EVER: Final = 1 << 62
_RESTORE: Final = "Restore the file from a backup, or replay its hour from the broker (`post-explorer replay`)."


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: the file (or partition), what about it, and what to do."""

    subject: str
    problem: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at. `findings` is empty for a sound lake; orphans and foreign files are no damage.

    unaccounted: by topic, offsets between the first and the last of the lake that are neither rows nor in the books as
    duplicates, dead letters, removed by retention, or gone from the broker. No damage either: a broker may leave holes, and a
    rebuilt manifest has lost some books.
    """

    version: int
    files: int
    rows: int
    bytes: int
    findings: tuple[Finding, ...]
    strays: Strays
    unaccounted: dict[str, int]


def verify(
    store: LakeStore,
    manifest: Manifest,
    *,
    deep: bool = False,
    strays_older_than_us: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Compares the newest version with the files; changes nothing. Safe beside writers.

    deep: also digests every byte, reads every column, and looks for events that two files hold; otherwise existence, size, and
    the footer's facts. progress is
    called with (files done, files in all). strays_older_than_us: see `find_strays`.
    """
    snapshot = manifest.snapshot()
    files = [file for table in snapshot.tables() for file in snapshot.files(table)]
    findings: list[Finding] = []
    reached = {(key.topic, key.partition): position.next_offset for key, position in manifest.offsets().items()}
    for number, file in enumerate(files):
        findings += _check(store, file, deep)
        for span in manifest.spans(file.path):
            if span.last_offset >= reached.get((span.topic, span.partition), 0):
                findings.append(
                    Finding(
                        file.path,
                        f"holds offset {span.last_offset} of {span.topic}[{span.partition}], which the manifest has not"
                        " reached",
                        "The manifest is older than the files (a wrong backup?): run `post-explorer lake rebuild`.",
                    )
                )
        progress(number + 1, len(files))
    if deep and not findings:
        findings += _repeats(store, snapshot)
    return Verification(
        snapshot.version,
        len(files),
        sum(file.rows for file in files),
        sum(file.bytes for file in files),
        tuple(findings),
        find_strays(store, manifest, strays_older_than_us),
        _unaccounted(manifest, files),
    )


def _repeats(store: LakeStore, snapshot: Snapshot) -> Iterator[Finding]:
    """Events that two files of an hour or of neighbouring hours hold. Holds the identities of two hours in memory."""
    for table in snapshot.tables():
        columns = list(identity_columns(table))
        near: list[tuple[LiveFile, Hashes]] = []
        for file in snapshot.files(table):
            near = [(other, known) for other, known in near if other.hour_us >= file.hour_us - HOUR_US]
            hashes = np.sort(identity_hashes(table, store.read(file.path, columns)))
            repeated = len(hashes) - len(np.unique(hashes))
            if repeated:
                yield Finding(file.path, f"holds {repeated} events twice", _REPEATED)
            for other, known in near:
                shared = len(np.intersect1d(hashes, known))
                if shared:
                    yield Finding(file.path, f"holds {shared} events that {other.path} holds too", _REPEATED)
            near.append((file, hashes))


def _unaccounted(manifest: Manifest, files: Sequence[LiveFile]) -> dict[str, int]:
    first: dict[TopicPartition, int] = {}
    rows: Counter[str] = Counter()
    for file in files:
        for span in manifest.spans(file.path):
            key = TopicPartition(span.topic, span.partition)
            first[key] = min(span.first_offset, first.get(key, span.first_offset))
            rows[span.topic] += span.rows
    missing: Counter[str] = Counter()
    for key, position in manifest.offsets(list(rows)).items():
        missing[key.topic] += position.next_offset - first.get(key, position.next_offset)
    for total in manifest.reconciliation(-_FOR_EVER, _FOR_EVER):
        missing[total.topic] -= total.duplicates + total.dead_letters + total.removed
    for gap in manifest.gaps(-_FOR_EVER, _FOR_EVER):
        torn = _TORN.fullmatch(gap.id)
        if torn is not None and int(torn["start"]) >= first.get(
            TopicPartition(torn["topic"], int(torn["partition"])), 0
        ):
            missing[torn["topic"]] -= int(torn["end"]) - int(torn["start"])
    return {topic: missing[topic] - rows[topic] for topic in sorted(rows) if missing[topic] > rows[topic]}


def _check(store: LakeStore, file: LiveFile, deep: bool) -> Iterator[Finding]:
    try:
        size = store.absolute(file.path).stat().st_size
    except FileNotFoundError:
        yield Finding(file.path, "is missing", _RESTORE)
        return
    if size != file.bytes:
        yield Finding(file.path, f"has {size} bytes, the manifest says {file.bytes}", _RESTORE)
        return
    if deep and sha256_of(store.absolute(file.path)) != file.sha256:
        yield Finding(file.path, "differs from its digest", _RESTORE)
        return
    parsed = parse_path(file.path)
    if parsed is None or parsed[:2] != (file.table, file.hour_us):
        yield Finding(file.path, f"does not lie in the folder of {file.table}'s hour", "Restore the manifest.")
        return
    try:
        yield from _check_content(store, file, deep)
    except FileDamaged as error:
        yield Finding(file.path, error.message, _RESTORE)


def _check_content(store: LakeStore, file: LiveFile, deep: bool) -> Iterator[Finding]:
    with store.open(file.path) as parquet:
        rows = parquet.metadata.num_rows
    if rows != file.rows:
        yield Finding(file.path, f"has {rows} rows, the manifest says {file.rows}", _RESTORE)
        return
    if not deep or not rows:
        return
    table = store.read(file.path)
    if table.schema != lake_schema(file.table):
        yield Finding(file.path, "has columns of another type than the contract", _RESTORE)
        return
    limits = pc.min_max(table.column("time").cast(pa.int64())).as_py()
    if (limits["min"], limits["max"]) != (file.min_time_us, file.max_time_us):
        yield Finding(file.path, "holds other times than the manifest says", _RESTORE)
    erased = int(pc.sum(pc.not_equal(table.column(ERASED), EDIT)).as_py() or 0)
    if erased != file.erased:
        yield Finding(file.path, f"has {erased} erased rows, the manifest says {file.erased}", _RESTORE)

"""The commit: the one place where rows of a batch become visible, in an order that a crash at any point cannot break."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from lake.errors import CommitOutcomeUnknown, CommitRefused, ManifestUnavailable
from lake.file_batch import FileBatch
from lake.manifest import HOUR_US, Advance, Commit, Gap, HourCount, Manifest, NewFile, Span
from lake.steps import CommitStep, Hook, no_hook
from lake.store import LakeStore

_LOOK_UPS = 5
TID_CLOCK_BITS = 10
LATE_US = 7 * 24 * HOUR_US
"""Rows whose rev is older than this when they arrive are late: `lake.ended_keys` looks up whether they have ended."""
_LOOK_UP_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Part:
    """Lake rows of one table and hour, as `lake.convert.to_lake` made them, duplicates removed. Never empty."""

    table: str
    topic: str
    hour_us: int
    rows: pa.Table


@dataclass(frozen=True, slots=True)
class Batch:
    """What one commit makes visible.

    writer: name of the writing process, lower-case letters, digits and hyphens; prefix of its temporary files.
    advances: every partition the batch read from, also where nothing was kept.
    """

    writer: str
    parts: Sequence[Part]
    advances: Sequence[Advance]
    counts: Sequence[HourCount] = ()
    gaps: Sequence[Gap] = ()
    reason: str = "ingest"
    id: str = field(default="")

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", batch_id(self.advances))


@dataclass(frozen=True, slots=True)
class Committed:
    """The version that made a batch visible, and the files it added."""

    version: int
    files: tuple[NewFile, ...]


def batch_id(advances: Sequence[Advance]) -> str:
    """The same for the same offset ranges under the same epochs: a repeated commit is recognised by it."""
    text = repr(sorted((a.topic, a.partition, a.expected, a.next, a.epoch) for a in advances))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def commit_batch(store: LakeStore, manifest: Manifest, batch: Batch, hook: Hook = no_hook) -> Committed:
    """Writes the files of `batch` durably, then makes them visible and moves the offsets in one transaction.

    Called by the writer, which commits offsets to Kafka only after this returned. Blocks for the fsyncs and at most the
    manifest's busy timeout. Raises CommitRefused (another writer owns a partition: drop the batch, its files are gone
    already), DiskFull and ManifestUnavailable (nothing became visible: keep the batch and call again),
    CommitOutcomeUnknown (the manifest cannot be asked: call again with the same batch, which is safe).
    """
    hook(CommitStep.BATCH_READY)
    placed: list[str] = []
    try:
        with store.batch(hook) as output:
            placed = output.placed
            names = _file_names(batch)
            files = tuple(_write(output, batch, part, name) for part, name in zip(batch.parts, names, strict=True))
        hook(CommitStep.FILES_DURABLE)
        commit = Commit(batch.id, tuple(batch.advances), files, tuple(batch.counts), tuple(batch.gaps), batch.reason)
        version = _apply(manifest, commit)
    except CommitOutcomeUnknown:
        # The files may be live: only a definite refusal may remove them.
        raise
    except BaseException:
        _remove_unless_live(store, manifest, batch.id, placed)
        raise
    hook(CommitStep.MANIFEST_COMMITTED)
    return Committed(version, files)


def superseding_rows(table: str, rows: pa.Table) -> int:
    """How many of `rows` end the life of other rows.

    Updates and deletes; creates of a resync, which replace the record as it was; account deletions; syncs.
    """
    return int(pc.sum(superseding_mask(table, rows)).as_py() or 0)


def superseding_mask(table: str, rows: pa.Table) -> pa.ChunkedArray:
    """Which rows `superseding_rows` counts. Erased rows count too: they superseded what came before them."""
    if table == "sync":
        return pc.is_valid(rows.column("time"))
    if table == "account":
        deleted = pc.equal(rows.column("status").cast(pa.string()), "deleted")
        return pc.fill_null(pc.and_(pc.invert(rows.column("active")), deleted), False)
    if table == "identity":
        return pc.is_null(rows.column("time"))
    replaced = pc.is_in(rows.column("operation").cast(pa.string()), pa.array(["update", "delete"]))
    return pc.or_(replaced, pc.fill_null(rows.column("resync"), False))


def spans_of(topic: str, rows: pa.Table) -> tuple[Span, ...]:
    """The offsets that `rows` came from, one span per partition."""
    grouped = rows.select(["kafka_partition", "kafka_offset"]).group_by("kafka_partition", use_threads=False)
    totals = grouped.aggregate([("kafka_offset", "min"), ("kafka_offset", "max"), ("kafka_offset", "count")])
    return tuple(
        sorted(
            (
                Span(
                    topic,
                    row["kafka_partition"],
                    row["kafka_offset_min"],
                    row["kafka_offset_max"],
                    row["kafka_offset_count"],
                )
                for row in totals.to_pylist()
            ),
            key=lambda span: span.partition,
        )
    )


def _file_names(batch: Batch) -> list[str]:
    return [f"{batch.writer}-{batch.id}-{number}" for number in range(len(batch.parts))]


def _write(output: FileBatch, batch: Batch, part: Part, name: str) -> NewFile:
    spans = spans_of(part.topic, part.rows)
    supersedes = superseding_rows(part.table, part.rows)
    since = witnessed_since(part.rows)
    # What a rebuild of a lost manifest needs: which files belong to this commit, and how far it moved the topic.
    footer = {
        "commit": batch.id,
        "commit_files": sorted(other.hour_us for other in batch.parts if other.table == part.table),
        "advances": [
            [a.topic, a.partition, a.expected, a.next]
            for a in batch.advances
            if a.topic == part.topic and a.next > a.expected
        ],
        "counts": [
            [c.consumed, c.duplicates, c.rows, c.dead_letters]
            for c in batch.counts
            if c.topic == part.topic and c.hour_us == part.hour_us
        ],
        "spans": [[s.topic, s.partition, s.first_offset, s.last_offset, s.rows] for s in spans],
        "supersedes": supersedes,
        "since_us": since,
    }
    with output.writer(part.table, part.hour_us, name, kind="small", rows=part.rows.num_rows) as writer:
        writer.write(part.rows)
        writer.footer.update(footer)
    written = writer.result()
    return NewFile(
        written.path,
        part.table,
        part.hour_us,
        written.rows,
        written.bytes,
        written.min_time_us,
        written.max_time_us,
        written.sha256,
        "small",
        supersedes,
        spans,
        erased=written.erased,
        since_us=since,
    )


def witnessed_since(rows: pa.Table) -> int:
    """Before this time nobody can have witnessed a row that ends one of `rows` (not empty): see `NewFile.since_us`.

    An ending row has a greater rev, and revs are times: a host that lags delivers rows whose rev is far behind their
    time. What claims to be older than a week is taken to be a week old, so that nobody can make every reader search all history:
    such rows were looked up once, when they were committed.
    """
    times = rows.column("time").cast(pa.int64())
    written = pc.shift_right(rows.column("rev_tid"), TID_CLOCK_BITS)
    oldest = pc.max_element_wise(written, pc.subtract(times, LATE_US))
    found = pc.min(pc.min_element_wise(oldest, times)).as_py()
    return int(found)


def _apply(manifest: Manifest, commit: Commit) -> int:
    """Commits; after a lost answer looks the commit up before anything else."""
    try:
        return manifest.commit(commit)
    except CommitOutcomeUnknown as error:
        for attempt in range(_LOOK_UPS):
            try:
                version = manifest.outcome(commit.id)
                # Certainly not applied: the same commit again is safe, its id and the offsets guard it.
                return version if version is not None else manifest.commit(commit)
            except (ManifestUnavailable, CommitOutcomeUnknown):
                time.sleep(_LOOK_UP_PAUSE_S * (attempt + 1))
        raise error


def _remove_unless_live(store: LakeStore, manifest: Manifest, batch_id: str, paths: Sequence[str]) -> None:
    """Removes files of a commit that did not happen; keeps them when the manifest cannot say so."""
    try:
        if manifest.outcome(batch_id) is None:
            store.unlink(paths)
    except (ManifestUnavailable, CommitOutcomeUnknown, CommitRefused):
        # They stay as orphans, which no reader sees and maintenance removes.
        return

"""Rolling: the small files of a topic-hour become one sorted file, in one version that readers see or do not see."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from lake.fold import read_endings
from lake.manifest import HOUR_US, FileKind, Manifest, NewFile, Swap
from lake.merge import MAX_ROWS, Merge, merge_files
from lake.steps import CommitStep, Hook, no_hook
from lake.store import LakeStore


@dataclass(frozen=True, slots=True)
class Rolled:
    """What one roll did; `file` is None when there was nothing to merge."""

    version: int
    file: NewFile | None
    merged: int
    rows: int


def hours_to_roll(manifest: Manifest, closed_before_us: int) -> list[tuple[str, int]]:
    """(table, hour) pairs with small files in hours that start before `closed_before_us`, oldest first.

    The caller chooses the time: the end of an hour plus the lateness it expects. A file that arrives later makes the hour
    appear here again.
    """
    return [(found.table, found.hour_us) for found in manifest.small_files() if found.hour_us < closed_before_us]


def crowded_hours(manifest: Manifest, most_small_files: int) -> list[tuple[str, int]]:
    """(table, hour) pairs with more small files than that: they are worth merging while their hour is open."""
    return [(found.table, found.hour_us) for found in manifest.small_files() if found.files > most_small_files]


def roll_hour(
    store: LakeStore,
    manifest: Manifest,
    table: str,
    hour_us: int,
    *,
    kind: FileKind = "rolled",
    max_rows: int = MAX_ROWS,
    keep_edits: bool = False,
    hook: Hook = no_hook,
) -> Rolled:
    """Merges the files of a table's hour into one; with kind "small" only its small files, for an hour still open.

    A merge to "rolled" also erases what other rows, in any file, have ended. Call under the maintenance lock. Blocks for the
    whole merge. Raises CommitRefused (the files changed meanwhile: plan again), FileDamaged (a file is torn: nothing
    changed), DiskFull, ManifestUnavailable. keep_edits: the setting that keeps replaced versions.
    """
    snapshot = manifest.snapshot()
    inputs = snapshot.files(table, hour_us, hour_us + HOUR_US)
    if kind == "small":
        inputs = [file for file in inputs if file.kind == "small"]
    if not inputs or (len(inputs) == 1 and inputs[0].kind == kind):
        return Rolled(snapshot.version, None, 0, 0)
    endings = None
    if kind == "rolled":
        endings = read_endings(store, snapshot, table, min(file.since_us for file in inputs))
    merge = Merge(table, hour_us, kind, endings, keep_edits, max_rows)
    swap_id = change_id("roll", [file.path for file in inputs])
    file = merge_files(store, manifest, inputs, merge, swap_id, hook)
    reason = "roll" if kind == "rolled" else "merge"
    version = manifest.swap(Swap(swap_id, tuple(f.path for f in inputs), (file,), reason))
    hook(CommitStep.SWAP_COMMITTED)
    return Rolled(version, file, len(inputs), file.rows)


def change_id(reason: str, paths: Iterable[str]) -> str:
    """The same for the same inputs, so that an interrupted change, done again, writes the same names."""
    digest = hashlib.sha256("\n".join(sorted(paths)).encode()).hexdigest()[:24]
    return f"{reason}-{digest}"

"""What leaves the disk: retired files after the grace time, orphans of crashed writers, and hours past their retention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lake.manifest import HOUR_US, Manifest, Swap
from lake.paths import parse_path
from lake.roll import change_id
from lake.steps import CommitStep, Hook, no_hook
from lake.store import LakeStore
from schemas.topics import TABLE_TOPICS

_BATCH: Final = 200
"""Files per manifest transaction: a crash repeats at most these."""


def unlink_retired(
    store: LakeStore,
    manifest: Manifest,
    retired_before_us: int,
    *,
    go_on: Callable[[], bool] = lambda: True,
    hook: Hook = no_hook,
) -> int:
    """Unlinks files retired before that time and forgets them; returns how many. Safe to repeat after a crash.

    The caller chooses the time: now minus the grace that the longest reader needs. Call under the maintenance lock.
    """
    count = 0
    while go_on():
        files = manifest.files_to_unlink(retired_before_us, _BATCH)
        if not files:
            break
        for file in files:
            store.unlink([file.path])
            hook(CommitStep.FILE_UNLINKED)
        count += manifest.forget([file.path for file in files])
    return count


@dataclass(frozen=True, slots=True)
class Strays:
    """Files in the lake's folders that the manifest does not know.

    orphans: named as ours, left by a crash between file and commit. foreign: everything else, never touched.
    """

    orphans: tuple[str, ...]
    foreign: tuple[str, ...]


def find_strays(store: LakeStore, manifest: Manifest, older_than_us: int) -> Strays:
    """Walks the folders. Files changed at or after `older_than_us` are passed over: a writer may be about to commit them."""
    found = [path for path, status in store.walk() if status.st_mtime_ns // 1000 < older_than_us]
    # Asked after the walk, so that a file committed in between is known.
    known = manifest.known_paths()
    unknown = sorted(path for path in found if path not in known)
    ours = [path for path in unknown if _is_ours(path)]
    foreign = [path for path in unknown if not _is_ours(path) and not _belongs_to(path, manifest)]
    return Strays(tuple(ours), tuple(foreign))


def remove_orphans(store: LakeStore, manifest: Manifest, older_than_us: int) -> Strays:
    """Removes the orphans of `find_strays` and returns what it found; foreign files stay.

    Call under the maintenance lock, with an age no commit can reach (hours): a writer whose commit is unclear keeps its files.
    """
    strays = find_strays(store, manifest, older_than_us)
    store.unlink(strays.orphans)
    return strays


def drop_hours(store: LakeStore, manifest: Manifest, table: str, before_us: int) -> int:
    """Retention: takes all files of hours that end before that time out of the lake, one version; returns the rows.

    Their bytes go with `unlink_retired`. Call under the maintenance lock. Raises CommitRefused, ManifestUnavailable.
    """
    files = [f for f in manifest.snapshot().files(table, None, before_us) if f.hour_us + HOUR_US <= before_us]
    if not files:
        return 0
    rows: dict[int, int] = {}
    for file in files:
        rows[file.hour_us] = rows.get(file.hour_us, 0) + file.rows
    topic = TABLE_TOPICS.get(table, table)
    paths = tuple(file.path for file in files)
    removed = tuple((topic, hour, count) for hour, count in sorted(rows.items()))
    manifest.swap(Swap(change_id("retention", paths), paths, (), "retention", removed=removed))
    return sum(rows.values())


def _is_ours(path: str) -> bool:
    return parse_path(path) is not None


def _belongs_to(path: str, manifest: Manifest) -> bool:
    """Whether a file is the manifest itself, which may lie in the lake's folder (with its log and lock files)."""
    name = path.rsplit("/", 1)[-1]
    return name.startswith(manifest.url.rsplit("/", 1)[-1])

"""Replays beside the lake, so that a lost manifest does not take them along: `<lake>/.replays.json`.

A merge or an erasure stands for the very events of its inputs, so `lake.rebuild` may take either while both are on disk. A replay
says which events there are, and while the files it replaced wait to be unlinked only the manifest knows whether it was swapped in.
So it is noted here before its swap, and once more, as committed, after it: `settle` asks the manifest, at once and in every
maintenance run, and what a crash in between left open is settled then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from lake.errors import LakeError
from lake.file_batch import disk_errors
from lake.manifest import Manifest
from lake.paths import replace_file
from lake.store import LakeStore

NAME: Final = ".replays.json"


@dataclass(frozen=True, slots=True)
class ReplayNote:
    """One swap of a replay: `id` is the swap's; `retired` names each file it replaces with the digest; `files` are its own.

    committed: False until the manifest was seen to have it.
    """

    id: str
    table: str
    retired: Mapping[str, str]
    files: Sequence[str]
    committed: bool = False


def begin(store: LakeStore, note: ReplayNote) -> None:
    """Notes a replay durably before its swap. Call under the maintenance lock. Raises DiskFull, LakeError for a damaged file."""
    _save(store, [*(other for other in load_replays(store) if other.id != note.id), note])


def settle(store: LakeStore, manifest: Manifest) -> int:
    """Notes as committed what the manifest has, forgets what needs no note any more; returns how many notes there are.

    Call under the maintenance lock. Raises DiskFull, ManifestUnavailable, LakeError for a damaged file.
    """
    before = load_replays(store)
    after = [
        note if note.committed else replace(note, committed=manifest.outcome(note.id) is not None)
        for note in before
        if _matters(store, note)
    ]
    if after != before:
        _save(store, after)
    return len(after)


def load_replays(store: LakeStore) -> list[ReplayNote]:
    """The notes; none without the file. Raises LakeError for a damaged one."""
    path: Path = store.root / NAME
    try:
        return [ReplayNote(**note) for note in json.loads(path.read_text())["replays"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise LakeError(
            f"{path} is damaged: {error}.",
            "Restore it from a backup, or remove it: it matters only to a rebuild of the manifest, which takes a replay of the"
            " last minutes back then.",
        ) from error


def _matters(store: LakeStore, note: ReplayNote) -> bool:
    """Once the replaced files are unlinked they tell by their absence; a replay that replaced none needs its note for ever."""
    if not note.committed and note.files and not _any_exists(store, note.files):
        return False
    return _any_exists(store, note.retired or note.files)


def _any_exists(store: LakeStore, paths: Mapping[str, str] | Sequence[str]) -> bool:
    return any(store.absolute(path).exists() for path in paths)


def _save(store: LakeStore, notes: Sequence[ReplayNote]) -> None:
    path = store.root / NAME
    with disk_errors(path):
        replace_file(path, json.dumps({"replays": [asdict(note) for note in notes]}, indent=1).encode())

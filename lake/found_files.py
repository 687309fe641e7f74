"""Which of the files on the disk are the lake, told by their footers alone: what `lake.rebuild` does with a lost manifest.

Each file names the commit it belongs to, or the files it stands for. Crashes leave orphans, and what was replaced stays on
disk for a while: every function here takes out one kind of those.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lake.errors import FileDamaged
from lake.manifest import TopicPartition
from lake.paths import parse_path, sha256_of
from lake.replay_file import ReplayNote
from lake.store import LakeStore, footer_of
from schemas.topics import TABLE_TOPICS


@dataclass(slots=True)
class Found:
    """A readable file of ours. atoms: the files that it stands for, itself among them; written_ns: its time of change."""

    path: str
    table: str
    hour_us: int
    footer: dict[str, Any]
    written_ns: int = 0
    atoms: frozenset[str] = field(default_factory=frozenset)

    @property
    def reached(self) -> dict[TopicPartition, int]:
        """How far its commit, or those it stands for, had moved the topics."""
        return {TopicPartition(topic, number): after for topic, number, _, after in self.footer.get("advances", ())}


def reached(files: Sequence[Found]) -> dict[TopicPartition, int]:
    """How far the topics had been moved by any of `files`."""
    furthest: dict[TopicPartition, int] = {}
    for file in files:
        for key, after in file.reached.items():
            furthest[key] = max(after, furthest.get(key, 0))
    return furthest


def read_footers(store: LakeStore) -> tuple[list[Found], list[str]]:
    """All files of ours by path, and the paths of those that cannot be read. Blocks for reading every footer."""
    found, damaged = [], []
    for path, status in store.walk():
        parsed = parse_path(path)
        if parsed is None or parsed[0] not in TABLE_TOPICS:
            continue
        try:
            with store.open(path) as parquet:
                footer = footer_of(parquet)
        except FileDamaged:
            damaged.append(path)
            continue
        # A file stands for the files that commits wrote: itself, or those it replaced, however often it was rewritten.
        atoms = frozenset(footer.get("replaces", ())) | {path}
        found.append(Found(path, parsed[0], parsed[1], footer, status.st_mtime_ns, atoms))
    return sorted(found, key=lambda file: file.path), sorted(damaged)


def without_retired(
    store: LakeStore, found: Sequence[Found], notes: Sequence[ReplayNote]
) -> tuple[list[Found], list[Found]]:
    """Takes out what a replay replaced that was swapped in, if what it put in its place can be read: (the others, those)."""
    present = {file.path for file in found}
    accounted = present | _replaced(found) | {path for note in notes for path in note.retired}
    digests = {
        path: digest
        for note in notes
        if note.committed and accounted.issuperset(note.files)
        for path, digest in note.retired.items()
        if path in present
    }
    # By the digest too: after a rebuild another file may have come to the same name.
    retired = {path for path, digest in digests.items() if sha256_of(store.absolute(path)) == digest}
    return [file for file in found if file.path not in retired], [file for file in found if file.path in retired]


def _replaced(found: Sequence[Found]) -> set[str]:
    return {path for file in found for path in file.atoms if path != file.path}


def without_unfinished_replays(
    found: Sequence[Found], notes: Sequence[ReplayNote]
) -> tuple[list[Found], tuple[str, ...]]:
    """Drops the files of a replay unless it was swapped in for certain: it was noted, some file it replaced is gone, or one of
    its own was replaced. Its hours hold together (rows may move between them), so it stays as a whole or goes as a whole."""
    present, replaced = {file.path for file in found}, _replaced(found)
    committed = {note.id for note in notes if note.committed}
    replays: dict[str, list[Found]] = defaultdict(list)
    for file in found:
        if "replay" in file.footer:
            # Files of before there were notes name only the plan.
            replays[file.footer.get("swap", file.footer["replay"])].append(file)
    dropped = {
        file.path
        for swap_id, files in replays.items()
        if swap_id not in committed
        and not any(file.path in replaced or not present.issuperset(file.footer["inputs"]) for file in files)
        for file in files
    }
    return [file for file in found if file.path not in dropped], tuple(sorted(dropped))


def without_replaced(found: Sequence[Found]) -> tuple[list[Found], tuple[str, ...]]:
    """Keeps, of files that stand for the same commits, the one that stands for most; see `_standing` for equals."""
    kept: list[Found] = []
    covered: dict[str, Found] = {}
    dropped = []
    for file in sorted(found, key=_standing):
        commits = {atom for atom in file.atoms if not _is_merge(atom)}
        if file.path in covered or (commits and all(atom in covered for atom in commits)):
            dropped.append(file.path)
            continue
        kept.append(file)
        for atom in file.atoms:
            covered.setdefault(atom, file)
    return sorted(kept, key=lambda file: file.path), tuple(sorted(dropped))


def _standing(file: Found) -> tuple[int, bool, int, str]:
    # A replay that was swapped in cannot have taken the files of a merge's inputs if that merge was: the merge is an orphan.
    return -len(file.atoms), "replay" not in file.footer, -file.written_ns, file.path


def _is_merge(path: str) -> bool:
    """Whether a path names the result of a swap (roll, merge, erasure, replay) and not a file of a commit."""
    name = path.rsplit("/", 1)[-1].split("-", 1)[-1]
    return name.startswith(("roll-", "erase-", "replay-", "rebuild-"))


def without_incomplete(found: Sequence[Found], retired: Sequence[Found]) -> tuple[list[Found], tuple[str, ...]]:
    """Drops files of a commit that a crash cut off: some of its files are missing and nothing went beyond its offsets."""
    present: dict[tuple[str, str], set[int]] = defaultdict(set)
    for file in (*found, *retired):
        for atom in file.atoms:
            parsed = parse_path(atom)
            if parsed is not None and not _is_merge(atom):
                present[parsed[0], _commit_of(atom)].add(parsed[1])
    complete: list[Found] = []
    doubtful: list[Found] = []
    for file in found:
        wanted = set(file.footer.get("commit_files", ()))
        (complete if wanted <= present[file.table, _commit_of(file.path)] else doubtful).append(file)
    certain = reached([*complete, *retired])
    cut = [f for f in doubtful if any(after > certain.get(key, 0) for key, after in f.reached.items())]
    dropped = {file.path for file in cut}
    return [file for file in found if file.path not in dropped], tuple(sorted(dropped))


def _commit_of(path: str) -> str:
    """The part of a small file's name that all files of its commit share: small-<writer>-<commit>-<number>."""
    return path.rsplit("/", 1)[-1].rsplit("-", 1)[0]

"""Side files: what is known of a file of the lake, in a hidden folder of its kind, named by the digest of the file it describes."""

from __future__ import annotations

from collections.abc import Set
from contextlib import suppress
from pathlib import Path

from lake.paths import replace_file


def names(folder: Path) -> set[str]:
    """The names of all side files of a folder; none without the folder."""
    with suppress(FileNotFoundError):
        return {path.name for path in folder.iterdir()}
    return set()


def write(path: Path, content: bytes) -> int:
    """Put a side file in place, durably; returns its bytes. Blocks for the disk. Raises OSError."""
    path.parent.mkdir(exist_ok=True)
    replace_file(path, content)
    return len(content)


def remove(folder: Path, gone: Set[str]) -> int:
    """Remove some side files of a folder; returns how many."""
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    return len(gone)

"""The points between two durable steps at which a process may die, and what has to be true after a restart.

Production passes no hook. A test passes one, or starts the process with `EXPLORER_CRASHPOINT=<name>:<ordinal>`: then the
process kills itself (SIGKILL) when it reaches that point for the ordinal-th time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

from lake.errors import LakeError

CRASHPOINT_VARIABLE: Final = "EXPLORER_CRASHPOINT"


class CommitStep(StrEnum):
    """A point of `lake.commit.commit_batch` or of a swap; the comment says what recovery owes."""

    BATCH_READY = "batch-ready"
    """Nothing was written. The batch is read from the topics again."""
    FILE_WRITTEN = "file-written"
    """A temporary file may be torn. The sweep removes it; the batch is read again."""
    FILE_SYNCED = "file-synced"
    """A temporary file is whole but has no name. The sweep removes it; the batch is read again."""
    FILE_RENAMED = "file-renamed"
    """A whole file has its final name and no manifest entry: an orphan no reader sees. The batch is read again."""
    FILES_DURABLE = "files-durable"
    """Every file and folder is on disk, the manifest knows none of them: as for FILE_RENAMED."""
    MANIFEST_OPEN = "manifest-open"
    """The transaction holds every change and was not committed. The database rolls it back: as for FILES_DURABLE."""
    MANIFEST_COMMITTED = "manifest-committed"
    """The rows are visible and the offsets moved. Only Kafka's own offsets lag; nobody reads those."""
    SWAP_FILES_DURABLE = "swap-files-durable"
    """The files that shall replace others are on disk and orphans. The old files stay live; the swap is done again."""
    SWAP_COMMITTED = "swap-committed"
    """The new files are live, the old ones retired and on disk until the grace time ends."""
    FILE_UNLINKED = "file-unlinked"
    """A retired file is gone and the manifest still lists it as retired. Unlinking it again succeeds."""


Hook = Callable[[CommitStep], None]


def no_hook(step: CommitStep) -> None:
    """What production passes."""


class CrashHook:
    """Kills the process with SIGKILL when `step` is reached for the `ordinal`-th time (1 is the first)."""

    def __init__(self, step: CommitStep, ordinal: int) -> None:
        self._step = step
        self._left = ordinal

    def __call__(self, step: CommitStep) -> None:
        """Counts; does not return at the chosen point."""
        if step is self._step:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def hook_from_environment(environment: Mapping[str, str]) -> Hook:
    """The hook that `EXPLORER_CRASHPOINT` asks for; none without it. Raises LakeError for a malformed value."""
    text = environment.get(CRASHPOINT_VARIABLE)
    if not text:
        return no_hook
    name, _, ordinal = text.partition(":")
    known = [step.value for step in CommitStep]
    if name not in known or not (ordinal or "1").isdecimal() or int(ordinal or 1) < 1:
        raise LakeError(
            f"{CRASHPOINT_VARIABLE}={text!r} is not <name>:<ordinal> with a name of {', '.join(known)}.",
            f"Unset {CRASHPOINT_VARIABLE}; it is for fault tests only.",
        )
    return CrashHook(CommitStep(name), int(ordinal or 1))

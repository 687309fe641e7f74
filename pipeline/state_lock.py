"""One local stack per state folder: a lock that the supervisor takes and its children inherit."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import SupervisionError


@contextlib.contextmanager
def locked(state: Path, wait_seconds: float) -> Iterator[int]:
    """Holds `<state>/up.lock` and gives its descriptor, to be inherited by the children.

    The lock is free again when the last of them is gone. Waits up to `wait_seconds` for the children of a run that was
    killed to finish draining; raises SupervisionError when they do not, and at once when that run is alive.
    """
    state.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(state / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                if _alive(owner) or time.monotonic() > deadline:
                    raise SupervisionError(
                        f"`post-explorer up` already runs on {state} (process {owner or 'unknown'})",
                        "stop it with Ctrl-C where it runs, or choose another folder with EXPLORER_STATE",
                    ) from None
                time.sleep(0.2)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _alive(pid: str) -> bool:
    return pid.isdigit() and Path(f"/proc/{pid}").exists()

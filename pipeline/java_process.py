"""What a Java process of ours needs around it: a lock it holds by living, an end with its parent, a clean environment."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

logger = logging.getLogger("explorer.broker")

PR_SET_PDEATHSIG: Final = 1


class FileLock:
    """An exclusive flock on a file; a child that inherits the descriptor keeps holding it after we close ours."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> FileLock | None:
        """The lock, or None if another process holds it; does not block."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return cls(descriptor)

    def fileno(self) -> int:
        """The descriptor to pass to the child."""
        return self._descriptor

    def close(self) -> None:
        """Gives up our share of the lock."""
        os.close(self._descriptor)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def die_with(parent: int) -> Callable[[], None] | None:
    """A `preexec_fn` after which the kernel kills the child when its parent, whose pid is given, ends in any way.

    None off Linux. The kernel ties it to the thread that starts the child, so that thread must live as long.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def arrange() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended between fork and here
            os._exit(1)

    return arrange


def end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Ends a process of ours with SIGTERM, and with SIGKILL when it still runs after `grace` seconds; reaps it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            logger.warning("the broker did not end within %.0f s and is killed", grace)
            process.kill()
            process.wait()


def clean_environment() -> dict[str, str]:
    """Only what Java needs: variables such as JAVA_TOOL_OPTIONS or CLASSPATH of the machine must not change the broker."""
    return {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}

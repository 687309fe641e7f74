"""The life of one service process: logs, telemetry, signals, reports, and an end within a bound.

Every long-running command goes through `run_service`. SIGTERM and SIGINT ask the service to drain; a second one, or
a drain that takes longer than its limit, ends the process where it stands, which is safe: every room is made to be
killed at any point.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from pipeline import logs, telemetry
from pipeline.status import StatusWriter
from schemas.errors import ExplorerError

Report = Callable[[Mapping[str, object]], None]
SUPERVISOR_VARIABLE = "EXPLORER_SUPERVISOR"
EXIT_DRAIN_TIMED_OUT = 70

_log = logging.getLogger("explorer.pipeline")


class Service(Protocol):
    """What a room hands over to be run."""

    def run(self, stop: threading.Event) -> None:
        """Blocks until `stop` is set and everything in hand is drained. Raises ExplorerError to end the process."""


def die_with_supervisor(environ: Mapping[str, str]) -> None:
    """Makes the kernel send SIGTERM to this process when the supervisor that started it is gone, however it went.

    The supervisor names itself in `EXPLORER_SUPERVISOR`. Does nothing without it or off Linux, where a killed
    supervisor leaves its children to be stopped by hand.
    """
    supervisor = environ.get(SUPERVISOR_VARIABLE)
    if not supervisor or not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(supervisor):  # it died before the line above
        os.kill(os.getpid(), signal.SIGTERM)


def run_service(
    process: str,
    make: Callable[[Report], Service],
    *,
    log_settings: logs.LogSettings,
    status_folder: Path,
    drain_seconds: float,
) -> None:
    """Builds a service with `make(report)` and runs it until it is told to stop. Blocks; main thread only.

    `drain_seconds` bounds the time from the first signal to the end of the process. Raises what the service raised,
    after the report file says so.
    """
    stop = threading.Event()
    drained = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()
        threading.Thread(target=_enforce, args=(drained, drain_seconds, process), daemon=True, name="drain").start()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    die_with_supervisor(os.environ)
    logs.configure(process, log_settings)
    status = StatusWriter(status_folder, process)
    close_telemetry = telemetry.start(process)
    try:
        service = make(status.report)
        status.state("running")
        _log.info("started", extra={"pid": os.getpid()})
        service.run(stop)
    except ExplorerError as error:
        status.state("failed", error=error.message, remedy=error.remedy)
        _log.error("stopped by an error", extra={"error": error.message, "remedy": error.remedy})
        raise
    except BaseException as error:
        status.state("failed", error=f"{type(error).__name__}: {error}", remedy="see the log; this is a defect")
        _log.exception("stopped by a defect")
        raise
    else:
        status.state("stopped")
        _log.info("stopped")
    finally:
        close_telemetry()
        drained.set()


def _enforce(drained: threading.Event, seconds: float, process: str) -> None:
    if not drained.wait(seconds):
        _log.error("drain took longer than its limit; ending here", extra={"seconds": seconds})
        print(f"{process}: did not drain within {seconds:g} s; ended where it stood", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(EXIT_DRAIN_TIMED_OUT)

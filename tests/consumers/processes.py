"""Writers as child processes, to be killed and stopped by signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lake.steps import CRASHPOINT_VARIABLE
from tests.consumers.conftest import Lake


class WriterProcess:
    """A writer of `lake` in a process of its own; `crashpoint` is `<step>:<ordinal>`."""

    def __init__(self, lake: Lake, name: str, crashpoint: str | None = None, **config: Any) -> None:
        folder = lake.root.parent / "processes"
        folder.mkdir(exist_ok=True)
        self.log = folder / f"{name}.log"
        self._status = folder / f"{name}.json"
        arguments = {
            "bootstrap": lake.kafka.bootstrap,
            "manifest": str(lake.root / "manifest.sqlite"),
            "lake": str(lake.root),
            "status": str(self._status),
            "config": lake.config(**config).model_dump(mode="json"),
        }
        environment = {key: value for key, value in os.environ.items() if key != CRASHPOINT_VARIABLE}
        if crashpoint is not None:
            environment[CRASHPOINT_VARIABLE] = crashpoint
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.consumers.writer_process", json.dumps(arguments)],
                cwd=Path(__file__).parents[2],
                env=environment,
                stdout=output,
                stderr=output,
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def status(self) -> dict[str, Any]:
        """Its last report; empty before the first."""
        try:
            found: dict[str, Any] = json.loads(self._status.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return found

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = 60.0) -> int:
        """The exit status; negative for the signal that ended it."""
        return self._process.wait(seconds)

    def kill(self) -> None:
        """SIGKILL, also to a stopped process; returns when it is gone."""
        if self.running:
            self._process.kill()
        self._process.wait(30)

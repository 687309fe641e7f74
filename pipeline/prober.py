"""Asks a service the same question again and again, as a monitor would, and keeps what came of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from pipeline.gates import percentile


@dataclass(frozen=True)
class Probe:
    """One question: when it was asked (monotonic seconds), how long the answer took, whether it was a good one."""

    at: float
    seconds: float
    answered: bool


class Prober:
    """A thread that asks `url` every `interval` seconds, each time for at most `timeout` seconds.

    Starts counting with the first good answer, so that the time of starting up is not taken for an outage.
    """

    def __init__(self, url: str, interval: float = 0.5, timeout: float = 5.0) -> None:
        self._url = url
        self._interval = interval
        self._timeout = timeout
        self._stop = threading.Event()
        self._excused = threading.Event()
        self.probes: list[Probe] = []
        self.problems: list[str] = []

    @contextmanager
    def asking(self) -> Iterator[Prober]:
        """Asks for the length of a `with`."""
        thread = threading.Thread(target=self._run, name="prober", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join(self._timeout + 1.0)

    @contextmanager
    def excused(self) -> Iterator[None]:
        """Answers inside this block are not counted: the service is down on purpose."""
        self._excused.set()
        try:
            yield
        finally:
            self._excused.clear()

    @property
    def share(self) -> float:
        """Good answers among all; 0 when there was none at all."""
        return sum(probe.answered for probe in self.probes) / len(self.probes) if self.probes else 0.0

    def seconds(self, share: float) -> float:
        """The time within which that share of the good answers came."""
        return percentile([probe.seconds for probe in self.probes if probe.answered], share)

    def _run(self) -> None:
        with httpx.Client(timeout=self._timeout) as client:
            while not self._stop.is_set():
                begun = time.monotonic()
                excused = self._excused.is_set()
                problem = ""
                try:
                    answer = client.get(self._url)
                    if answer.status_code != 200:
                        problem = f"status {answer.status_code}"
                except httpx.HTTPError as error:
                    problem = f"{type(error).__name__}: {error}"
                if (self.probes or not problem) and not (excused or self._excused.is_set()):
                    self.probes.append(Probe(begun, time.monotonic() - begun, not problem))
                    if problem:
                        self.problems.append(problem)
                self._stop.wait(self._interval)

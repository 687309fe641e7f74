"""Rules for the whole suite: nothing left running, nothing skipped unseen; the shared fixtures."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import hypothesis
import psutil
import pytest

# Machines are shared: how long an example takes says nothing about the code.
hypothesis.settings.register_profile(
    "shared-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared-machine")

pytest_plugins = ["tests.support.kafka"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--required-tests",
        action="store_true",
        help="fail when a test was skipped: on this run all of them must execute",
    )


LONGEST_FIRST = ("producers", "end_to_end", "consumers", "api", "lake", "broker")
"""Folders whose files take minutes: begun first, so that no worker is left alone with one of them at the end."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers the long files come first; with one, tests of whole processes come last, so that a broken unit
    is reported by its own test first."""
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        ranks = {folder: rank for rank, folder in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: min((ranks.get(part, len(ranks)) for part in item.path.parts), default=len(ranks)))
    else:
        items.sort(key=lambda item: "end_to_end" in item.path.parts)


@pytest.fixture(autouse=True)
def no_explorer_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own settings and telemetry never reach a test."""
    for name in list(os.environ):
        if name.startswith(("EXPLORER_", "OTEL_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="module")
def nothing_left_running() -> Iterator[None]:
    """A module of tests ends with the child processes and non-daemon threads it began with."""
    # Imported here: pytest itself loads the plugin first, to rewrite its assertions.
    from tests.support.kafka import SESSION_PROCESSES

    children = {child.pid for child in psutil.Process().children(recursive=True)}
    threads = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 30.0
    while True:
        left_threads = [thread for thread in threading.enumerate() if thread not in threads and not thread.daemon]
        left_children = [
            child
            for child in psutil.Process().children(recursive=True)
            if child.pid not in children | SESSION_PROCESSES and child.status() != psutil.STATUS_ZOMBIE
        ]
        if not left_threads and not left_children:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for child in left_children:
        child.kill()
    names = [thread.name for thread in left_threads] + [f"process {child.pid}" for child in left_children]
    pytest.fail("left running: " + ", ".join(names))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--required-tests") and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line("skipped tests count as failures on this run", red=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        session.config.getoption("--required-tests")
        and reporter is not None
        and reporter.stats.get("skipped")
        and exitstatus == 0
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED

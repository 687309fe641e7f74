"""What `up` shows: the figures that matter, also when half of them are missing."""

from __future__ import annotations

import pytest
from rich.console import Console

from pipeline.display import LakeView, ProcessView, View, block, count, plain_line, seconds, size

NOW = 1_795_453_000.0


def view(**changes: object) -> View:
    processes = [
        ProcessView(
            "broker", 1, 0, {"state": "running", "time": NOW, "bootstrap": "127.0.0.1:1", "broker_rss_bytes": 2.5e8}
        ),
        ProcessView(
            "producer",
            2,
            1,
            {"state": "running", "time": NOW, "events_per_second": 350.4, "lag_seconds": 0.4, "dead_letters": 2},
        ),
        ProcessView(
            "writer", 3, 0, {"state": "running", "time": NOW, "lag": 1234, "freshness_seconds": 2.0, "dead_letters": 1}
        ),
    ]
    facts: dict[str, object] = {
        "title": "post-explorer (demo)",
        "now": NOW,
        "elapsed": 39.0,
        "remaining": 51.0,
        "processes": processes,
        "lake": LakeView(7, 1000, 85_000, 10, 3),
        "committed_per_second": 349.6,
        "urls": {"page": "http://127.0.0.1:8080/"},
    }
    return View(**{**facts, **changes})  # type: ignore[arg-type]


def rendered(shown: View) -> str:
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(block(shown))
    return capture.get()


def test_one_line_has_the_figures_that_matter() -> None:
    line = plain_line(view())
    for figure in (
        "in 350/s",
        "committed 1,000 rows (350/s)",
        "writer 1,234",
        "85.0 B/event",
        "fresh 2.0 s",
        "dead letters 3",
    ):
        assert figure in line
    assert "DOWN" not in line


def test_the_block_has_processes_and_addresses() -> None:
    text = rendered(view())
    for figure in ("post-explorer (demo)", "39 s, ends in 51 s", "350 events/s in", "250 MB", "http://127.0.0.1:8080/"):
        assert figure in text


def test_nothing_known_yet_is_no_error() -> None:
    empty = view(processes=[ProcessView("writer", None, 0, {})], lake=None, committed_per_second=None, remaining=None)
    assert "DOWN: writer" in plain_line(empty)
    assert "down" in rendered(empty)


def test_trouble_is_told() -> None:
    failed = ProcessView("writer", 3, 2, {"state": "failed", "time": NOW, "error": "disk full", "remedy": "make room"})
    lost = ProcessView("producer", 2, 0, {"state": "running", "time": NOW, "connected": False, "problem": "refused"})
    silent = ProcessView("api", 4, 0, {"state": "running", "time": NOW - 60})
    text = rendered(view(processes=[failed, lost, silent]))
    assert "disk full; make room" in text
    assert "NOT CONNECTED refused" in text
    assert "silent 60 s" in text


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (count(None), "–"),
        (count(1234567.8), "1,234,568"),
        (seconds(None), "–"),
        (seconds(-0.2), "0.0 s"),
        (seconds(61), "61 s"),
        (seconds(600), "10 min"),
        (seconds(9000), "2.5 h"),
        (size(None), "–"),
        (size(999), "999 B"),
        (size(1234), "1.2 KB"),
        (size(250_000_000), "250 MB"),
        (size(3.2e12), "3.2 TB"),
        (size(3.2e15), "3200.0 TB"),
    ],
)
def test_numbers_are_short(shown: str, expected: str) -> None:
    assert shown == expected

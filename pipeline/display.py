"""What `up` shows: one live block on a terminal, one line at a time elsewhere.

Pure formatting: takes the reports of the processes and the totals of the lake, gives text or a rich renderable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

# A report older than this is worth a remark; maintenance reports after each run, which may take its time.
_STALE_SECONDS = {"maintain": 300.0}
_USUAL_STALE_SECONDS = 10.0


@dataclass(frozen=True)
class ProcessView:
    """One process as the operator sees it. `report` is its latest status file, `pid` None while it is down."""

    name: str
    pid: int | None
    restarts: int
    report: Mapping[str, Any]


@dataclass(frozen=True)
class LakeView:
    """Totals over the live files of the newest version; None where the manifest does not exist yet."""

    version: int
    rows: int
    bytes: int
    files: int
    tables: int


@dataclass(frozen=True)
class View:
    """Everything one refresh shows. `committed_per_second` is measured over the last few refreshes."""

    title: str
    now: float
    elapsed: float
    remaining: float | None
    processes: Sequence[ProcessView]
    lake: LakeView | None
    committed_per_second: float | None
    urls: Mapping[str, str] = field(default_factory=dict)


def count(value: object) -> str:
    """A number with thousands separated; a dash when it is not known."""
    return f"{value:,.0f}" if isinstance(value, int | float) else "–"


def seconds(value: object) -> str:
    """A duration as people say it: 0.4 s, 12 s, 3 min, 5.2 h; a dash when it is not known."""
    if not isinstance(value, int | float):
        return "–"
    if value < 10:
        return f"{max(value, 0):.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def size(value: object) -> str:
    """Bytes in the unit that gives two or three digits; a dash when it is not known."""
    if not isinstance(value, int | float):
        return "–"
    amount = float(value)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _report(view: View, name: str) -> Mapping[str, Any]:
    return next((process.report for process in view.processes if process.name == name), {})


def _freshness(view: View) -> object:
    """Seconds; None before the first commit, when there is nothing to be fresh."""
    return _report(view, "writer").get("freshness_seconds") if view.lake is not None and view.lake.rows else None


def dead_letters(view: View) -> int:
    """Dead letters of all processes since they were started."""
    return sum(int(process.report.get("dead_letters") or 0) for process in view.processes)


def plain_line(view: View) -> str:
    """One line with the figures that matter, for logs and pipes."""
    producer, writer, lake = _report(view, "producer"), _report(view, "writer"), view.lake
    per_event = f"{lake.bytes / lake.rows:.1f} B/event" if lake and lake.rows else "– B/event"
    down = [process.name for process in view.processes if process.pid is None]
    return (
        f"{datetime.fromtimestamp(view.now, UTC):%H:%M:%S}"
        f"  in {count(producer.get('events_per_second'))}/s"
        f"  committed {count(lake.rows if lake else 0)} rows ({count(view.committed_per_second)}/s)"
        f"  lag source {seconds(producer.get('lag_seconds'))}, writer {count(writer.get('lag'))} events"
        f"  fresh {seconds(_freshness(view))}"
        f"  {per_event}  dead letters {dead_letters(view)}" + (f"  DOWN: {', '.join(down)}" if down else "")
    )


def block(view: View) -> RenderableType:
    """The live block: headline, totals, one row per process, addresses."""
    head = Text(view.title, style="bold")
    clock = f"   {seconds(view.elapsed)}" + ("" if view.remaining is None else f", ends in {seconds(view.remaining)}")
    head.append(clock, style="dim")
    parts: list[RenderableType] = [head, _totals(view), Text(), _processes(view), Text()]
    for name, url in view.urls.items():
        parts.append(Text.assemble((f"{name:<10}", "dim"), (url, "cyan")))
    return Group(*parts)


def _totals(view: View) -> Table:
    producer, lake = _report(view, "producer"), view.lake
    table = Table.grid(padding=(0, 3))
    per_event = f"{lake.bytes / lake.rows:.1f}" if lake and lake.rows else "–"
    table.add_row(
        _figure(count(producer.get("events_per_second")), "events/s in"),
        _figure(count(view.committed_per_second), "rows/s committed"),
        _figure(count(lake.rows if lake else 0), "rows in the lake"),
        _figure(per_event, "bytes/event"),
        _figure(seconds(_freshness(view)), "freshness"),
        _figure(str(dead_letters(view)), "dead letters"),
    )
    return table


def _figure(value: str, meaning: str) -> Text:
    return Text.assemble((value, "bold green"), " ", (meaning, "dim"))


def _processes(view: View) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("process", "state", "lag", "memory", "restarts"):
        table.add_column(name, justify="left" if name in ("process", "state") else "right", no_wrap=True)
    table.add_column("doing", overflow="ellipsis", no_wrap=True)
    for process in view.processes:
        state, style = _state(process, view.now)
        table.add_row(
            process.name,
            Text(state, style=style),
            _lag(process),
            size(process.report.get("broker_rss_bytes") or process.report.get("rss")) if process.pid else "–",
            str(process.restarts),
            _doing(process.name, process.report),
        )
    return table


def _state(process: ProcessView, now: float) -> tuple[str, str]:
    if process.pid is None:
        return "down", "bold red"
    state = str(process.report.get("state", "starting"))
    age = now - float(process.report.get("time") or now)
    if state == "running" and age > _STALE_SECONDS.get(process.name, _USUAL_STALE_SECONDS):
        return f"silent {seconds(age)}", "yellow"
    return state, {"running": "green", "failed": "bold red"}.get(state, "yellow")


def _lag(process: ProcessView) -> str:
    report = process.report
    if process.name == "producer":
        return seconds(report.get("lag_seconds"))
    return count(report.get("lag")) if process.name == "writer" else ""


def _doing(name: str, report: Mapping[str, Any]) -> str:
    """What a process did so far, in the words of its room."""
    facts: list[tuple[str, str]] = {
        "simulator": [("generated", "generated"), ("sent", "sent"), ("rate", "per second")],
        "producer": [
            ("acknowledged", "acknowledged"),
            ("dead_letters", "dead letters"),
            ("reconnects", "reconnects"),
            ("gaps", "gaps"),
        ],
        "writer": [
            ("rows", "rows"),
            ("commits", "commits"),
            ("duplicates", "duplicates"),
            ("dead_letters", "dead letters"),
        ],
        "maintain": [
            ("hours_rolled", "hours rolled"),
            ("files_merged", "files merged"),
            ("rows_erased", "rows erased"),
        ],
        "api": [("requests", "requests")],
    }.get(name, [])
    text = ", ".join(f"{count(report[key])} {word}" for key, word in facts if key in report)
    if name == "producer" and report.get("connected") is False:
        text = f"NOT CONNECTED {report.get('problem') or ''}; {text}"
    elif name == "writer" and report.get("holding"):
        text = f"HOLDING: {report['holding']}; {text}"
    elif name == "broker" and report.get("bootstrap"):
        text = str(report["bootstrap"])
    if report.get("state") == "failed":
        text = f"{report.get('error')}; {report.get('remedy')}"
    return text

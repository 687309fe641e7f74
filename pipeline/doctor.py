"""Health checks of an installation: each looks at one thing and says what is wrong and what to do.

Nothing is changed. Every check is bounded in time; one that cannot be made because another failed says so.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx
import psutil

from lake.errors import LakeError
from lake.manifest import HOUR_US, Manifest, open_manifest
from pipeline.kafka import check_reachable, make_admin
from pipeline.lag import behind, end_offsets
from pipeline.local_broker import LocalBroker
from pipeline.settings import Loaded, Settings
from pipeline.status import read_status
from pipeline.topics import diff_topics
from schemas.errors import ExplorerError
from schemas.topics import TOPICS

Verdict = Literal["ok", "warning", "failed"]
PROCESSES = ("producer", "writer", "maintain", "api")
_TIMEOUT = 5.0
_LAG_WARNING = 100_000
_STALE_SECONDS = 30.0
_LOOK_BACK_HOURS = 48


@dataclass(frozen=True)
class Finding:
    """The answer of one check; `remedy` is empty when all is well."""

    check: str
    verdict: Verdict
    text: str
    remedy: str = ""


def examine(loaded: Loaded) -> Iterator[Finding]:
    """All checks, in the order in which data flows. Takes some seconds when something does not answer."""
    settings = loaded.settings
    yield Finding("settings", "ok", f"profile {loaded.profile}, state in {settings.state}")
    yield _guarded("disk", lambda: _disk(settings))
    broker = _guarded("broker", lambda: _broker(loaded))
    yield broker
    if broker.verdict == "ok":
        yield _guarded("topics", lambda: _topics(settings))
    yield from _processes(settings)
    try:
        manifest = open_manifest(settings.manifest, read_only=True)
    except LakeError as error:
        yield Finding("manifest", "failed", error.message, error.remedy)
        return
    try:
        yield _guarded("manifest", lambda: _manifest(manifest))
        yield _guarded("books", lambda: _books(manifest))
        yield _guarded("gaps", lambda: _gaps(manifest))
        if broker.verdict == "ok":
            yield _guarded("lag", lambda: _lag(settings, manifest))
    finally:
        manifest.close()
    yield _guarded("http", lambda: _api(settings))


def _guarded(check: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except ExplorerError as error:
        return Finding(check, "failed", error.message, error.remedy)
    except Exception as error:
        return Finding(check, "failed", f"{type(error).__name__}: {error}", "run again with --debug and report it")


def _disk(settings: Settings) -> Finding:
    folder = Path(settings.lake)
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    text = f"{usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.0f} GB at {folder}"
    if usage.free < settings.writer.min_free_bytes:
        return Finding("disk", "failed", text, "make room: the writer takes nothing in below writer.min_free_bytes")
    if usage.free < 0.1 * usage.total:
        return Finding("disk", "warning", text, "less than a tenth is left: make room or move the lake")
    return Finding("disk", "ok", text)


def _broker(loaded: Loaded) -> Finding:
    settings = loaded.settings
    embedded = loaded.origin("kafka.bootstrap").startswith("profile")
    if embedded and not LocalBroker(settings.broker.home).status(_TIMEOUT).running:
        remedy = f"start everything with `make {loaded.profile}`, or name another broker with EXPLORER_KAFKA_BOOTSTRAP"
        return Finding("broker", "failed", "the embedded broker is not running", remedy)
    cluster = check_reachable(settings.kafka, _TIMEOUT)
    return Finding("broker", "ok", f"answers at {settings.kafka.bootstrap} (cluster {cluster})")


def _topics(settings: Settings) -> Finding:
    admin = make_admin(settings.kafka)
    report = diff_topics(admin)
    if report.declared_agree:
        return Finding("topics", "ok", f"all {len(TOPICS)} as declared")
    drifts = "; ".join(str(drift) for drift in report.drifts[:3])
    return Finding(
        "topics", "failed", f"{len(report.drifts)} differences: {drifts}", "run `post-explorer topics apply`"
    )


def _processes(settings: Settings) -> Iterator[Finding]:
    for name in PROCESSES:
        report = read_status(settings.status_folder, name)
        if report is None:
            yield Finding(name, "warning", "never ran here", f"start it with `post-explorer {name}` or `up`")
            continue
        age = time.time() - float(report.get("time") or 0)
        running = psutil.pid_exists(int(report.get("pid") or -1)) and report.get("state") in ("running", "starting")
        if report.get("state") == "failed":
            yield Finding(name, "failed", str(report.get("error")), str(report.get("remedy")))
        elif not running:
            yield Finding(name, "warning", f"not running, last seen {age:.0f} s ago", "start it, or `post-explorer up`")
        elif name != "maintain" and age > _STALE_SECONDS:
            yield Finding(name, "failed", f"runs but has not reported for {age:.0f} s", "look at its log; restart it")
        else:
            problem = report.get("problem") or report.get("holding")
            yield Finding(name, "warning" if problem else "ok", str(problem or f"runs (process {report['pid']})"))


def _manifest(manifest: Manifest) -> Finding:
    snapshot = manifest.snapshot()
    totals = [snapshot.totals(table) for table in snapshot.tables()]
    rows, size = sum(total.rows for total in totals), sum(total.bytes for total in totals)
    per_event = f", {size / rows:.1f} bytes per event" if rows else ""
    return Finding("manifest", "ok", f"version {snapshot.version}: {rows:,} rows, {size / 1e6:,.1f} MB{per_event}")


def _books(manifest: Manifest) -> Finding:
    now = time.time_ns() // 1000
    hours = manifest.reconciliation(now - _LOOK_BACK_HOURS * HOUR_US, now + HOUR_US)
    wrong = [entry for entry in hours if not entry.closes]
    if wrong:
        first = wrong[0]
        text = f"{len(wrong)} of {len(hours)} topic-hours do not close, first {first.topic} of {first.hour_us}"
        return Finding(
            "books", "failed", text, "see `post-explorer lake report`; keep the topics, they can be replayed"
        )
    return Finding("books", "ok", f"{len(hours)} topic-hours of the last {_LOOK_BACK_HOURS} h close")


def _gaps(manifest: Manifest) -> Finding:
    now = time.time_ns() // 1000
    gaps = manifest.gaps(now - _LOOK_BACK_HOURS * HOUR_US, now)
    if gaps:
        text = f"{len(gaps)} in the last {_LOOK_BACK_HOURS} h, newest from {gaps[-1].source_host}: {gaps[-1].reason}"
        return Finding("gaps", "warning", text, "history the source no longer gives; answers name them as coverage")
    return Finding("gaps", "ok", f"none in the last {_LOOK_BACK_HOURS} h")


def _lag(settings: Settings, manifest: Manifest) -> Finding:
    topics = [name for name, topic in TOPICS.items() if topic.table is not None]
    lag = behind(manifest, end_offsets(settings.kafka, topics, _TIMEOUT))
    total = sum(lag.values())
    if total > _LAG_WARNING:
        worst = max(lag, key=lambda topic: lag[topic])
        return Finding("lag", "warning", f"{total:,} events wait, most in {worst}", "start a writer, or another one")
    return Finding("lag", "ok", f"{total:,} events wait for the writer")


def _api(settings: Settings) -> Finding:
    host = f"[{settings.api.host}]" if ":" in settings.api.host else settings.api.host
    url = f"http://{host}:{settings.api.port}/health/ready"
    try:
        answer = httpx.get(url, timeout=_TIMEOUT)
    except httpx.HTTPError as error:
        return Finding(
            "api", "warning", f"{urlsplit(url).netloc} does not answer: {error}", "start `post-explorer api`"
        )
    if answer.status_code != 200:
        return Finding("http", "failed", f"{url} answers {answer.status_code}: {answer.text[:200]}", "look at its log")
    return Finding("http", "ok", f"ready at {urlsplit(url).netloc}")

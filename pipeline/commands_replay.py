"""`post-explorer replay`: hours of a table made anew from the topics, and swapped in at once."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress, TaskID

from consumers.replay import Outcome, Request, replay
from consumers.replay_into import replay_into
from lake.manifest import HOUR_US, open_manifest
from lake.store import LakeStore
from pipeline import services
from pipeline.commands_lake import opened
from pipeline.errors import CheckFailedError, SettingsError
from pipeline.kafka import check_reachable, make_consumer
from pipeline.options import INSTANT, show_time
from pipeline.settings import load
from pipeline.topics import EVENT_TOPICS


@click.command("replay")
@click.argument("table", required=False)
@click.option("--start", type=INSTANT, help="First hour: RFC 3339, or 6h for six hours ago.")
@click.option(
    "--end", type=INSTANT, help="End, exclusive, rounded up to a whole hour; one hour after --start without it."
)
@click.option(
    "--offsets", multiple=True, metavar="PARTITION:FIRST-END", help="Only these offsets, END exclusive; repeatable."
)
@click.option("--source", type=click.Choice(["broker", "lake"]), default="broker", show_default=True)
@click.option("--into", metavar="FOLDER", help="Make a new lake there from all topics, or those of --topic, instead.")
@click.option("--topic", "topics", multiple=True, help="With --into: only this topic; repeatable.")
@click.option("--into-manifest", metavar="URL", help="Manifest of the new lake; FOLDER/manifest.sqlite without it.")
@click.option("--dry-run", is_flag=True, help="Say what would change; what was read is kept for the real run.")
@click.option("--yes", is_flag=True, help="Do not ask before the hours are replaced.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def replay_command(
    table: str | None,
    start: int | None,
    end: int | None,
    offsets: tuple[str, ...],
    source: str,
    into: str | None,
    topics: tuple[str, ...],
    into_manifest: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Make hours of TABLE anew from the topic and replace them in one version, while ingest goes on.

    Stopped by Ctrl-C it can be started again and goes on where it was. Ranges that the broker no longer has are
    refused, with the hours that `--source lake` can still rebuild.

    With --into the topics are read into a new lake beside this one, up to where this one is: for a new table version, or
    to compare.

    \b
    Example:
      post-explorer replay app.bsky.feed.post --start 2026-07-04T12:00:00Z --dry-run
      post-explorer replay --into /srv/lake-2 --topic bluesky.app.bsky.feed.post
    """
    if into is not None:
        _fill(into, into_manifest, topics, start, as_json)
        return
    if table is None or start is None:
        raise click.UsageError("name the TABLE and --start, or a folder for a new lake with --into")
    settings = load().settings
    begin = start - start % HOUR_US
    until = -(-end // HOUR_US) * HOUR_US if end is not None else begin + HOUR_US
    request = Request(table, begin, until, _offsets(offsets))
    if not (yes or dry_run):
        click.confirm(
            f"replace {table} from {show_time(begin)} to {show_time(until)} by what the {source} gives?",
            abort=True,
            err=True,
        )
    check_reachable(settings.kafka)
    stop = _stop_on_signals()
    console = Console(stderr=True)
    with (
        opened(settings, read_only=False) as (manifest, store),
        Progress(console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        tasks = {step: bar.add_task(step, total=None, visible=False) for step in ("read", "build")}
        outcome = replay(
            store,
            manifest,
            partial(make_consumer, settings.kafka),
            request,
            config=settings.replay,
            source="lake" if source == "lake" else "broker",
            dry_run=dry_run,
            keep_edits=settings.maintain.keep_edits,
            lookup=services.lookup(settings),
            progress=lambda step, done, total: bar.update(tasks[step], completed=done, total=total, visible=True),
            stop=stop,
        )
    _tell(outcome, dry_run, as_json)


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _fill(folder: str, manifest_url: str | None, topics: tuple[str, ...], start_us: int | None, as_json: bool) -> None:
    """Reads topics into a new lake in `folder`."""
    unknown = [topic for topic in topics if topic not in EVENT_TOPICS]
    if unknown:
        raise SettingsError(f"{unknown[0]!r} is no topic of events", f"topics are: {', '.join(EVENT_TOPICS)}")
    settings = load().settings
    check_reachable(settings.kafka)
    stop = _stop_on_signals()
    target = open_manifest(manifest_url or str(Path(folder) / "manifest.sqlite"), create=True)
    console = Console(stderr=True)
    try:
        with (
            opened(settings) as (source, _),
            Progress(console=console, transient=True, disable=not console.is_terminal) as bar,
        ):
            tasks: dict[str, TaskID] = {}

            def progress(topic: str, done: int, total: int) -> None:
                if topic not in tasks:
                    tasks[topic] = bar.add_task(topic)
                bar.update(tasks[topic], completed=done, total=total)

            filled = replay_into(
                source,
                LakeStore(folder),
                target,
                partial(make_consumer, settings.kafka),
                topics or EVENT_TOPICS,
                config=settings.replay,
                start_us=start_us,
                lookup=services.lookup(settings),
                progress=progress,
                stop=stop,
            )
    finally:
        target.close()
    facts = asdict(filled)
    click.echo(
        json.dumps(facts, indent=2) if as_json else ", ".join(f"{name} {value}" for name, value in facts.items())
    )
    if not filled.complete:
        raise CheckFailedError("stopped before the new lake was complete", "start it again to go on")


def _offsets(texts: tuple[str, ...]) -> dict[int, tuple[int, int]] | None:
    found: dict[int, tuple[int, int]] = {}
    for text in texts:
        partition, _, bounds = text.partition(":")
        first, _, end = bounds.partition("-")
        if not (partition.isdigit() and first.isdigit() and end.isdigit() and int(first) < int(end)):
            raise SettingsError(f"--offsets {text!r} is no range", "write PARTITION:FIRST-END, for example 0:1000-2000")
        found[int(partition)] = (int(first), int(end))
    return found or None


def _tell(outcome: Outcome, dry_run: bool, as_json: bool) -> None:
    replaced = outcome.replaced
    if as_json:
        hours = [] if replaced is None else replaced.hours
        document = {
            "version": None if replaced is None else replaced.version,
            "dry_run": dry_run,
            "complete": replaced is not None,
            "messages_read": outcome.read,
            "dead_letters": outcome.dead_letters,
            "hours": [
                {
                    "hour": show_time(hour.hour_us),
                    "before": hour.before,
                    "after": hour.after,
                    "added": hour.added,
                    "dropped": hour.dropped,
                    "erased": hour.erased,
                }
                for hour in hours
            ],
        }
        click.echo(json.dumps(document, indent=2))
    if replaced is None:
        raise CheckFailedError(
            f"stopped after {outcome.read:,} messages; nothing was changed", "start it again to go on"
        )
    if as_json:
        return
    for hour in replaced.hours:
        click.echo(
            f"{show_time(hour.hour_us)[:16]}Z: {hour.before:,} rows → {hour.after:,} "
            f"({hour.added:,} added, {hour.dropped:,} dropped, {hour.erased:,} erased)"
        )
    done = "would be replaced (dry run)" if replaced.version is None else f"replaced in version {replaced.version}"
    click.echo(
        f"{len(replaced.hours)} hours {done}; {outcome.read:,} messages read, {outcome.dead_letters:,} dead letters"
    )

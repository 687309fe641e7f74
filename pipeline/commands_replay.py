"""`post-explorer replay`: hours of a table made anew from the topics, and swapped in at once."""

from __future__ import annotations

import json
import signal
import threading
from functools import partial

import click
from rich.console import Console
from rich.progress import Progress

from consumers.replay import Outcome, Request, replay
from lake.manifest import HOUR_US
from pipeline import services
from pipeline.commands_lake import opened
from pipeline.errors import CheckFailedError, SettingsError
from pipeline.kafka import check_reachable, make_consumer
from pipeline.options import INSTANT, show_time
from pipeline.settings import load


@click.command("replay")
@click.argument("table")
@click.option("--start", type=INSTANT, required=True, help="First hour: RFC 3339, or 6h for six hours ago.")
@click.option(
    "--end", type=INSTANT, help="End, exclusive, rounded up to a whole hour; one hour after --start without it."
)
@click.option(
    "--offsets", multiple=True, metavar="PARTITION:FIRST-END", help="Only these offsets, END exclusive; repeatable."
)
@click.option("--source", type=click.Choice(["broker", "lake"]), default="broker", show_default=True)
@click.option("--dry-run", is_flag=True, help="Say what would change; what was read is kept for the real run.")
@click.option("--yes", is_flag=True, help="Do not ask before the hours are replaced.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def replay_command(
    table: str,
    start: int,
    end: int | None,
    offsets: tuple[str, ...],
    source: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Make hours of TABLE anew from the topic and replace them in one version, while ingest goes on.

    Stopped by Ctrl-C it can be started again and goes on where it was. Ranges that the broker no longer has are
    refused, with the hours that `--source lake` can still rebuild.

    \b
    Example:
      post-explorer replay app.bsky.feed.post --start 2026-07-04T12:00:00Z --dry-run
    """
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
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
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

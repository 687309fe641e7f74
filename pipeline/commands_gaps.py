"""`post-explorer gaps`: stretches of history that the source lost, and filling them from a server's archive."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import click

from pipeline import services
from pipeline.errors import CheckFailedError, SettingsError
from pipeline.kafka import check_reachable, make_consumer, make_producer
from pipeline.options import show_time
from pipeline.settings import Settings, load

if TYPE_CHECKING:
    from producers.backfill import Backfill, KnownGap, Progress


@click.group()
def gaps() -> None:
    """See which stretches of history the source could not give, and fill them from an archive.

    \b
    Example:
      post-explorer gaps list
    """


@gaps.command("list")
@click.option("--open", "only_open", is_flag=True, help="Only those that are not filled.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_command(only_open: bool, as_json: bool) -> None:
    """List the gaps that producers recorded, oldest first, and what has been done about each.

    \b
    Example:
      post-explorer gaps list --open
    """
    found = [known for known in _backfill(load().settings).known() if not (only_open and known.filled)]
    if as_json:
        click.echo(json.dumps([_facts(known) for known in found], indent=2))
        return
    for known in found:
        gap = known.gap
        if known.filled is not None:
            standing = f"filled {show_time(known.filled.noticed_us)}: {known.filled.detail}"
        elif known.through_seq is not None:
            standing = f"begun, read through sequence {known.through_seq}"
        else:
            standing = "open"
        span = f"{show_time(gap.from_us)} to {show_time(gap.to_us)}"
        click.echo(f"{known.name}  {span}  {gap.host}  {gap.reason}: {standing}")
    still_open = sum(known.filled is None for known in found)
    click.echo(f"{len(found)} gaps, {still_open} open")


@gaps.command()
@click.argument("names", metavar="[GAP]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every gap that is not filled.")
@click.pass_context
def fill(context: click.Context, names: tuple[str, ...], everything: bool) -> None:
    """Read what the archive has of gaps into the topics; the writer takes it into the lake like anything else.

    Rows say `archive` as their protocol. The archive holds compacted state: what was overwritten or deleted since is
    missing there too. Ctrl-C stops; another run goes on at that place. Reads no faster than
    EXPLORER_SOURCE_ARCHIVE_BYTES_PER_SECOND; EXPLORER_SOURCE_ARCHIVE_URL names another server than the one that has the
    gap, EXPLORER_SOURCE_ARCHIVE_KEY is its API key. Exit status 1 when one could not be filled to its end.

    \b
    Example:
      post-explorer gaps fill --all
      post-explorer gaps fill 5f0c1a9e
    """
    from producers.archive import ArchiveError, StoppedError

    if bool(names) == everything:
        raise click.UsageError("name the gaps as `gaps list` does, or say --all")
    backfill = _backfill(load().settings)
    chosen = _chosen(backfill.known(), names)
    if not chosen:
        click.echo("nothing to fill: no gap is open")
    unfilled = 0
    with _interruptible() as stop:
        for known in chosen:
            try:
                with _shown(known) as progress:
                    filled = backfill.fill(known.gap, stop, progress)
            except StoppedError:
                raise CheckFailedError(
                    f"{known.name}: stopped in the middle", "run the command again: it goes on at that place"
                ) from None
            except ArchiveError as error:
                click.echo(f"{known.name}: {error}", err=True)
                unfilled += 1
                continue
            rest = (
                "" if filled.complete else "; its end is not in the archive yet, so it stays open: try again in an hour"
            )
            click.echo(f"{known.name}: {filled.events} rows, {filled.dead_letters} set aside{rest}")
            unfilled += not filled.complete
    if unfilled:
        raise CheckFailedError(f"{unfilled} of {len(chosen)} gaps are not filled", "see what is said about each above")


def _backfill(settings: Settings) -> Backfill:
    from producers.backfill import Backfill

    check_reachable(settings.kafka)
    return Backfill(
        settings.source,
        settings.producer,
        services.framing(settings),
        cast(Callable[..., Any], partial(make_producer, settings.kafka)),
        cast(Callable[..., Any], partial(make_consumer, settings.kafka)),
    )


def _chosen(known: list[KnownGap], names: tuple[str, ...]) -> list[KnownGap]:
    """The open gaps, or those named. Raises SettingsError for a name that is none."""
    unknown = set(names) - {one.name for one in known}
    if unknown:
        raise SettingsError(f"there is no gap {', '.join(sorted(unknown))}", "`post-explorer gaps list` names them")
    return [one for one in known if (one.name in names if names else one.filled is None)]


def _facts(known: KnownGap) -> dict[str, Any]:
    return {
        "id": known.name,
        **asdict(known.gap),
        "read_through_seq": known.through_seq,
        "filled": None if known.filled is None else asdict(known.filled),
    }


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C and a request to end set."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _shown(known: KnownGap) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal (nothing elsewhere), moved by what it is told."""
    with click.progressbar(length=1, label=known.name, show_pos=False, item_show_func=str) as bar:
        done = 0.0

        def show(progress: Progress) -> None:
            nonlocal done
            share = progress.share
            # The bar counts whole steps; a thousandth is one.
            bar.length = 1000
            bar.update(round((share - done) * 1000), f"{progress.events} rows")
            done = share

        yield show

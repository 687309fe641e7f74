"""`post-explorer lake`: look at the lake, prove that it is whole, repair what can be repaired."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from lake.manifest import HOUR_US, HourReconciliation, Manifest, open_manifest
from lake.store import LakeStore
from pipeline.errors import CheckFailedError
from pipeline.kafka import check_reachable, make_consumer
from pipeline.options import INSTANT, show_time
from pipeline.settings import Settings, load


@click.group()
def lake() -> None:
    """Look at the lake, prove that it is whole, repair what can be repaired.

    \b
    Example:
      post-explorer --demo lake report
      post-explorer lake verify --deep
    """


@contextmanager
def opened(settings: Settings, *, read_only: bool = True) -> Iterator[tuple[Manifest, LakeStore]]:
    """The lake of these settings; raises ManifestUnavailable when there is none."""
    manifest = open_manifest(settings.manifest, read_only=read_only)
    try:
        yield manifest, LakeStore(settings.lake)
    finally:
        manifest.close()


@lake.command()
@click.option("--since", type=INSTANT, help="First hour: RFC 3339, or 2d for two days ago; 48 hours back without it.")
@click.option("--hours", "by_hour", is_flag=True, help="One line for each topic and hour instead of each topic.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def report(context: click.Context, since: int | None, by_hour: bool, as_json: bool) -> None:
    """Show the books: consumed = rows + duplicates + dead letters, and rows = what the live files hold.

    Exit status 1 when a topic-hour does not close.

    \b
    Example:
      post-explorer --demo lake report --hours
    """
    now = time.time_ns() // 1000
    start = since if since is not None else now - 48 * HOUR_US
    with opened(load().settings) as (manifest, _):
        hours = manifest.reconciliation(start, now + HOUR_US)
        snapshot = manifest.snapshot()
        totals = {table: asdict(snapshot.totals(table)) for table in snapshot.tables()}
    open_books = [entry for entry in hours if not entry.closes]
    if as_json:
        document = {
            "version": snapshot.version,
            "closes": not open_books,
            "tables": totals,
            "hours": [{**asdict(entry), "closes": entry.closes} for entry in hours],
        }
        click.echo(json.dumps(document, indent=2))
    else:
        _print_books(hours if by_hour else _by_topic(hours), by_hour=by_hour)
        click.echo(f"version {snapshot.version}: {len(hours)} topic-hours, {len(open_books)} do not close")
    context.exit(1 if open_books else 0)


def _by_topic(hours: list[HourReconciliation]) -> list[HourReconciliation]:
    summed: dict[str, HourReconciliation] = {}
    for entry in hours:
        before = summed.get(entry.topic)
        if before is None:
            summed[entry.topic] = entry
            continue
        numbers = ("consumed", "duplicates", "rows", "dead_letters", "removed", "live_rows", "erased_rows")
        added = {name: getattr(before, name) + getattr(entry, name) for name in numbers}
        summed[entry.topic] = HourReconciliation(entry.topic, entry.table, before.hour_us, **added)
    return [summed[topic] for topic in sorted(summed)]


def _print_books(entries: list[HourReconciliation], *, by_hour: bool) -> None:
    width = max((len(entry.topic) for entry in entries), default=5)
    when = f"{'hour':<21}" if by_hour else ""
    names = ("consumed", "duplicates", "rows", "dead letters", "in files", "erased")
    click.echo(f"{'topic':<{width}} {when}" + "".join(f"{name:>14}" for name in names))
    for entry in entries:
        numbers = (
            entry.consumed,
            entry.duplicates,
            entry.rows,
            entry.dead_letters,
            entry.live_rows,
            entry.erased_rows,
        )
        when = f"{show_time(entry.hour_us)[:16] + 'Z':<21}" if by_hour else ""
        verdict = "" if entry.closes else "  DOES NOT CLOSE"
        click.echo(f"{entry.topic:<{width}} {when}" + "".join(f"{number:>14,}" for number in numbers) + verdict)


@lake.command()
@click.option("--deep", is_flag=True, help="Digest every byte and read every column too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def verify(context: click.Context, deep: bool, as_json: bool) -> None:
    """Compare the manifest with the files; changes nothing, safe beside writers. Exit status 1 when something is wrong.

    \b
    Example:
      post-explorer lake verify --deep --json
    """
    from lake.verify import verify as run

    settings = load().settings
    old = int((time.time() - settings.maintain.unlink_after_seconds) * 1_000_000)
    with opened(settings) as (manifest, store), progress_bar("files") as tell:
        found = run(store, manifest, deep=deep, strays_older_than_us=old, progress=tell)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        for finding in found.findings:
            click.echo(f"WRONG {finding.subject}: {finding.problem}\n      → {finding.remedy}")
        for kind, paths in (("orphan", found.strays.orphans), ("foreign file", found.strays.foreign)):
            for path in paths:
                click.echo(f"{kind}: {path}")
        for topic, offsets in found.unaccounted.items():
            click.echo(
                f"note: {offsets:,} offsets of {topic} are neither rows nor in the books: holes of the broker, or books that a"
                " rebuild lost; a look at the topic tells"
            )
        click.echo(
            f"version {found.version}: {found.files:,} files, {found.rows:,} rows, {found.bytes:,} bytes, "
            f"{len(found.findings)} wrong"
        )
    context.exit(1 if found.findings else 0)


@lake.command()
@click.option(
    "--into", type=click.Path(path_type=Path, dir_okay=False), help="New manifest; the one of the settings without it."
)
def rebuild(into: Path | None) -> None:
    """Make a lost manifest anew from the files and their footers. Stop the writers first; the new manifest must be empty.

    \b
    Example:
      post-explorer lake rebuild
    """
    from lake.rebuild import rebuild as run

    settings = load().settings
    manifest = open_manifest(str(into) if into else settings.manifest, create=True)
    try:
        found = run(LakeStore(settings.lake), manifest)
    finally:
        manifest.close()
    for kind in ("replaced", "incomplete", "merged", "damaged"):
        for path in getattr(found, kind):
            click.echo(f"{kind}: {path}")
    click.echo(
        f"{found.files:,} files with {found.rows:,} rows, positions of {len(found.positions)} partitions, {found.gaps} gaps"
    )
    for table in found.undecided:
        click.echo(
            f"undecided: a replay of {table} was being swapped in when the manifest was lost, and is taken back: run it again"
        )
    click.echo(
        "not restored: versions before this one (as-of questions about that time), and the books of hours that hold no row;"
        " the writer reads bluesky.gap from its start, which brings every gap of the source back"
    )
    if found.damaged:
        raise CheckFailedError(
            f"{len(found.damaged)} files cannot be read and are not in the new manifest",
            "restore them from a backup and rebuild again, or replay their hours",
        )


@lake.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def versions(limit: int, as_json: bool) -> None:
    """List the newest changes of the lake: every commit, merge, erasure, replay.

    \b
    Example:
      post-explorer lake versions --limit 5
    """
    with opened(load().settings) as (manifest, _):
        found = manifest.versions(limit)
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in found], indent=2))
        return
    for entry in found:
        click.echo(
            f"{entry.version:>8}  {show_time(entry.created_us)}  {entry.reason:<12}"
            f" +{entry.files_added} -{entry.files_retired} files, +{entry.rows_added:,} -{entry.rows_retired:,} rows"
        )


@lake.command()
@click.option("--since", type=INSTANT, default=0, help="Only gaps that reach beyond this time.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def gaps(since: int, as_json: bool) -> None:
    """List the stretches of time for which the source could not give everything.

    \b
    Example:
      post-explorer lake gaps --since 7d
    """
    with opened(load().settings) as (manifest, _):
        found = manifest.gaps(since, time.time_ns() // 1000 + HOUR_US)
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in found], indent=2))
        return
    for entry in found:
        span = f"{show_time(entry.start_us)} to {show_time(entry.end_us)}"
        click.echo(f"{span}  {entry.source_host}  {entry.reason}: {entry.detail}")
    click.echo(f"{len(found)} gaps")


@lake.command("accept-broker")
@click.option("--yes", is_flag=True, help="Do it; without it only what would be done is printed.")
def accept_broker(yes: bool) -> None:
    """Read partitions from their start again after the broker lost records or topics were made anew.

    Only partitions that the lake has further than the broker are touched. Rows stay; what comes again is dropped by its
    identity. Writers that still run are fenced.

    \b
    Example:
      post-explorer lake accept-broker --yes
    """
    from consumers.acceptance import accept_broker as accept
    from consumers.acceptance import ahead_of_broker

    settings = load().settings
    check_reachable(settings.kafka)
    factory = partial(make_consumer, settings.kafka)
    with opened(settings, read_only=not yes) as (manifest, _):
        found = (accept if yes else ahead_of_broker)(manifest, factory)
    for entry in found:
        click.echo(
            f"{entry.topic}/{entry.partition}: lake at {entry.position}, broker has {entry.low} to {entry.high}"
            + (f"; reads on from {entry.low}" if yes else "")
        )
    click.echo(f"{len(found)} partitions " + ("will be read anew" if yes else "would be read anew; --yes does it"))


@lake.command()
@click.argument("target", type=click.Path(path_type=Path, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def backup(target: Path, as_json: bool) -> None:
    """Copy the lake into the folder TARGET, or bring the copy there up to date; safe while everything runs.

    Only new files are copied, and what was erased from the lake is removed from the copy. Restore: copy TARGET to the
    place of the lake, run `post-explorer lake verify --deep`, start the writer: it reads from the topics what came later.

    \b
    Example:
      post-explorer lake backup /mnt/backup/lake
    """
    from pipeline.backup import back_up

    settings = load().settings
    with progress_bar("files") as tell:
        done = back_up(settings.manifest, Path(settings.lake), target, tell)
    if as_json:
        click.echo(json.dumps(asdict(done), indent=2))
        return
    click.echo(
        f"version {done.version}, {done.rows:,} rows in {done.files:,} files; "
        f"{done.copied:,} copied ({done.copied_bytes / 1e6:,.1f} MB), {done.removed:,} removed"
    )


@contextmanager
def progress_bar(what: str) -> Iterator[Any]:
    """A progress bar on standard error while it is a terminal."""
    with Progress(console=Console(stderr=True), transient=True, disable=not Console(stderr=True).is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

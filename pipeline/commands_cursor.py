"""`post-explorer cursor`: where the producer would resume, and how to move that."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from typing import Any

import click

from pipeline import services
from pipeline.errors import CheckFailedError
from pipeline.kafka import check_reachable, make_consumer, make_producer
from pipeline.options import INSTANT, show_time
from pipeline.settings import Settings, load
from pipeline.status import read_status
from schemas.bodies import Cursor
from schemas.topics import CURSOR, TOPICS

_RECENT_SECONDS = 10.0
_FLUSH_SECONDS = 15.0


@click.group()
def cursor() -> None:
    """Look at and move the stored source cursors, one per host, kept in a compacted topic.

    \b
    Example:
      post-explorer cursor show
    """


def _stored(settings: Settings) -> tuple[Cursor, ...]:
    from producers.cursor_store import StoredCursors
    from producers.publisher import read_to_end

    check_reachable(settings.kafka)
    factory: Any = partial(make_consumer, settings.kafka)
    return StoredCursors(read_to_end(factory, CURSOR, settings.producer.cursor_timeout)).cursors


@cursor.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def show(as_json: bool) -> None:
    """Show the cursor of each host, the one that a producer would resume from first.

    \b
    Example:
      post-explorer cursor show --json
    """
    found = _stored(load().settings)
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in found], indent=2))
        return
    if not found:
        click.echo("no cursor is stored: a producer would start as EXPLORER_SOURCE_START says")
    for entry in found:
        click.echo(
            f"{entry.host}  {entry.protocol}  seq {entry.seq if entry.seq is not None else '–'}"
            f"  event time {show_time(entry.time_us)}  stored {show_time(entry.updated_us)}"
        )


@cursor.command()
def export() -> None:
    """Print the cursors as JSON lines, for safe keeping; each line has what `cursor set` needs.

    \b
    Example:
      post-explorer cursor export > cursors.jsonl
    """
    for entry in _stored(load().settings):
        click.echo(json.dumps(asdict(entry)))


@cursor.command("set")
@click.argument("host")
@click.option("--time", "time_us", type=INSTANT, required=True, help="Event time: RFC 3339, or 2h for two hours ago.")
@click.option("--seq", type=click.IntRange(min=0), help="Sequence number of the host; without one the time counts.")
@click.option("--protocol", type=click.Choice(["v1", "v2"]), default="v2", show_default=True)
def set_command(host: str, time_us: int, seq: int | None, protocol: str) -> None:
    """Make the next producer resume from a position of HOST (as `cursor show` names it). Stop the producer first.

    Events between the old position and a later new one are never fetched. Going back is harmless: the lake drops what
    it has already.

    \b
    Example:
      post-explorer cursor set jetstream.us-east.bsky.network --time 6h
    """
    settings = load().settings
    report = read_status(settings.status_folder, "producer") or {}
    if report.get("state") == "running" and time.time() - float(report.get("time") or 0) < _RECENT_SECONDS:
        raise CheckFailedError(
            f"a producer runs (process {report.get('pid')}) and would store its own cursor over this one",
            "stop it first, then set the cursor, then start it",
        )
    check_reachable(settings.kafka)
    entry = Cursor(host, protocol, seq, time_us, time.time_ns() // 1000)
    failures: list[str] = []
    producer = make_producer(settings.kafka)
    value = services.framing(settings).frame(TOPICS[CURSOR].schema, entry.encode())
    producer.produce(
        CURSOR, value, host, on_delivery=lambda error, _: failures.append(str(error)) if error is not None else None
    )
    if producer.flush(_FLUSH_SECONDS) or failures:
        raise CheckFailedError(
            f"the broker did not take the cursor: {failures or 'no answer'}", "check it with `post-explorer doctor`"
        )
    click.echo(f"{host}: resumes at {show_time(time_us)}" + ("" if seq is None else f", seq {seq}"))

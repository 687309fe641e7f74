"""`post-explorer events`: the source's frames, given back from what was stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import click

from pipeline import services
from pipeline.frames import FRAMES, Row, Wanted, rows_of_lake, rows_of_topics
from pipeline.options import INSTANT
from pipeline.settings import load

_ONE_LINE: Final = str.maketrans({"\n": " ", "\r": " ", "\x85": r"\u0085", "\u2028": r"\u2028", "\u2029": r"\u2029"})
"""What would break a line for one reader or another: the first two can only stand between tokens, the others only in strings."""


@click.command()
@click.option("--from", "origin", type=click.Choice(["topic", "lake"]), default="lake", show_default=True)
@click.option("--wire", type=click.Choice(["v1", "v2"]), default="v2", show_default=True, help="Form of the frames.")
@click.option("--collection", "collections", multiple=True, help="NSID, or identity, account, sync; repeatable.")
@click.option("--did", "dids", multiple=True, help="Account; repeatable.")
@click.option("--since", type=INSTANT, help="Event time from which on: RFC 3339, or 2h for two hours ago.")
@click.option("--until", type=INSTANT, help="Event time before which.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many frames.")
@click.option("--follow", is_flag=True, help="Topics only: go on with new events until Ctrl-C.")
@click.pass_context
def events(
    context: click.Context,
    origin: str,
    wire: str,
    collections: tuple[str, ...],
    dids: tuple[str, ...],
    since: int | None,
    until: int | None,
    limit: int | None,
    follow: bool,
) -> None:
    """Print events as Jetstream frames, one JSON value a line, rebuilt from the topics or from the lake.

    Erased events have no content any more and are left out, as are sync events and the re-reads of repositories after
    them on v1, which that wire never carries; both are counted on standard error. Exit status 1 when something stored
    cannot be decoded.

    \b
    Example:
      post-explorer --demo events --from lake --collection app.bsky.feed.post --since 1h --limit 3
      post-explorer events --from topic --wire v1 --did did:plc:ewvi7nxzyoun6zhxrhs64oiz
    """
    if follow and origin == "lake":
        raise click.UsageError("--follow works with --from topic")
    settings = load().settings
    wanted = Wanted(collections, frozenset(dids), since, until)
    bad: list[str] = []

    def on_bad(text: str) -> None:
        bad.append(text)
        click.echo(f"cannot be decoded: {text}", err=True)

    rows: Iterator[Row]
    if origin == "topic":
        rows = rows_of_topics(settings.kafka, wanted, services.lookup(settings), on_bad, follow=follow)
    else:
        manifest, store = services.open_lake(settings)
        rows = rows_of_lake(store, manifest.snapshot(), wanted)
    printed, erased, unsent = 0, 0, 0
    for row in rows:
        if row.get("erased") is not None:
            erased += 1
            continue
        frame = FRAMES[wire](row)
        if frame is None:
            unsent += 1
            continue
        click.echo(frame.translate(_ONE_LINE))
        printed += 1
        if printed == limit:
            break
    for count, what in ((erased, "erased events left out"), (unsent, "events left out that this wire does not carry")):
        if count:
            click.echo(f"{count} {what}", err=True)
    context.exit(1 if bad else 0)

"""`post-explorer cost`: what keeping the data costs a month."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import NamedTuple

import click

from lake.errors import LakeError
from pipeline.cost import DOLLARS_PER_EURO, PRICES_OF, SERVERS, Bill, Load, bill
from pipeline.settings import load

# Without a lake to measure: today's network, and the goal for stored bytes.
USUAL_EVENTS_PER_DAY = 30e6
USUAL_BYTES_PER_EVENT = 85.0
TOPIC_BYTES_PER_EVENT = 140.0
_LEAST_ROWS = 100_000


class _Measured(NamedTuple):
    bytes_per_event: float
    origin: str


def _measured() -> _Measured:
    """Bytes per event of the lake in force, if it holds enough rows to say."""
    from pipeline.services import open_lake

    try:
        manifest, _ = open_lake(load().settings)
    except LakeError:
        return _Measured(USUAL_BYTES_PER_EVENT, "goal, there is no lake yet")
    try:
        snapshot = manifest.snapshot()
        totals = [snapshot.totals(table) for table in snapshot.tables()]
    finally:
        manifest.close()
    rows, size = sum(total.rows for total in totals), sum(total.bytes for total in totals)
    if rows < _LEAST_ROWS:
        return _Measured(USUAL_BYTES_PER_EVENT, f"goal, the lake has only {rows:,} rows")
    return _Measured(size / rows, f"measured over {rows:,} rows")


@click.command()
@click.option("--events-per-day", type=float, default=USUAL_EVENTS_PER_DAY, show_default=True)
@click.option("--bytes-per-event", type=float, help="Stored bytes; without it those of the lake in force.")
@click.option("--days", type=float, default=365.0, show_default=True, help="Days the lake keeps.")
@click.option("--hot-days", type=float, default=30.0, show_default=True, help="Days on the server's own disk.")
@click.option("--topic-days", type=float, default=7.0, show_default=True, help="Days the broker keeps.")
@click.option("--server", type=click.Choice(list(SERVERS)), help="Only this server type; all of them without it.")
@click.option("--bucket/--no-bucket", default=True, show_default=True, help="Older data in object storage.")
@click.option("--backups/--no-backups", default=True, show_default=True, help="Backups of the server.")
@click.option("--budget", type=float, default=50.0, show_default=True, help="US dollars a month to stay below.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def cost(
    events_per_day: float,
    bytes_per_event: float | None,
    days: float,
    hot_days: float,
    topic_days: float,
    server: str | None,
    bucket: bool,
    backups: bool,
    budget: float,
    as_json: bool,
) -> None:
    """Compute disks and the monthly bill from events a day and the measured bytes per event.

    \b
    Example:
      post-explorer cost --events-per-day 8.1e6 --days 365 --server cx43
    """
    size, origin = (bytes_per_event, "given") if bytes_per_event is not None else _measured()
    wanted = Load(events_per_day, size, days, hot_days, topic_days, TOPIC_BYTES_PER_EVENT)
    servers = [SERVERS[server]] if server else list(SERVERS.values())
    bills = [bill(wanted, each, bucket=bucket, backups=backups) for each in servers]
    if as_json:
        document = {
            "prices_of": PRICES_OF,
            "load": asdict(wanted),
            "bytes_per_event_origin": origin,
            "bills": [{**asdict(each), "total": each.total, "dollars": each.dollars} for each in bills],
        }
        click.echo(json.dumps(document, indent=2))
        return
    _print(bills, wanted, origin, budget)


def _print(bills: list[Bill], wanted: Load, origin: str, budget: float) -> None:
    first = bills[0]
    click.echo(f"{wanted.events_per_day:,.0f} events a day at {wanted.bytes_per_event:.1f} bytes ({origin})")
    click.echo(
        f"lake: {first.lake_gb_per_day:.2f} GB a day, {first.lake_gb:,.0f} GB in {wanted.lake_days:g} days, "
        f"{first.hot_gb:,.0f} GB of it on the server; topics: {first.topics_gb:,.0f} GB for {wanted.topic_days:g} days"
    )
    click.echo(f"prices of {PRICES_OF}, net, a month; {DOLLARS_PER_EURO} dollars to the euro")
    click.echo(
        f"{'server':<8}{'server €':>10}{'volume':>9}{'volume €':>10}{'bucket €':>10}{'other €':>9}{'total €':>10}{'total $':>10}"
    )
    for each in bills:
        verdict = "" if each.dollars <= budget else f"  over {budget:g} $"
        click.echo(
            f"{each.server:<8}{each.server_price:>10.2f}{each.volume_gb:>6} GB{each.volume_price:>10.2f}"
            f"{each.bucket_price:>10.2f}{each.ipv4_price + each.backup_price:>9.2f}"
            f"{each.total:>10.2f}{each.dollars:>10.2f}{verdict}"
        )

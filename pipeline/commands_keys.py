"""`post-explorer keys`: who may use the API."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import click

from api.access.keys import KeyInfo, create_key, keys_file, list_keys, revoke_key
from api.access.scopes import Scope
from pipeline.options import show_time
from pipeline.settings import load


@click.group()
def keys() -> None:
    """Make, list and revoke API keys. Only their digests are stored.

    \b
    Example:
      post-explorer keys create --name "Ada, lab 3" --scope read --scope export
    """


def _path() -> Any:
    api = load().settings.api
    return keys_file(api.access, api.state_dir)


@keys.command()
@click.option("--name", required=True, help="Who uses it.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="Repeatable; read without it.",
)
@click.option("--days", type=click.IntRange(min=1), help="Days until it expires; never without it.")
@click.option("--requests-per-minute", type=click.IntRange(min=1), help="Own limit instead of the service's.")
@click.option(
    "--bytes-per-day", type=click.IntRange(min=1), help="Own limit of bytes scanned instead of the service's."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def create(
    name: str,
    scopes: tuple[str, ...],
    days: int | None,
    requests_per_minute: int | None,
    bytes_per_day: int | None,
    as_json: bool,
) -> None:
    """Make a key and print it, once: it cannot be had again.

    \b
    Example:
      post-explorer keys create --name "Ada, lab 3" --scope read --days 90
    """
    made = create_key(
        _path(),
        name=name,
        scopes=frozenset(Scope(scope) for scope in scopes or ("read",)),
        days=days,
        requests_per_minute=requests_per_minute,
        bytes_per_day=bytes_per_day,
        now=time.time(),
    )
    if as_json:
        click.echo(json.dumps({"token": made.token, **_facts(made.info)}, indent=2))
        return
    click.echo(made.token)
    click.echo(f"id {made.info.id}; keep it now, it is not shown again", err=True)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_command(as_json: bool) -> None:
    """List every key ever made, without its secret.

    \b
    Example:
      post-explorer keys list --json
    """
    found = list_keys(_path())
    if as_json:
        click.echo(json.dumps([_facts(info) for info in found], indent=2))
        return
    for info in found:
        state = "revoked" if info.revoked is not None else "valid" if info.valid(time.time()) else "expired"
        scopes = ",".join(sorted(info.scopes))
        used = _seconds(info.last_used)
        click.echo(f"{info.id}  {state:<8} {scopes:<24} expires {_seconds(info.expires)}  used {used}  {info.name}")
    click.echo(f"{len(found)} keys", err=True)


@keys.command()
@click.argument("key_id", metavar="ID")
def revoke(key_id: str) -> None:
    """Make a key useless from now on.

    \b
    Example:
      post-explorer keys revoke 3fk9c2
    """
    info = revoke_key(_path(), key_id, now=time.time())
    click.echo(f"{info.id} ({info.name}) is revoked")


def _seconds(moment: float | None) -> str:
    return "never" if moment is None else show_time(int(moment * 1_000_000))


def _facts(info: KeyInfo) -> dict[str, Any]:
    return {**asdict(info), "scopes": sorted(info.scopes)}

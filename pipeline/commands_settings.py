"""`post-explorer settings`: what every setting is, and why."""

from __future__ import annotations

import json

import click

from pipeline.settings import load


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object: name → value, origin, meaning.")
@click.option("--changed", is_flag=True, help="Only values that are not the default.")
def settings(as_json: bool, changed: bool) -> None:
    """Print every setting: value, origin, environment variable and meaning. Secrets are masked.

    \b
    Example:
      EXPLORER_WRITER_BATCH_ROWS=50000 post-explorer settings --changed
    """
    loaded = load()
    values = [value for value in loaded.values if not changed or value.origin != "default"]
    if as_json:
        document = {
            value.leaf.dotted: {
                "value": value.shown(),
                "origin": value.origin,
                "environment": value.leaf.environment,
                "meaning": value.leaf.description,
            }
            for value in values
        }
        click.echo(json.dumps(document, indent=2))
        return
    width = max((len(value.leaf.environment) for value in values), default=0)
    for value in values:
        shown = json.dumps(value.shown()) if not isinstance(value.shown(), str) else value.shown()
        click.echo(f"{value.leaf.environment:<{width}} = {shown}   ({value.origin}) {value.leaf.description}")

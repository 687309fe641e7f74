"""`post-explorer doctor`: is everything well, and what to do if not."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from pipeline.doctor import Finding, examine
from pipeline.settings import load

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Check settings, disk, broker, topics, processes, lake, books, gaps, lag and API. Changes nothing.

    Exit status 1 when a check failed; warnings leave it at 0.

    \b
    Example:
      post-explorer --demo doctor
    """
    findings: list[Finding] = []
    for finding in examine(load()):
        findings.append(finding)
        if not as_json:
            click.echo(
                f"{click.style(f'{finding.verdict:<8}', fg=_COLOURS[finding.verdict])} {finding.check:<9} {finding.text}"
            )
            if finding.remedy:
                click.echo(f"{'':18} → {finding.remedy}")
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    context.exit(1 if any(finding.verdict == "failed" for finding in findings) else 0)

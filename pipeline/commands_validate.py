"""`post-explorer validate`: does the lake pass the gate of a phase?"""

from __future__ import annotations

import json
from dataclasses import asdict

import click
import httpx

from pipeline.commands_lake import opened, progress_bar
from pipeline.options import show_time
from pipeline.settings import Settings, load
from pipeline.validate import PHASES, Gate, gates, span_of


@click.command()
@click.option(
    "--phase",
    type=click.Choice([str(phase) for phase in PHASES]),
    default="1",
    show_default=True,
    help="1 = a day, 2 = a week, 3 = a month.",
)
@click.option(
    "--least-events-per-day", type=click.FloatRange(min=0), default=7.5e6, show_default=True, help="Fewer fail."
)
@click.option("--deep/--shallow", default=True, show_default=True, help="Digest every file, or look at footers only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def validate(context: click.Context, phase: str, least_events_per_day: float, deep: bool, as_json: bool) -> None:
    """Judge the newest day, week or month of the lake: complete, exact, small enough, fast enough.

    The search is timed when the API of these settings runs, and left out with a remark when it does not. Exit status 1
    when a gate fails.

    \b
    Example:
      post-explorer validate --phase 1
      post-explorer --demo validate --phase 1 --least-events-per-day 1e6 --json
    """
    settings = load().settings
    url = _running_api(settings)
    with opened(settings) as (manifest, store), progress_bar("files") as tell:
        span = span_of(manifest, int(phase))
        if not as_json:
            click.echo(
                f"phase {phase}, {PHASES[int(phase)][0]}: {show_time(span.start_us)} to {show_time(span.end_us)}"
            )
        found: list[Gate] = []
        for gate in gates(
            manifest,
            store,
            int(phase),
            least_events_per_day=least_events_per_day,
            api_url=url,
            deep=deep,
            progress=tell,
        ):
            found.append(gate)
            if not as_json:
                click.echo(f"{'PASS' if gate.passed else 'FAIL'}  {gate.name}: {gate.measured} (asked: {gate.asked})")
    passed = all(gate.passed for gate in found)
    if as_json:
        click.echo(
            json.dumps({"phase": int(phase), "passed": passed, "gates": [asdict(gate) for gate in found]}, indent=2)
        )
    elif url is None:
        click.echo("not timed: no API runs with these settings (`post-explorer api`)")
    context.exit(0 if passed else 1)


def _running_api(settings: Settings) -> str | None:
    url = f"http://{settings.api.host}:{settings.api.port}"
    try:
        return url if httpx.get(f"{url}/health/ready", timeout=2.0).status_code == 200 else None
    except httpx.HTTPError:
        return None

"""`post-explorer validate`: does a day, a week or a month of data pass the lab's gates?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import click
import httpx

from lake.errors import LakeError
from lake.manifest import Manifest, open_manifest
from lake.store import LakeStore
from pipeline.commands_lake import opened, progress_bar
from pipeline.errors import CheckFailedError
from pipeline.gates import Gate, line, passed, table, write_report
from pipeline.options import show_time
from pipeline.rehearsal import EVENTS_PER_DAY, Scale, rehearsed
from pipeline.settings import Settings, load
from pipeline.validate import PHASES, lake_gates, span_of
from pipeline.validate_api import api_gates
from pipeline.validate_rehearsal import facts_of, rehearsal_gates

_Say = Callable[[str], None]
PLANNED_EVENTS_PER_DAY = 7.5e6
"""The least that the lab accepts for captured data."""


@click.command()
@click.option(
    "--phase",
    type=click.Choice([str(phase) for phase in PHASES]),
    default="1",
    show_default=True,
    help="1 = a day, 2 = a week, 3 = a month.",
)
@click.option("--captured", "data", flag_value="captured", help="Judge the lake of these settings.")
@click.option("--simulated", "data", flag_value="simulated", help="Make the data first, and judge that.")
@click.option("--events-per-day", type=click.FloatRange(min=1000), help="Of simulated data; see above.")
@click.option(
    "--live-seconds",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="At live rate, simulated data.",
)
@click.option(
    "--least-events-per-day",
    type=click.FloatRange(min=0),
    default=PLANNED_EVENTS_PER_DAY,
    show_default=True,
    help="Of captured data; fewer fail.",
)
@click.option("--deep/--shallow", default=True, show_default=True, help="Digest every file, or look at footers only.")
@click.option(
    "--give-up", type=click.FloatRange(min=30), default=7200.0, show_default=True, help="Longest wait, seconds."
)
@click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), default=Path(".local/validate"), show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def validate(
    phase: str,
    data: str | None,
    events_per_day: float | None,
    live_seconds: float,
    least_events_per_day: float,
    deep: bool,
    give_up: float,
    state: Path,
    as_json: bool,
) -> None:
    """Judge a day, a week or a month of data: complete, exact, small enough, fast enough, cheap enough.

    The lake of these settings is judged when it holds rows. Otherwise the data are made: a simulated history goes
    through the whole pipeline of this machine as fast as it can, by default 2.4 million events for the day, 400,000 a
    day for the week and 100,000 a day for the month; --events-per-day 8.1e6 is the lab's plan. Targets that such thin
    data cannot judge are shown as NOT JUDGED. Prints target, measurement and verdict, writes them to
    STATE/phase-N.md and .json, and ends with status 1 when a target is missed.

    \b
    Example:
      post-explorer validate --phase 1
      post-explorer validate --phase 1 --simulated --events-per-day 8.1e6
      post-explorer --demo validate --captured --least-events-per-day 1e6 --json
    """
    settings, number = load().settings, int(phase)
    say = (lambda text: click.echo(text, err=True)) if as_json else click.echo
    title = f"Phase {number}, {PHASES[number][0]}"
    gates: list[Gate] = []
    if data == "captured" or (data is None and _holds_rows(settings)):
        facts: dict[str, object] = {"data": f"captured, {settings.lake}"}
        found = _captured(settings, number, least_events_per_day, deep, say, facts)
    else:
        if data is None:
            say(f"no captured data in {settings.lake}: they are simulated (--captured judges them all the same)")
        scale = Scale(PHASES[number][1], events_per_day or EVENTS_PER_DAY[number], live_seconds, give_up)
        facts = {}
        found = _simulated(state / f"phase-{number}", number, scale, deep, say, facts)
    for gate in found:
        gates.append(gate)
        say(line(gate))
    markdown, report = write_report(state, f"phase-{number}", title, gates, facts)
    if as_json:
        click.echo(
            json.dumps(
                {"phase": number, "passed": passed(gates), "gates": [asdict(gate) for gate in gates], **facts}, indent=2
            )
        )
    else:
        click.echo(f"\n{title}\n{table(gates)}\nwritten to {markdown} and {report}")
    if not passed(gates):
        raise CheckFailedError("a target is missed: see the lines marked FAIL", f"figures and inputs are in {markdown}")


def _captured(
    settings: Settings, phase: int, least_events_per_day: float, deep: bool, say: _Say, facts: dict[str, object]
) -> Iterator[Gate]:
    """The lake in force; its API is asked when it runs."""
    url = f"http://{settings.api.host}:{settings.api.port}"
    with opened(settings) as (manifest, store), progress_bar("files") as tell:
        span = span_of(manifest, phase)
        say(f"{show_time(span.start_us)} to {show_time(span.end_us)} of {settings.lake}")
        facts |= {"from": show_time(span.start_us), "to": show_time(span.end_us)}
        yield from lake_gates(
            manifest, store, phase, least_events_per_day=least_events_per_day, deep=deep, progress=tell
        )
        if _answers(url):
            yield from api_gates(url, span)
        else:
            yield Gate("answers of the API", "", "", None, "no API runs with these settings (`post-explorer api`)")


def _simulated(
    state: Path, phase: int, scale: Scale, deep: bool, say: _Say, facts: dict[str, object]
) -> Iterator[Gate]:
    """Data made on the spot."""
    with rehearsed(state, scale, say) as (stack, result, prober), progress_bar("files") as tell:
        store = LakeStore(str(stack.lake))
        with stack.manifest() as manifest:
            say("judging")
            span, books = span_of(manifest, phase), manifest.reconciliation(0, 1 << 62)
            # The made history is a little short of its round figure, and it is no target of the lab's.
            yield from lake_gates(
                manifest, store, phase, least_events_per_day=scale.events_per_day * 0.9, deep=deep, progress=tell
            )
            yield from api_gates(stack.api_url, span)
        yield from rehearsal_gates(result, books, prober)
        facts |= facts_of(result)


def _holds_rows(settings: Settings) -> bool:
    try:
        manifest: Manifest = open_manifest(settings.manifest, read_only=True)
    except LakeError:
        return False
    try:
        snapshot = manifest.snapshot()
        return any(snapshot.total_rows(name) for name in snapshot.tables())
    finally:
        manifest.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False

"""`post-explorer faults`: does the pipeline survive what can happen to it, and how fast is it back?"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from pipeline.campaign import Plan, run, select
from pipeline.errors import CheckFailedError
from pipeline.faults import FAULTS, Limits
from pipeline.gates import passed, table, write_report


@click.command()
@click.argument("names", nargs=-1)
@click.option("--rounds", type=click.IntRange(min=1), default=1, show_default=True, help="Every fault so many times.")
@click.option("--duration", type=click.FloatRange(min=1), help="Begin no further fault after so many seconds.")
@click.option(
    "--rate", type=click.FloatRange(min=1, max=5000), default=350.0, show_default=True, help="Events/s meanwhile."
)
@click.option(
    "--pause", type=click.FloatRange(min=1, max=600), default=15.0, show_default=True, help="Seconds a freeze lasts."
)
@click.option(
    "--give-up", type=click.FloatRange(min=30), default=180.0, show_default=True, help="Longest wait for a recovery."
)
@click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), default=Path(".local/faults"), show_default=True
)
@click.option("--list", "only_list", is_flag=True, help="Print the faults and what is asked, and end.")
@click.pass_context
def faults(
    context: click.Context,
    names: tuple[str, ...],
    rounds: int,
    duration: float | None,
    rate: float,
    pause: float,
    give_up: float,
    state: Path,
    only_list: bool,
) -> None:
    """Strike a pipeline of its own with one fault after another, under load, and prove that nothing is lost.

    NAMES are words of fault names (all faults without). The pipeline runs on simulated traffic in a folder that is
    emptied first; the data of `make demo` and `make live` are not touched. A recovery is timed from the end of the
    fault to the first event, emitted after it, that is queryable. Exit status 1 when a target is missed.

    \b
    Example:
      post-explorer faults --rounds 3
      post-explorer faults producer "disk full" --duration 120
    """
    chosen = select(FAULTS, names)
    if only_list:
        for fault in chosen:
            click.echo(f"{fault.name:<28} {fault.does}; back within {fault.asked:g} s")
        return
    console = Console()
    judged = run(
        state,
        Plan(chosen, rounds, duration, rate, Limits(pause, give_up)),
        lambda text: console.print(text, highlight=False, soft_wrap=True, markup=False),
    )
    markdown, data = write_report(state, "report", "Faults", judged.gates, judged.facts)
    click.echo()
    click.echo(table(judged.gates))
    click.echo(f"written to {markdown} and {data}")
    if not passed(judged.gates):
        raise CheckFailedError("a target is missed: see the lines marked FAIL", f"logs are in {state / 'logs'}")
    context.exit(0)

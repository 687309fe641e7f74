"""The long-running commands: `up` and each process of the pipeline by itself."""

from __future__ import annotations

import click
from rich.console import Console

from pipeline import services
from pipeline.runtime import run_service
from pipeline.settings import Settings, load


@click.command()
@click.option("--demo", "profile", flag_value="demo", help="Simulated traffic, data in .local/demo.")
@click.option("--live", "profile", flag_value="live", help="The public Jetstream, data in .local/live (the default).")
@click.option("--duration", type=click.FloatRange(min=1), help="Stop by itself after so many seconds.")
def up(profile: str | None, duration: float | None) -> None:
    """Start and supervise the whole pipeline on this machine until Ctrl-C.

    The demo ends with a summary: events of the simulator's ledger = rows in the lake + deletions + dead letters, per
    collection; exit status 1 if that does not hold. A live run of a given duration ends with status 1 when not a single
    event came.

    \b
    Example:
      post-explorer up --demo --duration 90
      EXPLORER_KAFKA_BOOTSTRAP=redpanda:9092 post-explorer up --live
    """
    from pipeline.demo import finish
    from pipeline.errors import CheckFailedError
    from pipeline.settings import with_profile
    from pipeline.up import Up, UpOptions, captured

    loaded = with_profile(profile)
    demo = loaded.profile == "demo"
    run = Up(loaded, UpOptions(demo=demo, duration=duration), Console())
    passed = run.run(at_end=finish if demo else captured)
    if run.aborted:
        click.echo(
            "ended at once by the second signal; nothing is lost: the next run reads again what was not committed"
        )
        raise click.exceptions.Exit(130)
    if passed:
        return
    if demo:
        raise CheckFailedError(
            "the summary does not close: see the lines marked FAIL",
            f"`post-explorer --demo lake report` shows where; logs are in {loaded.settings.log_folder}",
        )
    raise CheckFailedError(
        f"nothing was captured in {duration:g} s: {run.status('producer').get('problem') or 'the source sent nothing'}",
        "check the network and EXPLORER_SOURCE_HOSTS; a run without --duration goes on trying",
    )


def _run(process: str, settings: Settings, make: services.Make) -> None:
    run_service(
        process,
        make,
        log_settings=settings.log,
        status_folder=settings.status_folder,
        drain_seconds=settings.supervisor.drain_seconds,
    )


@click.command()
def producer() -> None:
    """Read the Jetstream socket and publish every event to its topic, until SIGTERM or Ctrl-C.

    \b
    Example:
      EXPLORER_SOURCE_HOSTS=ws://127.0.0.1:6008 post-explorer producer
    """
    settings = load().settings
    _run("producer", settings, services.producer(settings))


@click.command()
def writer() -> None:
    """Write the topics into the lake, exactly once, until SIGTERM or Ctrl-C.

    \b
    Example:
      EXPLORER_KAFKA_BOOTSTRAP=redpanda:9092 EXPLORER_LAKE=/srv/lake post-explorer writer
    """
    settings = load().settings
    _run("writer", settings, services.writer(settings))


@click.command()
@click.option("--once", is_flag=True, help="One run, then end.")
def maintain(once: bool) -> None:
    """Roll closed hours, erase what was deleted, remove retired files, until SIGTERM or Ctrl-C.

    \b
    Example:
      EXPLORER_LAKE=/srv/lake post-explorer maintain --once
    """
    settings = load().settings
    if once:
        import threading

        from pipeline import logs

        logs.configure("maintain", settings.log)
        found: dict[str, object] = {}
        services.maintenance(settings, found.update).run_once(threading.Event())
        click.echo(", ".join(f"{name} {value}" for name, value in found.items() if name != "last_run"))
        return
    _run("maintain", settings, services.maintain(settings))


@click.command()
def api() -> None:
    """Answer questions about the lake over HTTP, with a page for people, until SIGTERM or Ctrl-C.

    \b
    Example:
      EXPLORER_API_PORT=8080 post-explorer --demo api
    """
    settings = load().settings
    _run("api", settings, services.api(settings))


@click.command()
def simulator() -> None:
    """Serve a synthetic Jetstream network (v1 and v2), the same for the same seed, until SIGTERM or Ctrl-C.

    \b
    Example:
      EXPLORER_SIMULATOR_RATE=2000 post-explorer --demo simulator
    """
    settings = load().settings
    _run("simulator", settings, services.simulator(settings))

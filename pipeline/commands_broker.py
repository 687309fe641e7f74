"""`post-explorer broker`: the embedded Kafka broker of this checkout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import pipeline.broker_probe as broker_probe
from pipeline.local_broker import LocalBroker
from pipeline.runtime import Report, run_service
from pipeline.settings import Settings, load


@click.group()
def broker() -> None:
    """Run the embedded Kafka broker: nothing but pip is needed, data stay under .local/.

    \b
    Example:
      post-explorer broker start
      post-explorer broker status --json
    """


def _broker_options(command: Any) -> Any:
    for option in (
        click.option("--home", type=click.Path(path_type=Path, file_okay=False), help="Folder of its data and logs."),
        click.option(
            "--port", type=click.IntRange(1, 65535), help="Client port; without it one is chosen and remembered."
        ),
        click.option("--heap-mb", type=click.IntRange(128, 512), help="Java heap in MB."),
    ):
        command = option(command)
    return command


def _settings(home: Path | None, port: int | None = None, heap_mb: int | None = None) -> Settings:
    given: Mapping[str, object] = {"broker.home": home, "broker.port": port, "broker.heap_mb": heap_mb}
    return load(overrides={name: value for name, value in given.items() if value is not None}).settings


def _broker(settings: Settings) -> LocalBroker:
    return LocalBroker(settings.broker.home, port=settings.broker.port, heap_mb=settings.broker.heap_mb)


@broker.command()
@_broker_options
def start(home: Path | None, port: int | None, heap_mb: int | None) -> None:
    """Start it in the background and wait until it answers; says so when it already runs.

    \b
    Example:
      post-explorer broker start --port 9092
    """
    settings = _settings(home, port, heap_mb)
    embedded = _broker(settings)
    started = embedded.start(settings.broker.ready_seconds)
    bootstrap = embedded.settings().bootstrap
    click.echo(f"{'broker ready' if started else 'the broker already runs'} at {bootstrap} (Kafka {embedded.version})")
    click.echo(f"data: {embedded.home}   to use it: EXPLORER_KAFKA_BOOTSTRAP={bootstrap}")


@broker.command()
@click.option("--home", type=click.Path(path_type=Path, file_okay=False), help="Folder of its data and logs.")
def stop(home: Path | None) -> None:
    """Stop it; its data are kept.

    \b
    Example:
      post-explorer broker stop
    """
    embedded = _broker(_settings(home))
    click.echo("broker stopped, data kept" if embedded.stop() else "no broker was running")


@broker.command()
@click.option("--home", type=click.Path(path_type=Path, file_okay=False), help="Folder of its data and logs.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def status(context: click.Context, home: Path | None, as_json: bool) -> None:
    """Say whether it runs and answers; exit status 3 when it does not run, 1 when it runs but does not answer.

    \b
    Example:
      post-explorer broker status --json
    """
    found = _broker(_settings(home)).status()
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    elif not found.running:
        click.echo(f"stopped; its folder is {found.home}")
    else:
        memory = f"{found.rss_bytes / 2**20:.0f} MB" if found.rss_bytes else "unknown"
        state = "ready" if found.ready else "running, but not answering yet"
        click.echo(f"{state} at {found.bootstrap}, pid {found.pid}, memory {memory}, Kafka {found.version}")
    context.exit(0 if found.ready else 1 if found.running else 3)


@broker.command()
@_broker_options
def run(home: Path | None, port: int | None, heap_mb: int | None) -> None:
    """Run it in the foreground until SIGTERM or Ctrl-C; Java ends with this process, however it ends.

    \b
    Example:
      post-explorer broker run --home .local/live/kafka
    """
    settings = _settings(home, port, heap_mb)

    class Service:
        def __init__(self, report: Report) -> None:
            self._report = report

        def run(self, stop: Any) -> None:
            _broker(settings).run(stop, self._report, timeout=settings.broker.ready_seconds)

    run_service(
        "broker",
        Service,
        log_settings=settings.log,
        status_folder=settings.status_folder,
        drain_seconds=settings.supervisor.drain_seconds,
    )


@broker.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object, to compare brokers with.")
@click.pass_context
def probe(context: click.Context, as_json: bool) -> None:
    """Find out how the configured broker behaves where Kafka and Redpanda differ; exit status 1 if something we need fails.

    It makes topics of its own (names begin with "probe.") and deletes them.

    \b
    Example:
      post-explorer broker probe --json > kafka.json
    """
    findings = broker_probe.probe(load().settings.kafka)
    if as_json:
        click.echo(json.dumps(findings.to_json(), indent=2))
    else:
        for name, value in findings.behaviour.items():
            click.echo(f"{name:<34} {json.dumps(value)}")
        for failure in findings.failures:
            click.echo(f"NEEDED BUT MISSING: {failure}")
    context.exit(1 if findings.failures else 0)

"""`post-explorer bench`: the measurements, each printed with its inputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from pipeline.errors import SettingsError

ROOT = Path(__file__).resolve().parents[1]


@click.command()
@click.argument("names", nargs=-1)
@click.pass_context
def bench(context: click.Context, names: tuple[str, ...]) -> None:
    """Run the benchmarks of the checkout, all of them or those that are named; results are kept in .local/bench.

    \b
    Example:
      post-explorer bench producer writer
    """
    if not (ROOT / "benchmarks").is_dir():
        raise SettingsError(
            "benchmarks are part of the checkout, not of the installed package", "run it in a git clone"
        )
    context.exit(subprocess.run([sys.executable, "-m", "benchmarks", *names], cwd=ROOT, check=False).returncode)

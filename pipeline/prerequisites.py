"""The tools that tests need and no package client installs: found, or installed where that is possible.

`make test` calls `python -m pipeline.prerequisites --install` before pytest, so that no test has to be left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

INSTALL_SECONDS = 600


@dataclass(frozen=True)
class Tool:
    """A program of the operating system: how to find it, the Debian packages that bring it, what needs it."""

    name: str
    find: Callable[[], str | None]
    packages: tuple[str, ...]
    purpose: str


def find_postgres() -> str | None:
    """The program that makes a PostgreSQL database; Debian keeps it off the path, in a folder by version."""
    found = shutil.which("initdb")
    if found:
        return found
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.parts[-3])
    return str(candidates[-1]) if candidates else None


def find_r() -> str | None:
    """R, when it has the packages that the recipes for researchers use."""
    found = shutil.which("Rscript")
    if found is None:
        return None
    test = [found, "-e", "library(httr2); library(jsonlite)"]
    return found if subprocess.run(test, check=False, capture_output=True, timeout=60).returncode == 0 else None


TOOLS = (
    Tool("PostgreSQL", find_postgres, ("postgresql",), "the manifest on PostgreSQL"),
    Tool("Chromium", lambda: shutil.which("chromium"), ("chromium",), "the page in a real browser"),
    Tool("promtool", lambda: shutil.which("promtool"), ("prometheus",), "the alert rules"),
    Tool("R", find_r, ("r-base-core", "r-cran-httr2", "r-cran-jsonlite"), "the recipes for R"),
)


def missing() -> list[Tool]:
    """The tools that are not on this machine."""
    return [tool for tool in TOOLS if tool.find() is None]


def install_command(tools: list[Tool]) -> list[str]:
    """The Debian command that installs `tools`."""
    return [
        "apt-get",
        "install",
        "--yes",
        "--no-install-recommends",
        *(name for tool in tools for name in tool.packages),
    ]


@click.command()
@click.option("--install", is_flag=True, help="Install what is missing when this is root on Debian.")
def main(install: bool) -> None:
    """Check that every tool the tests need is there; exit status 1 and the exact command when one is not."""
    lacking = missing()
    if lacking and install and os.geteuid() == 0 and shutil.which("apt-get"):
        click.echo(f"installing {', '.join(tool.name for tool in lacking)} for the tests")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], install_command(lacking)):
            subprocess.run(command, check=False, env=environment, stdout=subprocess.DEVNULL, timeout=INSTALL_SECONDS)
        lacking = missing()
    for tool in lacking:
        click.echo(f"missing: {tool.name}, needed for {tool.purpose}", err=True)
    if lacking:
        click.echo(f"install with: sudo {' '.join(install_command(lacking))}", err=True)
        click.echo("(on another system: the packages of the same programs)", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

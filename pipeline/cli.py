"""`post-explorer`: one command, one verb per job.

Subcommands live in `pipeline/commands_*.py` and are imported only when they are called, so that `--help` and shell
completion stay fast. Errors meant for people (`ExplorerError`) end here as one message with its remedy.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from schemas.errors import ExplorerError

VERSION = "0.1.0"

# name → (module, attribute, help for the list of commands); a test holds that each exists and has an example.
COMMANDS: Mapping[str, tuple[str, str, str]] = {
    "up": ("pipeline.commands_run", "up", "start and supervise the whole pipeline on this machine"),
    "producer": ("pipeline.commands_run", "producer", "socket to topics"),
    "writer": ("pipeline.commands_run", "writer", "topics to lake"),
    "maintain": ("pipeline.commands_run", "maintain", "roll, erase and tidy the lake"),
    "api": ("pipeline.commands_run", "api", "lake to HTTP, and the page"),
    "simulator": ("pipeline.commands_run", "simulator", "a synthetic Jetstream network"),
    "broker": ("pipeline.commands_broker", "broker", "the embedded Kafka broker"),
    "topics": ("pipeline.commands_topics", "topics", "make the broker agree with schemas/topics"),
    "lake": ("pipeline.commands_lake", "lake", "look at the lake, prove that it is whole"),
    "replay": ("pipeline.commands_replay", "replay_command", "make hours anew from the topics"),
    "events": ("pipeline.commands_events", "events", "the source's frames, from topics or lake"),
    "cursor": ("pipeline.commands_cursor", "cursor", "where the producer resumes"),
    "gaps": ("pipeline.commands_gaps", "gaps", "history that the source lost, and filling it from an archive"),
    "dead-letters": ("pipeline.commands_dead_letters", "dead_letters", "what was set aside, and why"),
    "keys": ("pipeline.commands_keys", "keys", "who may use the API"),
    "doctor": ("pipeline.commands_doctor", "doctor", "is everything well, and what to do if not"),
    "validate": ("pipeline.commands_validate", "validate", "does the lake pass the gate of a day, week or month"),
    "faults": ("pipeline.commands_faults", "faults", "strike a pipeline of its own with faults, prove nothing is lost"),
    "cost": ("pipeline.commands_cost", "cost", "what keeping the data costs a month"),
    "bench": ("pipeline.commands_bench", "bench", "run the benchmarks"),
    "settings": ("pipeline.commands_settings", "settings", "print every setting, its value and where it came from"),
}


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports and returns one command; None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list under `--help`, written without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the nearest name when there is none such."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], list(COMMANDS), n=1)
            ctx.fail(f"no command {args[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="post-explorer")
@click.option("--demo", "profile", flag_value="demo", help="Work on the demo's data (.local/demo).")
@click.option(
    "--live", "profile", flag_value="live", help="Work on the data of `make live` (.local/live), the default."
)
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with settings.")
@click.option("--debug", is_flag=True, help="Show the stack trace of an error too.")
@click.pass_context
def cli(ctx: click.Context, profile: str | None, config: Path | None, debug: bool) -> None:
    """Captures the Bluesky firehose into a lake of Parquet files and answers questions about it.

    Settings come from the environment (EXPLORER_...), over a TOML file, over defaults: see `post-explorer settings`.

    \b
    Example:
      post-explorer up --demo --duration 90
      post-explorer settings --json
    """
    # Children of `up` and the settings loader read these; the command line is the strongest layer.
    if profile is not None:
        os.environ["EXPLORER_PROFILE"] = profile
    if config is not None:
        os.environ["EXPLORER_CONFIG"] = str(config)
    ctx.obj = {"debug": debug}


def main(arguments: list[str] | None = None) -> None:
    """The entry point: runs the command line and turns its errors into one message and an exit status."""
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    try:
        result: Any = cli.main(args=arguments, prog_name="post-explorer", standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ExplorerError as error:
        _complain(error.message, error.remedy, debug)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (`| head`) went away; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _complain(
            f"{where}{error.strerror or error}", "check the path, its permissions and the free space there", debug
        )
        sys.exit(1)
    except Exception as error:
        _complain(
            f"{type(error).__name__}: {error}",
            "this is a defect of the program: run again with --debug and report what it prints",
            debug,
        )
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)


def _complain(message: str, remedy: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    click.echo(f"error: {message}", err=True)
    if remedy:
        click.echo(f"  remedy: {remedy}", err=True)


if __name__ == "__main__":
    main()

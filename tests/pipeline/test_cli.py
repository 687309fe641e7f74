"""The command line: every command has help with an example, errors are one message with a remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipeline import cli
from schemas.errors import ExplorerError


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environ},
        check=False,
    )


def every_command() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def walk(group: click.Group, path: tuple[str, ...]) -> None:
        for name in group.list_commands(click.Context(group)):
            command = group.get_command(click.Context(group), name)
            assert command is not None
            found.append((*path, name))
            if isinstance(command, click.Group):
                walk(command, (*path, name))

    walk(cli.cli, ())
    return found


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_every_command_helps_with_an_example(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli.cli, [*path, "--help"])
    assert result.exit_code == 0, result.output
    assert "Example:" in result.output
    assert f"post-explorer {' '.join(path)}" in result.output.replace(" --demo", "").replace(" --live", "")


def test_help_imports_no_subcommand() -> None:
    code = (
        "import sys; from pipeline.cli import cli; cli.main(['--help'], standalone_mode=False); "
        "print([m for m in sys.modules if m.startswith('pipeline.commands') or m in ('duckdb', 'polars', 'pyarrow')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")


def test_an_unknown_command_suggests_the_nearest() -> None:
    done = run("setings")
    assert done.returncode == 2
    assert "did you mean 'settings'" in done.stderr


def test_an_error_is_one_message_with_a_remedy_and_no_trace() -> None:
    done = run("settings", EXPLORER_WRITER_BATCH_ROWS="many")
    assert done.returncode == 2
    assert done.stderr.startswith("error: EXPLORER_WRITER_BATCH_ROWS='many'")
    assert "remedy:" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in run("--debug", "settings", EXPLORER_WRITER_BATCH_ROWS="many").stderr


def test_a_defect_is_not_a_bare_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def broken() -> None:
        raise ZeroDivisionError("oops")

    @click.command()
    def refused() -> None:
        raise ExplorerError("no", "do this")

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: {"up": broken, "settings": refused}[_[2]])
    with pytest.raises(SystemExit) as caught:
        cli.main(["up"])
    assert caught.value.code == 1
    assert "error: ZeroDivisionError: oops" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["settings"])
    assert capsys.readouterr().err == "error: no\n  remedy: do this\n"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("up", "--live", EXPLORER_STATE=str(tmp_path / "file" / "state"))
    assert done.returncode == 1
    assert f"{tmp_path / 'file'}" in done.stderr
    assert "remedy: check the path" in done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-m", "pipeline.cli", "settings"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


def test_settings_from_a_file_named_on_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text("[writer]\nbatch_rows = 123\n")
    done = run("--config", str(config), "settings", "--changed")
    assert "EXPLORER_WRITER_BATCH_ROWS" in done.stdout
    assert "= 123" in done.stdout

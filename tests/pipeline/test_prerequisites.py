"""What tests need of the operating system is found, or named with the command that installs it."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from pipeline import prerequisites
from pipeline.prerequisites import TOOLS, Tool, install_command, main, missing


def test_every_tool_of_the_suite_is_here() -> None:
    assert missing() == []
    assert all(tool.packages and tool.purpose for tool in TOOLS)


def test_what_is_missing_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = Tool("nosuchtool", lambda: None, ("nosuchpackage", "another"), "a test of this test")
    monkeypatch.setattr(prerequisites, "TOOLS", (lacking,))
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 1
    assert "missing: nosuchtool, needed for a test of this test" in result.output
    assert " ".join(install_command([lacking])) in result.output

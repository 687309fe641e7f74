"""Errors of the command line and the supervisor."""

from __future__ import annotations

from schemas.errors import ExplorerError


class SettingsError(ExplorerError):
    """A setting is unknown or has an unusable value. Nothing was started."""

    exit_code = 2


class SupervisionError(ExplorerError):
    """The local stack cannot be started or did not stop as asked."""


class CheckFailedError(ExplorerError):
    """A command did its work and the answer is "no": a total that does not close, a check that fails."""

"""Errors of the simulator room: each names the input and the remedy."""

from __future__ import annotations

from schemas.errors import ExplorerError


class SimulatorError(ExplorerError):
    """Base of all errors that stop the simulator; `remedy` tells the reader what to do about it."""


class ConnectionDroppedError(Exception):
    """A connection ends without a closing handshake (the client sees 1006); the text says why. Ends no process."""


class PortTakenError(SimulatorError):
    """The listening address is in use or not ours to bind."""


class LogDamagedError(SimulatorError):
    """A log segment in the data folder does not match its checksums (damage to our own state, never repaired silently)."""


class LogVersionError(SimulatorError):
    """The data folder was written with another seed, population or log format."""


class DataFolderError(SimulatorError):
    """The data folder cannot be written: no space, no permission."""


class DataFolderBusyError(SimulatorError):
    """Another simulator process writes to the data folder."""

"""What can end a consumer process or make it start again, each telling its caller what to do.

`Rejoin` is answered inside this room by joining the group afresh; the `ExplorerError`s end the process with an
instruction. Bad messages are no errors here: `decode` returns them and `dead_letters` sets them aside.
"""

# The names say outcomes, as the field does ("rejoin"); a suffix would only repeat the module's name.
# ruff: noqa: N818

from __future__ import annotations

from schemas.errors import ExplorerError


class Rejoin(Exception):
    """This membership is over: drop every buffer and join the group again, starting from the manifest's offsets."""


class TryAgain(Exception):
    """A step failed for a cause that passes (disk full, broker away); the batch is unharmed and may be offered again."""


class NoRoom(TryAgain):
    """The lake's disk is full; taking in resumes by itself when there is room."""


class DeadlineExceeded(Exception):
    """The shared deadline of a shutdown or revocation ran out; what is uncommitted will be read again by the next owner."""


class BrokerUnusable(ExplorerError):
    """The broker refused us for good (credentials, unknown topics, a second process with our instance id)."""


class BrokerLostData(ExplorerError):
    """The manifest is ahead of a partition's end: the topic was recreated or the broker lost acknowledged records."""


class TooManyDeadLetters(ExplorerError):
    """More messages than the stated ceiling cannot be read, so the fault is more likely ours than theirs."""


class Unaccounted(ExplorerError):
    """Messages came out of the decoding neither as rows nor as dead letters: a fault of ours, which must not be committed."""


class OutageTooLong(ExplorerError):
    """No commit succeeded for longer than the stated time; a fresh start, and an operator's look, come next."""


class ReplayRefused(ExplorerError):
    """A replay that cannot be exact: the broker no longer has the range, or its hours changed meanwhile."""


class MaintenanceBusy(ExplorerError):
    """Another maintenance run holds the lock of this lake."""

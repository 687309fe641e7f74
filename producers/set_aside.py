"""Which bad frames are in the dead-letter topic already: a server sends them again whenever a connection resumes before them.

The cursor names events, so what follows the last one comes again at every start, and after a crash whatever came since the cursor
was stored. Events that come twice are dropped in the lake; dead letters are told here, by the topic that holds them.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from producers.cursor_store import ARCHIVE
from producers.dead_letters import STAGE
from producers.publisher import StoredRecord
from producers.wire import Rejected
from schemas.bodies import DeadLetter
from schemas.errors import BadRecord
from schemas.framing import split

READ_BACK: Final = 200
"""Letters read from the topic at start: more than any source sends between two stores of the cursor and stays below the ceiling."""
_REMEMBERED: Final = 1_000
_CLOCKS_APART_US: Final = 60_000_000
"""How far the source's clock may be ahead of ours."""


class SetAside:
    """The newest frames that were set aside, of all hosts; the oldest are forgotten first."""

    def __init__(self) -> None:
        self._received_us: OrderedDict[tuple[object, ...], int] = OrderedDict()

    def note(self, host: str, rejected: Rejected, raw: bytes, received_us: int) -> None:
        """Remember a frame that was handed over; `raw` is what its letter keeps of it."""
        for key in _keys(host, rejected.reason.value, rejected.seq, rejected.time_us, rejected.did, raw):
            self._received_us[key] = received_us
            self._received_us.move_to_end(key)
        while len(self._received_us) > _REMEMBERED:
            self._received_us.popitem(last=False)

    def has(self, host: str, rejected: Rejected, raw: bytes, newest_us: int | None) -> bool:
        """Whether the frame is one of those, come again.

        newest_us: the time of the last event of this connection, None before the first. A connection that is past the time at
        which the frame was set aside does not repeat it: the source made another one like it.
        """
        for key in _keys(host, rejected.reason.value, rejected.seq, rejected.time_us, rejected.did, raw):
            received_us = self._received_us.get(key)
            if received_us is not None:
                return newest_us is None or newest_us <= received_us + _CLOCKS_APART_US
        return False

    def forget(self) -> None:
        """Forget all, because some of what was handed over may never have arrived."""
        self._received_us.clear()

    def restore(self, records: Iterable[StoredRecord]) -> None:
        """Take in what earlier processes set aside, oldest first; letters of others are passed over."""
        for record in records:
            try:
                letter = DeadLetter.decode(split(record.value or b"")[1])
            except (BadRecord, ValueError):
                continue  # whoever lists the dead letters is told; here it only costs one letter more
            if letter.stage != STAGE or letter.source_host is None or letter.protocol == ARCHIVE:
                continue
            for key in _keys(letter.source_host, letter.reason, letter.seq, letter.time_us, letter.did, letter.raw):
                self._received_us[key] = letter.received_us


def _keys(
    host: str, reason: str, seq: int | None, time_us: int | None, did: str | None, raw: bytes
) -> list[tuple[object, ...]]:
    """By its bytes, and by everything that tells events apart: a server may write a stored event in other bytes than a live one."""
    keys: list[tuple[object, ...]] = [(host, hashlib.sha256(raw).digest())]
    if seq is not None and time_us is not None and did is not None:
        keys.append((host, reason, seq, time_us, did))
    return keys

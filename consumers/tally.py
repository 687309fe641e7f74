"""Dead letters of a replay, counted so that an interrupted one goes on with the right numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lake.file_batch import disk_errors


class DeadLetterTally:
    """Unreadable messages by hour, on disk beside the staged rows.

    Written before the rows of the same messages are staged, together with the state before: whichever of the two positions the
    staging area has after a crash, the counts that belong to it are there.
    """

    def __init__(self, lake: Path, plan_id: str) -> None:
        self._file = lake / ".replay" / f"{plan_id}.dead-letters.json"
        self._positions: dict[int, int] = {}
        self.counts: dict[int, int] = {}

    @property
    def total(self) -> int:
        """Messages of all hours."""
        return sum(self.counts.values())

    def resume(self, positions: Mapping[int, int]) -> None:
        """Take up the counts that belong to `positions`, the staging area's; none when nothing was counted yet."""
        self._positions, self.counts = dict(positions), {}
        if self._file.exists():
            for state in json.loads(self._file.read_text()):
                if _numbers(state["positions"]) == self._positions:
                    self.counts = _numbers(state["counts"])

    def add(self, bad: Mapping[int, int], positions: Mapping[int, int]) -> None:
        """Count `bad` (messages by hour); `positions` is where reading stands with them. Raises DiskFull."""
        before = {"positions": self._positions, "counts": self.counts}
        self._positions = dict(positions)
        self.counts = {hour: self.counts.get(hour, 0) + bad.get(hour, 0) for hour in {*self.counts, *bad}}
        with disk_errors(self._file):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_suffix(".tmp")
            temporary.write_text(json.dumps([before, {"positions": self._positions, "counts": self.counts}]))
            temporary.rename(self._file)

    def discard(self) -> None:
        """Remove the file."""
        self._file.unlink(missing_ok=True)


def _numbers(found: Mapping[str, int]) -> dict[int, int]:
    return {int(key): value for key, value in found.items()}

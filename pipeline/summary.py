"""Does the lake hold what the source sent? Counts the simulator's ledger, the lake's files and the dead letters.

Three independent readings: the ledger is written by the simulator before anything is sent, the rows are counted in the
Parquet files themselves with pyarrow, the dead letters are read back from their topic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from lake.manifest import Snapshot
from schemas.bodies import DeadLetter
from simulator.flaws import broken
from simulator.ledger import Ledger, block_events
from simulator.log import read_block


@dataclass(frozen=True)
class Line:
    """One table: what was sent, and where it went. `deletions` are delete events and rows whose content was erased."""

    table: str
    sent: int
    rows: int
    deletions: int
    dead_letters: int

    @property
    def closes(self) -> bool:
        """Whether every event is accounted for exactly once."""
        return self.sent == self.rows + self.deletions + self.dead_letters


@dataclass(frozen=True)
class Summary:
    """All tables, and what the lake looks like."""

    lines: tuple[Line, ...]
    bytes: int
    files: int
    version: int
    unexpected_dead_letters: int

    @property
    def closes(self) -> bool:
        """Whether every line closes and no dead letter is left over."""
        return all(line.closes for line in self.lines) and self.unexpected_dead_letters == 0

    @property
    def total(self) -> Line:
        """The sum of all lines."""
        return Line(
            "total",
            sum(line.sent for line in self.lines),
            sum(line.rows for line in self.lines),
            sum(line.deletions for line in self.lines),
            sum(line.dead_letters for line in self.lines),
        )

    def to_json(self) -> dict[str, object]:
        """The same as JSON values."""
        total = self.total
        return {
            "result": "PASS" if self.closes else "FAIL",
            "tables": {line.table: {**asdict(line), "closes": line.closes} for line in self.lines},
            "total": {**asdict(total), "closes": total.closes},
            "unexpected_dead_letters": self.unexpected_dead_letters,
            "lake": {
                "bytes": self.bytes,
                "files": self.files,
                "version": self.version,
                "bytes_per_event": round(self.bytes / total.sent, 2) if total.sent else None,
            },
        }

    def text(self) -> str:
        """A table for people, PASS or FAIL at the end of each line."""
        width = max((len(line.table) for line in self.lines), default=10)
        out = [f"{'collection':<{width}} {'sent':>12} {'rows':>12} {'deletions':>12} {'dead letters':>12}"]
        for line in (*self.lines, self.total):
            verdict = (
                "PASS" if line.closes else f"FAIL ({line.rows + line.deletions + line.dead_letters - line.sent:+,})"
            )
            out.append(
                f"{line.table:<{width}} {line.sent:>12,} {line.rows:>12,} {line.deletions:>12,} "
                f"{line.dead_letters:>12,}  {verdict}"
            )
        if self.unexpected_dead_letters:
            out.append(f"FAIL: {self.unexpected_dead_letters} dead letters that the simulator did not send as broken")
        if self.total.sent:
            out.append(
                f"lake: {self.bytes:,} bytes in {self.files} files, {self.bytes / self.total.sent:.1f} bytes per event"
            )
        return "\n".join(out)


def summarize(ledger: Ledger, snapshot: Snapshot, lake: Path, dead_letters: Iterable[DeadLetter]) -> Summary:
    """Counts all three and sets them side by side, per table. Reads every live file's `operation` column; may take seconds."""
    sent = {table: counts["events"] + counts["malformed"] for table, counts in ledger.counts().items()}
    set_aside, unexpected = _attribute(ledger, dead_letters)
    stored = {table: _count(snapshot, lake, table) for table in snapshot.tables()}
    lines = []
    for table in sorted({*sent, *stored, *set_aside}):
        rows, deletions = stored.get(table, (0, 0))
        lines.append(Line(table, sent.get(table, 0), rows, deletions, set_aside.get(table, 0)))
    totals = [snapshot.totals(table) for table in snapshot.tables()]
    return Summary(
        tuple(lines), sum(t.bytes for t in totals), sum(t.files for t in totals), snapshot.version, unexpected
    )


def _count(snapshot: Snapshot, lake: Path, table: str) -> tuple[int, int]:
    rows = deletions = 0
    for file in snapshot.files(table):
        columns = pq.read_table(lake / file.path, columns=["operation", "erased"], partitioning=None)
        gone = pc.or_kleene(
            pc.fill_null(pc.equal(columns["operation"], "delete"), False), pc.is_valid(columns["erased"])
        )
        removed = int(pc.sum(gone).as_py() or 0)
        rows += columns.num_rows - removed
        deletions += removed
    return rows, deletions


def _attribute(ledger: Ledger, dead_letters: Iterable[DeadLetter]) -> tuple[Counter[str], int]:
    """Dead letters per table, found by their bytes among the frames that the simulator broke on purpose.

    A frame that was sent again after a reconnect is dead-lettered again: the same bytes count once for each time that
    they stand in the ledger. The second value is the number of dead letters that the ledger knows nothing of.
    """
    received = Counter(letter.raw for letter in dead_letters)
    if not received:
        return Counter(), 0
    expected: dict[bytes, list[str]] = {}
    for info in ledger.blocks():
        block = read_block(info)
        if not any(block.flaws) and not info.counts:
            continue
        for event in block_events(block):
            if event.flaw:
                expected.setdefault(broken(event.raw, event.flaw, event.seq), []).append(event.table)
            elif event.unparsable:
                expected.setdefault(event.raw, []).append(event.table)
    found: Counter[str] = Counter()
    unexpected = 0
    for raw, times in received.items():
        tables = expected.get(raw)
        if tables is None:
            unexpected += times
        else:
            found.update(tables[:times])
    return found, unexpected

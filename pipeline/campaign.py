"""The fault campaign: the whole pipeline under load, struck by one fault after another, judged event by event.

After each fault the source is paused, the pipeline drains, and ledger and lake are compared; so a lost or repeated event
belongs to the fault that caused it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import SupervisionError
from pipeline.faults import DISK_FULL, Fault, Limits, wait
from pipeline.gates import Gate, percentile
from pipeline.messages import read_dead_letters
from pipeline.prober import Prober
from pipeline.proof import prove
from pipeline.stack import Stack, empty_folder
from pipeline.summary import summarize
from simulator.ledger import Ledger

API_SHARE = 0.999
"""The lab's availability; of the API while other processes are struck."""
LAKE_MEBIBYTES = 768
"""Size of the file system in memory that holds the lake, so that filling it harms nobody else."""
_SETTLE_SECONDS = 3.0


@dataclass(frozen=True)
class Plan:
    """What a campaign does. It ends after `rounds` rounds, or begins no further fault after `seconds` (None: no limit)."""

    faults: tuple[Fault, ...]
    rounds: int
    seconds: float | None
    rate: float
    limits: Limits


@dataclass
class Outcome:
    """What came of one kind of fault: seconds to recover per round, and what the ledger says after each."""

    fault: Fault
    seconds: list[float] = field(default_factory=list)
    lost: int = 0
    repeated: int = 0

    def gate(self) -> Gate:
        """Judged by its slowest percentile and by the ledger."""
        asked = f"p99 ≤ {self.fault.asked:g} s, 0 lost, 0 repeated"
        if not self.seconds:
            return Gate(self.fault.name, "not struck", asked, None, "no time was left, or it cannot be done here")
        slowest = percentile(self.seconds, 0.99)
        return Gate(
            self.fault.name,
            f"{len(self.seconds)} ×: p50 {percentile(self.seconds, 0.5):.1f} s, p99 {slowest:.1f} s, "
            f"{self.lost} lost, {self.repeated} repeated",
            asked,
            slowest <= self.fault.asked and not self.lost and not self.repeated,
        )


@dataclass(frozen=True)
class Judged:
    """A finished campaign."""

    outcomes: tuple[Outcome, ...]
    gates: tuple[Gate, ...]
    facts: dict[str, object]


def run(state: Path, plan: Plan, say: Callable[[str], None]) -> Judged:
    """Runs a campaign in the folder `state`, which is emptied first. Blocks for minutes; `say` gets a line per event.

    Raises SupervisionError when the pipeline cannot be started or does not come back within `limits.give_up`.
    """
    lake = state / "lake"
    with _lake_of_its_own(lake) as own_disk:
        stack = Stack(
            state,
            EXPLORER_SIMULATOR_HISTORY_HOURS="1",
            EXPLORER_SIMULATOR_HISTORY_RATE="5",
            EXPLORER_SIMULATOR_RATE=f"{plan.rate:g}",
        )
        with stack.running():
            return _strike(stack, plan, own_disk, say)


def _strike(stack: Stack, plan: Plan, own_disk: bool, say: Callable[[str], None]) -> Judged:
    say(f"starting the pipeline in {stack.state}, {plan.rate:g} events/s")
    stack.start("broker", "simulator", "writer", "producer", "maintain", "api")
    stack.until(stack.committed_rows, "the first rows are committed")
    campaign = _Campaign(stack, plan, say)
    with Prober(f"{stack.api_url}/v1/search?limit=1").asking() as prober:
        campaign.all_rounds(prober, own_disk)
    return campaign.judge(prober)


class _Campaign:
    """A campaign under way."""

    def __init__(self, stack: Stack, plan: Plan, say: Callable[[str], None]) -> None:
        self._stack = stack
        self._plan = plan
        self._say = say
        self._outcomes = {fault.name: Outcome(fault) for fault in plan.faults}
        self._wrong = (0, 0)
        self._begun = time.monotonic()
        self._strikes = 0

    def all_rounds(self, prober: Prober, own_disk: bool) -> None:
        """Every fault once per round."""
        possible = [fault for fault in self._plan.faults if own_disk or fault.name != DISK_FULL]
        if not own_disk and len(possible) < len(self._plan.faults):
            self._say("the disk is left out: only root can give the lake a small file system of its own to fill")
        for number in range(self._plan.rounds):
            for at, fault in enumerate(possible, 1):
                if self._plan.seconds is not None and time.monotonic() - self._begun > self._plan.seconds:
                    self._say(f"the time is over after {self._strikes} faults")
                    return
                self._one(fault, number, prober, f"{number + 1}/{self._plan.rounds} {at:>2}/{len(possible)}")

    def _one(self, fault: Fault, number: int, prober: Prober, place: str) -> None:
        stack, limits = self._stack, self._plan.limits
        outcome = self._outcomes[fault.name]
        with prober.excused() if fault.hits_api else nullcontext():
            fault.strike(stack, limits, number)
            over, since_us = time.monotonic(), self._source_us()
            stack.until(
                lambda: fault.recovered(stack, since_us), f"recovery from: {fault.name}", seconds=limits.give_up
            )
            seconds = time.monotonic() - over
            # The last process to come back may be another one than the one that was waited for.
            stack.until(lambda: self._all_run(), "all processes run", seconds=limits.give_up)
        outcome.seconds.append(seconds)
        self._strikes += 1
        lost, repeated = self._compare()
        outcome.lost += lost - self._wrong[0]
        outcome.repeated += repeated - self._wrong[1]
        self._wrong = (lost, repeated)
        verdict = "" if seconds <= fault.asked else f"  OVER {fault.asked:g} s"
        self._say(
            f"{place}  {fault.name:<26} recovered in {seconds:5.1f} s"
            f"  {stack.committed_rows():>9,} rows, {lost} lost, {repeated} repeated{verdict}"
        )

    def _all_run(self) -> bool:
        return all(self._stack.supervisor.pid(name) is not None for name in self._stack.supervisor.names())

    def _source_us(self) -> int:
        """The source's own time; ours while it cannot be asked."""
        status = self._stack.simulator()
        if status is None:
            return time.time_ns() // 1000
        return max(int(status["now_us"]), int(status["last_time_us"]))

    def _compare(self) -> tuple[int, int]:
        """Drains, compares all that was ever sent, lets the source go on, and waits until events flow again."""
        stack = self._stack
        stack.pause()
        stack.until(stack.drained, "everything sent is committed", seconds=self._plan.limits.give_up)
        with stack.manifest() as manifest:
            proof = prove(Ledger(stack.ledger_folder), manifest.snapshot(), stack.lake)
        stack.control("resume")
        since_us = self._source_us()
        stack.until(lambda: stack.newest_us() > since_us, "events flow again", seconds=self._plan.limits.give_up)
        wait(stack, _SETTLE_SECONDS)
        return proof.total("lost"), proof.total("repeated") + proof.total("unknown")

    def judge(self, prober: Prober) -> Judged:
        """The gates of all faults, of the dead letters, of the books and of the API; ends the source for good."""
        stack = self._stack
        stack.pause()
        stack.until(stack.drained, "everything sent is committed", seconds=self._plan.limits.give_up)
        with stack.manifest() as manifest:
            summary = summarize(
                Ledger(stack.ledger_folder), manifest.snapshot(), stack.lake, read_dead_letters(stack.kafka)
            )
            books = manifest.reconciliation(0, 1 << 62)
            found = manifest.gaps(0, 1 << 62)
        outcomes = tuple(self._outcomes.values())
        open_books = sum(not entry.closes for entry in books)
        total = summary.total
        gates = [outcome.gate() for outcome in outcomes]
        gates += [
            Gate(
                "dead letters = frames broken on purpose",
                f"{total.dead_letters:,}, {summary.unexpected_dead_letters} unexpected",
                "each once, none else",
                summary.closes,
            ),
            Gate("topic-hours that do not close", f"{open_books} of {len(books)}", "0", not open_books),
            Gate("gaps", str(len(found)), "0", not found),
            Gate(
                "API answers while others are down",
                f"{prober.share:.2%} of {len(prober.probes):,}",
                f"≥ {API_SHARE:.1%}",
                prober.share >= API_SHARE,
                prober.problems[0] if prober.problems else "",
            ),
        ]
        facts: dict[str, object] = {
            "events/s": self._plan.rate,
            "events sent": total.sent,
            "faults struck": self._strikes,
            "restarts": sum(stack.supervisor.restarts(name) for name in stack.supervisor.names()),
            "seconds": round(time.monotonic() - self._begun, 1),
            "seconds to recover": {outcome.fault.name: [round(s, 2) for s in outcome.seconds] for outcome in outcomes},
        }
        return Judged(outcomes, tuple(gates), facts)


@contextmanager
def _lake_of_its_own(lake: Path) -> Iterator[bool]:
    """An empty folder for the lake, on a small file system of its own where this process may mount one."""
    if lake.is_mount():
        _unmount(lake)
    empty_folder(lake.parent)
    lake.mkdir()
    mounted = os.geteuid() == 0 and _run("mount", "-t", "tmpfs", "-o", f"size={LAKE_MEBIBYTES}m", "tmpfs", str(lake))
    try:
        yield mounted
    finally:
        if mounted:
            _unmount(lake)


def _unmount(lake: Path) -> None:
    if not _run("umount", str(lake)) and not _run("umount", "--lazy", str(lake)):
        raise SupervisionError(f"{lake} cannot be unmounted", f"end what uses it, then: umount {lake}")


def _run(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, check=False, capture_output=True, timeout=30).returncode == 0


def select(faults: Sequence[Fault], words: Sequence[str]) -> tuple[Fault, ...]:
    """The faults whose names contain one of `words`; all without words. Raises SupervisionError when there is none."""
    found = tuple(fault for fault in faults if not words or any(word in fault.name for word in words))
    if not found:
        raise SupervisionError(
            f"no fault is called {' or '.join(words)}", "faults are: " + ", ".join(fault.name for fault in faults)
        )
    return found

"""The maintenance process: rolls closed hours, keeps open hours from crowding, erases, unlinks, removes orphans.

One run at a time over all hosts (a manifest lock), every step bounded and resumable: what a run does not reach, or dies
in, the next one finds again from the manifest. Readers and writers are never blocked: each change is one version.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from opentelemetry import metrics, trace

from consumers import rollups
from consumers.config import MaintenanceConfig
from consumers.deadline import Deadline
from consumers.memory import give_back
from lake import account_index, ended_keys, engagement_bounds, named_keys, text_index
from lake.erase import Unfinished, erase
from lake.errors import CommitOutcomeUnknown, CommitRefused, DiskFull, FileDamaged, LockHeld, ManifestUnavailable
from lake.gap_file import save_gaps
from lake.manifest import HOUR_US, FileKind, Manifest, Snapshot, hour_of
from lake.replay_file import settle
from lake.retire import drop_hours, remove_orphans, unlink_retired
from lake.roll import crowded_hours, hours_to_roll, roll_hour
from lake.steps import Hook, no_hook
from lake.store import LakeStore

log = logging.getLogger("explorer.consumers")
tracer = trace.get_tracer("explorer.consumers")
_meter = metrics.get_meter("explorer.consumers")
_rolled = _meter.create_counter("explorer.maintenance.rolled", "{file}")
_unreconciled = _meter.create_gauge("explorer.lake.unreconciled", "{hour}")
_erased = _meter.create_counter("explorer.maintenance.erased", "{row}")

LOCK = "maintenance"
"""Name of the manifest lock that maintenance and the swap of a replay share."""
_BOOKS_US = 7 * 24 * HOUR_US
_NAMED_BOOKS = 5
_REST = 4
"""Times the length of an erasure pass that no other begins: a fifth of one process at most goes into rewriting."""
_AHEAD_US = 5 * 60_000_000
"""How far the source's clock may be ahead of ours."""


@dataclass(slots=True)
class MaintenanceCounts:
    """Running totals of a process."""

    runs: int = 0
    hours_rolled: int = 0
    files_merged: int = 0
    rows_erased: int = 0
    rows_dropped: int = 0
    files_unlinked: int = 0
    orphans_removed: int = 0
    failures: int = 0
    unreconciled: int = 0
    rollups_made: int = 0
    texts_indexed: int = 0
    accounts_indexed: int = 0
    engagement_indexed: int = 0
    bounds_made: int = 0


class EventClock:
    """The time of the newest event, running on while nothing arrives; decides which hours are closed.

    Event time, not ours: while history is being caught up an hour stays open until events of a later time are there.
    """

    def __init__(self, close_after_us: int) -> None:
        self._close_after_us = close_after_us
        self._newest_us = 0
        self._since = 0.0

    def closed_before(self, manifest: Manifest, now: float, wall_us: int) -> int:
        """Hours that begin before the returned time are closed; `now` is monotonic seconds, `wall_us` unix time.

        Events from the future (more than some minutes ahead of us) do not move the clock: the others do.
        """
        newest = manifest.newest_time_us(wall_us + _AHEAD_US) or 0
        if newest != self._newest_us:
            self._newest_us, self._since = newest, now
        clock_us = self._newest_us + int((now - self._since) * 1e6)
        return clock_us - HOUR_US - self._close_after_us + 1


class MaintenanceService:
    """Runs maintenance every few seconds; each run is complete in itself."""

    def __init__(
        self,
        config: MaintenanceConfig,
        manifest: Manifest,
        store: LakeStore,
        report: Callable[[Mapping[str, object]], None],
        *,
        hook: Hook = no_hook,
    ) -> None:
        """`report` gets flat numbers after every run; `hook` is for crash tests only."""
        self._config = config
        self._manifest = manifest
        self._store = store
        self._report = report
        self._hook = hook
        self._clock = EventClock(int(config.close_after_seconds * 1e6))
        self._late_since: dict[tuple[str, int], float] = {}
        self._due: dict[str, float] = {}
        self._erasing = Unfinished()
        self._erasing_took = 0.0
        self.counts = MaintenanceCounts()

    def run(self, stop: threading.Event) -> None:
        """Run until `stop` is set; a file that is under way is finished first. Raises ExplorerError for damage."""
        while not stop.is_set():
            self.run_once(stop)
            stop.wait(self._config.interval_seconds)

    def run_once(self, stop: threading.Event) -> None:
        """One bounded run; does nothing when another process holds the lock. A full disk or a busy manifest is waited out."""
        deadline = Deadline(self._config.run_seconds)
        before = asdict(self.counts)

        def go_on() -> bool:
            return not stop.is_set() and deadline.remaining() > 0

        try:
            with self._manifest.hold(LOCK, f"{socket.gethostname()}:{os.getpid()}"):
                # First of all: what a crash left open would cost a replay if the manifest were lost now.
                settle(self._store, self._manifest)
                self._roll(go_on)
                if self._is_due("erase", self._config.erase_seconds):
                    self._erase(go_on)
                self._unlink(go_on)
                if self._is_due("rollups", self._config.rollup_seconds):
                    self._roll_up(go_on)
                    self._index(go_on)
                    self._bound(go_on)
                    self._note_ends(go_on)
                if self._is_due("clean", self._config.clean_seconds):
                    self._clean(go_on)
                self._manifest.checkpoint()
        except LockHeld:
            log.info("another maintenance runs on this lake")
        except (CommitRefused, DiskFull, ManifestUnavailable, CommitOutcomeUnknown) as error:
            self.counts.failures += 1
            log.warning("maintenance goes on with the next run", extra={"cause": error.message})
        except OSError as error:
            # Roll-ups and side files are written straight to the disk, which may be full.
            self.counts.failures += 1
            log.warning("maintenance goes on with the next run", extra={"cause": f"{error.strerror}: {error.filename}"})
        except FileDamaged as error:
            # The rest can still be maintained; readers of this file are told by the reader itself.
            self.counts.failures += 1
            log.error("a file is damaged", extra={"cause": error.message, "remedy": error.remedy})
        if asdict(self.counts) != before:
            give_back()
        self.counts.runs += 1
        self._report({**asdict(self.counts), "last_run": time.time()})

    def _is_due(self, what: str, every: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + every
        return True

    def _roll(self, go_on: Callable[[], bool]) -> None:
        snapshot = self._manifest.snapshot()
        closed_before = self._clock.closed_before(self._manifest, time.monotonic(), time.time_ns() // 1000)
        ripe = self._ripe(snapshot, hours_to_roll(self._manifest, closed_before))
        crowded = crowded_hours(self._manifest, self._config.small_files)
        work: list[tuple[str, int, FileKind]] = [
            (table, hour, "small") for table, hour in crowded if hour >= closed_before
        ]
        work += [(table, hour, "rolled") for table, hour in ripe]
        for table, hour_us, kind in work[: self._config.rolls_per_run]:
            if not go_on():
                return
            self._roll_hour(table, hour_us, kind)

    def _ripe(self, snapshot: Snapshot, places: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """The closed hours to roll now; one rolled already waits a while, so that late files are merged together."""
        now = time.monotonic()
        self._late_since = {place: self._late_since.get(place, now) for place in places}
        ripe = []
        for table, hour_us in places:
            files = [file for file in snapshot.files(table, hour_us, hour_us + HOUR_US) if file.hour_us == hour_us]
            small = sum(file.kind == "small" for file in files)
            waited = now - self._late_since[table, hour_us] >= self._config.late_seconds
            if small == len(files) or small > self._config.small_files or waited:
                ripe.append((table, hour_us))
        return ripe

    def _roll_hour(self, table: str, hour_us: int, kind: FileKind) -> None:
        with tracer.start_as_current_span("maintenance.roll", attributes={"table": table, "hour_us": hour_us}):
            try:
                rolled = roll_hour(
                    self._store,
                    self._manifest,
                    table,
                    hour_us,
                    kind=kind,
                    keep_edits=self._config.keep_edits,
                    hook=self._hook,
                )
            except CommitRefused as error:
                log.info("an hour changed while it was rolled; next run", extra={"cause": error.message})
                return
            except FileDamaged as error:
                self.counts.failures += 1
                log.error("an hour cannot be rolled", extra={"cause": error.message, "remedy": error.remedy})
                return
        if rolled.file is not None:
            self._late_since.pop((table, hour_us), None)
            self.counts.files_merged += rolled.merged
            self.counts.hours_rolled += kind == "rolled"
            _rolled.add(rolled.merged, {"table": table})

    def _erase(self, go_on: Callable[[], bool]) -> None:
        began = time.monotonic()
        # Half of the run: a pass over a large lake takes many runs, and what comes after it has its turn in each.
        share = Deadline(self._config.run_seconds / 2)
        with tracer.start_as_current_span("maintenance.erase"):
            done = erase(
                self._store,
                self._manifest,
                keep_edits=self._config.keep_edits,
                unfinished=self._erasing,
                go_on=lambda: go_on() and share.remaining() > 0,
                hook=self._hook,
            )
        self.counts.rows_erased += done.rows
        _erased.add(done.rows)
        now = time.monotonic()
        self._erasing_took += now - began
        if not done.complete:
            self._due["erase"] = 0.0
            return
        if self._config.erase_seconds:
            # What accumulates meanwhile is erased in one go: a file is rewritten once for all that ended in it.
            self._due["erase"] = max(self._due["erase"], now + self._erasing_took * _REST)
        self._erasing_took = 0.0

    def _unlink(self, go_on: Callable[[], bool]) -> None:
        before = time.time_ns() // 1000 - int(self._config.unlink_after_seconds * 1e6)
        self.counts.files_unlinked += unlink_retired(self._store, self._manifest, before, go_on=go_on, hook=self._hook)

    def _roll_up(self, go_on: Callable[[], bool]) -> None:
        closed_before = self._clock.closed_before(self._manifest, time.monotonic(), time.time_ns() // 1000)
        done = rollups.update(self._store, self._manifest, closed_before, go_on)
        self.counts.rollups_made += done.hours
        if not done.complete:
            self._due["rollups"] = 0.0

    def _index(self, go_on: Callable[[], bool]) -> None:
        """Side files for answers: those of erased and merged files go, new files get theirs. Answers can do without."""
        for index, wanted, made in (
            (text_index, self._config.index_texts, "texts_indexed"),
            (account_index, self._config.index_accounts, "accounts_indexed"),
            (named_keys, self._config.index_engagement, "engagement_indexed"),
        ):
            try:
                snapshot = self._manifest.snapshot()
                index.sweep(self._store.root, snapshot)
                for file in index.missing(self._store.root, snapshot) if wanted else ():
                    if not go_on():
                        self._due["rollups"] = 0.0
                        return
                    try:
                        index.build(self._store, file)
                    except FileDamaged as error:
                        self.counts.failures += 1
                        log.error("a file cannot be indexed", extra={"cause": error.message, "remedy": error.remedy})
                    else:
                        setattr(self.counts, made, getattr(self.counts, made) + 1)
            except Exception as error:
                self.counts.failures += 1
                log.exception("files are not indexed; answers read more of them", extra={"cause": str(error)})

    def _bound(self, go_on: Callable[[], bool]) -> None:
        """How much engagement posts have at most, from the side files that say what is named. Answers can do without."""
        try:
            snapshot = self._manifest.snapshot()
            engagement_bounds.sweep(self._store.root, snapshot)
            if self._config.index_engagement:
                made, complete = engagement_bounds.update(self._store, snapshot, go_on)
                self.counts.bounds_made += made
                if not complete:
                    self._due["rollups"] = 0.0
        except Exception as error:
            self.counts.failures += 1
            log.exception("engagement is not bounded; answers read more of it", extra={"cause": str(error)})

    def _note_ends(self, go_on: Callable[[], bool]) -> None:
        """Side files by which the writer finds the end of what arrives weeks late; it reads the files that have none."""
        snapshot = self._manifest.snapshot()
        ended_keys.sweep(self._store, snapshot)
        for file in ended_keys.missing(self._store, snapshot):
            if not go_on():
                self._due["rollups"] = 0.0
                return
            ended_keys.build(self._store, file)

    def _clean(self, go_on: Callable[[], bool]) -> None:
        """Hours past their retention, files of crashed commits, the history of versions nobody asks for in detail."""
        now_us = time.time_ns() // 1000
        if self._config.retention_days is not None:
            before = hour_of(now_us - int(self._config.retention_days * 86_400e6))
            for table in self._manifest.snapshot().tables():
                if go_on():
                    self.counts.rows_dropped += drop_hours(self._store, self._manifest, table, before)
        strays = remove_orphans(self._store, self._manifest, now_us - int(self._config.orphan_after_seconds * 1e6))
        self.counts.orphans_removed += len(strays.orphans)
        if strays.foreign:
            log.warning(
                "foreign files in the lake's folders are ignored",
                extra={"files": len(strays.foreign), "first": strays.foreign[0]},
            )
        save_gaps(self._store, self._manifest)
        self._check_books(now_us)
        self._manifest.thin(now_us - int(self._config.history_days * 86_400e6))

    def _check_books(self, now_us: int) -> None:
        """Whether every message of the last days is a row, a duplicate or a dead letter; a moving metric is an alert."""
        since = hour_of(now_us - _BOOKS_US)
        open_books = [total for total in self._manifest.reconciliation(since, now_us + HOUR_US) if not total.closes]
        _unreconciled.set(len(open_books))
        self.counts.unreconciled = len(open_books)
        for total in open_books[:_NAMED_BOOKS]:
            log.error(
                "the books of a topic-hour do not close: see `post-explorer lake report`",
                extra={"topic": total.topic, "hour_us": total.hour_us, "consumed": total.consumed, "rows": total.rows},
            )

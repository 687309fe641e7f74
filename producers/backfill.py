"""Fill a gap from a v2 server's archive: rows of the missing range, through the same encoder, to the same topics.

The archive holds compacted state: records that were overwritten or deleted since are missing, and rows of a repository that was
read anew carry the time of that. So a gap that was filled is reported as `backfilled` beside the gap itself, not instead of it.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from producers.archive import ArchiveClient, ArchiveError, PlanOutdatedError, StoppedError
from producers.config import ProducerSettings, SourceSettings
from producers.cursor import LowWaterMark, Position
from producers.cursor_store import ARCHIVE, StoredCursors, store
from producers.dead_letters import Ceiling, from_refused_record
from producers.intake import Counts, Intake
from producers.publisher import KafkaConsumer, KafkaProducer, Publisher, read_to_end
from producers.resyncs import Resyncs
from producers.segment import Row, SegmentError, decompress_block, rows_of
from producers.tls import client_context
from producers.wire import Commit
from schemas.bodies import Gap
from schemas.framing import Framing, split
from schemas.topics import CURSOR, DEAD_LETTER, GAP

logger = logging.getLogger("explorer.producers")

BACKFILLED = "backfilled"
"""Reason of the gap record that says that a gap was filled."""

RENUMBERED = "renumbered"
"""Reason of a gap whose two sequences are of different numberings."""

_MAX_REPLANS = 20
_POLL_SECONDS = 0.2


class Filled(NamedTuple):
    """What came of it: `through_seq` is the sequence up to which the archive was read, `complete` whether that was all."""

    events: int
    dead_letters: int
    through_seq: int
    complete: bool


class Progress(NamedTuple):
    """How far a gap is read: sequences `first` to `last` are to be looked at, `through` is the last that was."""

    first: int
    last: int
    through: int
    events: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return min((self.through - self.first) / max(self.last - self.first, 1), 1.0)


class KnownGap(NamedTuple):
    """A gap and what was done about it: `through_seq` is how far a filling has read, None when none began."""

    gap: Gap
    filled: Gap | None
    through_seq: int | None

    @property
    def name(self) -> str:
        """Eight hexadecimal digits that name it, the same on every machine."""
        return hashlib.sha256(progress_key(self.gap).encode()).hexdigest()[:8]


class Backfill:
    """Fills gaps one after the other, with a Kafka client of its own. Blocks; use it from a thread of its own or a command."""

    def __init__(
        self,
        source: SourceSettings,
        config: ProducerSettings,
        framing: Framing,
        producer_factory: Callable[..., KafkaProducer],
        consumer_factory: Callable[..., KafkaConsumer],
    ) -> None:
        self._source = source
        self._config = config
        self._framing = framing
        self._producer_factory = producer_factory
        self._consumer_factory = consumer_factory

    def fill(self, gap: Gap, stop: threading.Event, on_progress: Callable[[Progress], None] = lambda _: None) -> Filled:
        """Read the gap's range from the archive into the topics; goes on where an earlier run was interrupted.

        `on_progress` is told after each block, from this thread.
        Raises ArchiveError when the archive cannot be read (what was read stays, and is not read again), StoppedError when
        `stop` was set.
        """
        url = self._source.archive.url or self._url_of(gap.host)
        archive = ArchiveClient(url, self._source.archive, client_context(self._source.ca_file), stop)
        try:
            return _Filling(self, gap, archive, stop, on_progress).run()
        finally:
            archive.close()

    def known(self) -> list[KnownGap]:
        """Every gap in the topic, oldest first. Blocks while the topics of gaps and of progress are read."""
        gaps: dict[str, Gap] = {}
        filled: dict[str, Gap] = {}
        for record in read_to_end(self._consumer_factory, GAP, self._config.cursor_timeout):
            if record.value is None:
                continue
            gap = Gap.decode(split(record.value)[1])
            if gap.reason == BACKFILLED:
                filled[progress_key(gap)] = gap
            else:
                gaps.setdefault(progress_key(gap), gap)
        through = self.read_through()
        return [
            KnownGap(gap, filled.get(key), through.get(key))
            for key, gap in sorted(gaps.items(), key=lambda item: item[1].from_us or 0)
        ]

    def open_gaps(self) -> list[Gap]:
        """The gaps that nothing filled yet, oldest first. Blocks like `known`."""
        return [known.gap for known in self.known() if known.filled is None]

    def read_through(self) -> dict[str, int]:
        """Progress key → sequence up to which its gap was read. Blocks while the topic of cursors is read."""
        records = read_to_end(self._consumer_factory, CURSOR, self._config.cursor_timeout)
        return {cursor.host: cursor.seq or 0 for cursor in StoredCursors(records).archives}

    def _url_of(self, host: str) -> str:
        for url in self._source.hosts:
            if url.partition("://")[2].startswith(host):
                return url
        return f"wss://{host}"


def progress_key(gap: Gap) -> str:
    """What the progress of a filling is stored under, beside the hosts' cursors."""
    return f"{ARCHIVE} {gap.host} {gap.from_seq} {gap.from_us} {gap.to_seq} {gap.to_us}"


class _Filling:
    """One gap."""

    def __init__(
        self,
        owner: Backfill,
        gap: Gap,
        archive: ArchiveClient,
        stop: threading.Event,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._gap = gap
        self._on_progress = on_progress
        self._archive = archive
        self._stop = stop
        self._config = owner._config
        self._key = progress_key(gap)
        self._counts = Counts()
        self._resyncs = Resyncs()
        self._mark = LowWaterMark()
        self._publisher = Publisher(
            owner._producer_factory, owner._framing, owner._config, self._mark, self._set_aside_refused
        )
        self._intake = Intake(
            gap.host, ARCHIVE, time.time_ns() // 1000, self._publisher, _no_ceiling(), self._counts, self._resyncs
        )
        self._read_through = owner.read_through().get(self._key, 0)
        self._stored_at = 0.0
        # False when the gap's end is not in a sealed segment yet.
        self._reaches_end = True
        # A sequence range holds what belongs to it, whatever time the server shows for a row.
        self._by_time = False

    def run(self) -> Filled:
        """See `Backfill.fill`."""
        first, before = self._range()
        after = max(first, self._read_through)
        end = after
        replans = 0
        while after < before:
            try:
                for segment, through in self._archive.plan(after, before):
                    if segment is not None:
                        for frame in self._archive.blocks(segment):
                            seen = self._publish(rows_of(decompress_block(frame)), after, before)
                            self._on_progress(Progress(first, before, max(seen, after), self._counts.enqueued))
                        continue
                    end = after = through
                    self._note_progress(after)
                break
            except PlanOutdatedError as outdated:
                replans += 1
                if replans > _MAX_REPLANS:
                    raise ArchiveError(f"the archive is rewritten faster than it is read: {outdated}") from None
                after = max(after, self._mark_seq())
            except SegmentError as error:
                raise ArchiveError(str(error)) from None
        complete = end >= before and self._reaches_end
        self._finish(end, complete)
        return Filled(self._counts.enqueued, self._counts.dead_letters, end, complete)

    def _range(self) -> tuple[int, int]:
        """Sequences to ask for: the gap's own when it has both, else those of the segments that overlap its time."""
        gap = self._gap
        if (
            gap.from_seq is not None
            and gap.to_seq is not None
            and gap.from_seq < gap.to_seq
            and gap.reason != RENUMBERED
        ):
            return gap.from_seq, gap.to_seq
        self._by_time = True
        overlapping = [
            segment
            for segment in self._archive.segments()
            if (gap.from_us is None or segment.max_witnessed_at >= gap.from_us)
            and (gap.to_us is None or segment.min_witnessed_at <= gap.to_us)
        ]
        if not overlapping:
            raise ArchiveError("the archive holds nothing of the gap's time")
        self._reaches_end = gap.to_us is None or max(one.max_witnessed_at for one in overlapping) >= gap.to_us
        return min(one.min_seq for one in overlapping) - 1, max(one.max_seq for one in overlapping)

    def _publish(self, rows: Iterable[Row], after: int, before: int) -> int:
        """Hand over the rows of a block that belong to the gap; returns the last sequence in it."""
        found = list(rows)
        wanted = [row for row in found if after < row.seq <= before and self._in_time(row)]
        for row in wanted:
            if row.resync and isinstance(row.event, Commit):
                self._resyncs.mark(row.event.did, row.event.rev)
        taken = 0
        while taken < len(wanted):
            batch, receipt = self._publisher.begin()
            rest = [(row.payload, row.event) for row in wanted[taken:]]
            try:
                outcome = self._intake.take(rest, time.time_ns() // 1000, batch, receipt)
            finally:
                self._mark.seal(batch, None)
            taken += outcome.taken
            self._publisher.poll()
            self._check()
            while outcome.full and not self._publisher.has_room:
                # A download can wait, unlike a socket: the server holds nothing for us.
                self._publisher.wait(_POLL_SECONDS)
                self._check()

        return found[-1].seq if found else after

    def _in_time(self, row: Row) -> bool:
        gap = self._gap
        return not self._by_time or (
            (gap.from_us is None or row.time_us >= gap.from_us) and (gap.to_us is None or row.time_us <= gap.to_us)
        )

    def _check(self) -> None:
        if self._publisher.failure is not None:
            raise ArchiveError(f"the broker did not take everything: {self._publisher.failure}")
        if self._stop.is_set():
            raise StoppedError("stopped in the middle of a gap; the next run goes on there")

    def _note_progress(self, through: int) -> None:
        batch, _ = self._publisher.begin()
        self._mark.seal(batch, Position(self._key, ARCHIVE, through, self._gap.from_us or 0))
        safe = self._mark.safe_position
        if safe is not None and time.monotonic() - self._stored_at >= self._config.cursor_interval:
            self._stored_at = time.monotonic()
            store(self._publisher, safe, time.time_ns() // 1000)

    def _mark_seq(self) -> int:
        safe = self._mark.safe_position
        return safe.seq or 0 if safe is not None else self._read_through

    def _finish(self, through: int, complete: bool) -> None:
        if self._publisher.flush(self._config.delivery_timeout):
            raise ArchiveError("the broker did not acknowledge the rows in time")
        self._publisher.poll()
        self._check()
        gap, now_us = self._gap, time.time_ns() // 1000
        store(self._publisher, Position(self._key, ARCHIVE, through, gap.from_us or 0), now_us)
        if complete:
            detail = (
                f"{self._counts.enqueued} rows of the archive for the gap {gap.reason!r};"
                " what was overwritten or deleted since is missing"
            )
            filled = Gap(gap.host, BACKFILLED, gap.from_us, gap.to_us, gap.from_seq, gap.to_seq, detail, now_us)
            self._publisher.put_aside(GAP, gap.host, filled.encode())
        self._publisher.flush(self._config.shutdown_timeout)

    def _set_aside_refused(self, topic: str, key: bytes, value: bytes, why: str) -> None:
        limit = self._publisher.limits[DEAD_LETTER]
        letter = from_refused_record(topic, key, value, why, time.time_ns() // 1000, limit)
        self._counts.dead_letters += 1
        self._publisher.put_aside(DEAD_LETTER, letter.did or "", letter.encode())


def _no_ceiling() -> Ceiling:
    # Rows of an archive were events once; a file that is not one fails as a whole.
    return Ceiling(1.0, 1_000_000)

"""One membership of the writer: polled messages in, commits out, and the same drain on stop and on revocation.

The steps of a commit: decode and file (`prepare`) → drop events the lake has → publish dead letters →
`lake.commit.commit_batch` (files, then one manifest transaction) → remember identities → tell Kafka, as a lag metric.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

from opentelemetry import trace
from opentelemetry.propagate import extract

from consumers.batch import Batch
from consumers.config import WriterConfig
from consumers.counts import WriterCounts
from consumers.dead_letters import DeadLetters
from consumers.deadline import Deadline
from consumers.decode import BadMessage, SchemaLookup
from consumers.errors import BrokerLostData, DeadlineExceeded, NoRoom, Rejoin, TooManyDeadLetters, TryAgain
from consumers.gaps import retention_gap
from consumers.policy import CommitPolicy, DeadLetterCeiling
from consumers.prepare import Prepared, prepare, read_batch
from consumers.records import Arena, TopicRecords
from lake.commit import commit_batch
from lake.dedupe import DedupeWindow
from lake.errors import CommitOutcomeUnknown, CommitRefused, DiskFull, ManifestUnavailable
from lake.gap_file import save_gaps
from lake.manifest import Manifest, Position, TopicPartition
from lake.steps import Hook, no_hook
from lake.store import LakeStore
from schemas.topics import TOPICS

log = logging.getLogger("explorer.consumers")
tracer = trace.get_tracer("explorer.consumers")


_MOST_CHANGES = 1_000
"""After more versions than this by others the identities are read again rather than the list of changes."""


class Writer:
    """Implements `consumers.kafka.PartitionOwner`. Used from one thread; made afresh for every membership."""

    def __init__(
        self,
        name: str,
        config: WriterConfig,
        manifest: Manifest,
        store: LakeStore,
        window: DedupeWindow,
        dead_letters: DeadLetters,
        lookup: SchemaLookup,
        counts: WriterCounts,
        hook: Hook = no_hook,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name` prefixes the names of its files; `hook` is for crash tests only; `clock` is monotonic, in seconds."""
        self._name = name
        self._config = config
        self._manifest = manifest
        self._store = store
        self._window = window
        self._dead_letters = dead_letters
        self._lookup = lookup
        self._counts = counts
        self._hook = hook
        self._clock = clock
        self._policy = CommitPolicy(config.batch_rows, config.batch_bytes, config.batch_age_seconds)
        self._ceiling = DeadLetterCeiling(config.dead_letter_share, config.dead_letter_min_messages)
        self._judged: Counter[str] = Counter()
        self._positions: dict[TopicPartition, Position] = {}
        self._batch = Batch()
        self.arena = Arena(config.batch_bytes + config.batch_bytes // 4)
        """Where the bytes of what is polled belong; a quarter is for keys and what lies between."""
        self._prepared: Prepared | None = None
        self._deadline: Deadline | None = None
        self._seen_version = 0
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self.committed: Callable[[Mapping[TopicPartition, int]], None] = lambda offsets: None
        """Called with the next offsets after each commit; for the lag metric."""
        self.carriers: list[dict[str, str]] = []
        """Trace headers of the produced batches in hand; the caller may add to it."""

    @property
    def positions(self) -> dict[TopicPartition, int]:
        """The manifest's next offset of every owned partition."""
        return {partition: position.next_offset for partition, position in self._positions.items()}

    @property
    def buffered(self) -> int:
        """Messages polled and not yet committed."""
        return len(self._batch) + (self._prepared.messages if self._prepared is not None else 0)

    def room(self) -> int:
        """How many messages the batch may still take in."""
        return max(1, self._config.batch_rows - len(self._batch))

    def wait(self) -> float:
        """Seconds a poll may block."""
        return self._policy.wait(
            opened_at=self._batch.opened_at, now=self._clock(), at_most=self._config.poll_timeout_seconds
        )

    def take(self, records: TopicRecords) -> None:
        """Buffer polled messages."""
        self._batch.add(records, self._positions, self._clock())

    @property
    def due(self) -> bool:
        """Whether `flush` is to be called now."""
        batch = self._batch
        return self._prepared is not None or self._policy.due(
            rows=len(batch), size=batch.size, opened_at=batch.opened_at, now=self._clock()
        )

    def flush(self) -> None:
        """Commit everything buffered. Blocks for decoding, writing and the manifest's busy timeout.

        Raises TryAgain (nothing lost, call again), Rejoin (drop everything: the partitions have another owner),
        TooManyDeadLetters.
        """
        if self._prepared is None and not len(self._batch):
            return
        links = [
            trace.Link(context)
            for context in (trace.get_current_span(extract(carrier)).get_span_context() for carrier in self.carriers)
            if context.is_valid
        ]
        with tracer.start_as_current_span("writer.batch", links=links):
            if self._prepared is None:
                self._prepared = self._prepare()
            self._commit(self._prepared)
        self._prepared = None
        self.carriers.clear()

    def drain(self, deadline: Deadline) -> None:
        """Commit what is buffered, trying again while `deadline` leaves time.

        Raises DeadlineExceeded when it ran out (what is buffered will be read again by the next owner), Rejoin.
        """
        while self._prepared is not None or len(self._batch):
            deadline.check("commit")
            try:
                self.flush()
            except TryAgain as error:
                log.warning("the last commit has to wait", extra={"cause": str(error)})
                time.sleep(deadline.within(self._config.retry_seconds))

    def discard(self) -> None:
        """Drop what is buffered: it is not committed and will be read again."""
        self._batch, self._prepared = Batch(), None
        self.arena.next_batch()
        self._window.forget()
        self.carriers.clear()

    # What the group tells (consumers.kafka.PartitionOwner).

    def stop_by(self, deadline: Deadline) -> None:
        """From now on every revocation uses `deadline`, the one of the shutdown."""
        self._deadline = deadline

    def assigned(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Claim the partitions, which fences their former owner, and read on where the manifest is."""
        try:
            claimed = self._manifest.claim(partitions, self._owner)
        except ManifestUnavailable as error:
            raise Rejoin(f"partitions could not be claimed: {error.message}") from error
        # Rows of these partitions were written by somebody else since the window was loaded.
        self._window.forget()
        self._positions.update(claimed)
        return {partition: position.next_offset for partition, position in claimed.items()}

    def revoked(self, partitions: Collection[TopicPartition]) -> None:
        """Commit what is buffered before the partitions go."""
        try:
            self.drain(self._deadline or Deadline(self._config.drain_seconds))
        except DeadlineExceeded as error:
            # Other partitions were in the same buffer: only a fresh membership reads them again.
            raise Rejoin(f"revoked before the last commit succeeded ({error})") from error
        finally:
            for partition in partitions:
                self._positions.pop(partition, None)

    def lost(self, partitions: Collection[TopicPartition]) -> None:
        """Another member owns the partitions already: nothing of them may be written."""
        self.discard()
        for partition in partitions:
            self._positions.pop(partition, None)
        raise Rejoin(f"{len(partitions)} partitions were lost")

    def unreadable(self, partition: TopicPartition, low: int, high: int) -> int:
        """Record what the broker dropped before it was read; stop when the broker lost what the manifest has."""
        self.drain(self._deadline or Deadline(self._config.drain_seconds))
        position = self._positions[partition]
        if position.next_offset > high:
            raise BrokerLostData(
                f"{partition.topic}/{partition.partition} ends at offset {high}, but the lake holds it up to "
                f"{position.next_offset}: the topic was recreated or the broker lost acknowledged records",
                "If the broker is right and will stay so, run `post-explorer lake accept-broker`, which makes the lake "
                "read such partitions from their start (events it has already are dropped by identity); otherwise "
                "restore the broker's data.",
            )
        if position.next_offset < low:
            table = TOPICS[partition.topic].table
            newest = self._manifest.snapshot().totals(table).max_time_us if table else None
            gap = retention_gap(partition, position.next_offset, low, newest, time.time_ns() // 1000)
            self._manifest.add_gap(gap)
            with suppress(OSError):
                # A full disk: maintenance writes it down when there is room.
                save_gaps(self._store, self._manifest)
            try:
                self._manifest.seek(partition.topic, partition.partition, low, position.epoch)
            except CommitRefused as error:
                raise Rejoin(error.message) from error
            self._positions[partition] = Position(low, position.epoch)
            log.error("the broker dropped records before they were read", extra={"gap": gap.detail})
        return self._positions[partition].next_offset

    # The steps of a commit.

    def _prepare(self) -> Prepared:
        batch = self._batch
        try:
            self._notice_replays()
            read = read_batch(batch, self._lookup)
            prepared = prepare(self._name, batch, read, self._positions, self._window)
        except ManifestUnavailable as error:
            raise TryAgain(error.message) from error
        self._judge(len(batch), read.bad)
        self._batch = Batch()
        self.arena.next_batch()
        return prepared

    def _notice_replays(self) -> None:
        """A replay may have added events that were lost before: the identities in memory are not all any more."""
        news = self._manifest.versions(limit=1)
        newest = news[0].version if news else 0
        if newest > self._seen_version:
            changes = self._manifest.versions(limit=min(newest - self._seen_version, _MOST_CHANGES))
            if len(changes) == _MOST_CHANGES or any(change.reason == "replay" for change in changes):
                self._window.forget()
            self._seen_version = newest

    def _judge(self, messages: int, bad: list[BadMessage]) -> None:
        """Stop before the commit when so much cannot be read that the fault is probably ours."""
        self._judged["messages"] += messages
        self._judged["bad"] += len(bad)
        if bad and self._ceiling.exceeded(messages=self._judged["messages"], dead_letters=self._judged["bad"]):
            raise TooManyDeadLetters(
                f"{self._judged['bad']} of the last {self._judged['messages']} messages cannot be read; the newest is "
                f"{bad[-1].topic}/{bad[-1].partition}@{bad[-1].offset} ({bad[-1].reason}: {bad[-1].detail})",
                "Nothing of this batch was committed. Check that producer and writer run the same release and the same "
                "schema registry; raise EXPLORER_WRITER_DEAD_LETTER_SHARE only if the input really is that bad.",
            )
        if self._judged["messages"] > 10 * self._config.dead_letter_min_messages:
            # Older messages fade, so that a fault that begins after days is seen as soon as one at the start.
            self._judged = Counter({name: number // 2 for name, number in self._judged.items()})

    def _commit(self, prepared: Prepared) -> None:
        started = self._clock()
        if not prepared.published:
            self._dead_letters.publish(prepared.bad, self._config.dead_letter_timeout_seconds)
            prepared.published = True
        try:
            with tracer.start_as_current_span("writer.commit"):
                outcome = commit_batch(self._store, self._manifest, prepared.batch, self._hook)
        except CommitRefused as error:
            self._counts.refused += 1
            raise Rejoin(f"the commit was refused: {error.message}") from error
        except DiskFull as error:
            raise NoRoom(error.message) from error
        except (ManifestUnavailable, CommitOutcomeUnknown) as error:
            raise TryAgain(error.message) from error
        for (table, hour_us), hashes in prepared.hashes.items():
            self._window.add(table, hour_us, hashes)
        offsets: dict[TopicPartition, int] = {}
        for advance in prepared.batch.advances:
            partition = TopicPartition(advance.topic, advance.partition)
            offsets[partition] = advance.next
            self._positions[partition] = Position(advance.next, advance.epoch)
        self._counts.committed(prepared, outcome, self._clock() - started)
        self.committed(offsets)

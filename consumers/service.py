"""The writer process: joins the consumer group, turns the loop, and starts a new membership when one is over."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from opentelemetry import metrics, trace

from consumers.config import WriterConfig
from consumers.counts import WriterCounts
from consumers.dead_letters import DeadLetters
from consumers.deadline import Deadline
from consumers.decode import SchemaLookup, released_schemas
from consumers.errors import BrokerUnusable, DeadlineExceeded, NoRoom, OutageTooLong, Rejoin, TryAgain
from consumers.kafka import ConsumerFactory, GroupConsumer, ProducerFactory, Publisher, consumer_overrides
from consumers.librdkafka import load
from consumers.memory import give_back
from consumers.native_client import NativeClient, PropertiesFactory
from consumers.writer import Writer
from lake.dedupe import DedupeWindow
from lake.errors import LockHeld
from lake.manifest import Manifest
from lake.steps import Hook, no_hook
from lake.store import LakeStore
from schemas.framing import Framing, SingleObjectFraming
from schemas.topics import GAP, TOPICS

log = logging.getLogger("explorer.consumers")
_lag = metrics.get_meter("explorer.consumers").create_gauge("explorer.writer.lag", "{event}")

WRITER_TOPICS: tuple[str, ...] = tuple(name for name, topic in TOPICS.items() if topic.table is not None or name == GAP)
_REJOIN_DOUBLINGS = 4
_MOST_WRITERS = 256


class WriterService:
    """Kafka topics to lake. Every dependency is passed in; `run` is called once."""

    def __init__(
        self,
        config: WriterConfig,
        manifest: Manifest,
        store: LakeStore,
        consumer_factory: ConsumerFactory,
        producer_factory: ProducerFactory,
        report: Callable[[Mapping[str, object]], None],
        *,
        properties_factory: PropertiesFactory | None = None,
        framing: Framing | None = None,
        schema_lookup: SchemaLookup = released_schemas,
        hook: Hook = no_hook,
        topics: tuple[str, ...] = WRITER_TOPICS,
    ) -> None:
        """`report` gets flat numbers about once a second; `properties_factory` gives the settings of clients that read columns
        (without it messages are read as objects); `framing` is for dead letters (single-object unless given);
        `schema_lookup` resolves registry ids when there is a registry; `hook` is for crash tests only."""
        self._config = config
        self._manifest = manifest
        self._store = store
        self._consumer_factory = consumer_factory
        self._properties_factory = properties_factory
        self._report = report
        self._lookup = schema_lookup
        self._hook = hook
        self._topics = topics
        self._counts = WriterCounts()
        self._window = DedupeWindow(store, manifest, late_us=int(config.late_days * 86_400e6))
        self._dead_letters = DeadLetters(lambda: Publisher(producer_factory()), framing or SingleObjectFraming())
        self._reported_at = time.monotonic()
        self._reported_rows = 0
        self._retry_at = 0.0
        self._failing_since: float | None = None
        self._trouble = ""
        self._swollen = False

    def run(self, stop: threading.Event) -> None:
        """Read and commit until `stop` is set, then commit what is buffered and leave, within the drain deadline.

        Raises ExplorerError for what only an operator can put right.
        """
        self._store.root.mkdir(parents=True, exist_ok=True)
        self._counts.newest_us = self._manifest.newest_time_us(time.time_ns() // 1000) or 0
        with self._slot() as name:
            swept = self._store.sweep(name)
            log.info("writing", extra={"writer": name, "lake": str(self._store.root), "swept": len(swept)})
            try:
                self._memberships(name, stop)
            finally:
                self._dead_letters.close()

    @contextmanager
    def _slot(self) -> Iterator[str]:
        """A name that no other running writer of this lake has: its temporary files are ours alone."""
        owner = f"{socket.gethostname()}:{os.getpid()}"
        for number in range(_MOST_WRITERS):
            name = f"writer-{number}"
            with ExitStack() as stack:
                try:
                    stack.enter_context(self._manifest.hold(name, owner))
                except LockHeld:
                    continue
                yield name
                return
        raise LockHeld(f"{_MOST_WRITERS} writers run on this lake already.", "Stop some of them.")

    def _memberships(self, name: str, stop: threading.Event) -> None:
        doublings = 0
        while not stop.is_set():
            commits = self._counts.commits
            try:
                self._member(name, stop)
            except Rejoin as cause:
                doublings = 0 if self._counts.commits > commits else min(doublings + 1, _REJOIN_DOUBLINGS)
                wait = self._config.rejoin_seconds * 2**doublings
                log.warning("joining the group again", extra={"cause": str(cause), "wait_seconds": wait})
                stop.wait(wait)

    def _member(self, name: str, stop: threading.Event) -> None:
        """One membership, from joining to leaving."""
        config = self._config
        writer = Writer(
            name,
            config,
            self._manifest,
            self._store,
            self._window,
            self._dead_letters,
            self._lookup,
            self._counts,
            self._hook,
        )
        overrides = consumer_overrides(config)
        group = GroupConsumer(
            self._consumer_factory(config.group, **overrides), self._topics, writer, self._client(overrides)
        )
        writer.committed = group.note_progress
        try:
            while not stop.is_set():
                self._turn(group, writer)
            deadline = Deadline(config.drain_seconds)
            writer.stop_by(deadline)
            try:
                writer.drain(deadline)
            except DeadlineExceeded:
                log.warning(
                    "stopping with uncommitted messages; they will be read again", extra={"messages": writer.buffered}
                )
                writer.discard()
            self._tell(group, writer, force=True)
        except BaseException:
            # Whatever ended this membership, its buffer must not be committed while the group is being left, and what
            # leaving runs into must not hide the cause.
            writer.discard()
            with suppress(Rejoin, BrokerUnusable):
                group.close()
            raise
        group.close()

    def _client(self, overrides: Mapping[str, object]) -> NativeClient | None:
        """The client that reads for a member with these settings; None when the member reads by itself."""
        if self._properties_factory is None or not self._config.read_columns or (library := load()) is None:
            return None
        return NativeClient(library, self._properties_factory(self._config.group, **overrides))

    def _turn(self, group: GroupConsumer, writer: Writer) -> None:
        """Poll once; commit if it is time. While a commit has to wait, polling goes on without taking in more."""
        polled = group.poll(
            min(self._config.poll_messages, writer.room()),
            writer.wait(),
            writer.arena,
            writer.carriers if _tracing() else None,
        )
        for records in polled:
            writer.take(records)
        if time.monotonic() >= self._retry_at:
            try:
                self._commit(writer)
            except TryAgain as cause:
                self._hold(group, cause)
            else:
                self._go_on(group)
        self._tell(group, writer)

    def _commit(self, writer: Writer) -> None:
        free = shutil.disk_usage(self._store.root).free
        if free < self._config.min_free_bytes:
            raise NoRoom(f"{free} bytes are free on the lake's disk, {self._config.min_free_bytes} are required")
        if writer.due:
            messages = writer.buffered
            writer.flush()
            if messages >= self._config.batch_rows // 2:
                self._swollen = True
            elif self._swollen and messages < self._config.batch_rows // 4:
                # Caught up: what the large batches needed is not needed any more.
                self._swollen = False
                writer.arena.give_back()
                give_back()

    def _hold(self, group: GroupConsumer, cause: TryAgain) -> None:
        """Take in nothing more, say why (once), and try again a little later."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
            log.error("not taking in until this is over", extra={"cause": str(cause)})
        self._trouble = str(cause)
        if not isinstance(cause, NoRoom) and now - self._failing_since > self._config.outage_seconds:
            raise OutageTooLong(
                f"no commit succeeded for {self._config.outage_seconds:.0f} s: {cause}",
                "Nothing is lost: the messages stay in Kafka. Put the cause right and start the writer again.",
            ) from cause
        group.pause()
        self._retry_at = now + self._config.retry_seconds

    def _go_on(self, group: GroupConsumer) -> None:
        if self._failing_since is not None:
            log.warning("taking in again", extra={"held_seconds": round(time.monotonic() - self._failing_since, 1)})
            self._failing_since, self._trouble = None, ""
        group.resume()

    def _tell(self, group: GroupConsumer, writer: Writer, *, force: bool = False) -> None:
        """Report about once a second."""
        now = time.monotonic()
        elapsed = now - self._reported_at
        if elapsed < self._config.report_seconds and not force:
            return
        counts = self._counts
        lag = group.lag(writer.positions)
        for partition, behind in lag.items():
            _lag.set(behind, {"topic": partition.topic, "partition": partition.partition})
        self._report(
            {
                "rows": counts.rows,
                "duplicates": counts.duplicates,
                "dead_letters": counts.dead_letters,
                "commits": counts.commits,
                "refused": counts.refused,
                "files": counts.files,
                "events_per_second": round((counts.rows - self._reported_rows) / elapsed, 1),
                "lag": sum(lag.values()),
                "buffered": writer.buffered,
                "bytes_written": counts.bytes_written,
                "freshness_seconds": counts.freshness(),
                "assigned": len(group.assigned),
                "holding": self._trouble,
            }
        )
        self._reported_at, self._reported_rows = now, counts.rows


def _tracing() -> bool:
    """Whether anybody records spans; looking through the headers of all messages is not free."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)

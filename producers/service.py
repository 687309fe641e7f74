"""The producer process: connects, streams, stores the cursor, reconnects; drains when told to stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from producers.backfill import Backfill
from producers.backfill_worker import BackfillWorker
from producers.compression import BAD_COMPRESSION
from producers.config import ProducerSettings, SourceSettings
from producers.connector import Attempt, Connector, Opened
from producers.cursor import LowWaterMark, Position
from producers.cursor_store import StoredCursors, store
from producers.dead_letters import Ceiling, from_refused_record
from producers.errors import ConnectFailedError, ConnectionEndedError
from producers.intake import Intake
from producers.metrics import Instruments
from producers.publisher import ClientError, KafkaConsumer, KafkaProducer, Publisher, read_to_end
from producers.resyncs import Resyncs
from producers.session import Cause, End, Session
from producers.status import Status
from producers.wire import Event
from schemas.bodies import Gap
from schemas.framing import Framing
from schemas.topics import CURSOR, DEAD_LETTER, SYNC

logger = logging.getLogger("explorer.producers")

_POLL_SECONDS = 0.1
_REACHABLE_SECONDS = 2.0
_SYNCS_REMEMBERED = 10_000


class ProducerService:
    """Source to topics, at least once. `run` once; the object is not reusable.

    `producer_factory(**overrides)` and `consumer_factory(group, **overrides)` make Kafka clients from librdkafka properties;
    `report` is called about once a second from the thread that runs.
    """

    def __init__(
        self,
        source: SourceSettings,
        config: ProducerSettings,
        framing: Framing,
        producer_factory: Callable[..., KafkaProducer],
        consumer_factory: Callable[..., KafkaConsumer],
        report: Callable[[Mapping[str, object]], None],
    ) -> None:
        self._source = source
        self._config = config
        self._framing = framing
        self._producer_factory = producer_factory
        self._consumer_factory = consumer_factory
        self._report = report
        self._connector = Connector(source)
        self._mark = LowWaterMark()
        self._ceiling = Ceiling(config.dead_letter_share, config.dead_letter_window)
        self._resyncs = Resyncs()
        self._status = Status(time.monotonic())
        self._instruments = Instruments()
        # Where the next connection reads on, which is at or after what the stored cursor says.
        self._position: Position | None = None
        self._last_event: Event | None = None
        self._session: Session | None = None
        # A connection to the preferred host, being opened while another host still delivers.
        self._returning: Attempt | None = None
        self._taken_over: tuple[Attempt, Opened] | None = None
        self._backfill: BackfillWorker | None = None
        self._stored: Position | None = None
        self._tick_at = 0.0

    def run(self, stop: threading.Event) -> None:
        """Stream until `stop` is set, then drain within the shutdown time. Raises ExplorerError when it cannot go on."""
        stored = StoredCursors(read_to_end(self._consumer_factory, CURSOR, self._config.cursor_timeout))
        self._position = self._stored = stored.newest
        self._mark = LowWaterMark(self._position)
        self._publisher = Publisher(
            self._producer_factory, self._framing, self._config, self._mark, self._set_aside_refused
        )
        if self._position is None:
            logger.info("no stored cursor: starting with %s", self._source.start, extra={"start": self._source.start})
        else:
            self._resyncs.restore(
                read_to_end(self._consumer_factory, SYNC, self._config.cursor_timeout, last=_SYNCS_REMEMBERED)
            )
            logger.info("resuming after %s", self._position, extra={"cursor": self._position._asdict()})
        if self._source.archive.automatic:
            self._backfill = BackfillWorker(
                Backfill(self._source, self._config, self._framing, self._producer_factory, self._consumer_factory)
            )
            self._backfill.start()
        try:
            while not stop.is_set():
                connected = self._connect(stop)
                if connected is not None:
                    self._stream(*connected, stop)
        finally:
            self._drain()

    def _connect(self, stop: threading.Event) -> tuple[Attempt, Opened] | None:
        """One attempt; None after a failure (which has been waited for) or when asked to stop."""
        if self._taken_over is not None:
            connected, self._taken_over = self._taken_over, None
            return connected
        attempt = self._connector.attempt(self._position)
        self._status.source = f"{attempt.host.name} ({attempt.protocol})"
        try:
            while True:
                opened = attempt.opening.result(_POLL_SECONDS)
                if opened is not None:
                    return attempt, opened
                self._publisher.poll()
                self._tick(time.monotonic())
                if stop.is_set():
                    attempt.opening.abandon()
                    return None
        except ConnectFailedError as failure:
            delay = self._connector.failed(attempt, failure, time.monotonic())
            self._status.problem = f"{attempt.host.url}: {failure.cause}; next attempt in {delay:.1f} s"
            self._wait(delay, stop)
            return None

    def _stream(self, attempt: Attempt, opened: Opened, stop: threading.Event) -> None:
        host = attempt.host.name
        intake = Intake(
            host,
            attempt.protocol,
            attempt.opening.started_us,
            self._publisher,
            self._ceiling,
            self._status.counts,
            self._resyncs,
        )
        session = self._session = Session(
            opened.connection,
            intake,
            opened.decode,
            attempt.resume,
            host,
            attempt.protocol,
            self._publisher,
            self._mark,
            self._source,
            self._config,
            self._last_event,
            self._tick,
            self._note_gap,
        )
        self._status.connected, self._status.problem = True, None
        self._status.source = f"{host} ({attempt.protocol})"
        logger.info("connected to %s", attempt.host.url, extra={"host": host, "cursor": attempt.resume.cursor})
        try:
            if opened.hello is not None:
                opened.connection.send_text(opened.hello)
            end = session.run(stop)
        except ConnectionEndedError as ended:
            end = End(Cause.CLOSED, str(ended))
        except ClientError as error:
            end = End(Cause.DELIVERY_FAILED, str(error))
        finally:
            self._session = None
            self._status.connected = False
            opened.connection.close(self._source.close_timeout)
            self._learn(session, intake)
        if end.cause is not Cause.STOPPED:
            self._ended(attempt, end, session, stop)

    def _learn(self, session: Session, intake: Intake) -> None:
        self._status.counts.repeated += session.repeated
        if session.position is not None:
            self._position = session.position
            self._last_event = intake.last_event
            self._connector.progressed()

    def _ended(self, attempt: Attempt, end: End, session: Session, stop: threading.Event) -> None:
        self._status.reconnects += 1
        self._instruments.reconnected(attempt.host.name, end.cause.value)
        if end.cause is not Cause.HOST_CHANGE:
            self._status.problem = f"{attempt.host.url}: connection ended ({end.cause.value}) {end.detail}".strip()
        logger.log(
            logging.INFO if end.cause is Cause.HOST_CHANGE else logging.WARNING,
            "%s: connection ended (%s) %s",
            attempt.host.url,
            end.cause.value,
            end.detail,
            extra={"host": attempt.host.name, "cause": end.cause.value},
        )
        if end.cause is Cause.RENUMBERED:
            self._connector.history_lost("renumbered")
        elif end.error == BAD_COMPRESSION:
            self._connector.bad_compression()
        elif end.cause is Cause.QUEUE_FULL:
            self._wait_until(lambda: self._publisher.has_room or self._publisher.failure is not None, stop)
        elif end.cause in (Cause.CLOSED, Cause.STREAM_ERROR, Cause.SILENCE):
            delivered = session.position is not None
            self._wait(self._connector.ended(time.monotonic(), delivered=delivered), stop)
        if end.cause is Cause.DELIVERY_FAILED or self._publisher.failure is not None:
            self._start_over(end.detail, stop)

    def _start_over(self, why: str, stop: threading.Event) -> None:
        """After lost deliveries: wait for a broker, then read the source again from the safe position."""
        logger.error("the broker did not take everything (%s): reading again from the last safe position", why)
        self._wait_until(lambda: self._publisher.reachable(_REACHABLE_SECONDS), stop)
        self._position = self._mark.rewind()
        self._last_event = None
        self._publisher.reopen()

    def _wait(self, seconds: float, stop: threading.Event) -> None:
        deadline = time.monotonic() + seconds
        self._wait_until(lambda: time.monotonic() >= deadline, stop)

    def _wait_until(self, condition: Callable[[], bool], stop: threading.Event) -> None:
        while not condition() and not stop.wait(_POLL_SECONDS):
            self._publisher.poll()
            self._tick(time.monotonic())

    def _tick(self, now: float) -> bool:
        """Once per interval: store the cursor, report. True when the session should make way for the preferred host."""
        if now - self._tick_at < self._config.cursor_interval:
            return False
        self._tick_at = now
        self._store_cursor()
        self._send_report(now)
        return self._session is not None and self._can_return(self._session, now)

    def _can_return(self, session: Session, now: float) -> bool:
        if self._returning is None:
            self._returning = self._connector.attempt_preferred(session.position or self._position, now)
            return False
        try:
            opened = self._returning.opening.result(0)
        except ConnectFailedError as failure:
            logger.info("%s is still not usable: %s", self._returning.host.url, failure.cause)
            self._returning = None
            return False
        if opened is None:
            return False
        self._taken_over, self._returning = (self._returning, opened), None
        self._connector.returned()
        return True

    def _store_cursor(self) -> None:
        safe = self._mark.safe_position
        if safe is None or safe == self._stored:
            return
        try:
            store(self._publisher, safe, time.time_ns() // 1000)
        except BufferError:
            return
        self._stored = safe

    def _send_report(self, now: float) -> None:
        newest = (self._session.position if self._session is not None else None) or self._position
        snapshot = self._status.snapshot(
            now, time.time_ns() // 1000, self._publisher.queued, self._mark.safe_position, newest
        )
        self._instruments.report(
            self._connector.host.name,
            self._status.counts.topics,
            self._mark.acknowledged,
            self._ceiling.reasons,
            None if newest is None else time.time() - newest.common_us / 1_000_000,
        )
        self._report(snapshot)

    def _note_gap(self, gap: Gap) -> None:
        self._status.gaps += 1
        self._instruments.gap(gap.host, gap.reason)
        if self._backfill is not None:
            self._backfill.add(gap)

    def _set_aside_refused(self, topic: str, key: bytes, value: bytes, why: str) -> None:
        letter = from_refused_record(
            topic, key, value, why, time.time_ns() // 1000, self._publisher.limits[DEAD_LETTER]
        )
        self._status.counts.dead_letters += 1
        self._status.counts.enqueued -= 1
        try:
            self._publisher.put_aside(DEAD_LETTER, letter.did or "", letter.encode())
        except BufferError:
            self._publisher.failure = "the queue was full when a refused record had to be set aside"

    def _drain(self) -> None:
        deadline = time.monotonic() + self._config.shutdown_timeout
        for attempt in (self._returning, self._taken_over[0] if self._taken_over is not None else None):
            if attempt is not None:
                attempt.opening.abandon()
        if self._backfill is not None:
            self._backfill.stop(self._config.shutdown_timeout / 2)
        left_over = self._publisher.flush(self._config.shutdown_timeout)
        self._store_cursor()
        self._publisher.flush(max(deadline - time.monotonic(), 0.5))
        self._send_report(time.monotonic())
        if left_over:
            logger.warning(
                "%d records were not acknowledged in time; they are read again at the next start",
                left_over,
                extra={"unacknowledged": left_over},
            )

"""The producer process: connects, streams, stores the cursor, reconnects; drains when told to stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

from producers import wire_v1, wire_v2
from producers.backoff import Disposition, delays, disposition
from producers.config import ProducerSettings, SourceSettings
from producers.connection import Connection, Opening
from producers.cursor import LowWaterMark, Position
from producers.cursor_store import StoredCursors, store
from producers.dead_letters import Ceiling, from_refused_record
from producers.errors import ConnectFailedError, HandshakeRefusedError, SourceSettingsError
from producers.hosts import Host, HostRotation, subscribe_url
from producers.intake import Intake, Resyncs
from producers.publisher import ClientError, KafkaConsumer, KafkaProducer, Publisher, read_to_end
from producers.resume import Resume, resume_after, resume_at_time, resume_live, resume_oldest
from producers.session import Cause, End, Session
from producers.status import Status
from schemas.framing import Framing
from schemas.topics import CURSOR, DEAD_LETTER

logger = logging.getLogger("explorer.producers")

_POLL_SECONDS = 0.1
_REACHABLE_SECONDS = 2.0


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
        self._rotation = HostRotation(source.hosts, source.protocol, source.failures_before_switch, source.return_after)
        self._mark = LowWaterMark()
        self._ceiling = Ceiling(config.dead_letter_share, config.dead_letter_window)
        self._resyncs = Resyncs()
        self._status = Status(time.monotonic())
        self._position: Position | None = None
        self._last_frame = b""
        # Set when the host does not honour the position any more; the next connection then resumes by time.
        self._lost: str | None = None
        self._delays = self._new_delays()
        self._candidate: Opening | None = None
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
            logger.info("resuming after %s", self._position, extra={"cursor": self._position._asdict()})
        try:
            while not stop.is_set():
                connection = self._connect(stop)
                if connection is not None:
                    self._stream(connection, stop)
        finally:
            self._drain()

    def _connect(self, stop: threading.Event) -> tuple[Connection, Resume, int] | None:
        """One attempt; None after a failure (which has been waited for) or when asked to stop."""
        host = self._rotation.current
        resume = self._resume(host)
        self._status.source = f"{host.name} ({host.protocol})"
        opening = self._open(host, resume)
        try:
            while True:
                opened_us = time.time_ns() // 1000
                connection = opening.result(_POLL_SECONDS)
                self._publisher.poll()
                self._tick(time.monotonic())
                if connection is not None:
                    return connection, resume, opened_us
                if stop.is_set():
                    opening.abandon()
                    return None
        except ConnectFailedError as failure:
            self._attempt_failed(host, failure, stop)
            return None

    def _open(self, host: Host, resume: Resume) -> Opening:
        if host.protocol == "v2":
            query = wire_v2.parameters(self._source, resume.cursor, dictionary_id=None)
        else:
            query = wire_v1.parameters(self._source, resume.cursor, compress=False)
        authorization = self._source.authorization
        return Opening(
            subscribe_url(host, query),
            subprotocols=(wire_v2.SUBPROTOCOL,) if host.protocol == "v2" else (),
            headers=(("Authorization", authorization.get_secret_value()),) if authorization is not None else (),
            timeout=self._source.open_timeout,
            max_size=self._source.max_frame_bytes,
        )

    def _resume(self, host: Host) -> Resume:
        if self._position is not None:
            margin_us = int(self._source.switch_margin * 1_000_000)
            return resume_after(self._position, host.name, margin_us, self._lost)
        match self._source.start:
            case "live":
                return resume_live()
            case "oldest":
                return resume_oldest()
            case moment:
                return resume_at_time(int(datetime.fromisoformat(moment).timestamp() * 1_000_000))

    def _attempt_failed(self, host: Host, failure: ConnectFailedError, stop: threading.Event) -> None:
        now = time.monotonic()
        retry_at_once = False
        match disposition(failure):
            case Disposition.CURSOR_TOO_OLD:
                retry_at_once = self._lost is None
                self._lost = "cursor_too_old"
            case Disposition.NOT_THIS_WIRE:
                retry_at_once = self._rotation.lacks_wire(now)
            case Disposition.REFUSED:
                self._rotation.refuse(failure.cause, now)
                logger.error("%s refuses us for good: %s", host.url, failure.cause, extra={"host": host.name})
                if not self._rotation.usable:
                    raise SourceSettingsError(
                        f"no source serves this subscription; {host.url} says: {failure.cause}",
                        "correct EXPLORER_SOURCE_HOSTS, the filters or EXPLORER_SOURCE_AUTHORIZATION",
                    )
                retry_at_once = True
            case _:
                self._rotation.failed(now)
        if retry_at_once:
            logger.info("%s: %s; trying again differently", host.url, failure.cause, extra={"host": host.name})
            return
        delay = next(self._delays)
        if isinstance(failure, HandshakeRefusedError) and failure.retry_after is not None:
            delay = max(delay, failure.retry_after)
        logger.warning(
            "%s: %s; next attempt in %.1f s (%s)",
            host.url,
            failure.cause,
            delay,
            self._rotation.current.url,
            extra={"host": host.name, "delay": round(delay, 2)},
        )
        self._wait(delay, stop)

    def _stream(self, opened: tuple[Connection, Resume, int], stop: threading.Event) -> None:
        connection, resume, opened_us = opened
        host = self._rotation.current
        wire = wire_v2 if host.protocol == "v2" else wire_v1
        intake = Intake(
            wire.decode,
            host.name,
            host.protocol,
            opened_us,
            self._publisher,
            self._ceiling,
            self._status.counts,
            self._resyncs,
        )
        session = Session(
            connection,
            intake,
            wire.decode,
            resume,
            host.name,
            host.protocol,
            self._publisher,
            self._mark,
            self._source,
            self._config,
            self._last_frame,
            self._tick,
        )
        self._status.connected = True
        logger.info("connected to %s", host.url, extra={"host": host.name, "cursor": resume.cursor})
        end: End | None = None
        try:
            if host.protocol == "v1" and (hello := wire_v1.hello(self._source)) is not None:
                connection.send_text(hello)
            end = session.run(stop)
        except ClientError as error:
            end = End(Cause.DELIVERY_FAILED, str(error))
        finally:
            self._status.connected = False
            connection.close(self._source.close_timeout)
            self._learn(session, intake)
        self._ended(host, end, session, stop)

    def _learn(self, session: Session, intake: Intake) -> None:
        self._status.gaps += session.gaps
        self._status.counts.repeated += session.repeated
        if session.position is not None:
            self._position = session.position
            self._last_frame = intake.last_frame
            self._lost = None
            self._rotation.connected()
            self._delays = self._new_delays()

    def _ended(self, host: Host, end: End, session: Session, stop: threading.Event) -> None:
        if end.cause is Cause.STOPPED:
            return
        self._status.reconnects += 1
        logger.warning(
            "%s: connection ended (%s) %s",
            host.url,
            end.cause.value,
            end.detail,
            extra={"host": host.name, "cause": end.cause.value},
        )
        if end.cause is Cause.QUEUE_FULL:
            self._wait_until(lambda: self._publisher.has_room or self._publisher.failure is not None, stop)
        if end.cause is Cause.RENUMBERED:
            self._lost = "renumbered"
        if end.cause is Cause.DELIVERY_FAILED or self._publisher.failure is not None:
            self._start_over(stop)
        elif end.cause in (Cause.CLOSED, Cause.STREAM_ERROR, Cause.SILENCE):
            if session.position is None:
                self._rotation.failed(time.monotonic())
            self._wait(next(self._delays), stop)

    def _start_over(self, stop: threading.Event) -> None:
        """After lost deliveries: wait for a broker, then read the source again from the safe position."""
        logger.error(
            "the broker did not take everything (%s): reading again from the last safe position",
            self._publisher.failure,
        )
        self._wait_until(lambda: self._publisher.reachable(_REACHABLE_SECONDS), stop)
        self._position = self._mark.rewind()
        self._last_frame = b""
        self._publisher.reopen()

    def _wait(self, seconds: float, stop: threading.Event) -> None:
        deadline = time.monotonic() + seconds
        self._wait_until(lambda: time.monotonic() >= deadline, stop)

    def _wait_until(self, condition: Callable[[], bool], stop: threading.Event) -> None:
        while not condition() and not stop.wait(_POLL_SECONDS):
            self._publisher.poll()
            self._tick(time.monotonic())

    def _tick(self, now: float) -> bool:
        """Once per interval: store the cursor and report. True when the session should make way for the preferred host."""
        if now - self._tick_at < self._config.cursor_interval:
            return False
        self._tick_at = now
        self._store_cursor()
        self._send_report(now)
        return False

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
        self._report(
            self._status.snapshot(
                now, time.time_ns() // 1000, self._mark.unacknowledged, self._mark.safe_position, self._position
            )
        )

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

    def _new_delays(self) -> Iterator[float]:
        return delays(self._source.backoff_first, self._source.backoff_longest)

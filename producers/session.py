"""The life of one connection: read, judge where it resumed, hand over, until something ends it.

Everything runs in the caller's thread. The session never waits for Kafka; a full client queue ends it.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from opentelemetry import trace

from producers.config import ProducerSettings, SourceSettings
from producers.connection import Connection
from producers.cursor import Batch, LowWaterMark, Position
from producers.errors import ConnectionEndedError
from producers.intake import Intake
from producers.publisher import Publisher, Receipt
from producers.resume import Resume, Verdict, judge, same_event
from producers.wire import Account, Commit, Decoder, Event, Identity, Info, Sync
from schemas.bodies import Gap
from schemas.topics import GAP

logger = logging.getLogger("explorer.producers")
tracer = trace.get_tracer("producers")

_READ_SECONDS = 0.05


class Cause(enum.Enum):
    """Why a session ended; the values are metric labels."""

    STOPPED = "stopped"
    CLOSED = "closed"
    STREAM_ERROR = "stream_error"
    SILENCE = "silence"
    QUEUE_FULL = "queue_full"
    DELIVERY_FAILED = "delivery_failed"
    RENUMBERED = "renumbered"
    HOST_CHANGE = "host_change"


class End(NamedTuple):
    """How a session ended; `detail` is for people, `error` names the error that the stream ended with."""

    cause: Cause
    detail: str = ""
    error: str = ""


class Session:
    """One connection from its first message to its end. Call `run` once, then read `position`.

    `last_event` is the last one handed over before this connection, to drop the one that an inclusive cursor sends again; None
    when there is none. `tick` is called several times a second and ends the session by returning True.
    """

    def __init__(
        self,
        connection: Connection,
        intake: Intake,
        decode: Decoder,
        resume: Resume,
        host: str,
        protocol: str,
        publisher: Publisher,
        mark: LowWaterMark,
        source: SourceSettings,
        settings: ProducerSettings,
        last_event: Event | None,
        tick: Callable[[float], bool],
        on_gap: Callable[[Gap], None],
    ) -> None:
        self._connection = connection
        self._intake = intake
        self._decode = decode
        self._resume = resume
        self._host = host
        self._protocol = protocol
        self._publisher = publisher
        self._mark = mark
        self._source = source
        self._settings = settings
        self._last_event = last_event
        self._tick = tick
        self._on_gap = on_gap
        self._judged = False
        self._skipping = resume.from_us is not None
        self._outdated: str | None = None
        self._quiet_since = time.monotonic()
        self._listened: Position | None = None
        self.repeated = 0
        """Events passed over because they were handed over before."""

    @property
    def position(self) -> Position | None:
        """Up to where this host has been read; None before the first event."""
        return self._listened or self._intake.position

    def run(self, stop: threading.Event) -> End:
        """Stream until `stop` is set or the session cannot go on. The caller closes the connection."""
        while True:
            batch, receipt = self._publisher.begin()
            try:
                with tracer.start_as_current_span("source.batch", attributes={"host": self._host}) as span:
                    end = self._fill(batch, receipt, stop)
                    events = batch.topics.total()
                    span.set_attribute("events", events)
                    if span.is_recording() and events:
                        batch.on_done = tracer.start_span("producer.deliver").end
            finally:
                self._mark.seal(batch, self.position)
            if end is not None:
                return end

    def _fill(self, batch: Batch, receipt: Receipt, stop: threading.Event) -> End | None:
        deadline = time.monotonic() + self._settings.batch_seconds
        handed_over = 0
        while not stop.is_set():
            try:
                messages = self._connection.read(_READ_SECONDS)
            except ConnectionEndedError as ended:
                return End(Cause.CLOSED, str(ended))
            now = time.monotonic()
            if messages:
                end = self._take(messages, batch, receipt)
                handed_over += len(messages)
                self._quiet_since = now
                self._listened = None
                if end is not None:
                    return end
            self._publisher.poll()
            if self._publisher.failure is not None:
                return End(Cause.DELIVERY_FAILED, self._publisher.failure)
            if self._tick(now):
                return End(Cause.HOST_CHANGE)
            if (silence := self._silence(now)) is not None:
                return silence
            if handed_over >= self._settings.batch_events or now >= deadline:
                return None
        return End(Cause.STOPPED)

    def _take(self, messages: list[bytes], batch: Batch, receipt: Receipt) -> End | None:
        received_us = time.time_ns() // 1000
        frames: Sequence[bytes] = messages
        if not self._judged or self._skipping:
            end, frames = self._begin(messages, batch, receipt)
            if end is not None:
                return end
        outcome = self._intake.take(zip(frames, map(self._decode, frames), strict=True), received_us, batch, receipt)
        for info in outcome.infos:
            self._note_info(info)
        if outcome.full:
            return End(Cause.QUEUE_FULL, f"{self._publisher.queued} events wait for the broker")
        if outcome.error is not None:
            return End(Cause.STREAM_ERROR, f"{outcome.error.error}: {outcome.error.message[:200]}", outcome.error.error)
        return None

    def _begin(self, messages: list[bytes], batch: Batch, receipt: Receipt) -> tuple[End | None, Sequence[bytes]]:
        """Judge the first event and drop what precedes the time asked for; only while a connection begins."""
        kept: list[bytes] = []
        for index, message in enumerate(messages):
            result = self._decode(message)
            if isinstance(result, Info):
                self._note_info(result)
                continue
            if not isinstance(result, (Commit, Identity, Account, Sync)):
                kept.append(message)
                continue
            if not self._judged:
                end = self._judge(result, batch, receipt)
                if end is not None:
                    return end, ()
                self._judged = True
                if self._last_event is not None and same_event(result, self._last_event):
                    self.repeated += 1
                    continue
            if self._resume.from_us is not None and result.time_us < self._resume.from_us:
                # A time cursor may be answered from the start of a whole segment, up to an hour too early.
                self.repeated += 1
                continue
            self._skipping = False
            kept.extend(messages[index:])
            break
        return None, kept

    def _judge(self, first: Event, batch: Batch, receipt: Receipt) -> End | None:
        resume = self._resume
        verdict = judge(resume, first, self._last_event, int(self._source.gap_tolerance * 1_000_000))
        if (
            verdict is Verdict.GAP
            and self._source.is_filtered
            and resume.since is not None
            and resume.since.seq is None
        ):
            # That position is a time of listening, not an event that had to come again.
            verdict = Verdict.CONTINUES
        if verdict is Verdict.RENUMBERED:
            return End(
                Cause.RENUMBERED,
                f"asked for sequence {resume.seq} and sent {first.seq}, another event: its numbers were used again",
            )
        if verdict is Verdict.GAP or (self._outdated is not None and resume.since_us is not None):
            self._report_gap(first, batch, receipt)
        return None

    def _report_gap(self, first: Event, batch: Batch, receipt: Receipt) -> None:
        resume = self._resume
        if resume.since_us is None or first.time_us <= resume.since_us:
            return
        reason = resume.cause or ("outdated_cursor" if self._outdated is not None else "jump")
        gap = Gap(
            host=self._host,
            reason=reason,
            from_us=resume.since_us,
            to_us=first.time_us,
            from_seq=resume.since.seq if resume.since is not None and resume.since.host == self._host else None,
            to_seq=first.seq,
            detail=self._outdated or f"asked for cursor {resume.cursor}",
            noticed_us=time.time_ns() // 1000,
        )
        # An empty queue of a new connection has room; a full one ends the session before its first event and this runs again.
        self._publisher.put_aside(GAP, self._host, gap.encode(), receipt)
        batch.topics[GAP] += 1
        self._on_gap(gap)
        seconds = (first.time_us - resume.since_us) / 1_000_000
        logger.error(
            "%s no longer has %.0f s of history (%s): recorded as a gap; `post-explorer gaps fill` reads it from an archive",
            self._host,
            seconds,
            reason,
            extra={"host": self._host, "reason": reason, "from_us": gap.from_us, "to_us": gap.to_us},
        )

    def _note_info(self, info: Info) -> None:
        logger.warning("%s says %s: %s", self._host, info.name[:100], info.message[:500], extra={"host": self._host})
        if info.name == "OutdatedCursor":
            self._outdated = info.message[:300] or info.name

    def _silence(self, now: float) -> End | None:
        limit = self._source.silence_timeout
        self._connection.ping_if_due(now, self._source.ping_interval)
        if self._source.is_filtered:
            quiet = now - self._quiet_since
            if quiet > self._source.quiet_limit:
                # The sequence of the last event would age out of the server's history; the time of listening does not.
                listened_us = time.time_ns() // 1000 - int(self._source.switch_margin * 1_000_000)
                self._listened = self._intake.position_at(None, listened_us)
            if now - self._connection.last_bytes_at > limit:
                return End(Cause.SILENCE, f"not even a pong for {limit:g} s")
        elif now - self._quiet_since > limit:
            return End(Cause.SILENCE, f"no event for {limit:g} s")
        return None

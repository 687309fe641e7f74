"""Frames to records: decode, encode, frame, hand to the Kafka client; the hot loop of the producer.

One call handles the messages of one socket read. Nothing here blocks: a full client queue is answered by stopping in the middle,
and the caller closes the socket and reads the rest again later.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from producers.behind import Behind
from producers.cursor import Batch, Position
from producers.dead_letters import Ceiling, from_frame
from producers.publisher import ANY_PARTITION, Publisher, Receipt, trace_headers
from producers.resyncs import Resyncs
from producers.wire import Account, Commit, Event, Frame, Identity, Info, Rejected, StreamError, Sync, Unknown
from schemas.codec import EventEncoder
from schemas.errors import BadRecord, DeadLetterReason
from schemas.topics import DEAD_LETTER

logger = logging.getLogger("explorer.producers")

# An event further ahead of this machine's clock cannot have been witnessed; as a cursor it would skip the time until then.
_MAX_AHEAD_US = 24 * 3_600_000_000
# Stamps of records: brokers delete older ones by retention before anybody reads them, and refuse those an hour ahead. The exact
# time of the event is in the record.
_STAMP_BEHIND_MS = 24 * 3_600_000
_STAMP_AHEAD_MS = 50 * 60_000


class Outcome(NamedTuple):
    """What became of the frames: `taken` of them are done with; `full` says that the client's queue stopped the rest."""

    taken: int
    full: bool
    infos: tuple[Info, ...] = ()
    error: StreamError | None = None


class Counts:
    """Totals since the process started."""

    def __init__(self) -> None:
        self.received = 0
        self.enqueued = 0
        self.dead_letters = 0
        self.unknown = 0
        self.repeated = 0
        self.out_of_order = 0
        self.topics: Counter[str] = Counter()
        """Events and dead letters handed over, by topic."""


class Intake:
    """Turns the frames of one connection into records of the publisher's current batch.

    `opened_us` is when the connection was opened: events older than that come out of the server's history (`replayed`).
    `last_seq` is None until a sequence was seen on this host.
    """

    def __init__(
        self,
        host: str,
        protocol: str,
        opened_us: int,
        publisher: Publisher,
        ceiling: Ceiling,
        counts: Counts,
        resyncs: Resyncs,
    ) -> None:
        self._host = host
        self._protocol = protocol
        self._opened_us = opened_us
        self._publisher = publisher
        self._ceiling = ceiling
        self._counts = counts
        self._resyncs = resyncs
        self._encoder = EventEncoder(host, protocol, publisher.headers)
        self._last_seq = -1
        self.last_event: Event | None = None
        self.behind = Behind()

    @property
    def position(self) -> Position | None:
        """Of the last event handed over on this connection."""
        event = self.last_event
        return None if event is None else self.position_at(event.seq, event.time_us)

    def position_at(self, seq: int | None, time_us: int) -> Position:
        """A place in the stream of this connection's host."""
        return Position(self._host, self._protocol, seq, time_us, self.behind.made_us(time_us))

    def take(self, frames: Iterable[tuple[bytes, Frame]], received_us: int, batch: Batch, receipt: Receipt) -> Outcome:
        """Hand over the events of `frames` (source bytes and what they mean), in order, until done, the queue is full or the
        stream says that it ended. A lazy iterable is decoded only as far as it is taken, but for one frame.

        Raises TooManyDeadLettersError, and the client's own error when it cannot go on.
        """
        publisher = self._publisher
        produce, limits = publisher.produce, publisher.limits
        encode_commit = self._encoder.commit
        opened_us = self._opened_us
        first_ms, last_ms = received_us // 1000 - _STAMP_BEHIND_MS, received_us // 1000 + _STAMP_AHEAD_MS
        revs = self._resyncs.revs
        last_seq = self._last_seq
        event: Event | None = None
        last: Event | None = None
        infos: list[Info] = []
        error: StreamError | None = None
        topics: list[str] = []
        passed_over = bad_frames = out_of_order = 0
        full = False
        kafka_headers = None if batch.topics else trace_headers()
        try:
            for frame, result in frames:
                rejected: Rejected | None = None
                try:
                    if type(result) is Commit:
                        event = result
                        topic, value = encode_commit(
                            event.time_us,
                            event.did,
                            event.operation,
                            event.collection,
                            event.rkey,
                            event.rev,
                            event.cid,
                            event.seq,
                            received_us,
                            event.time_us < opened_us,
                            revs.get(event.did) == event.rev if revs else False,
                            event.envelope_json,
                            event.record,
                        )
                    elif isinstance(result, (Identity, Account, Sync)):
                        event = result
                        topic, value = self._encode_upstream(event, received_us)
                    elif isinstance(result, Rejected):
                        rejected = result
                    elif isinstance(result, StreamError):
                        error = result
                        passed_over += 1
                        break
                    else:
                        passed_over += 1
                        if isinstance(result, Info):
                            infos.append(result)
                        elif isinstance(result, Unknown):
                            self._note_unknown(result)
                        continue
                    if rejected is None and event is not None:
                        if len(value) > limits[topic]:
                            raise BadRecord(DeadLetterReason.TOO_LARGE, f"{len(value)} bytes for {topic}")
                        stamp_ms = event.time_us // 1000
                        if not first_ms <= stamp_ms <= last_ms:
                            stamp_ms = _stamp(event.time_us, received_us)
                        # By position (partition, callback, its other name, stamp, headers): names cost half a microsecond.
                        if kafka_headers is None:
                            produce(topic, value, event.did, ANY_PARTITION, receipt, None, stamp_ms)
                        else:
                            produce(topic, value, event.did, ANY_PARTITION, receipt, None, stamp_ms, kafka_headers)
                            kafka_headers = None
                        topics.append(topic)
                        last = event
                        if event.seq is not None:
                            if event.seq <= last_seq:
                                out_of_order += 1
                            last_seq = event.seq
                        continue
                except BadRecord as bad:
                    rejected = _rejected(bad, event)
                except BufferError:
                    full = True
                    break
                assert rejected is not None, "every event ended above"
                try:
                    self._set_aside(rejected, frame, received_us, receipt)
                except BufferError:
                    full = True
                    break
                topics.append(DEAD_LETTER)
                bad_frames += 1
                self._ceiling.bad(rejected.reason)
        finally:
            self._last_seq = last_seq
            if last is not None:
                self.last_event = last
                self.behind.note(last)
            by_topic = Counter(topics)
            taken = len(topics) + passed_over
            batch.topics.update(by_topic)
            counts = self._counts
            counts.topics.update(by_topic)
            counts.received += taken
            counts.enqueued += len(topics) - bad_frames
            counts.dead_letters += bad_frames
            counts.out_of_order += out_of_order
            self._ceiling.passed(taken)
        return Outcome(taken, full, tuple(infos), error)

    def _encode_upstream(self, event: Identity | Account | Sync, received_us: int) -> tuple[str, bytes]:
        if isinstance(event, Sync):
            self._resyncs.note(event.did, event.payload)
        return self._encoder.upstream(
            event.kind,
            event.time_us,
            event.did,
            event.seq,
            received_us,
            event.time_us < self._opened_us,
            False,
            event.envelope_json,
            event.payload,
        )

    def _set_aside(self, rejected: Rejected, frame: bytes, received_us: int, receipt: Receipt) -> None:
        limit = self._publisher.limits[DEAD_LETTER]
        letter = from_frame(rejected, frame, self._host, self._protocol, received_us, limit)
        self._publisher.put_aside(DEAD_LETTER, rejected.did or self._host, letter.encode(), receipt)

    def _note_unknown(self, unknown: Unknown) -> None:
        if self._counts.unknown == 0:
            logger.warning(
                "%s sends frames of type %r, which this release does not know; they are passed over",
                self._host,
                unknown.name[:100],
                extra={"host": self._host, "type": unknown.name[:100]},
            )
        self._counts.unknown += 1


def _rejected(bad: BadRecord, event: Event | None) -> Rejected:
    if event is None:
        return Rejected(bad.reason, bad.detail)
    return Rejected(bad.reason, bad.detail, event.seq, event.time_us, event.did)


def _stamp(time_us: int, received_us: int) -> int:
    """The stamp of a record, in ms, of an event whose time no broker would keep or take. Raises BadRecord."""
    if time_us > received_us + _MAX_AHEAD_US:
        raise BadRecord(DeadLetterReason.BAD_TIME, "more than a day ahead of this machine's clock")
    received_ms = received_us // 1000
    return received_ms + (_STAMP_AHEAD_MS if time_us > received_us else -_STAMP_BEHIND_MS)

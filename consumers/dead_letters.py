"""Messages the writer cannot read, set aside in the dead-letter topic with their reason and original bytes.

They are acknowledged by the broker before the batch is committed: a crash in between publishes them twice (topic,
partition and offset tell), never zero times.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from consumers.decode import BadMessage
from consumers.errors import TryAgain
from consumers.kafka import Publisher
from schemas.bodies import DeadLetter
from schemas.framing import Framing
from schemas.topics import DEAD_LETTER

log = logging.getLogger("explorer.consumers")


class DeadLetters:
    """Publishes bad messages; the Kafka client is made when the first one comes."""

    def __init__(
        self, publisher: Callable[[], Publisher], framing: Framing, clock_us: Callable[[], int] | None = None
    ) -> None:
        """`clock_us` gives unix microseconds, the system's clock unless given."""
        self._make = publisher
        self._publisher: Publisher | None = None
        self._framing = framing
        self._clock_us = clock_us or (lambda: time.time_ns() // 1000)

    def publish(self, bad: Sequence[BadMessage], timeout: float) -> None:
        """Publish and wait up to `timeout` seconds for the acknowledgements.

        Raises TryAgain when some are missing; publishing the same messages again is then right.
        """
        if not bad:
            return
        if self._publisher is None:
            self._publisher = self._make()
        unacknowledged = self._publisher.publish(
            DEAD_LETTER,
            [(message.key, self._framing.frame(DeadLetter.SCHEMA, self._body(message))) for message in bad],
            timeout,
        )
        if unacknowledged:
            # A client with undelivered messages would send them later, beside the repetition.
            self._publisher.close()
            self._publisher = None
            raise TryAgain(f"{unacknowledged} of {len(bad)} dead letters were not acknowledged within {timeout:.0f} s")
        for reason in sorted({message.reason for message in bad}):
            same = [message for message in bad if message.reason == reason]
            log.warning(
                "messages set aside",
                extra={
                    "reason": str(reason),
                    "messages": len(same),
                    "first": f"{same[0].topic}/{same[0].partition}@{same[0].offset}",
                    "detail": same[0].detail,
                },
            )

    def close(self) -> None:
        """Free the client; nothing is in flight after a successful `publish`."""
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None

    def _body(self, message: BadMessage) -> bytes:
        did = message.key.decode("utf-8", "replace") if message.key is not None else None
        return DeadLetter(
            reason=str(message.reason),
            detail=message.detail,
            stage="writer",
            received_us=self._clock_us(),
            source_host=None,
            protocol=None,
            time_us=message.timestamp_ms * 1000 if message.timestamp_ms >= 0 else None,
            seq=None,
            did=did,
            collection=None,
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            raw=message.value or b"",
        ).encode()

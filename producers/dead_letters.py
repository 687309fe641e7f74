"""Set bad frames aside with their reason and bytes, and stop when there are too many of them."""

from __future__ import annotations

from collections import Counter
from typing import Final

from producers.errors import TooManyDeadLettersError
from producers.wire import Rejected
from schemas.bodies import DeadLetter
from schemas.errors import DeadLetterReason

STAGE: Final = "producer"
_MAX_DETAIL: Final = 500
_MIN_BEFORE_STOPPING: Final = 100


def from_frame(rejected: Rejected, frame: bytes, host: str, protocol: str, received_us: int, limit: int) -> DeadLetter:
    """The dead letter for a frame that was no event; the frame is cut at `limit` bytes, which the detail then says."""
    detail = rejected.detail[:_MAX_DETAIL]
    if len(frame) > limit:
        detail = f"{detail} (first {limit} of {len(frame)} bytes kept)"
    return DeadLetter(
        reason=rejected.reason.value,
        detail=encodable(detail),
        stage=STAGE,
        received_us=received_us,
        source_host=host,
        protocol=protocol,
        time_us=rejected.time_us,
        seq=rejected.seq,
        did=rejected.did,
        collection=None,
        topic=None,
        partition=None,
        offset=None,
        raw=frame[:limit],
    )


def from_refused_record(topic: str, key: bytes, value: bytes, why: str, received_us: int, limit: int) -> DeadLetter:
    """The dead letter for a record that the broker will never take; `raw` is the Kafka value."""
    detail = f"broker: {why}"[:_MAX_DETAIL]
    if len(value) > limit:
        detail = f"{detail} (first {limit} of {len(value)} bytes kept)"
    return DeadLetter(
        reason=DeadLetterReason.BROKER_REFUSED.value,
        detail=encodable(detail),
        stage=STAGE,
        received_us=received_us,
        source_host=None,
        protocol=None,
        time_us=None,
        seq=None,
        did=key.decode("utf-8", "replace"),
        collection=None,
        topic=topic,
        partition=None,
        offset=None,
        raw=value[:limit],
    )


def encodable(text: str) -> str:
    """The text with what UTF-8 cannot hold written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class Ceiling:
    """Counts bad frames against all frames; raises when their share says that something other than the data is wrong."""

    def __init__(self, share: float, window: int) -> None:
        self._share = share
        self._window = window
        self._frames = 0
        self._bad = 0
        self.reasons: Counter[str] = Counter()
        """Bad frames by reason since the start."""

    def passed(self, frames: int) -> None:
        """Count frames looked at, good and bad."""
        self._frames += frames
        if self._frames >= self._window:
            # Halving instead of clearing keeps a burst at the border of two windows in sight.
            self._frames //= 2
            self._bad //= 2

    def bad(self, reason: DeadLetterReason) -> None:
        """Count one bad frame. Raises TooManyDeadLettersError."""
        self.reasons[reason.value] += 1
        self._bad += 1
        if self._bad >= _MIN_BEFORE_STOPPING and self._bad > self._share * max(
            self._frames, self._bad, self._window // 2
        ):
            worst = ", ".join(f"{name} {count}" for name, count in self.reasons.most_common(3))
            raise TooManyDeadLettersError(
                f"{self._bad} of the last {max(self._frames, self._bad)} frames were set aside ({worst})",
                "look at them with `post-explorer dead-letters list`; check that the source is a Jetstream and speaks the"
                " configured protocol; raise EXPLORER_PRODUCER_DEAD_LETTER_SHARE only when the data really is like that",
            )

"""Ways in which a frame can be broken on the wire so that no consumer can read its event.

The log keeps the sound frame and the number of the flaw; the wire breaks it when it is sent, the same way each time.
"""

from __future__ import annotations

from collections.abc import Callable


def _truncated(frame: bytes, seq: int) -> bytes:
    cut = frame[: len(frame) // 3 + seq % 50]
    return cut.decode("utf-8", "ignore").encode()


def _unbalanced(frame: bytes, _seq: int) -> bytes:
    return frame + b"}"


def _not_json(_frame: bytes, seq: int) -> bytes:
    return b"upstream request failed, id=%d" % seq


def _empty(_frame: bytes, _seq: int) -> bytes:
    return b""


def _array(frame: bytes, _seq: int) -> bytes:
    return b"[" + frame + b"]"


def _did_number(frame: bytes, seq: int) -> bytes:
    start = frame.index(b'"did":"') + 6
    return frame[:start] + b"%d" % seq + frame[frame.index(b'"', start + 1) + 1 :]


def _no_did(frame: bytes, seq: int) -> bytes:
    return frame.replace(b'"did":', b'"dod%d":' % (seq % 10))


FLAWS: tuple[Callable[[bytes, int], bytes], ...] = (
    _truncated,
    _unbalanced,
    _not_json,
    _array,
    _did_number,
    _no_did,
    _empty,
)
"""Flaw number n of the log is entry n - 1."""


def broken(frame: bytes, flaw: int, seq: int) -> bytes:
    """The frame as the wire carries it."""
    return FLAWS[flaw - 1](frame, seq)

"""The archive HTTP API of a v2 server: plan, list, download, each request repeated within bounds and below a byte rate.

Everything blocks; every wait watches `stop`. Rows come block by block, in order of sequence; the plan over-selects, so callers
filter again.
"""

from __future__ import annotations

import logging
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, TypeVar

import msgspec

from producers.backoff import delays
from producers.config import ArchiveSettings
from producers.http import HttpAnswer, HttpClient, HttpFailure
from producers.segment import SegmentError, blocks_of

logger = logging.getLogger("explorer.producers")

_XRPC: Final = "/xrpc/network.bsky.jetstream."
_MAX_PLAN_BYTES: Final = 64 * 1024 * 1024
_MAX_BLOCK_BYTES: Final = 256 * 1024 * 1024
_FIRST_DELAY: Final = 0.5
_LONGEST_DELAY: Final = 60.0

T = TypeVar("T")


class ArchiveError(Exception):
    """The archive does not give what was asked for; the gap stays open and can be tried again."""


class PlanOutdatedError(ArchiveError):
    """A segment was rewritten since it was planned: plan again from the last sequence that was read."""


class StoppedError(ArchiveError):
    """The process was asked to stop in the middle."""


class BlockRange(msgspec.Struct):
    """Inclusive numbers of blocks to fetch."""

    first: int
    last: int


class PlannedSegment(msgspec.Struct, rename="camel"):
    """One segment of a plan; mode `segment` is fetched whole, mode `blocks` in `blocks`."""

    name: str
    checksum: str
    min_seq: int
    max_seq: int
    mode: str
    blocks: list[BlockRange] = []


class _Plan(msgspec.Struct, rename="camel"):
    planned_through_seq: int
    sealed_tip_seq: int
    segments: list[PlannedSegment]


class ListedSegment(msgspec.Struct, rename="camel"):
    """One segment as the server lists it; times in unix microseconds."""

    name: str
    min_seq: int
    max_seq: int
    min_witnessed_at: int
    max_witnessed_at: int


class _Listing(msgspec.Struct):
    segments: list[ListedSegment]
    cursor: str | None = None


class Pacer:
    """Keeps an average rate: each call with a size returns when the bytes so far are due. Raises StoppedError."""

    def __init__(self, bytes_per_second: float, stop: threading.Event) -> None:
        self._rate = bytes_per_second
        self._stop = stop
        self._due = time.monotonic()

    def __call__(self, size: int) -> None:
        self._due = max(self._due, time.monotonic() - 1.0) + size / self._rate
        if self._stop.wait(max(self._due - time.monotonic(), 0.0)):
            raise StoppedError("stopped while downloading")


class ArchiveClient:
    """Requests to one server's archive; close it after use."""

    def __init__(self, url: str, settings: ArchiveSettings, tls: ssl.SSLContext, stop: threading.Event) -> None:
        headers = {} if settings.key is None else {"Authorization": f"Bearer {settings.key.get_secret_value()}"}
        self._client = HttpClient(url, settings.timeout, tls, headers)
        self._settings = settings
        self._stop = stop
        self._pacer = Pacer(settings.bytes_per_second, stop)

    def close(self) -> None:
        """Give up the connections."""
        self._client.close()

    def segments(self) -> Iterator[ListedSegment]:
        """Every sealed segment, oldest first. Raises ArchiveError."""
        cursor: str | None = None
        while True:
            query = {"limit": "1000"} | ({} if cursor is None else {"cursor": cursor})
            request = partial(self._client.get, _XRPC + "listSegments", query, max_bytes=_MAX_PLAN_BYTES)
            listing = self._json(_Listing, request)
            yield from listing.segments
            cursor = listing.cursor
            if not cursor:
                return

    def plan(self, after_seq: int, before_seq: int | None) -> Iterator[tuple[PlannedSegment | None, int]]:
        """What to fetch for sequences after_seq < seq <= before_seq (None: to the sealed tip), page by page.

        Each page ends with (None, sequence through which it is complete). Raises ArchiveError.
        """
        while True:
            body = {"afterSeq": after_seq} | ({} if before_seq is None else {"beforeSeq": before_seq})
            request = partial(self._client.post_json, _XRPC + "planSnapshot", body, max_bytes=_MAX_PLAN_BYTES)
            plan = self._json(_Plan, request)
            # The tip moves while we read; the range must not, or a page would be planned against another end.
            before_seq = plan.sealed_tip_seq if before_seq is None else min(before_seq, plan.sealed_tip_seq)
            for segment in plan.segments:
                yield segment, plan.planned_through_seq
            yield None, min(plan.planned_through_seq, before_seq)
            if plan.planned_through_seq >= before_seq:
                return
            if plan.planned_through_seq <= after_seq:
                raise ArchiveError(f"the plan does not advance beyond sequence {after_seq}")
            after_seq = plan.planned_through_seq

    def blocks(self, segment: PlannedSegment) -> Iterator[bytes]:
        """The zstd frames of the planned blocks, in order. Raises ArchiveError, PlanOutdatedError."""
        if segment.mode == "blocks":
            for span in segment.blocks:
                for index in range(span.first, span.last + 1):
                    yield self._block(segment, index)
        else:
            yield from self._whole(segment)

    def _block(self, segment: PlannedSegment, index: int) -> bytes:
        query = {"segment": segment.name, "blockIndex": str(index)}
        answer = self._repeated(lambda: self._client.get(_XRPC + "getBlock", query, max_bytes=_MAX_BLOCK_BYTES))
        self._pacer(len(answer.body))
        if answer.headers.get("etag", "").strip('W/"').partition(":")[0] != segment.checksum:
            raise PlanOutdatedError(f"{segment.name} was rewritten")
        return answer.body

    def _whole(self, segment: PlannedSegment) -> Iterator[bytes]:
        with tempfile.TemporaryFile() as file:
            etag: str | None = None

            def fetch() -> None:
                nonlocal etag
                etag = self._client.download(
                    _XRPC + "getSegment", {"name": segment.name}, file, etag,
                    max_bytes=self._settings.max_segment_bytes, paced=self._pacer,
                )  # fmt: skip

            self._repeated(fetch)
            if (etag or "").strip('W/"') != segment.checksum:
                raise PlanOutdatedError(f"{segment.name} was rewritten")
            file.seek(0)
            try:
                yield from blocks_of(file.read())
            except SegmentError as error:
                raise ArchiveError(f"{segment.name}: {error}") from None

    def _json(self, kind: type[T], request: Callable[[], HttpAnswer]) -> T:
        body = self._repeated(request).body
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ArchiveError(f"the archive's answer cannot be read: {error}") from None

    def _repeated(self, request: Callable[[], T]) -> T:
        """Repeat a request until it succeeds, fails for good, or the attempts are used up."""
        waits = delays(_FIRST_DELAY, _LONGEST_DELAY)
        for attempt in range(1, self._settings.attempts + 1):
            try:
                return request()
            except HttpFailure as failure:
                if failure.status == 404 and failure.error in ("SegmentNotFound", "BlockNotFound"):
                    raise PlanOutdatedError(failure.cause) from None
                lasting = failure.status is not None and failure.status < 500 and failure.status not in (408, 425, 429)
                if lasting or attempt == self._settings.attempts:
                    raise ArchiveError(failure.cause) from None
                wait = max(next(waits), failure.retry_after or 0.0)
                logger.info("archive: %s; again in %.1f s", failure.cause, wait)
                if self._stop.wait(wait):
                    raise StoppedError("stopped while waiting for the archive") from None
        raise AssertionError("the loop returns or raises")

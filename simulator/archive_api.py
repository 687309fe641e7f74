"""HTTP of the archive: planSnapshot, listSegments, getSegment, getBlock (sections 11.1 to 11.4 of the Jetstream reference)."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from simulator.archive import Archive, ArchivedSegment
from simulator.errors import ConnectionDroppedError
from simulator.http import HttpRequest, HttpResponse
from simulator.network import Network
from simulator.request import Filter, RequestRefusedError, v2_filter
from simulator.scenarios import Point
from simulator.segment_file import SegmentSummary, did_hash

if TYPE_CHECKING:
    from simulator.server import Route

_PREFIX = "/xrpc/network.bsky.jetstream."
_WHOLE_SEGMENT = 0.75  # from this share of matching blocks on, the plan asks for the whole file
_SENTINELS = {b"identity": b"$identity", b"account": b"$account", b"sync": b"$sync"}


class _Plan(msgspec.Struct):
    kinds: list[str] = msgspec.field(default_factory=list)
    dids: list[str] = msgspec.field(default_factory=list)
    collections: list[str] = msgspec.field(default_factory=list)
    afterSeq: int = 0  # noqa: N815 (wire name)
    beforeSeq: int | None = None  # noqa: N815 (wire name)


@dataclass
class _Chosen:
    entries: list[dict[str, object]]
    examined: int = 0
    blocks: int = 0
    work: int = 0
    through: int = 0


class ArchiveApi:
    """The archive's routes, for the server's table of routes."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._archive = Archive(network)
        self.routes: dict[str, Route] = {
            _PREFIX + "planSnapshot": self._plan,
            _PREFIX + "listSegments": self._list,
            _PREFIX + "getSegment": self._segment,
            _PREFIX + "getBlock": self._block,
        }

    async def _plan(self, request: HttpRequest) -> HttpResponse:
        self._admit(request)
        if request.method != "POST":
            raise RequestRefusedError(405, "InvalidRequest", "planSnapshot is a POST")
        try:
            plan = msgspec.json.decode(request.body or b"{}", type=_Plan)
            wanted = v2_filter(plan.kinds, plan.dids, plan.collections)
        except (msgspec.DecodeError, ValueError) as error:
            raise RequestRefusedError(400, "InvalidRequest", str(error)) from error
        if plan.afterSeq < 0 or (plan.beforeSeq is not None and plan.beforeSeq <= plan.afterSeq):
            raise RequestRefusedError(400, "InvalidRequest", "beforeSeq must be greater than afterSeq")
        parts = self._archive.parts()
        tip = max((part.segment.last_seq for _, part in parts), default=0)
        until = tip if plan.beforeSeq is None else min(plan.beforeSeq, tip)
        chosen = await asyncio.to_thread(self._choose, wanted, plan.afterSeq, until)
        body = {
            "plannedThroughSeq": chosen.through,
            "sealedTipSeq": tip,
            "segments": chosen.entries,
            "stats": {
                "segmentsExamined": chosen.examined,
                "segmentsMatched": len(chosen.entries),
                "blocksMatched": chosen.blocks,
                "entries": chosen.work,
            },
        }
        return HttpResponse(200, json.dumps(body).encode())

    def _choose(self, wanted: Filter, after: int, until: int) -> _Chosen:
        chosen = _Chosen([], through=max(after, until))
        for index, part in self._archive.parts():
            if part.segment.last_seq <= after or part.segment.first_seq > until:
                continue
            segment = self._archive.segment(index, part)
            if segment is None:
                continue
            chosen.examined += 1
            summary = segment.summary
            blocks = [
                at
                for at, entry in enumerate(summary.blocks)
                if entry.max_seq > after and entry.min_seq <= until and _matches(summary, at, wanted)
            ]
            if blocks:
                entry = _entry(segment, blocks)
                work = len(entry["blocks"]) if isinstance(entry.get("blocks"), list) else 1  # type: ignore[arg-type]
                chosen.entries.append(entry)
                chosen.blocks += len(blocks)
                chosen.work += work
            if chosen.work >= self._network.settings.plan_entries:
                chosen.through = min(chosen.through, summary.blocks[-1].max_seq)
                break
        return chosen

    async def _list(self, request: HttpRequest) -> HttpResponse:
        self._admit(request)
        limit, cursor = request.query.get("limit", ["100"])[0], request.query.get("cursor", ["0"])[0]
        if not limit.isdigit() or not 1 <= int(limit) <= 1000 or not cursor.isdigit():
            raise RequestRefusedError(400, "InvalidRequest", "limit must be 1 to 1000, cursor one of ours")
        parts = [(index, part) for index, part in self._archive.parts() if index >= int(cursor)]
        rows = []
        for index, part in parts[: int(limit)]:
            segment = await asyncio.to_thread(self._archive.segment, index, part)
            if segment is not None:
                rows.append(_listed(segment))
        body: dict[str, object] = {"segments": rows}
        if len(parts) > int(limit):
            body["cursor"] = str(parts[int(limit)][0])
        return HttpResponse(200, json.dumps(body).encode())

    async def _segment(self, request: HttpRequest) -> HttpResponse:
        self._admit(request)
        segment = await self._named(request.query.get("name", [""])[0])
        data = await asyncio.to_thread(self._archive.read, segment)
        etag = f'"{segment.summary.checksum}"'
        headers: tuple[tuple[str, str], ...] = (("ETag", etag), ("Accept-Ranges", "bytes"))
        span = request.headers.get("range")
        if span is not None and request.headers.get("if-range", etag) == etag:
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", span)
            first = int(match[1]) if match else len(data)
            last = min(int(match[2]), len(data) - 1) if match and match[2] else len(data) - 1
            if first > last:
                headers = (("Content-Range", f"bytes */{len(data)}"),)
                return HttpResponse(416, b"", "application/octet-stream", headers)
            headers = (*headers, ("Content-Range", f"bytes {first}-{last}/{len(data)}"))
            return self._download(HttpResponse(206, data[first : last + 1], "application/octet-stream", headers))
        return self._download(HttpResponse(200, data, "application/octet-stream", headers))

    async def _block(self, request: HttpRequest) -> HttpResponse:
        self._admit(request)
        segment = await self._named(request.query.get("segment", [""])[0])
        number = request.query.get("blockIndex", [""])[0]
        if not number.isdigit() or int(number) >= len(segment.summary.blocks):
            raise RequestRefusedError(404, "BlockNotFound", f"{segment.name} has {len(segment.summary.blocks)} blocks")
        data = await asyncio.to_thread(self._archive.read, segment)
        entry = segment.summary.blocks[int(number)]
        headers = (("ETag", f'"{segment.summary.checksum}:{number}"'),)
        body = data[entry.offset + 8 : entry.offset + 8 + entry.compressed]
        return self._download(HttpResponse(200, body, "application/octet-stream", headers))

    async def _named(self, name: str) -> ArchivedSegment:
        try:
            segment = await asyncio.to_thread(self._archive.named, name)
        except ValueError as error:
            raise RequestRefusedError(400, "InvalidRequest", str(error)) from error
        if segment is None:
            raise RequestRefusedError(404, "SegmentNotFound", f"no segment {name}")
        return segment

    def _admit(self, request: HttpRequest) -> None:
        """Keys, warm-up and the scenarios that refuse an archive request."""
        network = self._network
        if not network.ready:
            raise RequestRefusedError(503, "ServiceUnavailable", "server is warming up")
        key = network.settings.api_key
        if key and request.headers.get("authorization") != f"Bearer {key}":
            raise RequestRefusedError(401, "AuthMissing", "an API key is needed")
        for name in network.scenarios.armed(Point.ARCHIVE):
            if name == "archive-cut" or not network.scenarios.hits(name, 1):
                continue
            if name == "archive-429":
                seconds = f"{network.scenarios.amount(name):g}"
                raise RequestRefusedError(429, "RateLimitExceeded", "over quota", (("Retry-After", seconds),))
            raise RequestRefusedError(503, "ServiceUnavailable", "server is warming up")

    def _download(self, response: HttpResponse) -> HttpResponse:
        """Cut the answer short if that scenario fires: the stated length stays, half of the body is missing."""
        scenarios = self._network.scenarios
        if "archive-cut" in scenarios.armed(Point.ARCHIVE) and scenarios.hits("archive-cut", 1):
            raise CutShortError(response)
        return response


class CutShortError(ConnectionDroppedError):
    """The connection ends in the middle of an answer."""

    def __init__(self, response: HttpResponse) -> None:
        super().__init__("scenario archive-cut")
        whole = response.serialised()
        self.data = whole[: len(whole) - len(response.body) // 2]


def _matches(summary: SegmentSummary, block: int, wanted: Filter) -> bool:
    if wanted.dids is not None and not any(did_hash(did) in summary.dids[block] for did in wanted.dids):
        return False
    present = summary.collections[block]
    kinds = wanted.kinds
    sentinels = {sentinel for kind, sentinel in _SENTINELS.items() if kinds is None or kind in kinds}
    if present & sentinels:
        return True
    if kinds is not None and b"commit" not in kinds:
        return False
    if wanted.collections is None:
        return True
    return any(name in wanted.collections or name.startswith(wanted.prefixes) for name in present)


def _entry(segment: ArchivedSegment, blocks: list[int]) -> dict[str, object]:
    summary = segment.summary
    entry: dict[str, object] = {
        "name": segment.name,
        "index": segment.index,
        "checksum": summary.checksum,
        "minSeq": summary.blocks[0].min_seq,
        "maxSeq": summary.blocks[-1].max_seq,
        "mode": "segment",
    }
    if len(blocks) < _WHOLE_SEGMENT * len(summary.blocks):
        ranges: list[dict[str, int]] = []
        for block in blocks:
            if ranges and ranges[-1]["last"] == block - 1:
                ranges[-1]["last"] = block
            else:
                ranges.append({"first": block, "last": block})
        entry |= {"mode": "blocks", "blocks": ranges}
    return entry


def _listed(segment: ArchivedSegment) -> dict[str, object]:
    summary = segment.summary
    return {
        "name": segment.name,
        "index": segment.index,
        "sizeBytes": summary.size,
        "checksum": summary.checksum,
        "eventCount": summary.events,
        "minSeq": summary.blocks[0].min_seq,
        "maxSeq": summary.blocks[-1].max_seq,
        "minWitnessedAt": min(entry.min_witnessed for entry in summary.blocks),
        "maxWitnessedAt": max(entry.max_witnessed for entry in summary.blocks),
    }

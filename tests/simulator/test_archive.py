"""The archive: plans, downloads and file format, checked by our own reading and by an independent implementation."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import xxhash
import zstandard
from atproto_jetstream.archive import decode_block, read_sealed_header
from atproto_jetstream.archive.events import to_messages

from tests.simulator.conftest import XRPC, Running


def _plan(running: Running, **request: Any) -> dict[str, Any]:
    code, _, body = running.get(XRPC + "planSnapshot", body=json.dumps(request).encode())
    assert code == 200, body
    return json.loads(body)


def _segment(running: Running, name: str) -> tuple[dict[str, str], bytes]:
    code, headers, data = running.get(XRPC + "getSegment", name=name)
    assert code == 200
    return headers, data


def test_the_archive_holds_the_sealed_history(shared: Running) -> None:
    plan = _plan(shared)
    tip = plan["sealedTipSeq"]
    assert plan["plannedThroughSeq"] == tip
    assert plan["stats"]["segmentsMatched"] == len(plan["segments"])
    events = [event for event in shared.ledger.events() if event.seq <= tip]
    got = []
    for entry in plan["segments"]:
        assert entry["mode"] == "segment"
        headers, data = _segment(shared, entry["name"])
        assert headers["etag"] == f'"{entry["checksum"]}"'
        header = read_sealed_header(data)
        assert data[:4] == b"jss0"
        checksum = xxhash.xxh3_64_intdigest(data[12:256] + data[header.footer_offset :])
        assert f"{checksum:016x}" == entry["checksum"]
        assert struct.unpack_from("<Q", data, 4)[0] == checksum
        offset = 256
        for _ in range(header.block_count):
            (size,) = struct.unpack_from("<Q", data, offset)
            got += decode_block(data[offset + 8 : offset + 8 + size])
            offset += 8 + size
        assert offset == header.footer_offset
    assert [row.seq for row in got] == [event.seq for event in events]
    for row, message, event in zip(got, to_messages(got), events, strict=True):
        assert (row.did, row.collection, row.rkey, row.witnessed_at) == (
            event.did,
            event.collection or "",
            event.rkey or "",
            event.time_us,
        )
        assert getattr(message, "cid", None) == event.cid


def test_block_index_and_collection_index(shared: Running) -> None:
    entry = _plan(shared)["segments"][0]
    _, data = _segment(shared, entry["name"])
    blocks, events = struct.unpack_from("<II", data, 14)
    footer, _, _, collections_at, index = struct.unpack_from("<QQQQQ", data, 58)
    assert index == footer
    total = 0
    for at in range(blocks):
        offset, compressed, uncompressed, count, low, high = struct.unpack_from("<QIIIQQ", data, index + 52 * at)
        assert struct.unpack_from("<Q", data, offset)[0] == compressed
        frame = data[offset + 8 : offset + 8 + compressed]
        raw = zstandard.ZstdDecompressor().decompress(frame, max_output_size=uncompressed)
        assert struct.unpack_from("<I", raw)[0] == count
        assert low <= high
        total += count
        code, headers, block = shared.get(XRPC + "getBlock", segment=entry["name"], blockIndex=at)
        assert (code, block, headers["etag"]) == (200, frame, f'"{entry["checksum"]}:{at}"')
    assert total == events
    names, count, width, size = struct.unpack_from("<IIII", data, collections_at)
    body = zstandard.ZstdDecompressor().decompress(data[collections_at + 16 :], max_output_size=size)
    found, offset, listed = {}, 0, 0
    for _ in range(names):
        length, number = body[offset], struct.unpack_from("<I", body, offset + 1)[0]
        found[body[offset + 5 : offset + 5 + length].decode()] = number
        offset += 5 + length
        listed += number
    assert (count, listed, len(body) - offset) == (blocks, events, names * width)
    assert found["app.bsky.feed.like"] > 500
    assert names == len(found)


def test_filters_over_select_but_never_miss(shared: Running) -> None:
    events = list(shared.ledger.events())
    rare = next(event for event in events if event.collection == "app.bsky.graph.list")
    plan = _plan(shared, collections=["app.bsky.graph.list"], kinds=["commit"])
    wanted = [
        event.seq for event in events if event.collection == "app.bsky.graph.list" and event.seq <= plan["sealedTipSeq"]
    ]
    rows: list[Any] = []
    for entry in plan["segments"]:
        if entry["mode"] == "blocks":
            for span in entry["blocks"]:
                for at in range(span["first"], span["last"] + 1):
                    rows += decode_block(shared.get(XRPC + "getBlock", segment=entry["name"], blockIndex=at)[2])
        else:
            _, data = _segment(shared, entry["name"])
            offset = 256
            while offset < read_sealed_header(data).footer_offset:
                (size,) = struct.unpack_from("<Q", data, offset)
                rows += decode_block(data[offset + 8 : offset + 8 + size])
                offset += 8 + size
    assert rare.seq in wanted
    assert [row.seq for row in rows if row.collection == "app.bsky.graph.list"] == wanted


def test_pages_and_bounds(start: Callable[..., Running]) -> None:
    running = start(plan_entries=1)
    tip, after, names = None, 0, []
    while tip is None or after < tip:
        page = _plan(running, afterSeq=after, **({} if tip is None else {"beforeSeq": tip}))
        tip = tip or page["sealedTipSeq"]
        assert page["plannedThroughSeq"] > after
        after = page["plannedThroughSeq"]
        names += [entry["name"] for entry in page["segments"]]
    assert names == ["seg_0000000000.jss", "seg_0000000001.jss", "seg_0000000002.jss"]
    code, _, body = running.get(XRPC + "planSnapshot", body=b'{"afterSeq":5,"beforeSeq":5}')
    assert (code, json.loads(body)["error"]) == (400, "InvalidRequest")
    listed = json.loads(running.get(XRPC + "listSegments", limit=2)[2])
    assert [row["index"] for row in listed["segments"]] == [0, 1]
    more = json.loads(running.get(XRPC + "listSegments", limit=2, cursor=listed["cursor"])[2])
    assert [row["name"] for row in more["segments"]] == names[2:]
    assert "cursor" not in more


def test_ranges_and_errors(shared: Running) -> None:
    headers, whole = _segment(shared, "seg_0000000000.jss")
    code, part_headers, part = shared.get(XRPC + "getSegment", {"Range": "bytes=100-299"}, name="seg_0000000000.jss")
    assert (code, part) == (206, whole[100:300])
    assert part_headers["content-range"] == f"bytes 100-299/{len(whole)}"
    tail = shared.get(
        XRPC + "getSegment", {"Range": "bytes=300-", "If-Range": headers["etag"]}, name="seg_0000000000.jss"
    )
    assert (tail[0], tail[2]) == (206, whole[300:])
    stale = shared.get(XRPC + "getSegment", {"Range": "bytes=300-", "If-Range": '"other"'}, name="seg_0000000000.jss")
    assert (stale[0], stale[2]) == (200, whole)
    assert shared.get(XRPC + "getSegment", {"Range": f"bytes={len(whole)}-"}, name="seg_0000000000.jss")[0] == 416
    for path, query, status, name in (
        ("getSegment", {"name": "seg_000000zzzz.jss"}, 404, "SegmentNotFound"),
        ("getSegment", {"name": "../log"}, 400, "InvalidRequest"),
        ("getBlock", {"segment": "seg_0000000000.jss", "blockIndex": 99}, 404, "BlockNotFound"),
    ):
        code, _, body = shared.get(XRPC + path, **query)
        assert (code, json.loads(body)["error"]) == (status, name)


def test_compaction_drops_superseded_rows_and_changes_checksums(start: Callable[..., Running]) -> None:
    running = start()
    before = json.loads(running.get(XRPC + "listSegments")[2])["segments"]
    running.scenario("compaction")
    after = json.loads(running.get(XRPC + "listSegments")[2])["segments"]
    assert [row["name"] for row in before] == [row["name"] for row in after]
    assert sum(row["eventCount"] for row in after) < sum(row["eventCount"] for row in before)
    smaller = [(old, new) for old, new in zip(before, after, strict=True) if old["eventCount"] != new["eventCount"]]
    assert all(old["checksum"] != new["checksum"] for old, new in smaller)


def test_keys_quota_and_cut_downloads(start: Callable[..., Running]) -> None:
    import httpx
    import pytest

    running = start(api_key="secret-of-the-test")
    code, _, body = running.get(XRPC + "listSegments")
    assert (code, json.loads(body)["error"]) == (401, "AuthMissing")
    key = {"Authorization": "Bearer secret-of-the-test"}
    assert running.get(XRPC + "listSegments", key)[0] == 200
    running.scenario("archive-429", count=1, amount=2)
    code, headers, _ = running.get(XRPC + "listSegments", key)
    assert (code, headers["retry-after"]) == (429, "2")
    running.scenario("archive-503", count=1)
    assert running.get(XRPC + "listSegments", key)[0] == 503
    running.scenario("archive-cut", count=1)
    with pytest.raises(httpx.TransportError):
        running.get(XRPC + "getSegment", key, name="seg_0000000000.jss")
    assert running.get(XRPC + "getSegment", key, name="seg_0000000000.jss")[0] == 200

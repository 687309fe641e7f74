"""The synthetic network: mix, sizes and entropy of the real one, and laws that every stream keeps."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from simulator.config import SimulatorSettings
from simulator.events import Batch
from simulator.generator import Generator
from simulator.mix import KNOWN
from simulator.wire import v1_frame

START_US = 1_783_175_888_000_000


def _generate(slots: int, **changes: object) -> list[Batch]:
    generator = Generator(SimulatorSettings(data_dir=Path("unused"), **changes))
    step = int(1024 / 350 * 1e6)
    return [generator.batch(1024, START_US + at * step, START_US + (at + 1) * step) for at in range(slots // 1024)]


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    return _generate(60_000)


@pytest.fixture(scope="module")
def payloads(batches: list[Batch]) -> list[dict]:
    return [json.loads(frame)["payload"] for batch in batches for frame in batch.frames]


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, again, other = _generate(5000), _generate(5000), _generate(5000, seed=2)
    assert [batch.frames for batch in first] == [batch.frames for batch in again]
    assert first[0].frames != other[0].frames


def test_v1_sizes_match_the_reference(batches: list[Batch]) -> None:
    sizes: dict[str, list[int]] = {}
    everything: list[int] = []
    for batch in batches:
        for frame, seq, time_us, kind, table in zip(
            batch.frames, batch.seqs, batch.times, batch.kinds, batch.tables, strict=True
        ):
            if kind == 6:
                continue
            size = len(v1_frame(frame, seq, time_us, cursor=False))  # the reference sample is of legacy software
            everything.append(size)
            name = {3: "delete", 4: "identity", 5: "account"}.get(kind, table if kind == 1 else "update")
            sizes.setdefault(name, []).append(size)
    reference = {
        "app.bsky.feed.post": 846, "app.bsky.feed.repost": 569, "app.bsky.feed.like": 529, "app.bsky.graph.follow": 394,
        "account": 205, "delete": 197, "identity": 193,
    }  # fmt: skip
    means = {name: sum(sizes[name]) / len(sizes[name]) for name in reference}
    assert means == pytest.approx(reference, rel=0.10)
    assert sum(everything) / len(everything) == pytest.approx(552, rel=0.10)


def test_v2_mean_and_mix_match_the_reference(batches: list[Batch], payloads: list[dict]) -> None:
    frames = [frame for batch in batches for frame in batch.frames]
    assert sum(map(len, frames)) / len(frames) == pytest.approx(631, rel=0.10)
    operations = Counter(payload.get("operation", payload["$type"].rpartition("#")[2]) for payload in payloads)
    shares = {name: number / len(payloads) for name, number in operations.items()}
    assert shares["create"] == pytest.approx(0.955, abs=0.005)
    assert shares["delete"] == pytest.approx(0.039, abs=0.004)
    assert shares["update"] == pytest.approx(0.006, abs=0.002)
    assert shares["identity"] == pytest.approx(0.0006, abs=0.0004)
    collections = Counter(payload.get("collection") for payload in payloads)
    mix = {name.rpartition(".")[2]: collections[name] / len(payloads) for name in KNOWN}
    assert mix["like"] == pytest.approx(0.69, abs=0.01)
    assert mix["post"] == pytest.approx(0.11, abs=0.005)
    assert mix["repost"] == pytest.approx(0.10, abs=0.005)
    assert mix["follow"] == pytest.approx(0.06, abs=0.005)


def test_every_known_collection_occurs_and_others_too(payloads: list[dict]) -> None:
    names = {payload["collection"] for payload in payloads if "collection" in payload}
    for batch in _generate(120_000, seed=3, content_cids=False):
        names |= {
            json.loads(frame)["payload"].get("collection")
            for frame in batch.frames
            if b"Declaration" in frame or b"labeler" in frame
        }
    assert names >= KNOWN
    assert len(names - KNOWN) >= 5


def test_a_large_file_compresses_like_the_real_network(batches: list[Batch]) -> None:
    frames = [frame for batch in batches for frame in batch.frames]
    v2 = b"\n".join(frames)
    v1 = b"\n".join(
        v1_frame(frame, seq, time_us, cursor=True)
        for batch in batches
        for frame, seq, time_us, kind in zip(batch.frames, batch.seqs, batch.times, batch.kinds, strict=True)
        if kind != 6
    )
    for text in (v1, v2):
        assert 3.5 <= len(text) / len(zstandard.compress(text, 3)) <= 4.6


def test_seqs_have_no_hole_and_times_never_go_back(batches: list[Batch]) -> None:
    assert [seq for batch in batches for seq in batch.seqs] == list(range(1, 1 + sum(map(len, batches))))
    times = [time_us for batch in batches for time_us in batch.times]
    assert times == sorted(times)


def test_revs_of_an_account_grow_and_are_shared_only_within_a_commit(
    batches: list[Batch], payloads: list[dict]
) -> None:
    last: dict[str, tuple[str, str]] = {}
    for payload in payloads:
        rev = payload.get("rev") or payload.get("sync", {}).get("rev")
        if rev is None:
            continue
        before = last.get(payload["did"], ("", ""))
        assert rev > before[0] or (rev, payload["time"]) == before, payload
        last[payload["did"]] = (rev, payload["time"])


def test_updates_and_deletes_are_of_records_that_exist(payloads: list[dict]) -> None:
    live: set[tuple[str, str, str]] = set()
    touched = 0
    for payload in payloads:
        if "collection" not in payload:
            continue
        key = (payload["did"], payload["collection"], payload["rkey"])
        if payload["operation"] == "create":
            assert key not in live
            live.add(key)
        else:
            touched += 1
            assert key in live
            if payload["operation"] == "delete":
                live.remove(key)
    assert touched > 1500


def test_a_deleted_account_is_silent_and_a_hidden_one_waits(payloads: list[dict]) -> None:
    silent: set[str] = set()
    hidden: set[str] = set()
    for payload in payloads:
        did = payload["did"]
        assert did not in silent
        account = payload.get("account")
        if account is None:
            assert did not in hidden or "identity" in payload
            continue
        hidden.discard(did)
        if not account["active"]:
            (silent if account["status"] == "deleted" else hidden).add(did)
    assert silent


def test_facets_point_at_what_they_are_about(payloads: list[dict]) -> None:
    kinds = Counter()
    for payload in payloads:
        record = payload.get("record")
        if payload.get("collection") != "app.bsky.feed.post" or record is None:
            continue
        text = record["text"].encode()
        for facet in record.get("facets", []):
            shown = text[facet["index"]["byteStart"] : facet["index"]["byteEnd"]].decode()
            feature = facet["features"][0]
            kind = feature["$type"].rpartition("#")[2]
            kinds[kind] += 1
            if kind == "tag":
                assert shown == "#" + feature["tag"]
            elif kind == "link":
                assert shown.removesuffix("...") in feature["uri"]
            else:
                assert re.fullmatch(r"@[a-z0-9.-]+", shown)
                assert feature["did"].startswith("did:plc:")
    assert set(kinds) == {"tag", "link", "mention"}


def test_posts_have_the_variety_that_storage_depends_on(payloads: list[dict]) -> None:
    posts = [
        payload["record"]
        for payload in payloads
        if payload.get("collection") == "app.bsky.feed.post" and "record" in payload
    ]
    embeds = Counter(post["embed"]["$type"].rpartition(".")[2] for post in posts if "embed" in post)
    assert set(embeds) == {"images", "external", "video", "gallery", "record", "recordWithMedia"}
    langs = Counter(lang for post in posts for lang in post.get("langs", []))
    assert {"en", "ja", "pt", "de", "es", "fr", "ko", "ru", "ar"} <= set(langs)
    assert 0.3 < sum("reply" in post for post in posts) / len(posts) < 0.45
    assert any("labels" in post for post in posts)
    assert any("tags" in post for post in posts)
    assert any(post["text"] == "" for post in posts)
    assert max(len(post["text"]) for post in posts) <= 400


def test_record_cids_are_the_hashes_of_their_records(payloads: list[dict]) -> None:
    import hashlib

    import libipld

    from simulator.dag_cbor import encode

    for payload in payloads[:20_000]:
        if "record" in payload:
            digest = hashlib.sha256(encode(payload["record"])).digest()
            assert payload["cid"] == libipld.encode_cid(b"\x01\x71\x12\x20" + digest)


def test_malformed_share_is_kept() -> None:
    flaws = [flaw for batch in _generate(20_000, malformed_share=0.1, content_cids=False) for flaw in batch.flaws]
    assert sum(map(bool, flaws)) / len(flaws) == pytest.approx(0.1 * 0.92, abs=0.015)


def test_state_continues_the_very_same_stream() -> None:
    import msgspec

    settings = SimulatorSettings(data_dir=Path("unused"), accounts=1000, live_records=1000)
    one, two = Generator(settings), Generator(settings)
    one.batch(5000, START_US, START_US + 10_000_000)
    two.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(one.state())))
    later = START_US + 10_000_000
    assert one.batch(5000, later, later + 10_000_000).frames == two.batch(5000, later, later + 10_000_000).frames

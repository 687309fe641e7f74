"""Archive: DAG-CBOR and segment files as pure decoders, and gaps filled from a server's archive."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.kafka import KafkaSettings, make_consumer, make_producer
from producers import dag_cbor
from producers.archive import ArchiveError, StoppedError
from producers.backfill import BACKFILLED, RENUMBERED, Backfill, progress_key
from producers.config import ArchiveSettings, ProducerSettings, SourceSettings
from producers.cursor_store import StoredCursors
from producers.publisher import read_to_end
from producers.segment import SegmentError, blocks_of, decompress_block, read_header, rows_of, verify
from producers.wire import Account, Commit, Identity, Rejected, Sync
from schemas.bodies import Gap
from schemas.framing import SingleObjectFraming
from schemas.identity import Identity as EventIdentity
from schemas.topics import CURSOR, GAP, TOPICS
from simulator import dag_cbor as encoder
from simulator.segment_file import Row, encode_segment
from tests.producers.harness import Broker, running, wait_for
from tests.producers.source import Source, event_identity

CID = "bafyreidxabcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqe"
ATPROTO = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text()
    | st.just({"$link": CID})
    | st.just({"$bytes": "OqJlcm9vdHOB"}),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(min_size=1), inner, max_size=4),
    max_leaves=15,
)


@given(ATPROTO)
def test_dag_cbor_of_the_data_model_comes_back(value: Any) -> None:
    assert dag_cbor.decode(encoder.encode(value)) == value


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    )
)  # fmt: skip
def test_dag_cbor_of_another_encoder_comes_back(value: Any) -> None:
    assert dag_cbor.decode(libipld.encode_dag_cbor(value)) == value


@given(st.binary(max_size=200))
def test_no_bytes_break_the_dag_cbor_decoder(data: bytes) -> None:
    try:
        dag_cbor.decode(data)
    except ValueError:
        return


def test_nesting_beyond_what_json_parsers_take_is_refused() -> None:
    with pytest.raises(ValueError, match="nested"):
        dag_cbor.decode(b"\x81" * 5_000 + b"\x00")


def test_the_cid_of_a_record_is_that_of_its_block() -> None:
    import hashlib

    block = encoder.encode({"$type": "app.bsky.feed.like"})
    assert (
        dag_cbor.cid_of(hashlib.sha256(block).digest())
        == encoder.record_cid(b'{"$type":"app.bsky.feed.like"}').decode()
    )


def sample_rows() -> list[Row]:
    like = encoder.encode({"$type": "app.bsky.feed.like", "subject": {"uri": "at://x", "cid": CID}})
    relay = {"did": "did:plc:a", "seq": 9, "time": "2026-07-04T14:38:07.877Z"}
    sync = relay | {"rev": "3mptbyp63ih2m", "blocks": {"$bytes": "OqJlcm9vdHOB"}}
    parts = [
        (1, b"app.bsky.feed.like", b"3mptbyplj5d2a", b"3mptbypluud2a", like),
        (2, b"app.bsky.actor.profile", b"self", b"3mptbypluud2b", encoder.encode({})),
        (3, b"app.bsky.feed.like", b"3mptbyplj5d2a", b"3mptbypluud2c", b""),
        (4, b"", b"", b"", encoder.encode(relay | {"handle": "a.example"})),
        (5, b"", b"", b"", encoder.encode(relay | {"active": False, "status": "deleted"})),
        (6, b"", b"", b"3mptbyp63ih2m", encoder.encode(sync)),
        (7, b"app.bsky.feed.like", b"3mptbyplj5d2b", b"3mptbyp63ih2m", like),
        (1, b"app.bsky.feed.like", b"3mptbyplj5d2c", b"3mptbypluud2d", b"\xff"),
    ]
    return [
        Row(seq, 1_780_000_000_000_000 + seq, kind, collection, b"did:plc:a", rkey, rev, payload)
        for seq, (kind, collection, rkey, rev, payload) in enumerate(parts, 1)
    ]


def test_a_segment_file_becomes_events() -> None:
    data, summary = encode_segment(sample_rows(), 3)
    header = read_header(data)
    verify(data, header)
    assert f"{header.checksum:016x}" == summary.checksum
    rows = [row for frame in blocks_of(data) for row in rows_of(decompress_block(frame))]
    assert [row.seq for row in rows] == list(range(1, 9))
    assert [type(row.event) for row in rows] == [
        Commit, Commit, Commit, Identity, Account, Sync, Commit, Rejected,
    ]  # fmt: skip
    assert [row.resync for row in rows] == [False] * 6 + [True, False]
    like = rows[0].event
    assert isinstance(like, Commit)
    assert like.record is not None
    assert json.loads(like.record)["subject"] == {"uri": "at://x", "cid": CID}
    assert like.cid == encoder.record_cid(like.record).decode()
    sync = rows[5].event
    assert isinstance(sync, Sync)
    assert json.loads(sync.payload)["blocks"] == {"$bytes": "OqJlcm9vdHOB"}


@given(st.data())
def test_no_damage_to_a_segment_is_taken_for_events(data: st.DataObject) -> None:
    sound, _ = encode_segment(sample_rows(), 3)
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    for broken in (bytes(damaged), bytes(damaged[:cut])):
        try:
            for frame in blocks_of(broken):
                list(rows_of(decompress_block(frame)))
        except SegmentError:
            continue


@given(st.binary(max_size=400))
def test_no_bytes_break_the_block_decoder(body: bytes) -> None:
    try:
        list(rows_of(body))
    except SegmentError:
        return


@pytest.fixture
def broker(kafka_broker: KafkaSettings) -> Broker:
    return Broker(kafka_broker)


def backfill_of(broker: Broker, url: str, **archive: Any) -> Backfill:
    return Backfill(
        SourceSettings(hosts=(url,), archive=ArchiveSettings(**{"bytes_per_second": 100_000_000, **archive})),
        ProducerSettings(cursor_interval=0.1),
        SingleObjectFraming(),
        partial(make_producer, broker.settings),
        partial(make_consumer, broker.settings),
    )


def made(tmp_path: Path, **settings: Any) -> Source:
    return Source(tmp_path, max_events=6_000, rate=50_000, segment_events=1024, content_cids=True, **settings)


def gap_of(
    source: Source, from_seq: int | None, to_seq: int | None, from_us: int | None = None, to_us: int | None = None
) -> Gap:
    return Gap(f"127.0.0.1:{source.service.port}", "cursor_too_old", from_us, to_us, from_seq, to_seq, "", 0)


def between(source: Source, after: int, through: int) -> set[EventIdentity]:
    return {event_identity(event) for event in source.ledger.events() if after < event.seq <= through}


def test_a_gap_is_filled_by_sequence_and_called_backfilled(tmp_path: Path, broker: Broker) -> None:
    source = made(tmp_path)
    with source.serve() as url:
        wait_for(lambda: source.ledger.total() >= 6_000, "the simulator")
        gap = gap_of(source, 1_500, 3_700)
        filled = backfill_of(broker, url).fill(gap, threading.Event())
    assert filled.complete
    rows = broker.rows()
    assert broker.identities() == between(source, 1_500, 3_700)
    assert filled.events == len(rows)
    assert {(row["protocol"], row["replayed"]) for row in rows} == {("archive", True)}
    expected = {event_identity(event): event.cid for event in source.ledger.events() if event.kind == "commit"}
    for row in rows:
        if row["kind"] == "commit":
            identity = ("commit", row["did"], row["collection"], row["rkey"], row["rev"], row["operation"])
            assert row["cid"] == expected[identity]
    (record,) = broker.gaps()
    assert (record.reason, record.from_seq, record.to_seq) == (BACKFILLED, 1_500, 3_700)


@pytest.mark.parametrize(
    ("reason", "from_seq", "to_seq"),
    [("jump", None, None), (RENUMBERED, 10, 10**9)],
    ids=["no sequences", "of two numberings"],
)
def test_a_gap_without_usable_sequences_is_found_by_time(
    tmp_path: Path, broker: Broker, reason: str, from_seq: int | None, to_seq: int | None
) -> None:
    source = made(tmp_path)
    with source.serve() as url:
        wait_for(lambda: source.ledger.total() >= 6_000, "the simulator")
        events = list(source.ledger.events())
        first, last = events[1_000].time_us, events[3_000].time_us
        gap = replace(gap_of(source, from_seq, to_seq, first, last), reason=reason)
        filled = backfill_of(broker, url).fill(gap, threading.Event())
    assert filled.complete
    assert broker.identities() == {event_identity(event) for event in events if first <= event.time_us <= last}


def test_a_gap_that_reaches_beyond_the_sealed_archive_stays_open(tmp_path: Path, broker: Broker) -> None:
    source = made(tmp_path)
    with source.serve() as url:
        wait_for(lambda: source.ledger.total() >= 6_000, "the simulator")
        last = max(event.seq for event in source.ledger.events())
        backfill = backfill_of(broker, url)
        gap = gap_of(source, 4_500, last + 10_000)
        filled = backfill.fill(gap, threading.Event())
        assert not filled.complete
        assert broker.identities() == between(source, 4_500, filled.through_seq)
        again = backfill.fill(gap, threading.Event())
    assert (again.events, again.through_seq) == (0, filled.through_seq)
    assert broker.gaps() == []


@pytest.mark.parametrize("trouble", ["archive-429", "archive-503", "archive-cut"])
def test_a_troubled_archive_is_asked_again(tmp_path: Path, broker: Broker, trouble: str) -> None:
    source = made(tmp_path)
    with source.serve() as url:
        wait_for(lambda: source.ledger.total() >= 6_000, "the simulator")
        source.arm(trouble, count=2, every=2, **({"amount": 0.1} if trouble == "archive-429" else {}))
        filled = backfill_of(broker, url).fill(gap_of(source, 100, 4_000), threading.Event())
        assert source.fired()[trouble] == 2
    assert filled.complete
    assert broker.identities() == between(source, 100, 4_000)


def test_an_interrupted_filling_goes_on_where_it_was(tmp_path: Path, broker: Broker) -> None:
    source = made(tmp_path, plan_entries=1)
    gap: Gap
    with source.serve() as url:
        wait_for(lambda: source.ledger.total() >= 6_000, "the simulator")
        gap = gap_of(source, 0, 5_000)
        stop = threading.Event()
        threading.Timer(0.5, stop.set).start()
        with pytest.raises(StoppedError):
            backfill_of(broker, url, bytes_per_second=150_000).fill(gap, stop)
        halfway = len(broker.rows())
        filled = backfill_of(broker, url).fill(gap, threading.Event())
    assert filled.complete
    assert filled.events < 5_000 or halfway == 0
    assert broker.identities() == between(source, 0, 5_000)
    records = read_to_end(partial(make_consumer, broker.settings), CURSOR, 30.0)
    stored = StoredCursors(records)
    assert progress_key(gap) in {cursor.host for cursor in stored.archives}
    assert stored.newest is None


def test_the_key_is_sent_and_its_refusal_told(tmp_path: Path, broker: Broker) -> None:
    source = made(tmp_path, api_key="secret")
    with source.serve() as url:
        wait_for(lambda: source.ledger.total() >= 6_000, "the simulator")
        gap = gap_of(source, 100, 900)
        with pytest.raises(ArchiveError, match="401"):
            backfill_of(broker, url, attempts=2).fill(gap, threading.Event())
        assert backfill_of(broker, url, key="secret").fill(gap, threading.Event()).complete


def test_a_producer_fills_open_gaps_in_the_background(tmp_path: Path, broker: Broker) -> None:
    source = made(tmp_path)
    with source.serve() as url:
        wait_for(lambda: source.ledger.total() >= 6_000, "the simulator")
        gap = gap_of(source, 1_000, 3_000)
        broker.write(GAP, gap.host.encode(), SingleObjectFraming().frame(TOPICS[GAP].schema, gap.encode()))
        service, _ = broker.producer(
            url, {"start": "live", "archive": {"automatic": True, "bytes_per_second": 100_000_000}}
        )
        with running(service):
            wait_for(lambda: BACKFILLED in {gap.reason for gap in broker.gaps()}, "the gap to be filled")
    assert broker.identities() >= between(source, 1_000, 3_000)

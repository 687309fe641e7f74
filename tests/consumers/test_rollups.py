"""Roll-ups against counts made the slow way from the events that were published."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from consumers import rollups
from lake.manifest import HOUR_US
from schemas.codec import EventEncoder
from schemas.framing import SingleObjectFraming
from schemas.json_text import dumps
from schemas.topics import TOPICS
from tests.consumers.conftest import Lake
from tests.consumers.support import START_US, Event, cid, events, produce, tid
from tests.consumers.test_maintenance import maintenance

POST, LIKE = "app.bsky.feed.post", "app.bsky.feed.like"


def record(number: int, did: str, collection: str, content: dict[str, Any] | None, operation: str = "create") -> Event:
    encoder = EventEncoder("wss://jetstream.example", "v2")
    time_us = START_US + number * 1_000_000
    rkey = tid((START_US << 10) + number) if content is not None or operation != "delete" else tid(START_US << 10)
    body = None if content is None else dumps({"$type": collection, **content}).encode()
    topic, encoded = encoder.commit(
        time_us, did, operation, collection, rkey, tid((time_us << 10) + 5), None if body is None else cid(rkey),
        number, time_us, False, False, None, body,
    )  # fmt: skip
    value = SingleObjectFraming().frame(TOPICS[topic].schema, encoded)
    return Event(topic, did.encode(), value, time_us, (did, collection, rkey, str(number), operation))


def uri(did: str, number: int) -> dict[str, str]:
    return {"uri": f"at://{did}/{POST}/{tid((START_US << 10) + number)}", "cid": cid("x")}


def tagged(text: str, tag: str, link: str) -> dict[str, Any]:
    index = {"byteStart": 0, "byteEnd": 1}
    features = [
        {"$type": "app.bsky.richtext.facet#tag", "tag": tag},
        {"$type": "app.bsky.richtext.facet#link", "uri": link},
    ]
    return {"text": text, "createdAt": "2026-11-23T00:00:00.000Z", "facets": [{"index": index, "features": features}]}


def rolled(lake: Lake, kind: str) -> pl.DataFrame:
    return rollups.read(Path(lake.root) / rollups.FOLDER, kind, START_US, START_US + HOUR_US)


def write(lake: Lake, made: list[Event]) -> None:
    total = lake.rows()
    with lake.running(lake.service()):
        produce(lake.kafka, made)
        lake.wait_for_rows(total + len(made))


def test_counts_agree_with_the_events_and_follow_deletions(lake: Lake) -> None:
    root = {"root": uri("did:plc:a", 1), "parent": uri("did:plc:a", 1)}
    quote = {"$type": "app.bsky.embed.record", "record": uri("did:plc:a", 1)}
    subject = {"createdAt": "2026-11-23T00:00:00.000Z", "subject": uri("did:plc:a", 1)}
    write(lake, [
        record(1, "did:plc:a", POST, {**tagged("x", "cats", "https://example.org/1"), "langs": ["en", "ja"]}),
        record(2, "did:plc:b", POST, {**tagged("y", "cats", "https://other.example/2"), "reply": root, "langs": ["en"]}),
        record(3, "did:plc:b", POST, {"text": "z", "createdAt": "2026-11-23T00:00:00.000Z", "embed": quote}),
        record(4, "did:plc:c", LIKE, subject),
        record(5, "did:plc:d", LIKE, subject),
        record(6, "did:plc:d", LIKE, {**subject, "subject": {"uri": "at://did:plc:a/app.bsky.feed.generator/x", "cid": cid("g")}}),
        record(0, "did:plc:b", POST, None, "delete"),
        # A later event closes the hour.
        *(event for event in events(5, start_us=START_US + 3 * HOUR_US, span_us=1_000_000)),
    ])  # fmt: skip
    service = maintenance(lake, rollup_seconds=0.0)
    service.run_once(threading.Event())
    found = {
        (row["table"], row["operation"], row["language"]): row["events"] for row in rolled(lake, "events").to_dicts()
    }
    assert found == {
        (POST, "create", "en"): 2, (POST, "create", "ja"): 1, (POST, "create", None): 1, (POST, "delete", None): 1,
        (LIKE, "create", None): 3,
    }  # fmt: skip
    assert rolled(lake, "hashtags").select("hashtag", "posts", "accounts").rows() == [("cats", 2, 2)]
    assert sorted(rolled(lake, "domains")["domain"].to_list()) == ["example.org", "other.example"]
    (engagement,) = rolled(lake, "engagement").to_dicts()
    assert (engagement["subject_did"], engagement["subject_rkey_tid"]) == ("did:plc:a", (START_US << 10) + 1)
    assert [engagement[what] for what in ("likes", "reposts", "replies", "quotes")] == [2, 0, 1, 1]
    assert rolled(lake, "accounts").select("accounts", "posting_accounts").row(0) == (4, 2)

    made = service.counts.rollups_made
    service.run_once(threading.Event())
    assert service.counts.rollups_made == made, "nothing changed, nothing is made again"
    like = record(4, "did:plc:c", LIKE, subject)
    write(lake, [Event(*_deletion(like))])
    service.run_once(threading.Event())
    service.run_once(threading.Event())
    (engagement,) = rolled(lake, "engagement").to_dicts()
    assert engagement["likes"] == 1
    folder = Path(lake.root) / rollups.FOLDER / "engagement"
    assert len(list(folder.rglob("hour=*.parquet"))) <= 2 * len(rollups.read_index(Path(lake.root) / rollups.FOLDER))


def _deletion(event: Event) -> tuple[Any, ...]:
    did, collection, rkey, _, _ = event.identity
    time_us = event.time_us + 60_000_000
    topic, body = EventEncoder("wss://jetstream.example", "v2").commit(
        time_us, did, "delete", collection, rkey, tid((time_us << 10) + 9), None, 99, time_us, False, False, None, None
    )
    value = SingleObjectFraming().frame(TOPICS[topic].schema, body)
    return topic, event.key, value, time_us, (did, collection, rkey, "9", "delete")


def test_a_whole_mixed_hour_adds_up(lake: Lake) -> None:
    made = events(2_000, span_us=HOUR_US)
    write(lake, [*made, *events(5, seed=3, start_us=START_US + 3 * HOUR_US, span_us=1_000_000)])
    maintenance(lake, rollup_seconds=0.0).run_once(threading.Event())
    counted = Counter(dict(rolled(lake, "events").group_by("table").agg(pl.col("events").sum()).rows()))
    assert counted == Counter(event.table for event in made)
    accounts = {event.key for event in made if event.table != "account"}
    assert rolled(lake, "accounts")["accounts"].to_list() == [len(accounts)]


def test_an_interrupted_run_leaves_the_index_as_it_was(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    write(lake, events(500, span_us=3 * HOUR_US))
    asked = iter([True, False])
    first = rollups.update(lake.store, lake.manifest, START_US + 2 * HOUR_US, lambda: next(asked))
    assert (first.hours, first.complete) == (1, False)
    assert len(rollups.read_index(Path(lake.root) / rollups.FOLDER)) == 1
    assert rollups.update(lake.store, lake.manifest, START_US + 2 * HOUR_US, lambda: True).complete
    assert len(rollups.read_index(Path(lake.root) / rollups.FOLDER)) == 2

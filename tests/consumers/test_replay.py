"""Replay: the same messages give the same lake, other code gives other rows, and nobody's rows are lost on the way."""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient  # type: ignore[attr-defined]

from consumers import replay as module
from consumers.config import ReplayConfig
from consumers.errors import ReplayRefused
from consumers.replay import Outcome, Request, look, replay
from consumers.replay_into import Refilled, replay_into
from lake.manifest import HOUR_US, open_manifest
from lake.steps import CommitStep
from lake.store import LakeStore
from pipeline.kafka import make_admin, make_consumer
from schemas.avro_schemas import AvroSchema
from schemas.framing import SchemaRef
from tests.consumers.conftest import Lake
from tests.consumers.support import START_US, Event, events, live_paths, produce, rows_in

LIKE = "app.bsky.feed.like"
TOPIC = f"bluesky.{LIKE}"
OLD_US = START_US - 20 * HOUR_US
"""An hour that no other test uses: finding messages by time finds those of all tests of the session."""


def run(lake: Lake, **changes: Any) -> Outcome:
    request = changes.pop("request", Request(LIKE, START_US, START_US + 3 * HOUR_US))
    config = ReplayConfig(chunk_rows=changes.pop("chunk_rows", 100_000), idle_seconds=20.0)
    return replay(lake.store, lake.manifest, partial(make_consumer, lake.kafka), request, config=config, **changes)


def written(lake: Lake, made: list[Event], count: int | None = None, **more: Any) -> None:
    with lake.running(lake.service(lake.config(dead_letter_share=1.0), **more)):
        produce(lake.kafka, made)
        lake.wait_for_rows(len(made) if count is None else count)


def found(lake: Lake) -> Counter[tuple[str, tuple[str, ...]]]:
    return Counter(rows_in(lake.root, live_paths(lake.manifest)))


def expected(made: list[Event]) -> Counter[tuple[str, tuple[str, ...]]]:
    return Counter((event.table, event.identity) for event in made)


def books_close(lake: Lake) -> bool:
    return all(total.closes for total in lake.manifest.reconciliation(START_US, START_US + 4 * HOUR_US))


@pytest.mark.parametrize("source", ["broker", "lake"])
def test_a_replay_with_the_same_code_changes_no_row(lake: Lake, source: Any) -> None:
    made = events(1_500, span_us=3 * HOUR_US)
    written(lake, made)
    steps: list[tuple[str, int, int]] = []
    dry = run(lake, source=source, dry_run=True)
    assert dry.replaced is not None
    assert dry.replaced.version is None
    assert found(lake) == expected(made)
    done = run(lake, source=source, progress=lambda *step: steps.append(step))
    assert done.replaced is not None
    assert done.replaced.version is not None
    assert [(hour.added, hour.dropped, hour.before == hour.after) for hour in done.replaced.hours] == [(0, 0, True)] * 3
    assert found(lake) == expected(made)
    assert {step for step, _, _ in steps} == {"read", "build"}
    assert all(done <= total for _, done, total in steps)
    assert not list((lake.root / ".replay").iterdir())
    assert books_close(lake)


def test_messages_that_an_older_release_could_not_read_come_in_by_replay(lake: Lake) -> None:
    made = events(1_200, start_us=OLD_US)
    likes = [event for event in made if event.topic == TOPIC]

    def old_release(reference: SchemaRef) -> AvroSchema | None:
        schema = module.released_schemas(reference)
        return None if schema is not None and schema.name == LIKE else schema

    written(lake, made, len(made) - len(likes), schema_lookup=old_release)
    # One commit after the last row may hold only dead letters.
    with lake.running(lake.service()):
        lake.wait_for_rows(len(made) - len(likes))
    totals = {total.topic: total for total in lake.manifest.reconciliation(OLD_US, OLD_US + HOUR_US)}
    assert (totals[TOPIC].rows, totals[TOPIC].dead_letters) == (0, len(likes))
    done = run(lake, request=Request(LIKE, OLD_US, OLD_US + HOUR_US))
    assert done.replaced is not None
    assert sum(hour.added for hour in done.replaced.hours) == len(likes)
    assert found(lake) == expected(made)
    totals = {total.topic: total for total in lake.manifest.reconciliation(OLD_US, OLD_US + HOUR_US)}
    assert (totals[TOPIC].rows, totals[TOPIC].dead_letters, totals[TOPIC].closes) == (len(likes), 0, True)


def test_an_interrupted_replay_goes_on_where_it_was(lake: Lake) -> None:
    made = events(2_000)
    written(lake, made)
    stop = threading.Event()
    seen: list[int] = []

    def interrupt(step: str, done: int, total: int) -> None:
        seen.append(done)
        stop.set()

    first = run(lake, chunk_rows=200, progress=interrupt, stop=stop)
    assert first.replaced is None
    assert 0 < first.read < first.outlook.messages

    class CrashError(Exception):
        pass

    def crash(step: CommitStep) -> None:
        if step is CommitStep.SWAP_FILES_DURABLE:
            raise CrashError

    with pytest.raises(CrashError):
        run(lake, chunk_rows=200, progress=lambda step, done, total: seen.append(done), hook=crash)
    assert found(lake) == expected(made)
    done = run(lake)
    assert done.replaced is not None
    assert found(lake) == expected(made)
    assert books_close(lake)


def test_live_ingest_goes_on_during_a_replay(lake: Lake) -> None:
    made = events(1_000)
    late = events(400, seed=5)
    written(lake, made)
    with lake.running(lake.service()):

        def ingest(step: CommitStep) -> None:
            if step is CommitStep.SWAP_FILES_DURABLE:
                produce(lake.kafka, late)
                lake.wait_for_rows(len(made) + len(late))

        done = run(lake, hook=ingest)
        # What is sent twice is still known to the writer after the hours were replaced.
        produce(lake.kafka, late[:100])
    assert done.replaced is not None
    assert found(lake) == expected(made + late)


def test_ranges_the_broker_no_longer_has_are_refused_with_the_way_out(lake: Lake) -> None:
    made = events(1_000, span_us=2 * HOUR_US)
    written(lake, made)
    delete_records(lake)
    request = Request(LIKE, START_US, START_US + 2 * HOUR_US)
    outlook = look(lake.manifest, partial(make_consumer, lake.kafka), request)
    assert list(outlook.lost) == [START_US, START_US + HOUR_US]
    with pytest.raises(ReplayRefused, match="no longer has") as refused:
        run(lake, request=request)
    assert "--source lake" in refused.value.remedy
    assert run(lake, request=request, source="lake").replaced is not None
    assert found(lake) == expected(made)


def delete_records(lake: Lake) -> None:
    """Let the broker drop everything of the topic, as its retention would."""
    from confluent_kafka import TopicPartition

    admin: AdminClient = make_admin(lake.kafka)
    ends = [TopicPartition(TOPIC, number, -1) for number in range(6)]
    for future in admin.delete_records(ends).values():
        future.result(30)


def test_unknown_tables_and_offsets_that_are_not_in_the_lake_yet_are_refused(lake: Lake) -> None:
    written(lake, events(200))
    with pytest.raises(ReplayRefused, match="no table"):
        run(lake, request=Request("app.bsky.feed.posts", START_US, START_US + 1))
    with pytest.raises(ReplayRefused, match="the lake has it up to"):
        run(lake, request=Request(LIKE, START_US, START_US + HOUR_US, {0: (0, 10**9)}))


def test_topics_can_be_replayed_into_a_new_lake_beside_the_old_one(lake: Lake, tmp_path: Path) -> None:
    start_us = START_US - 40 * HOUR_US
    made = events(1_500, start_us=start_us, seed=41)
    written(lake, made + made[:200], len(made))
    root = tmp_path / "second"
    target = open_manifest(str(root / "manifest.sqlite"), create=True)
    topics = sorted({event.topic for event in made})
    stop = threading.Event()

    def refill(**more: Any) -> Refilled:
        return replay_into(
            lake.manifest, LakeStore(root), target, partial(make_consumer, lake.kafka), topics,
            config=ReplayConfig(chunk_rows=200, idle_seconds=20.0), start_us=start_us, **more,
        )  # fmt: skip

    # What earlier tests left in the shared topics is read again too; this test looks at its own hour only.
    first = refill(progress=lambda topic, done, total: stop.set(), stop=stop)
    assert not first.complete
    assert refill().complete
    again = refill()
    assert (again.messages, again.complete) == (0, True)
    wanted = expected(made)
    assert Counter(row for row in rows_in(root, live_paths(target)) if row in wanted) == wanted
    assert all(total.closes for total in target.reconciliation(start_us, start_us + 60 * HOUR_US))
    target.close()

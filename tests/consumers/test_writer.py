"""The writer against a real broker: what was published is in the lake, once, whatever happens in between."""

from __future__ import annotations

from collections import Counter

from confluent_kafka import Consumer, TopicPartition

from pipeline.kafka import make_consumer, make_producer
from schemas.bodies import DeadLetter, Gap
from schemas.framing import SingleObjectFraming, split
from schemas.topics import DEAD_LETTER, GAP
from tests.consumers.conftest import Lake, wait_until
from tests.consumers.support import HOUR_US, START_US, Event, events, live_paths, produce, rows_in


def expected(made: list[Event]) -> Counter[tuple[str, tuple[str, ...]]]:
    return Counter((event.table, event.identity) for event in made)


def found(lake: Lake) -> Counter[tuple[str, tuple[str, ...]]]:
    return Counter(rows_in(lake.root, live_paths(lake.manifest)))


def test_published_events_become_rows_under_their_hours(lake: Lake) -> None:
    made = events(3_000, span_us=3 * HOUR_US)
    with lake.running(lake.service()):
        produce(lake.kafka, made)
        lake.wait_for_rows(len(made))
    assert found(lake) == expected(made)
    hours = {path.split("/", 1)[1].rsplit("/", 1)[0] for path in live_paths(lake.manifest)}
    assert len(hours) == 3
    totals = lake.manifest.reconciliation(START_US, START_US + 4 * HOUR_US)
    assert sum(total.consumed for total in totals) == len(made)
    assert all(total.closes for total in totals)


def test_a_restart_reads_on_where_the_manifest_is_and_drops_repeated_events(lake: Lake) -> None:
    made = events(1_000)
    with lake.running(lake.service()):
        produce(lake.kafka, made[:600])
        lake.wait_for_rows(600)
    with lake.running(lake.service()):
        # The producer restarted and sent an overlap; an event came twice in one batch as well.
        produce(lake.kafka, made[400:] + made[990:])
        lake.wait_for_rows(len(made))
        wait_until(lambda: bool(lake.reports) and lake.reports[-1]["lag"] == 0, 20)
    assert found(lake) == expected(made)
    totals = lake.manifest.reconciliation(START_US, START_US + HOUR_US)
    assert sum(total.duplicates for total in totals) == 210
    assert all(total.closes for total in totals)


def test_what_a_second_host_sends_again_up_to_an_hour_later_is_dropped(lake: Lake) -> None:
    made = events(1_500, span_us=2 * HOUR_US)
    again = events(1_500, span_us=2 * HOUR_US, host="wss://other.example", later_us=55 * 60_000_000)
    with lake.running(lake.service()):
        produce(lake.kafka, made)
        lake.wait_for_rows(len(made))
    with lake.running(lake.service()):
        produce(lake.kafka, again)
        wait_until(lambda: bool(lake.reports) and lake.reports[-1]["duplicates"] == len(again), 30)
    assert found(lake) == expected(made)


def test_what_cannot_be_read_is_set_aside_with_its_bytes_and_counted(lake: Lake) -> None:
    made = events(400)
    broken = {3: b"", 50: b"\x07garbage", 120: made[120].value[:14], 399: made[399].value + b"!"}
    producer = make_producer(lake.kafka)
    reader = dead_letter_reader(lake)
    with lake.running(lake.service()):
        for number, event in enumerate(made):
            value = broken.get(number, event.value)
            producer.produce(event.topic, value, event.key, timestamp=event.time_us // 1000)
        assert producer.flush(30) == 0
        lake.wait_for_rows(len(made) - len(broken))
        wait_until(lambda: bool(lake.reports) and lake.reports[-1]["dead_letters"] == len(broken), 20)
    assert found(lake) == expected([event for number, event in enumerate(made) if number not in broken])
    letters = read_dead_letters(reader, len(broken))
    assert sorted(letter.raw for letter in letters) == sorted(broken.values())
    assert {letter.did for letter in letters} == {made[number].key.decode() for number in broken}
    totals = lake.manifest.reconciliation(START_US, START_US + HOUR_US)
    assert sum(total.dead_letters for total in totals) == len(broken)
    assert all(total.closes for total in totals)


def test_gaps_of_the_source_reach_the_manifest_once(lake: Lake) -> None:
    gap = Gap("wss://a.example", "cursor_too_old", START_US, START_US + 9, 1, 2, "history gone", START_US + 10)
    value = SingleObjectFraming().frame(Gap.SCHEMA, gap.encode())
    producer = make_producer(lake.kafka)
    with lake.running(lake.service()):
        for _ in range(2):
            producer.produce(GAP, value, b"wss://a.example")
        assert producer.flush(30) == 0
        wait_until(lambda: bool(lake.manifest.gaps(START_US, START_US + 100)), 30)
    (stored,) = lake.manifest.gaps(START_US, START_US + 100)
    assert (stored.source_host, stored.start_us, stored.end_us) == ("wss://a.example", START_US, START_US + 9)


def test_freshness_goes_on_rising_while_nothing_is_committed(lake: Lake) -> None:
    config = lake.config(report_seconds=0.1)

    def told() -> float:
        found = lake.reports[-1]["freshness_seconds"]
        assert isinstance(found, float)
        return found

    with lake.running(lake.service(config)):
        wait_until(lambda: bool(lake.reports), 30)
        assert lake.reports[-1]["freshness_seconds"] is None
        produce(lake.kafka, events(50, start_us=START_US + HOUR_US))
        wait_until(lambda: bool(lake.reports) and lake.reports[-1]["rows"] == 50, 30)
        before = told()
        wait_until(lambda: told() > before + 0.5, 30)
    lake.reports.clear()
    # A restarted writer knows what the lake has.
    with lake.running(lake.service(config)):
        wait_until(lambda: bool(lake.reports), 30)
        assert told() > before


def dead_letter_reader(lake: Lake) -> Consumer:
    """A consumer of the dead-letter topic from its present end."""
    consumer = make_consumer(lake.kafka, f"{lake.group}-letters")
    partitions = consumer.list_topics(DEAD_LETTER, timeout=10).topics[DEAD_LETTER].partitions
    ends = [consumer.get_watermark_offsets(TopicPartition(DEAD_LETTER, number), timeout=10)[1] for number in partitions]
    consumer.assign([TopicPartition(DEAD_LETTER, number, end) for number, end in zip(partitions, ends, strict=True)])
    return consumer


def read_dead_letters(consumer: Consumer, count: int) -> list[DeadLetter]:
    letters: list[DeadLetter] = []

    def enough() -> bool:
        for message in consumer.consume(100, 0.2):
            assert message.error() is None
            value = message.value()
            assert value is not None
            letters.append(DeadLetter.decode(split(value)[1]))
        return len(letters) >= count

    wait_until(enough, 20, lambda: f"{len(letters)} dead letters")
    consumer.close()
    return letters

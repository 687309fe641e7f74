"""One contract for both ways to read: by a client of its own into columns, and by the member itself as objects."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import psutil
import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import NewTopic

from consumers import librdkafka
from consumers.config import WriterConfig
from consumers.errors import BrokerUnusable, Rejoin
from consumers.kafka import GroupConsumer, consumer_overrides
from consumers.librdkafka import load
from consumers.native_client import NativeClient
from consumers.records import Arena
from lake.manifest import TopicPartition
from pipeline.kafka import KafkaSettings, consumer_properties, make_admin, make_consumer, make_producer
from tests.consumers.conftest import wait_until

Message = tuple[int, bytes | None, bytes | None, int]
"""Offset, key, value, timestamp."""
BEGAN_MS = int(time.time() * 1000) - 3_600_000
"""Not older than what the broker keeps."""


class Owner:
    """Reads every partition on from where it stopped, as the manifest would have it."""

    def __init__(self, shared: dict[TopicPartition, int] | None = None) -> None:
        self.next: dict[TopicPartition, int] = {} if shared is None else shared
        self.owned: set[TopicPartition] = set()
        self.events: list[str] = []
        self.gone: list[tuple[TopicPartition, int, int]] = []

    def assigned(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        self.events.append("assigned")
        self.owned.update(partitions)
        return {partition: self.next.get(partition, 0) for partition in partitions}

    def revoked(self, partitions: Collection[TopicPartition]) -> None:
        self.events.append("revoked")
        self.owned.difference_update(partitions)

    def lost(self, partitions: Collection[TopicPartition]) -> None:
        self.events.append("lost")
        self.owned.difference_update(partitions)
        raise Rejoin("lost")

    def unreadable(self, partition: TopicPartition, low: int, high: int) -> int:
        self.gone.append((partition, low, high))
        return low


class Member:
    """A member of the group, and what it was given: only owned partitions count, each from its position on."""

    def __init__(self, group: GroupConsumer, owner: Owner) -> None:
        self.group = group
        self.owner = owner
        self.messages: dict[TopicPartition, list[Message]] = defaultdict(list)
        self.carriers: list[dict[str, str]] = []
        self.arena = Arena(1_000_000)

    def poll(self, most: int = 500, timeout: float = 0.1) -> int:
        count = 0
        for records in self.group.poll(most, timeout, self.arena, self.carriers):
            for number, (key, value) in enumerate(zip(records.keys, records.values, strict=True)):
                place = TopicPartition(records.topic, int(records.partitions[number]))
                offset = int(records.offsets[number])
                if place in self.owner.owned and offset >= self.owner.next.get(place, 0):
                    self.messages[place].append((offset, key, value, int(records.timestamps_ms[number])))
                    self.owner.next[place] = offset + 1
                    count += 1
        self.arena.next_batch()
        return count

    @property
    def count(self) -> int:
        return sum(map(len, self.messages.values()))


@pytest.fixture
def topic(kafka_broker: KafkaSettings) -> str:
    """A topic of three partitions that no other test uses."""
    name = f"contract-{uuid.uuid4().hex[:8]}"
    admin = make_admin(kafka_broker)
    sizes = {"max.message.bytes": str(8 * 1024 * 1024)}
    admin.create_topics([NewTopic(name, 3, config=sizes)])[name].result(120)
    return name


@pytest.fixture(params=["columns", "objects"])
def join(request: pytest.FixtureRequest, kafka_broker: KafkaSettings, topic: str) -> Callable[..., Any]:
    """Join the group of this test as a further member."""
    group_id = f"group-{topic}"

    @contextmanager
    def joined(owner: Owner | None = None, **changes: Any) -> Iterator[Member]:
        config = WriterConfig(group=group_id, session_timeout_seconds=6.0)
        overrides = {**consumer_overrides(config), **changes}
        library = load()
        assert library is not None
        client = (
            NativeClient(library, consumer_properties(kafka_broker, group_id, **overrides))
            if request.param == "columns"
            else None
        )
        member = owner or Owner()
        group = GroupConsumer(make_consumer(kafka_broker, group_id, **overrides), [topic], member, client)
        with closing(group):
            yield Member(group, member)

    return joined


def publish(producer: Producer, topic: str, messages: Collection[tuple[int, bytes | None, bytes | None]]) -> None:
    for number, (partition, key, value) in enumerate(messages):
        producer.produce(topic, value, key, partition, timestamp=BEGAN_MS + number)
    assert producer.flush(120) == 0


def poll_until(member: Member, count: int, seconds: float = 120.0) -> None:
    def enough() -> bool:
        member.poll()
        return member.count >= count

    wait_until(enough, seconds, lambda: f"{member.count} of {count} messages")


@pytest.mark.parametrize("codec", ["none", "zstd", "lz4", "gzip", "snappy"])
def test_every_message_comes_whole_and_in_order(join: Any, kafka_broker: KafkaSettings, topic: str, codec: str) -> None:
    rng = random.Random(codec)
    kinds: list[Callable[[], bytes | None]] = [
        lambda: None,
        lambda: b"",
        lambda: rng.randbytes(rng.randrange(1, 40)),
        lambda: rng.randbytes(rng.randrange(100, 900)),
        lambda: b"x" * 2_000_000,
    ]
    weights = [1, 1, 20, 20, 0.03]
    made = [
        (rng.randrange(3), *(rng.choices(kinds, weights)[0]() if kind else rng.randbytes(32) for kind in (rng.random() < 0.2, 1)))
        for _ in range(1_500)
    ]  # fmt: skip
    made.append((0, b"large", b"y" * 3_900_000))
    small = {"batch_num_messages": 20} if codec == "none" else {}
    producer = make_producer(kafka_broker, compression_type=codec, linger_ms=20, **small)
    publish(producer, topic, made)
    with join() as member:
        poll_until(member, len(made))
    for partition in range(3):
        mine = [(key, value, stamp) for stamp, (at, key, value) in enumerate(made) if at == partition]
        found = member.messages[TopicPartition(topic, partition)]
        assert [offset for offset, *_ in found] == list(range(len(mine)))
        assert [(key, value, stamp - BEGAN_MS) for _, key, value, stamp in found] == mine


def test_headers_of_the_messages_that_have_some(join: Any, kafka_broker: KafkaSettings, topic: str) -> None:
    producer = make_producer(kafka_broker)
    producer.produce(topic, b"a", headers={"traceparent": b"00-1", "tracestate": "k=v", "empty": None})
    producer.produce(topic, b"b")
    producer.produce(topic, b"c", headers=[("traceparent", b"00-2\xff")])
    assert producer.flush(120) == 0
    with join() as member:
        poll_until(member, 3)
    assert sorted(member.carriers, key=str) == [
        {"traceparent": "00-1", "tracestate": "k=v"},
        {"traceparent": "00-2�"},
    ]


def test_a_position_that_the_broker_has_not_is_asked_about(join: Any, kafka_broker: KafkaSettings, topic: str) -> None:
    producer = make_producer(kafka_broker)
    publish(producer, topic, [(0, None, b"%d" % number) for number in range(20)])
    admin = make_admin(kafka_broker)
    for future in admin.delete_records([KafkaPartition(topic, 0, 12)]).values():
        future.result(120)
    owner = Owner()
    with join(owner) as member:
        poll_until(member, 8)
        assert owner.gone == [(TopicPartition(topic, 0), 12, 20)]
        assert [value for _, _, value, _ in member.messages[TopicPartition(topic, 0)]] == [
            b"%d" % n for n in range(12, 20)
        ]


def test_nothing_comes_while_it_is_paused(join: Any, kafka_broker: KafkaSettings, topic: str) -> None:
    producer = make_producer(kafka_broker)
    publish(producer, topic, [(number % 3, None, b"first") for number in range(30)])
    with join() as member:
        poll_until(member, 30)
        member.group.pause()
        assert member.group.paused
        publish(producer, topic, [(number % 3, None, b"second") for number in range(30)])
        for _ in range(20):
            assert member.poll() == 0
        member.group.resume()
        poll_until(member, 60)
        lag = member.group.lag({TopicPartition(topic, 0): 15, TopicPartition(topic, 1): 20})
        assert lag == {TopicPartition(topic, 0): 5, TopicPartition(topic, 1): 0, TopicPartition(topic, 2): 20}
        assert member.group.assigned == {TopicPartition(topic, partition) for partition in range(3)}


def test_members_come_and_go_and_every_message_is_read_once(join: Any, kafka_broker: KafkaSettings, topic: str) -> None:
    producer = make_producer(kafka_broker, linger_ms=5)
    shared: dict[TopicPartition, int] = {}
    with join(Owner(shared)) as first:
        publish(producer, topic, [(number % 3, None, b"%d" % number) for number in range(300)])
        poll_until(first, 300)
        with join(Owner(shared)) as second:

            def both_own() -> bool:
                first.poll()
                second.poll()
                return (
                    bool(first.owner.owned and second.owner.owned) and len(first.owner.owned | second.owner.owned) == 3
                )

            wait_until(both_own, 120)
            assert not first.owner.owned & second.owner.owned
            assert "revoked" in first.owner.events
            publish(producer, topic, [(number % 3, None, b"%d" % number) for number in range(300, 600)])
            wait_until(lambda: bool(first.poll() + second.poll()) or first.count + second.count == 600, 120)
            wait_until(lambda: first.poll() + second.poll() == 0 and first.count + second.count == 600, 120)
            assert second.count
        assert second.owner.events[-1] == "revoked"
        publish(producer, topic, [(number % 3, None, b"%d" % number) for number in range(600, 900)])
        wait_until(lambda: first.poll() == 0 and first.count + second.count == 900, 120)
    values = [value for m in (first, second) for found in m.messages.values() for _, _, value, _ in found]
    assert sorted(values, key=lambda value: int(value or b"")) == [b"%d" % number for number in range(900)]


def test_a_loop_that_stands_still_has_to_join_again(join: Any, kafka_broker: KafkaSettings, topic: str) -> None:
    owner = Owner()

    def stand_still() -> None:
        with join(owner, **{"max.poll.interval.ms": 6_000}) as member:
            wait_until(lambda: member.poll() == 0 and len(owner.owned) == 3, 120)
            time.sleep(8)
            for _ in range(100):
                member.poll()

    with pytest.raises(Rejoin):
        stand_still()
    assert "lost" in owner.events or owner.events == ["assigned"]


def test_a_twin_ends_the_member(join: Any, topic: str) -> None:
    def twins() -> None:
        name = {"group.instance.id": f"{topic}-1"}
        with join(**name) as first:
            wait_until(lambda: first.poll() == 0 and len(first.owner.owned) == 3, 120)
            with join(**name) as second:
                wait_until(lambda: second.poll() + first.poll() < 0, 120)

    with pytest.raises(BrokerUnusable, match="same instance id"):
        twins()


def test_what_was_read_is_freed(join: Any, kafka_broker: KafkaSettings, topic: str) -> None:
    producer = make_producer(kafka_broker, compression_type="zstd")
    count, size = 4_000, 10_000
    publish(producer, topic, [(0, None, b"z" * size) for _ in range(count)])
    place, owner = TopicPartition(topic, 0), Owner()
    with join(owner) as member:

        def read_all() -> None:
            owner.next[place] = 0
            member.messages.clear()
            member.group._reader.seek(place, 0)
            left = count
            while left:
                left -= member.poll(2_000)
            member.messages.clear()

        wait_until(lambda: member.poll() == 0 and place in owner.owned, 120)
        read_all()
        before = psutil.Process().memory_info().rss
        for _ in range(8):
            read_all()
        # What is kept by mistake would be 320 MB.
        assert psutil.Process().memory_info().rss - before < 160_000_000


def test_a_closed_client_refuses_and_does_not_end_the_process(kafka_broker: KafkaSettings, topic: str) -> None:
    library = load()
    assert library is not None
    client = NativeClient(library, consumer_properties(kafka_broker, topic))
    client.assign({TopicPartition(topic, 0): 0})
    client.close()
    client.close()
    uses: list[Callable[[], Any]] = [
        lambda: client.take(10, 0.0, Arena(0)),
        lambda: client.assign({TopicPartition(topic, 0): 0}),
        lambda: client.pause([TopicPartition(topic, 0)]),
        lambda: client.end(TopicPartition(topic, 0)),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match="closed"):
            use()


def test_settings_that_the_client_refuses_are_named(kafka_broker: KafkaSettings) -> None:
    library = load()
    assert library is not None
    with pytest.raises(KafkaException, match=r"no\.such"):
        NativeClient(library, consumer_properties(kafka_broker, "g", **{"no.such": 1}))
    with pytest.raises(KafkaException, match="queued"):
        NativeClient(library, {**consumer_properties(kafka_broker, "g"), "queued.max.messages.kbytes": "-5"})


def test_without_the_library_messages_are_objects(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(librdkafka._FUNCTIONS, "no_such_function", (None, ()))
    load.cache_clear()
    try:
        assert [load(), load()] == [None, None]
    finally:
        load.cache_clear()
    assert [record.message for record in caplog.records] == ["messages are read as objects, which costs more"]


def test_reading_does_not_stop_other_threads(kafka_broker: KafkaSettings, topic: str) -> None:
    """The wait for messages gives up Python's lock."""
    library = load()
    assert library is not None
    with closing(NativeClient(library, consumer_properties(kafka_broker, "g"))) as client:
        client.assign({TopicPartition(topic, 0): 0})
        turned = threading.Event()
        waiting = threading.Thread(target=lambda: client.take(10, 5.0, Arena(0)))
        waiting.start()
        threading.Timer(0.2, turned.set).start()
        assert turned.wait(4)
        assert waiting.is_alive()
        waiting.join(30)

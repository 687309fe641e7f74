"""The shared broker fixture gives a broker that takes and returns a message."""

from __future__ import annotations

from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewTopic

from pipeline.kafka import KafkaSettings, check_reachable, make_admin, make_consumer, make_producer


def test_a_message_goes_in_and_comes_out(kafka_broker: KafkaSettings) -> None:
    assert check_reachable(kafka_broker)
    admin = make_admin(kafka_broker)
    admin.create_topics([NewTopic("fixture-check", 1)])["fixture-check"].result(30)
    producer = make_producer(kafka_broker)
    producer.produce("fixture-check", value=b"hello", key=b"did:plc:1", timestamp=1_700_000_000_000)
    assert producer.flush(30) == 0

    consumer = make_consumer(kafka_broker, "fixture-check")
    consumer.assign([TopicPartition("fixture-check", 0, 0)])
    message = consumer.poll(30)
    consumer.close()
    assert message is not None
    assert message.error() is None
    assert (message.key(), message.value()) == (b"did:plc:1", b"hello")
    assert message.timestamp()[1] == 1_700_000_000_000

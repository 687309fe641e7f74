"""The Schema Registry client, against a real registry and against one that misbehaves."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewTopic
from pydantic import ValidationError

from consumers.errors import TryAgain
from pipeline.kafka import KafkaSettings, make_admin, make_consumer, make_producer
from pipeline.registry import (
    COMPATIBILITY,
    RegistryError,
    RegistryUnavailableError,
    SchemaRegistry,
    register_schemas,
    schema_lookup,
)
from pipeline.registry_settings import RegistrySettings
from schemas.avro_schemas import latest, released
from schemas.bodies import Cursor, decode_body
from schemas.framing import RegistryFraming, SchemaRef, SingleObjectFraming, split
from schemas.topics import TOPICS

POST = "bluesky.app.bsky.feed.post-value"


@pytest.fixture
def registry(registry_url: str) -> Iterator[SchemaRegistry]:
    with SchemaRegistry(RegistrySettings(url=registry_url)) as client:
        yield client


def test_every_released_schema_is_registered_found_again_and_guarded(registry: SchemaRegistry) -> None:
    ids = register_schemas(registry)
    assert set(ids) == {topic.schema for topic in TOPICS.values()}
    assert register_schemas(registry) == ids, "registering again changes nothing"
    for name, number in ids.items():
        assert registry.lookup(SchemaRef("registry", number)) == latest(name)
    assert registry.lookup(SchemaRef("fingerprint", latest("sync").fingerprint)) == latest("sync")
    assert registry.lookup(SchemaRef("registry", 2**31 - 1)) is None
    assert {registry.compatibility(f"{topic}-value") for topic in TOPICS} == {COMPATIBILITY}


def test_an_edited_release_is_refused_and_a_compatible_version_taken(registry: SchemaRegistry) -> None:
    register_schemas(registry)
    schema = json.loads(latest("app.bsky.feed.post").text)
    edited = {**schema, "fields": [*schema["fields"], {"name": "added", "type": "string"}]}
    assert not registry.is_compatible(POST, json.dumps(edited))
    with pytest.raises(RegistryError, match="not compatible") as caught:
        registry.register(POST, json.dumps(edited))
    assert "never edited" in caught.value.remedy

    optional = {"name": "added", "type": ["null", "string"], "default": None}
    followed = json.dumps({**schema, "fields": [*schema["fields"], optional]})
    assert registry.is_compatible(POST, followed)
    with pytest.raises(RegistryError):
        registry.register(POST, "this is no schema")


def test_a_schema_of_a_newer_release_is_not_read_with_fewer_fields(registry: SchemaRegistry) -> None:
    schema = json.loads(latest("sync").text)
    newer = {**schema, "fields": [*schema["fields"], {"name": "n", "type": ["null", "long"], "default": None}]}
    number = registry.register(f"test-{uuid.uuid4().hex}-value", json.dumps(newer))
    assert registry.schema_text(number) is not None
    assert registry.lookup(SchemaRef("registry", number)) is None


def test_a_stricter_level_is_left_alone(registry: SchemaRegistry, registry_url: str) -> None:
    subject = f"test-{uuid.uuid4().hex}-value"
    assert registry.compatibility(subject) is None
    httpx.put(f"{registry_url}/config/{subject}", json={"compatibility": "FULL_TRANSITIVE"}).raise_for_status()
    registry.require_compatibility(subject)
    assert registry.compatibility(subject) == "FULL_TRANSITIVE"
    httpx.put(f"{registry_url}/config/{subject}", json={"compatibility": "NONE"}).raise_for_status()
    registry.require_compatibility(subject)
    assert registry.compatibility(subject) == COMPATIBILITY


def test_both_framings_mixed_in_one_topic_are_read(registry: SchemaRegistry, kafka_broker: KafkaSettings) -> None:
    topic = f"framing-{uuid.uuid4().hex}"
    admin = make_admin(kafka_broker)
    admin.create_topics([NewTopic(topic, 1)])[topic].result(30)
    framings = [SingleObjectFraming(), RegistryFraming(register_schemas(registry))]
    cursors = [cursor(number) for number in range(20)]
    producer = make_producer(kafka_broker)
    for number, item in enumerate(cursors):
        producer.produce(topic, framings[number % 2].frame("jetstream-cursor", item.encode()))
    assert producer.flush(30) == 0

    consumer = make_consumer(kafka_broker, topic)
    consumer.assign([TopicPartition(topic, 0, 0)])
    lookup, kinds, found = schema_lookup(registry), [], []
    deadline = time.monotonic() + 60
    while len(found) < len(cursors) and time.monotonic() < deadline:
        for message in consumer.consume(100, 0.5):
            reference, body = split(message.value() or b"")
            schema = lookup(reference)
            assert schema is not None
            kinds.append(reference.kind)
            decode_body(schema.name, body)
            found.append(Cursor.decode(body))
    consumer.close()
    assert found == cursors
    assert kinds == ["fingerprint", "registry"] * 10


def cursor(number: int) -> Cursor:
    return Cursor(host=f"host-{number}", protocol="v2", seq=number, time_us=number * 1000, updated_us=number)


# ---------------------------------------------------------------- a registry that misbehaves

Reply = Callable[[int], tuple[int, bytes]]


@pytest.fixture
def misbehaving() -> Iterator[Callable[[Reply], tuple[str, list[str]]]]:
    """Starts HTTP servers whose n-th answer is what the given function says; returns URL and the list of requests."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(reply: Reply) -> tuple[str, list[str]]:
        requests: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path)
                status, body = reply(len(requests))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_PUT = do_GET  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}", requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def client(url: str, **changes: Any) -> SchemaRegistry:
    return SchemaRegistry(RegistrySettings(url=url, **{"backoff_seconds": 0.01, "timeout_seconds": 0.5, **changes}))


def test_passing_faults_are_tried_again(misbehaving: Callable[[Reply], tuple[str, list[str]]]) -> None:
    url, requests = misbehaving(lambda n: (503, b"busy") if n < 4 else (200, b'{"id": 7}'))
    with client(url) as registry:
        assert registry.register("s", "{}") == 7
    assert len(requests) == 4


def test_attempts_are_bounded(misbehaving: Callable[[Reply], tuple[str, list[str]]]) -> None:
    url, requests = misbehaving(lambda _: (500, b"broken"))
    with client(url, attempts=3) as registry:
        with pytest.raises(RegistryUnavailableError, match="status 500: broken") as caught:
            registry.lookup(SchemaRef("registry", 1))
        assert "EXPLORER_SCHEMA_REGISTRY" in caught.value.remedy
        with pytest.raises(TryAgain):
            schema_lookup(registry)(SchemaRef("registry", 1))
    assert len(requests) == 6


def test_a_registry_that_never_answers_does_not_hold_us() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        client(f"http://127.0.0.1:{silent.getsockname()[1]}", attempts=2, timeout_seconds=0.1) as registry,
        pytest.raises(RegistryUnavailableError, match="ReadTimeout"),
    ):
        registry.register("s", "{}")


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with client(f"http://127.0.0.1:{port}") as registry, pytest.raises(RegistryUnavailableError, match="ConnectError"):
        registry.register("s", "{}")


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b"who are you", "refuses the user"),
        (403, b"", "refuses the user"),
        (418, b"teapot", "status 418"),
        (200, b"<html>", "Confluent-compatible"),
        (200, b"[]", "Confluent-compatible"),
        (200, b'{"id": "x"}', "without 'id'"),
    ],
)
def test_answers_that_repeating_cannot_mend(
    misbehaving: Callable[[Reply], tuple[str, list[str]]], status: int, body: bytes, words: str
) -> None:
    url, requests = misbehaving(lambda _: (status, body))
    with client(url) as registry, pytest.raises(RegistryError) as caught:
        registry.register("s", "{}")
    assert words in str(caught.value)
    assert len(requests) == 1


def test_ids_are_asked_once_and_unknown_ones_again_after_a_while(
    misbehaving: Callable[[Reply], tuple[str, list[str]]],
) -> None:
    known = json.dumps({"schema": latest("sync").text}).encode()
    url, requests = misbehaving(lambda n: (200, known) if n == 1 else (404, b'{"error_code": 40403}'))
    with client(url, cached_ids=16, unknown_id_seconds=0.2) as registry:
        for _ in range(5):
            assert registry.lookup(SchemaRef("registry", 1)) == latest("sync")
            assert registry.lookup(SchemaRef("registry", 2)) is None
        assert requests == ["/schemas/ids/1", "/schemas/ids/2"]
        time.sleep(0.25)
        assert registry.lookup(SchemaRef("registry", 2)) is None
        assert len(requests) == 3
        for number in range(100, 200):
            registry.lookup(SchemaRef("registry", number))
        assert len(registry._by_id) == 16


@pytest.mark.parametrize(
    "answer",
    [
        {"schema": "not json"},
        {"schema": "[" * 100_000},
        {"schema": '"no-such-type"'},
        {"schema": '{"type": "record"}'},
        {"schema": json.dumps(json.loads(next(iter(released().values())).text)), "schemaType": "PROTOBUF"},
        {"schema": 5},
        {},
    ],
)
def test_strange_schemas_are_unknown_ones(
    misbehaving: Callable[[Reply], tuple[str, list[str]]], answer: dict[str, Any]
) -> None:
    url, _ = misbehaving(lambda _: (200, json.dumps(answer).encode()))
    with client(url) as registry:
        assert registry.lookup(SchemaRef("registry", 1)) is None


@pytest.mark.parametrize("url", ["registry:8081", "ftp://registry", "http://registry/?a=b", ""])
def test_urls_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        RegistrySettings(url=url)

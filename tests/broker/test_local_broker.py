"""The embedded broker: data survive kill -9, wrong folders and taken ports are told apart, nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import KafkaError, TopicPartition
from confluent_kafka.admin import NewTopic

from pipeline.broker_folder import DEFINITION, BrokerError
from pipeline.java_artifacts import ArtifactError, LockedArtifact, ensure_artifacts, file_sha256, read_lock
from pipeline.kafka import KafkaSettings, make_admin, make_consumer, make_producer
from pipeline.local_broker import LocalBroker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[LocalBroker]:
    embedded = LocalBroker(tmp_path / "broker")
    yield embedded
    embedded.stop()


def write(settings: KafkaSettings, topic: str, values: range) -> None:
    producer = make_producer(settings)
    failed: list[KafkaError] = []
    for value in values:
        producer.produce(topic, value=str(value), on_delivery=lambda error, _: failed.append(error) if error else None)
    assert producer.flush(60) == 0
    assert not failed


def read(settings: KafkaSettings, topic: str, count: int) -> list[int]:
    consumer = make_consumer(settings, "reader")
    consumer.assign([TopicPartition(topic, 0, 0)])
    values: list[int] = []
    deadline = time.monotonic() + 60
    while len(values) < count and time.monotonic() < deadline:
        for message in consumer.consume(count - len(values), 0.5):
            assert message.error() is None
            values.append(int(message.value() or b"-1"))
    consumer.close()
    return values


def test_acknowledged_data_and_the_address_survive_kill_9(broker: LocalBroker) -> None:
    assert broker.start() is True
    assert broker.start() is False, "a second start says that it already runs"
    settings = broker.settings()
    admin = make_admin(settings)
    admin.create_topics([NewTopic("kept", 1)])["kept"].result(30)
    write(settings, "kept", range(10_000))
    first = broker.status()
    assert first.ready

    broker.kill()
    assert first.pid is not None
    assert not psutil.pid_exists(first.pid)
    assert not broker.status().running

    broker.start()
    assert broker.settings() == settings
    assert broker.status().cluster_id == first.cluster_id
    write(settings, "kept", range(10_000, 10_100))
    assert read(settings, "kept", 10_100) == list(range(10_100))

    assert broker.stop() is True
    assert broker.stop() is False
    assert broker.status().to_json()["running"] is False


def test_a_stale_process_file_is_not_believed(broker: LocalBroker) -> None:
    broker.home.mkdir(parents=True)
    (broker.home / "process.json").write_text(json.dumps({"pid": os.getpid()}))
    (broker.home / "lock").touch()
    assert not broker.status().running
    assert broker.stop() is False, "our own process would be gone now if the file had been believed"


def test_java_dies_with_a_killed_foreground_process(tmp_path: Path) -> None:
    script = (
        "import sys, threading; from pathlib import Path; from pipeline.local_broker import LocalBroker\n"
        "b = LocalBroker(Path(sys.argv[1])); b.run(threading.Event(), on_ready=lambda s: print(b.status().pid, flush=True))"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "broker")], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    java = psutil.Process(int(owner.stdout.readline()))
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    java.wait(20)
    assert not LocalBroker(tmp_path / "broker").status().running


def test_foreground_mode_ends_cleanly_and_tells_when_java_dies(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path / "broker")
    outcomes: list[BaseException | None] = []

    def serve(stop: threading.Event, ready: threading.Event) -> None:
        try:
            broker.run(stop, on_ready=lambda _: ready.set())
        except BrokerError as error:
            outcomes.append(error)
        else:
            outcomes.append(None)

    for killed in (False, True):
        stop, ready = threading.Event(), threading.Event()
        thread = threading.Thread(target=serve, args=(stop, ready))
        thread.start()
        assert ready.wait(60)
        with pytest.raises(BrokerError, match="already runs"):
            broker.run(threading.Event())
        if killed:
            broker.kill()
        else:
            stop.set()
        thread.join(60)
    assert outcomes[0] is None
    assert isinstance(outcomes[1], BrokerError)
    assert "status -9" in outcomes[1].message


def test_a_taken_port_is_named_with_the_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} .*used by another program") as caught:
            LocalBroker(tmp_path / "broker", port=port).start()
    assert "--port" in caught.value.remedy
    assert not LocalBroker(tmp_path / "broker").status().running


def test_folders_of_another_kafka_are_refused_and_left_alone(broker: LocalBroker) -> None:
    broker.start()
    broker.stop()
    facts_file, meta = broker.home / "broker.json", broker.home / "log" / "meta.properties"
    facts, meta_text = facts_file.read_text(), meta.read_text()

    facts_file.write_text(facts.replace(broker.version, "9.0.0"))
    with pytest.raises(BrokerError, match=r"written by Kafka 9\.0\.0, newer"):
        broker.start()
    facts_file.write_text("{")
    with pytest.raises(BrokerError, match="is damaged"):
        broker.start()
    facts_file.unlink()
    with pytest.raises(BrokerError, match="what wrote them, is missing"):
        broker.start()
    facts_file.write_text(facts)

    meta.write_text(meta_text.replace("version=1", "version=2"))
    with pytest.raises(BrokerError, match=r"belongs to another Kafka: meta\.properties says version=2"):
        broker.start()
    meta.write_text(meta_text.replace("cluster.id=", "cluster.id=other"))
    with pytest.raises(BrokerError, match="belongs to another Kafka"):
        broker.start()

    meta.write_text(meta_text)
    assert broker.start() is True


def test_a_broker_that_cannot_start_shows_its_own_words(tmp_path: Path) -> None:
    broken = LocalBroker(tmp_path / "broker", extra_properties={"log.segment.bytes": "many"})
    with pytest.raises(BrokerError, match=r"many"):
        broken.start()
    assert not broken.status().running


def test_the_lock_names_every_jar_with_a_digest_and_no_address() -> None:
    text = (DEFINITION / "jgo.lock.toml").read_text()
    artifacts = read_lock(DEFINITION / "jgo.lock.toml")
    assert len({artifact.filename for artifact in artifacts}) == len(artifacts) > 40
    assert all(len(artifact.sha256) == 64 for artifact in artifacts)
    assert "://" not in text


def test_damaged_jars_are_fetched_anew_and_wrong_digests_refused(tmp_path: Path) -> None:
    small = next(a for a in read_lock(DEFINITION / "jgo.lock.toml") if a.name == "jspecify")
    (tmp_path / small.filename).write_bytes(b"half a file")
    ensure_artifacts([small], tmp_path)
    assert file_sha256(tmp_path / small.filename) == small.sha256

    forged = LockedArtifact(small.group, small.name, small.version, "0" * 64)
    with pytest.raises(ArtifactError, match="the lock says 000") as caught:
        ensure_artifacts([forged], tmp_path / "forged")
    assert not (tmp_path / "forged" / small.filename).exists()
    assert "EXPLORER_KAFKA_BOOTSTRAP" in caught.value.remedy


def test_an_unreachable_repository_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    artifacts = read_lock(DEFINITION / "jgo.lock.toml")[:2]
    with pytest.raises(ArtifactError, match=r"cannot fetch the Java artifact org\.apache\.kafka") as caught:
        ensure_artifacts(artifacts, tmp_path)
    assert "HTTPS_PROXY" in caught.value.remedy
    assert list(tmp_path.glob("*.jar")) == []


@pytest.mark.parametrize(("heap", "port"), [(64, None), (1024, None), (256, 70_000)])
def test_settings_out_of_range_are_refused(tmp_path: Path, heap: int, port: int | None) -> None:
    with pytest.raises(BrokerError):
        LocalBroker(tmp_path, heap_mb=heap, port=port)

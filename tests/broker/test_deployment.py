"""infra/redpanda: every file is what its reader expects, every process gets settings it knows, and the rights suffice."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined] # its stubs forget to export these
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from consumers.config import WriterConfig
from pipeline.broker_folder import CHECKOUT
from pipeline.kafka import KafkaSettings, check_reachable, make_admin, make_consumer, make_producer
from pipeline.local_broker import LocalBroker
from pipeline.settings import load
from pipeline.topics import apply_topics
from producers.publisher import READER_GROUP
from schemas.telemetry import METRICS
from schemas.topics import CURSOR, DEAD_LETTER

FOLDER = CHECKOUT / "infra" / "redpanda"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("bluesky-post-explorer")]
PASSWORD = "from .env"


def environment(service: str) -> dict[str, str]:
    """The environment of a service with every ${VARIABLE} filled in."""
    given = SERVICES[service].get("environment", {})
    return {name: re.sub(r"\$\{[^}]+\}", "example.org", str(value)) for name, value in given.items()}


def test_the_processes_of_the_pipeline_are_all_there() -> None:
    assert {SERVICES[name]["command"][0] for name in OURS} == {"topics", "producer", "writer", "maintain", "api"}


@pytest.mark.parametrize("service", OURS)
def test_every_process_gets_settings_that_it_knows(service: str) -> None:
    settings = load(environment(service)).settings
    assert settings.lake == "/srv/lake"
    assert settings.schema_registry is not None
    assert settings.schema_registry.url == "http://redpanda:8081"
    if "EXPLORER_KAFKA_SASL_USERNAME" in environment(service):
        assert settings.kafka.client_config()["sasl.mechanism"] == "SCRAM-SHA-256"


def test_every_variable_of_the_compose_file_is_in_the_example() -> None:
    used = set(re.findall(r"\$\{(\w+):\?", (FOLDER / "compose.yml").read_text()))
    listed = {line.partition("=")[0] for line in (FOLDER / ".env.example").read_text().splitlines() if "=" in line}
    assert used == listed
    assert all(line.endswith("=") for line in (FOLDER / ".env.example").read_text().splitlines() if line[:1].isupper())


def test_foreign_images_are_pinned_by_digest_or_named_as_not() -> None:
    foreign = {service["image"] for name, service in SERVICES.items() if name not in OURS}
    pinned = {image for image in foreign if re.search(r"@sha256:[0-9a-f]{64}$", image)}
    readme = (FOLDER / "README.md").read_text()
    assert len(pinned) >= 5
    for image in foreign - pinned:
        name, _, tag = image.rpartition("/")[2].partition(":")
        assert re.search(rf"{name} {tag}", readme, re.IGNORECASE), image


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_bounded_and_confined(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["logging"]["options"]["max-size"]
    assert re.search(r":[\w.$\{\}:-]*\d|EXPLORER_VERSION", service["image"]), "an image without a version drifts"
    assert "latest" not in service["image"]
    assert not service.get("privileged")
    assert "no-new-privileges:true" in service.get("security_opt", []) or name == "init-users"
    if name not in ("redpanda", "init-users"):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
    for port in service.get("ports", []):
        assert name == "caddy" or port.startswith("127.0.0.1:"), "only the proxy faces the network"
    for volume in service.get("volumes", []):
        source, target = volume.split(":")[:2]
        assert source in COMPOSE["volumes"] or source == "/" or (FOLDER / source).exists()
        assert target.startswith("/")


def test_the_limits_fit_a_host_of_8_gb() -> None:
    sizes = {"m": 1, "g": 1024}
    running = [s for name, s in SERVICES.items() if not name.startswith("init-")]
    assert sum(int(s["mem_limit"][:-1]) * sizes[s["mem_limit"][-1]] for s in running) <= 7.6 * 1024


def test_the_broker_keeps_what_it_acknowledges_and_uses_nothing_paid() -> None:
    settings = yaml.safe_load((FOLDER / "bootstrap.yaml").read_text())
    command = " ".join(SERVICES["redpanda"]["command"])
    assert "dev-container" not in command
    assert "developer" not in command
    assert settings["write_caching_default"] == "false"
    assert settings["auto_create_topics_enabled"] is False
    assert settings["enable_sasl"] is True
    assert settings["partition_autobalancing_mode"] == "node_add"
    assert settings["core_balancing_continuous"] is False
    assert "ports" not in SERVICES["redpanda"]


# ---------------------------------------------------------------- what watches it


def exported_names() -> set[str]:
    """Our metrics as Prometheus shows them (OpenTelemetry's rules for names and units)."""
    names: set[str] = set()
    for metric in METRICS.values():
        name = metric.name.replace(".", "_") + ("_seconds" if metric.unit == "s" else "")
        suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}[metric.kind]
        names |= {name + suffix for suffix in suffixes}
    return names


def expressions() -> dict[str, str]:
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    found = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    dashboard = json.loads((FOLDER / "grafana" / "dashboards" / "overview.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    return found


def test_alerts_and_panels_ask_for_metrics_that_exist() -> None:
    asked = {name for text in expressions().values() for name in re.findall(r"\bexplorer_\w+", text)}
    assert asked <= exported_names()
    assert len(asked) >= 12


def test_every_alert_is_tested_firing_and_silent() -> None:
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    tests = yaml.safe_load((FOLDER / "alerts.test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == alerts


@pytest.mark.parametrize(
    "arguments", [("check", "config", "prometheus.yml"), ("test", "rules", "alerts.test.yml")], ids=" ".join
)
def test_prometheus_itself_accepts_and_fires_the_rules(arguments: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    assert promtool is not None, "`make test` installs it; else: python -m pipeline.prerequisites"
    ran = subprocess.run([promtool, *arguments], cwd=FOLDER, check=False, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_operations_says_what_to_do_at_every_alert() -> None:
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    page = (CHECKOUT / "docs" / "operations.md").read_text()
    assert [
        rule["alert"] for group in rules["groups"] for rule in group["rules"] if f"`{rule['alert']}`" not in page
    ] == []


def test_scraped_and_exported_addresses_are_services() -> None:
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    targets = [target for job in jobs for entry in job["static_configs"] for target in entry["targets"]]
    collector = yaml.safe_load((FOLDER / "otelcol.yaml").read_text())
    targets.append(collector["exporters"]["otlp/jaeger"]["endpoint"])
    datasources = yaml.safe_load((FOLDER / "grafana" / "datasources" / "prometheus.yaml").read_text())["datasources"]
    targets += [source["url"].removeprefix("http://") for source in datasources]
    assert {target.partition(":")[0] for target in targets} - {"localhost"} <= SERVICES.keys()


@pytest.mark.parametrize("name", ["otelcol.yaml", "jaeger.yaml"])
def test_every_pipeline_of_a_collector_names_parts_that_are_defined(name: str) -> None:
    config = yaml.safe_load((FOLDER / name).read_text())
    for pipeline in config["service"]["pipelines"].values():
        for kind, parts in pipeline.items():
            assert set(parts) <= config[kind].keys()
    assert set(config["service"]["extensions"]) <= config["extensions"].keys()


# ---------------------------------------------------------------- the rights, on a real broker


def granted() -> list[AclBinding]:
    """What init-users.sh grants, as Kafka's own rules."""
    rules: list[AclBinding] = []
    for line in (FOLDER / "init-users.sh").read_text().splitlines():
        if not line.startswith("allow "):
            continue
        user, *options = shlex.split(line)[1:]
        given = dict(zip(options[::2], options[1::2], strict=True))
        kind = ResourceType.GROUP if "--group" in given else ResourceType.TOPIC
        prefixed = given.get("--resource-pattern-type") == "prefixed"
        rules += [
            AclBinding(
                kind,
                given.get("--group") or given["--topic"],
                ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL,
                f"User:{user}",
                "*",
                AclOperation[operation.upper()],
                AclPermissionType.ALLOW,
            )
            for operation in given["--operation"].split(",")
        ]
    return rules


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, KafkaSettings]]:
    """A broker with authorisation, the users and rights of init-users.sh and all topics; settings by user."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
        socket.create_server(("127.0.0.1", 0)) as three,
    ):
        plain, controller, sasl = (sock.getsockname()[1] for sock in (one, two, three))
    listeners = f"PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller},SASL://127.0.0.1:{sasl}"
    broker = LocalBroker(
        tmp_path_factory.mktemp("guarded"),
        port=plain,
        extra_properties={
            "listeners": listeners,
            "advertised.listeners": listeners,
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT",
            "sasl.enabled.mechanisms": "SCRAM-SHA-256",
            "listener.name.sasl.scram-sha-256.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        },
    )
    broker.start(120)
    admin = make_admin(broker.settings())
    for user in ("producer", "writer"):
        credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
        upsert = UserScramCredentialUpsertion(user, credential, PASSWORD.encode())
        admin.alter_user_scram_credentials([upsert])[user].result(30)
    for future in admin.create_acls(granted()).values():
        future.result(30)
    apply_topics(admin)
    yield {
        user: KafkaSettings(
            bootstrap=f"127.0.0.1:{sasl}",
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="SCRAM-SHA-256",
            sasl_username=user,
            sasl_password=PASSWORD,  # type: ignore[arg-type]
        )
        for user in ("producer", "writer")
    }
    broker.stop()


def outcome(settings: KafkaSettings, topic: str) -> str:
    """Writes one record as the process would and names what came of it."""
    seen: list[str] = []
    producer = make_producer(settings, delivery_timeout_ms=20_000)
    try:
        producer.produce(
            topic, b"x", b"did:plc:a", on_delivery=lambda error, _: seen.append(error.name() if error else "stored")
        )
        producer.flush(30)
    except KafkaException as error:
        return str(error.args[0].name())
    return seen[0]


def first(settings: KafkaSettings, group: str, topic: str) -> str:
    """Reads the first record of a topic by assignment and names what came of it."""
    consumer = make_consumer(settings, group)
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            message = consumer.poll(1.0)
            if message is not None:
                error = message.error()
                return "read" if error is None else str(error.name())
        return "nothing"
    finally:
        consumer.close()


def test_the_producers_rights_suffice_and_end_there(guarded: dict[str, KafkaSettings]) -> None:
    settings = guarded["producer"]
    assert check_reachable(settings)
    for topic in (CURSOR, DEAD_LETTER, "bluesky.sync"):
        assert outcome(settings, topic) == "stored"
    assert first(settings, READER_GROUP, CURSOR) == "read"
    assert first(settings, READER_GROUP, DEAD_LETTER) == "TOPIC_AUTHORIZATION_FAILED"
    assert outcome(settings, "elsewhere") == "TOPIC_AUTHORIZATION_FAILED"
    admin = make_admin(settings)
    with pytest.raises(KafkaException) as caught:
        admin.delete_topics([CURSOR])[CURSOR].result(30)
    assert caught.value.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED


def test_the_writers_rights_suffice_and_end_there(guarded: dict[str, KafkaSettings]) -> None:
    settings, group = guarded["writer"], WriterConfig().group
    assert outcome(guarded["producer"], "bluesky.account") == "stored"
    consumer = make_consumer(settings, group, auto_offset_reset="earliest", group_instance_id="writer-1")
    try:
        consumer.subscribe(["bluesky.account"])
        message = consumer.poll(30)
        assert message is not None
        assert message.error() is None
        consumer.commit(message=message, asynchronous=False)
    finally:
        consumer.close()
    assert outcome(settings, DEAD_LETTER) == "stored"
    assert outcome(settings, "bluesky.account") == "TOPIC_AUTHORIZATION_FAILED"


def test_the_image_is_built_from_the_locked_requirements_and_all_packages() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert "--require-hashes" in dockerfile
    assert re.search(r"^USER 10001", dockerfile, re.MULTILINE)
    kept = {line[1:] for line in Path(FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert {"schemas", "lake", "producers", "consumers", "api", "simulator", "pipeline"} <= kept
    assert all((CHECKOUT / name).exists() for name in kept)

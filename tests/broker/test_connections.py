"""Connections: TLS and SASL work when the settings fit the listener, and each misfit is told as what it is."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError
from confluent_kafka.admin import (  # type: ignore[attr-defined] # its stubs forget to export these
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from pipeline.kafka import KafkaSettings, KafkaUnreachableError, check_reachable, error_logger, make_admin
from pipeline.local_broker import LocalBroker
from schemas.errors import ExplorerError

PASSWORD = "correct horse"


@dataclass(frozen=True)
class SecuredBroker:
    plaintext: KafkaSettings
    tls: str
    sasl_tls: str
    ca: Path
    other_ca: Path


def make_certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate for 127.0.0.1, and a PEM file with key and certificate as Kafka wants it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / f"{name}.pem").write_bytes(certificate)
    (folder / f"{name}-keystore.pem").write_bytes(private + certificate)
    return folder / f"{name}.pem"


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    folder = tmp_path_factory.mktemp("secured")
    ca, other_ca = make_certificate(folder, "broker"), make_certificate(folder, "other")
    plain, controller, tls, sasl = free_ports(4)
    listeners = (
        f"PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller},"
        f"TLS://127.0.0.1:{tls},SASLTLS://127.0.0.1:{sasl}"
    )
    broker = LocalBroker(
        folder / "home",
        port=plain,
        extra_properties={
            "listeners": listeners,
            "advertised.listeners": listeners,
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,SASLTLS:SASL_SSL",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(folder / "broker-keystore.pem"),
            "sasl.enabled.mechanisms": "SCRAM-SHA-256",
            "listener.name.sasltls.scram-sha-256.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
        },
    )
    broker.start(120)
    settings = broker.settings()
    admin = make_admin(settings)
    credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
    upsert = UserScramCredentialUpsertion("alice", credential, PASSWORD.encode())
    admin.alter_user_scram_credentials([upsert])["alice"].result(30)
    yield SecuredBroker(settings, f"127.0.0.1:{tls}", f"127.0.0.1:{sasl}", ca, other_ca)
    broker.stop()


def sasl(broker: SecuredBroker, **changes: Any) -> KafkaSettings:
    given: dict[str, Any] = {
        "bootstrap": broker.sasl_tls,
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_username": "alice",
        "sasl_password": PASSWORD,
        "tls_ca": broker.ca,
        **changes,
    }
    return KafkaSettings(**given)


def test_the_same_cluster_answers_through_every_fitting_listener(secured: SecuredBroker) -> None:
    cluster = check_reachable(secured.plaintext)
    assert check_reachable(KafkaSettings(bootstrap=secured.tls, security_protocol="SSL", tls_ca=secured.ca)) == cluster
    assert check_reachable(sasl(secured)) == cluster


def misfit(settings: KafkaSettings) -> KafkaUnreachableError:
    with pytest.raises(KafkaUnreachableError) as caught:
        check_reachable(settings, timeout=5)
    assert settings.bootstrap in caught.value.message
    assert PASSWORD not in str(caught.value)
    return caught.value


def test_wrong_address(secured: SecuredBroker) -> None:
    [port] = free_ports(1)
    assert "no broker answers" in misfit(KafkaSettings(bootstrap=f"127.0.0.1:{port}")).message
    unknown = misfit(KafkaSettings(bootstrap="no-such-host.invalid:9092"))
    assert "cannot be resolved" in unknown.message
    assert "EXPLORER_KAFKA_BOOTSTRAP" in unknown.remedy


def test_plaintext_to_a_tls_port(secured: SecuredBroker) -> None:
    error = misfit(KafkaSettings(bootstrap=secured.tls))
    assert "takes connections" in error.message
    assert "EXPLORER_KAFKA_SECURITY_PROTOCOL" in error.remedy


def test_tls_to_a_plaintext_port(secured: SecuredBroker) -> None:
    error = misfit(KafkaSettings(bootstrap=secured.plaintext.bootstrap, security_protocol="SSL", tls_ca=secured.ca))
    assert "does not speak TLS" in error.message


def test_certificate_signed_by_somebody_else(secured: SecuredBroker) -> None:
    error = misfit(KafkaSettings(bootstrap=secured.tls, security_protocol="SSL", tls_ca=secured.other_ca))
    assert "EXPLORER_KAFKA_TLS_CA" in error.remedy


def test_wrong_password(secured: SecuredBroker) -> None:
    error = misfit(sasl(secured, sasl_password="wrong"))
    assert "refuses user 'alice'" in error.message


def test_mechanism_that_the_broker_does_not_offer(secured: SecuredBroker) -> None:
    error = misfit(sasl(secured, sasl_mechanism="PLAIN"))
    assert "EXPLORER_KAFKA_SASL_MECHANISM" in error.remedy


def test_tls_without_sasl_to_a_sasl_port(secured: SecuredBroker) -> None:
    error = misfit(KafkaSettings(bootstrap=secured.sasl_tls, security_protocol="SSL", tls_ca=secured.ca))
    assert "EXPLORER_KAFKA_SECURITY_PROTOCOL" in error.remedy


def test_a_missing_tls_file_is_named(tmp_path: Path) -> None:
    settings = KafkaSettings(bootstrap="127.0.0.1:1", security_protocol="SSL", tls_ca=tmp_path / "absent.pem")
    with pytest.raises(ExplorerError, match=r"absent\.pem does not exist"):
        check_reachable(settings)


@pytest.mark.parametrize(
    "given",
    [
        {"bootstrap": "no-port"},
        {"bootstrap": "http://host:9092"},
        {"bootstrap": "a:1, b:2"},
        {"bootstrap": "a:1", "security_protocol": "SASL_SSL"},
        {"bootstrap": "a:1", "sasl_username": "alice"},
        {"bootstrap": "a:1", "security_protocol": "SSL", "tls_cert": "c.pem"},
        {"bootstrap": "a:1", "tls_ca": "c.pem"},
        {"bootstrap": "a:1", "unknown": 1},
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        KafkaSettings(**given)


def test_secrets_are_masked_in_every_rendering() -> None:
    settings = KafkaSettings(
        bootstrap="a:1",
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_username="alice",
        sasl_password=PASSWORD,  # type: ignore[arg-type]
    )
    assert PASSWORD not in repr(settings) + settings.model_dump_json()
    assert settings.client_config()["sasl.password"] == PASSWORD


def test_the_same_error_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    log = error_logger(KafkaSettings(bootstrap="a:1"))
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            log(KafkaError(KafkaError._TRANSPORT, "refused"))
        log(KafkaError(KafkaError._RESOLVE, "a"))
    assert len(caplog.records) == 2
    assert "post-explorer broker status" in caplog.text

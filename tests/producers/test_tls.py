"""wss://: the chain and the host name are verified, an own authority can be trusted, and every refusal says what is wrong."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline.kafka import KafkaSettings
from producers.compression import fetch_dictionary
from producers.config import SourceSettings
from producers.connection import open_connection
from producers.connector import Connector
from producers.errors import ConnectFailedError, SourceSettingsError
from producers.http import HttpFailure
from producers.tls import client_context
from tests.producers.harness import Broker, running, wait_for
from tests.producers.scripted import Peer, ScriptedServer, now_us, v2_like

connect = partial(open_connection, timeout=5.0, max_size=1 << 20)


@dataclass(frozen=True)
class Authority:
    """A certificate authority of our own: `file` is its certificate, `server` a context of a server that it vouches for."""

    file: Path
    server: ssl.SSLContext


def authority(folder: Path, names: list[x509.GeneralName], *, valid_days: float = 1.0) -> Authority:
    """One authority and one certificate for `names`, valid until `valid_days` from now."""
    now = dt.datetime.now(dt.UTC)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])

    def builder(subject: str, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(root_name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=10))
            .not_valid_after(now + dt.timedelta(days=valid_days))
        )

    root = (
        builder("Test authority", root_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        builder("server", key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    file, chain, secret = folder / "authority.pem", folder / "server.pem", folder / "server.key"
    file.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    chain.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain, secret)
    return Authority(file, server)


LOOPBACK: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]


def speaks(peer: Peer) -> None:
    peer.accept()
    peer.send(*(v2_like(seq, now_us()) for seq in range(1, 4)))
    peer.hold()


@contextmanager
def serving(one: Authority) -> Iterator[str]:
    pages = {"/xrpc/network.bsky.jetstream.getZstdDictionary": lambda: (200, b"dictionary")}
    with ScriptedServer([speaks], pages, one.server).serve() as url:
        yield url


def test_a_trusted_server_is_streamed_from(tmp_path: Path, kafka_broker: KafkaSettings) -> None:
    one = authority(tmp_path, LOOPBACK)
    broker = Broker(kafka_broker)
    with serving(one) as url:
        service, _ = broker.producer(url, {"ca_file": one.file, "compression": "zstd"})
        with running(service):
            wait_for(lambda: len(broker.rows()) == 3, "the events")
        assert fetch_dictionary(url, 5.0, client_context(one.file)) == b"dictionary"


def test_an_authority_that_nobody_named_is_refused(tmp_path: Path) -> None:
    one = authority(tmp_path, LOOPBACK)
    with serving(one) as url:
        with pytest.raises(ConnectFailedError, match=r"certificate is refused: .*EXPLORER_SOURCE_CA_FILE"):
            connect(url)
        with pytest.raises(HttpFailure, match=r"(?i)certificate verify failed"):
            fetch_dictionary(url, 5.0, client_context(None))


def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    one = authority(tmp_path, [x509.DNSName("jetstream.example")])
    with serving(one) as url, pytest.raises(ConnectFailedError, match=r"127.0.0.1.*certificate is not valid for"):
        connect(url, tls=client_context(one.file))


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    one = authority(tmp_path, LOOPBACK, valid_days=-1.0)
    with serving(one) as url, pytest.raises(ConnectFailedError, match=r"certificate has expired"):
        connect(url, tls=client_context(one.file))


def test_wss_to_a_server_without_tls_says_so() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(ConnectFailedError, match=r"does not speak TLS.*ws://127\.0\.0\.1"):
            connect(f"wss://127.0.0.1:{server.server_port}")


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_an_unreadable_file_of_authorities_stops_with_an_instruction(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "authority.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SourceSettingsError, match=str(file)) as stopped:
        Connector(SourceSettings(ca_file=file))
    assert "EXPLORER_SOURCE_CA_FILE" in stopped.value.remedy


def test_a_name_that_does_not_exist_points_to_the_setting() -> None:
    with pytest.raises(ConnectFailedError, match=r"cannot be reached: .*EXPLORER_SOURCE_HOSTS"):
        connect("ws://jetstream.invalid:80")

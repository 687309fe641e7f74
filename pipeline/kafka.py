"""Kafka connection settings, the client factories every process is given, and the check that says why a broker refuses."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator

from schemas.errors import ExplorerError

logger = logging.getLogger("explorer.kafka")

BOOTSTRAP_PATTERN: Final = r"^[^\s,:/]+:\d{1,5}(,[^\s,:/]+:\d{1,5})*$"
LOG_SAME_ERROR_EVERY_SECONDS: Final = 30.0
CHECK_ATTEMPT_SECONDS: Final = 2.0
START_POLL_SECONDS: Final = 0.5
NO_TLS_SIGNS: Final = (
    "wrong version number",
    "packet length too long",
    "record layer",
    "SSL connection closed by peer",
)

CLIENT_DEFAULTS: Final[Mapping[str, object]] = {
    # librdkafka writes its own lines to stderr, one for each failed connection attempt; `error_logger` says the same once.
    "log_level": 2,
    "log.connection.close": False,
}

PRODUCER_DEFAULTS: Final[Mapping[str, object]] = {
    "enable.idempotence": True,
    "acks": "all",
    "compression.type": "zstd",
    "compression.level": 1,
    # Our ~55 partitions each send batches of their own, so the wait decides how many requests the broker handles: at 40,000
    # events/s it spends 15 us of CPU an event with 20 ms, 3 to 5 us with 200 ms. Nothing here needs an answer sooner.
    "linger.ms": 200,
    "batch.size": 1024 * 1024,
    "batch.num.messages": 20_000,
    "queue.buffering.max.messages": 200_000,
    "queue.buffering.max.kbytes": 128 * 1024,
    "message.max.bytes": 4 * 1024 * 1024,
    "delivery.timeout.ms": 300_000,  # longer than a broker upgrade (60 s); after it the error reaches the caller
    "partitioner": "murmur2_random",  # what Java clients do, so that both sides agree where a DID lives
    "socket.keepalive.enable": True,
}
CONSUMER_DEFAULTS: Final[Mapping[str, object]] = {
    "group.protocol": "classic",  # Redpanda 26.2 does not know the newer one
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",  # positions come from the manifest; a missing one must be seen, not guessed
    "isolation.level": "read_committed",
    "session.timeout.ms": 10_000,  # how long a killed member's partitions stay unread
    "heartbeat.interval.ms": 2_000,
    "max.poll.interval.ms": 300_000,
    "fetch.min.bytes": 64 * 1024,
    "fetch.wait.max.ms": 250,
    "fetch.queue.backoff.ms": 10,  # with the default (1000) a full queue idles for a second: 120,000 instead of 420,000 messages/s
    "fetch.max.bytes": 16 * 1024 * 1024,
    "max.partition.fetch.bytes": 4 * 1024 * 1024,
    "queued.max.messages.kbytes": 64 * 1024,
    "queued.min.messages": 20_000,
    "socket.keepalive.enable": True,
}


class KafkaUnreachableError(ExplorerError):
    """No usable answer from the broker; the message tells which setting is the likely cause."""


class KafkaSettings(BaseModel):
    """How to reach a Kafka-protocol broker; the same for every process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap: Annotated[str, StringConstraints(pattern=BOOTSTRAP_PATTERN)] = Field(
        description="Comma-separated host:port list of brokers to ask first."
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="Whether the connection is encrypted (SSL) and authenticated (SASL)."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        default=None, description="How the user proves itself; required with a SASL protocol."
    )
    sasl_username: str | None = Field(default=None, description="User; required with a SASL protocol.")
    sasl_password: SecretStr | None = Field(default=None, description="Password; required with a SASL protocol.")
    tls_ca: Path | None = Field(
        default=None, description="PEM file that signs the broker's certificate; None = system."
    )
    tls_cert: Path | None = Field(default=None, description="PEM file with the client's certificate, for mutual TLS.")
    tls_key: Path | None = Field(default=None, description="PEM file with the client's private key, for mutual TLS.")
    tls_key_password: SecretStr | None = Field(default=None, description="Password of the private key, if it has one.")
    tls_verify_hostname: bool = Field(default=True, description="Whether the certificate must name the broker's host.")
    client_id: str = Field(
        default="post-explorer", min_length=1, max_length=64, description="Name in the broker's logs."
    )
    start_seconds: float = Field(
        default=15.0,
        ge=0,
        le=300,
        description="How long a starting process waits for a broker that refuses connections, as while it starts.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.security_protocol.startswith("SASL"):
            missing = [name for name in ("sasl_mechanism", "sasl_username", "sasl_password") if not getattr(self, name)]
            if missing:
                raise ValueError(f"security_protocol {self.security_protocol} also needs {', '.join(missing)}")
        elif self.sasl_mechanism or self.sasl_username or self.sasl_password:
            raise ValueError(f"SASL settings are given but security_protocol is {self.security_protocol}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together; one of them is missing")
        if not self.security_protocol.endswith("SSL") and (self.tls_ca or self.tls_cert):
            raise ValueError(f"TLS files are given but security_protocol is {self.security_protocol}")
        return self

    def client_config(self) -> dict[str, object]:
        """The librdkafka connection properties; raises ExplorerError if a TLS file is missing."""
        config: dict[str, object] = {
            "bootstrap.servers": self.bootstrap,
            "client.id": self.client_id,
            "security.protocol": self.security_protocol,
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 5_000,
        }
        if self.sasl_mechanism is not None and self.sasl_password is not None:
            config["sasl.mechanism"] = self.sasl_mechanism
            config["sasl.username"] = self.sasl_username
            config["sasl.password"] = self.sasl_password.get_secret_value()
        if self.security_protocol.endswith("SSL"):
            config["ssl.endpoint.identification.algorithm"] = "https" if self.tls_verify_hostname else "none"
            for prop, path in (
                ("ssl.ca.location", self.tls_ca),
                ("ssl.certificate.location", self.tls_cert),
                ("ssl.key.location", self.tls_key),
            ):
                if path is not None:
                    if not path.is_file():
                        raise ExplorerError(
                            f"the TLS file {path} does not exist", "correct the EXPLORER_KAFKA_TLS_... setting"
                        )
                    config[prop] = str(path)
            if self.tls_key_password is not None:
                config["ssl.key.password"] = self.tls_key_password.get_secret_value()
        return config


def make_producer(settings: KafkaSettings, **overrides: object) -> Producer:
    """An idempotent producer (acks=all, zstd, bounded queue).

    `overrides` are librdkafka properties, dots as dots or underscores (`linger_ms=5`). The caller must call `poll` or
    `flush` regularly: delivery reports and error logging run there.
    """
    return Producer(_config(settings, PRODUCER_DEFAULTS, overrides))


def make_consumer(settings: KafkaSettings, group: str, **overrides: object) -> Consumer:
    """A consumer of `group` that commits nothing by itself and reads committed records only; `overrides` as above.

    A partition without a position is an error (`auto.offset.reset=error`): the caller seeks when it is assigned.
    """
    return Consumer(_config(settings, {**CONSUMER_DEFAULTS, "group.id": group}, overrides))


def consumer_properties(settings: KafkaSettings, group: str, **overrides: object) -> dict[str, str]:
    """The properties of a consumer as `make_consumer` makes it, for a caller that makes the client itself: no callbacks."""
    config = _config(settings, {**CONSUMER_DEFAULTS, "group.id": group}, overrides)
    del config["error_cb"]
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in config.items()}


def make_admin(settings: KafkaSettings, **overrides: object) -> AdminClient:
    """A client for topics, configurations and groups; `overrides` as above."""
    return AdminClient(_config(settings, {}, overrides))


def _config(settings: KafkaSettings, defaults: Mapping[str, object], overrides: Mapping[str, object]) -> dict[str, Any]:
    named = {_property(name): value for name, value in overrides.items()}
    return {"error_cb": error_logger(settings), **CLIENT_DEFAULTS, **defaults, **settings.client_config(), **named}


def _property(name: str) -> str:
    is_callback = name.endswith("_cb") or name in ("on_delivery", "logger", "log_level")
    return name if is_callback else name.replace("_", ".")


def error_logger(settings: KafkaSettings) -> Callable[[KafkaError], None]:
    """A librdkafka error callback that logs what happened and what to do, at most once in 30 s for each kind of error."""
    last: dict[int, float] = {}
    guard = threading.Lock()

    def log(error: KafkaError) -> None:
        now = time.monotonic()
        with guard:
            if now - last.get(error.code(), -LOG_SAME_ERROR_EVERY_SECONDS) < LOG_SAME_ERROR_EVERY_SECONDS:
                return
            last[error.code()] = now
        reason, remedy = explain(error, settings)
        logger.log(
            logging.ERROR if error.fatal() else logging.WARNING,
            "Kafka at %s: %s (%s)",
            settings.bootstrap,
            reason,
            remedy,
            extra={"kafka_error": error.name(), "kafka_detail": error.str(), "fatal": error.fatal()},
        )

    return log


def explain(error: KafkaError, settings: KafkaSettings) -> tuple[str, str]:
    """What a client error means for these settings, and what to do about it."""
    code, detail = error.code(), error.str()
    protocol = settings.security_protocol
    if code == KafkaError._RESOLVE:
        return f"the host name cannot be resolved: {detail}", "correct EXPLORER_KAFKA_BOOTSTRAP"
    if code == KafkaError.UNSUPPORTED_SASL_MECHANISM or "Unsupported SASL mechanism" in detail:
        return f"the broker does not offer {settings.sasl_mechanism}: {detail}", "correct EXPLORER_KAFKA_SASL_MECHANISM"
    if code in (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED):
        return (
            f"the broker refuses user {settings.sasl_username!r} with {settings.sasl_mechanism}: {detail}",
            "correct EXPLORER_KAFKA_SASL_USERNAME, _PASSWORD and _MECHANISM, or create the user on the broker",
        )
    if any(sign in detail for sign in NO_TLS_SIGNS):
        return (
            f"the broker's port does not speak TLS, but security_protocol is {protocol}: {detail}",
            "use the broker's TLS port, or set EXPLORER_KAFKA_SECURITY_PROTOCOL without SSL",
        )
    if code == KafkaError._SSL:
        return (
            f"the TLS connection failed: {detail}",
            "check that EXPLORER_KAFKA_TLS_CA signs the broker's certificate, that it names the host and is not expired",
        )
    if code in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT):
        return (
            f"no broker answers: {detail}",
            "check that the broker runs (`post-explorer broker status`) and that EXPLORER_KAFKA_BOOTSTRAP names it",
        )
    return detail or error.name(), "see the broker's log"


def check_reachable(settings: KafkaSettings, timeout: float = 10.0) -> str:
    """Asks the broker for its cluster id and returns it; waits `timeout` seconds at most, less if the cause is plain.

    Raises KafkaUnreachableError with the likely cause: wrong address, TLS or SASL settings that do not fit the listener.
    """
    seen: list[KafkaError] = []
    admin = make_admin(settings, error_cb=seen.append)
    deadline = time.monotonic() + timeout
    while True:
        remaining = deadline - time.monotonic()
        try:
            return str(admin.list_topics(timeout=max(0.1, min(CHECK_ATTEMPT_SECONDS, remaining))).cluster_id)
        except KafkaException as failure:
            admin.poll(0)
            # The call itself only reports a timeout; the connection's own errors came through the callback before it.
            unspecific = (KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT)
            telling = [error for error in seen if error.code() not in unspecific]
            if telling:
                reason, remedy = explain(telling[-1], settings)
            elif remaining > CHECK_ATTEMPT_SECONDS:
                continue
            elif _accepts(settings.bootstrap):
                # librdkafka reports nothing for a connection that the other side just closes or ignores.
                reason = f"the port takes connections, but not with security_protocol {settings.security_protocol}"
                remedy = "it may expect TLS or SASL, or be no Kafka at all: correct EXPLORER_KAFKA_SECURITY_PROTOCOL"
            else:
                reason, remedy = explain(failure.args[0], settings)
            raise KafkaUnreachableError(f"Kafka at {settings.bootstrap} cannot be used: {reason}", remedy) from failure


def await_reachable(settings: KafkaSettings) -> None:
    """As `check_reachable`, but waits up to `start_seconds` for a broker that refuses connections.

    For processes that are started again together with the broker, as after a power failure: ending and being started
    once more would take longer than the broker does.
    """
    deadline = time.monotonic() + settings.start_seconds
    while True:
        try:
            check_reachable(settings)
        except KafkaUnreachableError:
            if _accepts(settings.bootstrap) or time.monotonic() > deadline:
                raise
            time.sleep(START_POLL_SECONDS)
        else:
            return


def _accepts(bootstrap: str) -> bool:
    """Whether one of the addresses takes a TCP connection."""
    for address in bootstrap.split(","):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1.0).close()
        except OSError:
            continue
        return True
    return False

"""How an Avro body is wrapped in a Kafka value, and how a reader tells which schema wrote it.

Two framings, both always accepted: Avro single-object encoding (Avro 1.11 specification: C3 01, then the little-endian
CRC-64-AVRO fingerprint) when no Schema Registry is configured, and the Confluent wire format (00, then the registry's
big-endian schema id) when one is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

from schemas.avro_schemas import latest
from schemas.errors import BadRecord, DeadLetterReason

SINGLE_OBJECT_MAGIC = b"\xc3\x01"
SINGLE_OBJECT_HEADER_BYTES = 10
REGISTRY_MAGIC = b"\x00"
REGISTRY_HEADER_BYTES = 5


class SchemaRef(NamedTuple):
    """Names the writer's schema: a fingerprint (64 bits) or an id of the configured registry (32 bits)."""

    kind: Literal["fingerprint", "registry"]
    value: int


class Framing(Protocol):
    """Wraps bodies for publishing."""

    def header(self, schema_name: str) -> bytes:
        """The bytes before every body of the newest release of `schema_name`; KeyError for an unknown name."""

    def frame(self, schema_name: str, body: bytes) -> bytes:
        """The Kafka value for `body`."""


class SingleObjectFraming:
    """Avro single-object encoding; needs no registry."""

    def __init__(self) -> None:
        self._headers: dict[str, bytes] = {}

    def header(self, schema_name: str) -> bytes:
        """See `Framing.header`."""
        header = self._headers.get(schema_name)
        if header is None:
            header = SINGLE_OBJECT_MAGIC + latest(schema_name).fingerprint.to_bytes(8, "little")
            self._headers[schema_name] = header
        return header

    def frame(self, schema_name: str, body: bytes) -> bytes:
        """See `Framing.frame`."""
        return self.header(schema_name) + body


class RegistryFraming:
    """Confluent wire format; `ids` maps each schema name to the id under which its newest release is registered."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._headers = {name: REGISTRY_MAGIC + value.to_bytes(4, "big") for name, value in ids.items()}

    def header(self, schema_name: str) -> bytes:
        """See `Framing.header`."""
        return self._headers[schema_name]

    def frame(self, schema_name: str, body: bytes) -> bytes:
        """See `Framing.frame`."""
        return self._headers[schema_name] + body


def split(value: bytes) -> tuple[SchemaRef, bytes]:
    """Tell which schema wrote a Kafka value and return its bare body.

    Raises BadRecord(UNKNOWN_FRAMING) when the value carries neither framing.
    """
    if value[:2] == SINGLE_OBJECT_MAGIC and len(value) >= SINGLE_OBJECT_HEADER_BYTES:
        return SchemaRef("fingerprint", int.from_bytes(value[2:10], "little")), value[SINGLE_OBJECT_HEADER_BYTES:]
    if value[:1] == REGISTRY_MAGIC and len(value) >= REGISTRY_HEADER_BYTES:
        return SchemaRef("registry", int.from_bytes(value[1:5], "big")), value[REGISTRY_HEADER_BYTES:]
    raise BadRecord(DeadLetterReason.UNKNOWN_FRAMING, f"value starts with {value[:10].hex() or 'nothing'}")

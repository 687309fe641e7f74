"""The released Avro schemas of `schemas/avro`, by name, version and CRC-64-AVRO fingerprint.

A released file is never edited; a change is a new version beside it, backward and forward compatible with the last.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form


@dataclass(frozen=True, slots=True)
class AvroSchema:
    """One released schema: `fingerprint` is the 64-bit CRC-64-AVRO of its parsing canonical form, as an integer."""

    name: str
    version: int
    text: str
    fingerprint: int

    @property
    def parsed(self) -> Any:
        """The schema as fastavro wants it."""
        return _parse(self.text)


@cache
def _parse(text: str) -> Any:
    return fastavro.parse_schema(json.loads(text))


def _load(file_name: str, text: str) -> AvroSchema:
    name, version = file_name.removesuffix(".avsc").rsplit(".v", 1)
    # Avro 1.11, "Schema fingerprints": the library prints the eight bytes in the little-endian order of the wire.
    crc = bytes.fromhex(fingerprint(to_parsing_canonical_form(json.loads(text)), "CRC-64-AVRO"))
    return AvroSchema(name, int(version), text, int.from_bytes(crc, "little"))


@cache
def released() -> dict[tuple[str, int], AvroSchema]:
    """Every released schema by (name, version), read once from the package's files."""
    folder = files("schemas") / "avro"
    loaded = [_load(entry.name, entry.read_text("utf-8")) for entry in folder.iterdir() if entry.name.endswith(".avsc")]
    return {(schema.name, schema.version): schema for schema in loaded}


@cache
def latest(name: str) -> AvroSchema:
    """The newest release of `name`; KeyError when there is none."""
    versions = [schema for (known, _), schema in released().items() if known == name]
    if not versions:
        raise KeyError(name)
    return max(versions, key=lambda schema: schema.version)


@cache
def _by_fingerprint() -> dict[int, AvroSchema]:
    return {schema.fingerprint: schema for schema in released().values()}


def schema_by_fingerprint(value: int) -> AvroSchema | None:
    """The released schema with this CRC-64-AVRO fingerprint, or None when we never released one."""
    return _by_fingerprint().get(value)

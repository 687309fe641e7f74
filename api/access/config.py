"""Settings of access: who may ask, how often, from where."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+", re.ASCII)


class AccessSettings(BaseModel):
    """Frozen; part of the API's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    require_key: bool = Field(
        False,
        description="Whether data endpoints ask for an API key also on loopback; on any other address they always do.",
    )
    keys_file: Path | None = Field(
        None, description="SQLite file of the API keys; keys.sqlite in the state folder if unset."
    )
    key_cache_seconds: float = Field(
        5.0,
        ge=0,
        le=300,
        description="How long a checked key is not looked up again: a revocation takes that long at most.",
    )

    requests_per_minute: int = Field(
        600, ge=0, le=1_000_000, description="Requests of one key, or of one address without a key; 0 = unlimited."
    )
    bytes_per_day: int = Field(
        2 * 2**40, ge=0, description="Bytes of files that the queries of one key or address may read; 0 = unlimited."
    )
    failures_per_minute: int = Field(
        20, ge=1, le=10_000, description="Requests with a wrong key from one address before it has to wait."
    )
    tracked_clients: int = Field(
        10_000, ge=1, le=1_000_000, description="Keys and addresses with a limit of their own; more share one."
    )

    cors_origins: tuple[str, ...] = Field(
        (),
        description="Web origins whose pages may read answers, such as https://lab.example; `*` = any, for GET only.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Host names the service answers to; unset = loopback names while no key is needed, else any."
    )
    trusted_proxies: tuple[str, ...] = Field(
        (), description="Addresses or networks of proxies whose X-Forwarded-For is believed; setting any requires keys."
    )
    header_bytes: int = Field(16 * 2**10, ge=1024, le=2**20, description="Most bytes of all request headers together.")

    audit_queries: bool = Field(
        False, description="Whether the audit log holds query strings; they are personal data of researchers."
    )
    audit_addresses: Literal["full", "network", "none"] = Field(
        "network", description="How the audit log holds client addresses; `network` keeps /24 or /48."
    )

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if value != "*" and not _ORIGIN.fullmatch(value):
                raise ValueError(f"{value!r} is not an origin; write https://host or https://host:port without a path")
        return values

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            try:
                ipaddress.ip_network(value, strict=False)
            except ValueError:
                raise ValueError(f"{value!r} is not an address or network; write 10.0.0.1 or 10.0.0.0/8") from None
        return values

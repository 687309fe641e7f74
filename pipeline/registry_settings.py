"""How to reach a Schema Registry; apart from its client because every process reads it and few need the client."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class RegistrySettings(BaseModel):
    """How to reach the Schema Registry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(
        pattern=r"^https?://[^\s?#]+$", description="Base URL, with the path where the API begins, if any."
    )
    username: str | None = Field(default=None, description="User for HTTP basic authentication, if the registry asks.")
    password: SecretStr | None = Field(default=None, description="Password of that user.")
    tls_ca: Path | None = Field(default=None, description="PEM file that signs the certificate; None = system.")
    timeout_seconds: float = Field(default=5.0, gt=0, le=60, description="Longest wait for one answer.")
    attempts: int = Field(default=4, ge=1, le=20, description="How often a call is tried before it fails.")
    backoff_seconds: float = Field(default=0.2, ge=0, le=10, description="Wait before the second attempt; doubles.")
    unknown_id_seconds: float = Field(
        default=60.0, ge=0, description="How long an id without a schema is not asked again."
    )
    cached_ids: int = Field(default=4096, ge=16, le=1_000_000, description="Schema ids remembered, known or unknown.")

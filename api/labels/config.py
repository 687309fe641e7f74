"""Settings of label tables: how large, how many, and what reading one may cost."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

_PREFIX: Final = "/v1/labels/"


class LabelSettings(BaseModel):
    """Frozen; part of the API's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upload_bytes: int = Field(128 * 2**20, ge=1024, le=2**34, description="Largest upload.")
    rows: int = Field(5_000_000, ge=1, le=1_000_000_000, description="Most rows of a table.")
    columns: int = Field(20, ge=0, le=200, description="Most value columns of a table.")
    value_characters: int = Field(256, ge=1, le=10_000, description="Longest text value.")
    tables_per_owner: int = Field(100, ge=1, le=100_000, description="Most tables of one key.")
    versions_per_table: int = Field(
        20, ge=1, le=10_000, description="Most versions kept of a table; further uploads are refused."
    )
    bytes_per_owner: int = Field(
        2 * 2**30, ge=1024, description="Most bytes that the stored tables of one key may take."
    )
    parse_seconds: float = Field(60.0, gt=0, le=3600, description="Longest time that reading an upload may take.")
    parse_memory_mb: int = Field(
        2048, ge=512, le=65536, description="Address space of the process that reads an upload."
    )
    uploads_at_once: int = Field(1, ge=1, le=16, description="Uploads that are read at once; more wait, then get 503.")
    uploads_open: int = Field(8, ge=1, le=1000, description="Uploads that arrive or wait at once; more get 503.")
    receive_seconds: float = Field(
        600.0, gt=0, le=86_400, description="Longest time that an upload may take to arrive."
    )


def folder(state_dir: Path) -> Path:
    """Where the tables are; the query engine must be able to read it."""
    return state_dir / "labels"


def body_limit(method: str, path: str, settings: LabelSettings) -> int | None:
    """The largest request body of an upload; None for requests that are none."""
    return settings.upload_bytes if method == "PUT" and path.startswith(_PREFIX) else None

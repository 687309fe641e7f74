"""What an export is: the request, its state, and what is told about it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from api.columns import FieldNames
from api.filters import PostQuery
from api.tabular import TableFormat
from api.times import format_time


class Compression(StrEnum):
    """How the file is compressed; a Parquet file inside, others as a whole."""

    NONE = "none"
    ZSTD = "zstd"
    GZIP = "gzip"


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


DAY_US: Final = 86_400_000_000
FINAL: Final = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.EXPIRED})


class ExportRequest(PostQuery):
    """The body of a request for an export: filters, columns and format."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"text": "climate", "lang": ["en"], "format": "csv", "fields": ["uri", "time", "text"]}]
        }
    )

    format: TableFormat = Field(TableFormat.CSV, description="How rows are written.")
    compression: Compression = Field(Compression.NONE, description="How the file is compressed.")
    fields: FieldNames = Field(
        (),
        description="Columns, as a list or separated by commas; `likes`, `reposts`, `replies`, `quotes`, `handle` and "
        "`label:[owner/]name[.column][@version]` are computed.",
    )
    spreadsheet_safe: bool = Field(
        False, description="CSV only: texts that a spreadsheet would run as a formula get a leading apostrophe."
    )
    limit: int | None = Field(None, ge=1, description="Most rows, the oldest first.")
    name: str = Field(
        "results",
        min_length=1,
        max_length=100,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="Beginning of the file's name: letters, digits, dot, hyphen and underscore.",
    )


class ExportInfo(BaseModel):
    """An export as its owner sees it."""

    model_config = ConfigDict(extra="forbid")

    id: str
    state: State
    progress: float | None = Field(description="Share of the work that is done, 0 to 1.")
    rows: int | None
    bytes: int | None = Field(description="Size of the file.")
    sha256: str | None = Field(description="Digest of the file, hexadecimal.")
    format: TableFormat
    compression: Compression
    file_name: str
    download: str | None = Field(description="Path of the file, once it is done.")
    provenance: str | None = Field(description="Path of the description that belongs to the file.")
    removed_since: int = Field(
        description="Rows taken out after the file was made, because they were removed or edited."
    )
    error: dict[str, Any] | None = Field(description="Why it failed, as a problem body.")
    snapshot_version: int | None
    created: str
    finished: str | None
    expires: str | None


class ExportList(BaseModel):
    """The caller's exports, the newest first."""

    model_config = ConfigDict(extra="forbid")

    exports: list[ExportInfo]


class Job(BaseModel):
    """An export as it is stored. `request` holds the body as asked, `meaning` the filters with pinned labels."""

    model_config = ConfigDict(extra="forbid")

    id: str
    owner: str
    idempotency_key: str | None
    request: dict[str, Any]
    meaning: dict[str, Any]
    state: State = State.QUEUED
    progress: float | None = None
    rows: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    removed_since: int = 0
    generation: int = 0
    checked_version: int = 0
    error: dict[str, Any] | None = None
    snapshot_version: int | None = None
    snapshot_created_us: int | None = None
    positions: list[tuple[str, int, int]] = []
    coverage: dict[str, Any] | None = None
    since: dict[str, Any] | None = None
    columns: list[tuple[str, str]] = []
    created_us: int
    finished_us: int | None = None
    expires_us: int | None = None
    file_name: str

    def info(self) -> ExportInfo:
        """What its owner sees."""
        done = self.state is State.DONE
        return ExportInfo(
            id=self.id,
            state=self.state,
            progress=1.0 if done else self.progress,
            rows=self.rows,
            bytes=self.bytes,
            sha256=self.sha256,
            format=TableFormat(self.request.get("format", TableFormat.CSV)),
            compression=Compression(self.request.get("compression", Compression.NONE)),
            file_name=self.file_name,
            download=f"/v1/exports/{self.id}/data" if done else None,
            provenance=f"/v1/exports/{self.id}/provenance" if done else None,
            removed_since=self.removed_since,
            error=self.error,
            snapshot_version=self.snapshot_version,
            created=format_time(self.created_us),
            finished=None if self.finished_us is None else format_time(self.finished_us),
            expires=None if self.expires_us is None else format_time(self.expires_us),
        )


def file_name(request: ExportRequest, stamp: str) -> str:
    """`<name>_<time>.<format>[.zst|.gz]`."""
    suffix = {Compression.NONE: "", Compression.ZSTD: ".zst", Compression.GZIP: ".gz"}[request.compression]
    return f"{request.name}_{stamp}.{request.format}{'' if request.format is TableFormat.PARQUET else suffix}"

"""Settings of the API process: every limit it keeps, with its default and bounds."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.access.config import AccessSettings
from api.labels.config import LabelSettings


class ApiSettings(BaseModel):
    """Frozen, built once by the process that starts the service; nothing in this room reads the environment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    state_dir: Path = Field(
        Path(".local/api"),
        description="Folder for what the API itself writes: cursor secret, keys, export files, labels, spill files.",
    )

    threads: int = Field(2, ge=1, le=64, description="DuckDB threads, shared by all queries.")
    memory_limit_mb: int = Field(1024, ge=128, le=262144, description="DuckDB memory, shared by all queries.")
    spill_limit_mb: int = Field(4096, ge=0, le=1048576, description="Disk that queries may use when memory is short.")

    light_slots: int = Field(4, ge=1, le=64, description="Light queries that run at once.")
    heavy_slots: int = Field(2, ge=1, le=64, description="Heavy queries (see heavy_bytes) that run at once.")
    queue_length: int = Field(32, ge=0, le=10_000, description="Queries of one kind that may wait; more get 503.")
    queries_per_client: int = Field(
        16, ge=1, le=10_000, description="Queries of one kind that one client may run or queue."
    )
    queue_seconds: float = Field(10.0, gt=0, le=600, description="Longest wait for a slot before 503.")
    heavy_bytes: int = Field(
        64 * 2**20, ge=0, description="A query whose files hold more bytes than this waits in the heavy queue."
    )
    light_seconds: float = Field(
        1.0,
        ge=0,
        le=600,
        description="A search in order of time over more than heavy_bytes walks about this long as a light query before it goes "
        "on as a heavy one.",
    )
    query_seconds: float = Field(30.0, gt=0, le=3600, description="Longest running time of an interactive query.")
    total_seconds: float = Field(
        2.0, gt=0, le=600, description="Share of that spent on a total before an estimate is given."
    )

    page_seconds: float = Field(
        10.0, gt=0, le=3600, description="A search page is ended early, with a cursor, after walking this long."
    )
    state_cache_mb: int = Field(256, ge=16, le=65536, description="Memory for what ended rows (deletions, accounts).")
    snapshot_seconds: float = Field(
        0.5, ge=0, le=60, description="How long the newest snapshot is reused by later requests."
    )
    rollup_seconds: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="How often closed hours are looked for that have no kept counts yet; 0 = they are counted when asked for.",
    )
    cited_versions: int = Field(
        1_000_000,
        ge=1,
        description="Versions named by answers that stay citable with `as_of`; each takes about half a kilobyte.",
    )
    lab_row_cap: int = Field(
        1000,
        ge=0,
        le=1_000_000,
        description="Most rows in all of one query of the aliases /search and /export; 0 = no cap.",
    )
    lab_export_rows: int = Field(
        100_000, ge=1, le=10_000_000, description="Most rows of the alias /export when there is no cap."
    )
    export_slots: int = Field(1, ge=1, le=16, description="Exports that run at once.")
    export_queue: int = Field(20, ge=0, le=10_000, description="Exports that may wait; more get 503.")
    exports_per_owner: int = Field(5, ge=1, le=1000, description="Exports of one key that may run or wait.")
    export_seconds: float = Field(3600.0, gt=0, le=604_800, description="Longest running time of an export.")
    export_rows: int = Field(50_000_000, ge=1, description="Most rows of an export.")
    export_days: float = Field(7.0, gt=0, le=365, description="How long the file of an export is kept.")
    export_total_mb: int = Field(
        20_480, ge=16, description="Disk that all exports may use; a new one is refused beyond it."
    )
    resume_seconds: float = Field(
        900.0,
        ge=0,
        le=86_400,
        description="How long a download that began may be resumed although posts were removed since.",
    )
    page_default: int = Field(50, ge=1, le=1000, description="Rows of a page unless the client says otherwise.")
    page_max: int = Field(1000, ge=1, le=10_000, description="Most rows of a page.")
    body_bytes: int = Field(2 * 2**20, ge=1024, le=2**31, description="Largest request body, except for uploads.")
    url_bytes: int = Field(16 * 2**10, ge=1024, le=2**20, description="Longest path and query string.")

    labels: LabelSettings = Field(default_factory=LabelSettings, description="Label tables that clients upload.")
    access: AccessSettings = Field(default_factory=AccessSettings, description="Keys, rates, origins, audit.")

    drain_seconds: float = Field(
        5.0, gt=0, le=300, description="Time that running requests get when the service stops."
    )

    @model_validator(mode="after")
    def _consistent(self) -> ApiSettings:
        if self.page_default > self.page_max:
            raise ValueError("page_default is larger than page_max: lower the first or raise the second")
        return self

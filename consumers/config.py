"""Settings of the consumer processes; every wait, buffer and retry of this room has its bound here."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

_MIB = 1024 * 1024


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WriterConfig(_Settings):
    """The writer: consumer group to lake."""

    group: str = Field("post-explorer-writer", min_length=1, description="Consumer group of all writers of one lake.")
    instance_id: str | None = Field(
        None,
        description="Static membership: a restart under the same id within the session timeout keeps its partitions "
        "without a rebalance. One id per running writer; none means dynamic membership.",
    )
    session_timeout_seconds: float = Field(
        10.0, ge=6.0, le=300.0, description="A writer silent for this long loses its partitions."
    )
    max_poll_interval_seconds: float = Field(
        120.0, ge=10.0, le=3600.0, description="A writer whose loop does not turn for this long loses its partitions."
    )
    batch_rows: int = Field(200_000, ge=1, le=5_000_000, description="Commit at the latest at this many messages.")
    batch_bytes: int = Field(
        96 * _MIB, ge=1, le=4096 * _MIB, description="Commit at the latest at this many bytes of message values."
    )
    batch_age_seconds: float = Field(
        5.0, gt=0.0, le=60.0, description="Commit at the latest this long after the first message of a batch arrived."
    )
    poll_messages: int = Field(2_000, ge=1, le=1_000_000, description="Most messages taken from the client at once.")
    poll_timeout_seconds: float = Field(
        0.25, gt=0.0, le=5.0, description="Longest wait for messages; also how fast a stop is noticed."
    )
    read_columns: bool = Field(
        True,
        description="Read messages straight into columns, by calling librdkafka itself; when off, or where that cannot be "
        "done, as Python objects, for about a fifth more CPU.",
    )
    prefetch_bytes: int = Field(
        64 * _MIB, ge=_MIB, le=2048 * _MIB, description="Most bytes the Kafka client fetches ahead of the writer."
    )
    drain_seconds: float = Field(
        20.0, gt=0.0, le=600.0, description="Time for the last commit and for closing after a stop or a revocation."
    )
    dead_letter_share: float = Field(
        0.2, ge=0.0, le=1.0, description="Stop when more than this share of messages cannot be read."
    )
    dead_letter_min_messages: int = Field(
        1_000, ge=1, description="Messages to have seen before the share of dead letters is judged."
    )
    dead_letter_timeout_seconds: float = Field(
        30.0, gt=0.0, le=600.0, description="Longest wait for the acknowledgement of dead letters before trying again."
    )
    min_free_bytes: int = Field(
        256 * _MIB, ge=0, description="Take in no more while the lake's disk has less room than this; resume after."
    )
    retry_seconds: float = Field(
        1.0, gt=0.0, le=60.0, description="Wait between attempts to commit a batch that could not be written."
    )
    outage_seconds: float = Field(
        600.0,
        gt=0.0,
        le=86_400.0,
        description="Stop when no commit succeeded for this long; a full disk is waited out.",
    )
    rejoin_seconds: float = Field(
        0.5,
        ge=0.0,
        le=60.0,
        description="Wait before joining the group again after a refused commit; doubles up to 16 x.",
    )
    late_days: float = Field(
        400.0,
        ge=7.0,
        description="How far back the end of a record is looked up that arrives more than a week after it was written: longer "
        "than anything that delivers again (topics, archives, lagging hosts) keeps it.",
    )
    report_seconds: float = Field(1.0, gt=0.0, le=60.0, description="Interval of status reports.")

    @model_validator(mode="after")
    def _drain_fits(self) -> WriterConfig:
        if self.drain_seconds >= self.max_poll_interval_seconds:
            raise ValueError(
                "drain_seconds must be smaller than max_poll_interval_seconds, or the broker gives up first"
            )
        if self.batch_age_seconds >= self.max_poll_interval_seconds:
            raise ValueError("batch_age_seconds must be smaller than max_poll_interval_seconds")
        return self


class MaintenanceConfig(_Settings):
    """The maintenance process: rolling, erasure, retention, clean-up."""

    interval_seconds: float = Field(15.0, gt=0.0, le=86_400.0, description="Pause between two runs.")
    close_after_seconds: float = Field(
        120.0, ge=0.0, description="An hour is closed this long after its end on the clock of the newest event."
    )
    late_seconds: float = Field(
        300.0, ge=0.0, description="Late files of an hour that was rolled already wait this long to be merged together."
    )
    small_files: int = Field(
        32, ge=2, le=10_000, description="Merge the small files of an open hour of a table when there are this many."
    )
    unlink_after_seconds: float = Field(
        900.0, ge=0.0, description="Retired files stay for this long, for readers that still use their version."
    )
    orphan_after_seconds: float = Field(
        21_600.0, ge=0.0, description="Files of a crashed commit are removed at this age; longer than any commit takes."
    )
    retention_days: float | None = Field(
        None, gt=0.0, description="Rows older than this leave the lake; none keeps everything for ever."
    )
    keep_edits: bool = Field(
        False, description="Keep the content of records that were edited later (never of deleted ones)."
    )
    history_days: float = Field(
        7.0, ge=0.0, description="Versions of the last days are all kept for as-of queries; of older ones one an hour."
    )
    erase_seconds: float = Field(
        60.0,
        ge=0.0,
        description="Pause between two erasure passes over all files, and at least four times as long as a pass took "
        "(0 = none); deletions hide in answers at once.",
    )
    rollup_seconds: float = Field(
        60.0, ge=0.0, description="Pause between two searches for closed hours whose roll-ups are missing or outdated."
    )
    index_texts: bool = Field(
        True,
        description="Whether rolled files of posts get side files that let a search for a rare word pass them over.",
    )
    index_accounts: bool = Field(
        True,
        description="Whether rolled files get side files that tell which accounts they have rows of, and how many.",
    )
    index_engagement: bool = Field(
        True,
        description="Whether rolled files get side files that tell how often posts are liked, reposted and answered at most, so "
        "that the most liked ones of a month are found without reading every like.",
    )
    run_seconds: float = Field(
        120.0, gt=0.0, description="No step of a run begins after this long; the next run goes on."
    )
    rolls_per_run: int = Field(200, ge=1, description="Most table-hours rolled in one run.")
    clean_seconds: float = Field(
        600.0, ge=0.0, description="Pause between two searches for orphans and hours past their retention."
    )


class ReplayConfig(_Settings):
    """Reprocessing of topics."""

    chunk_rows: int = Field(200_000, ge=1, le=5_000_000, description="Messages decoded at once.")
    idle_seconds: float = Field(
        30.0, gt=0.0, le=600.0, description="Give up when the broker delivers nothing for this long."
    )
    lock_seconds: float = Field(
        300.0, ge=0.0, le=3600.0, description="Longest wait for a maintenance run to end before the swap."
    )

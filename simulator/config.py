"""Settings of the simulator; one frozen model, every field with description, default and bounds."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from simulator.scenarios import Scenarios

MAX_RATE = 1_000_000.0


class SimulatorSettings(BaseModel):
    """What the synthetic network looks like and how it is served. The defaults suit `make demo`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(
        1, ge=0, le=2**63 - 1, description="Seed of everything random; the same seed gives the same network."
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(6008, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    data_dir: Path = Field(Path(".local/simulator"), description="Folder of the log and the ledger; survives restarts.")
    rate: float = Field(
        350.0,
        ge=0.0,
        le=MAX_RATE,
        description="Live events per real second; a value out of reach means as fast as it can.",
    )
    history_hours: float = Field(
        3.0, ge=0.0, le=24 * 60, description="Hours of history made at the first start, ending now."
    )
    history_rate: float = Field(30.0, gt=0.0, le=5000.0, description="Events per simulated second in the history.")
    max_events: int | None = Field(
        None, ge=0, description="Stop generating (not serving) when the log holds this many events, history included."
    )
    speed: float = Field(
        1.0, gt=0.0, le=10_000.0, description="Simulated seconds per real second; changes time stamps, not the rate."
    )
    clock_start: dt.datetime | None = Field(
        None, description="Simulated time at which the live part begins; None means the real time of the first start."
    )
    accounts: int = Field(200_000, ge=100, le=5_000_000, description="Accounts that exist at any one time.")
    live_records: int = Field(
        50_000, ge=100, le=2_000_000, description="Records per collection remembered as targets of deletes and updates."
    )
    first_seq: int = Field(1, ge=1, le=10**14, description="Sequence number of the first event of a new log.")
    malformed_share: float = Field(
        0.0,
        ge=0.0,
        le=0.5,
        description="Share of frames that are broken on the wire; the ledger counts them as malformed.",
    )
    content_cids: bool = Field(
        True,
        description="Compute each record's real CID from its DAG-CBOR form, as the archive needs; random CIDs are a third faster.",
    )
    v1_cursor: bool = Field(
        True, description="Whether v1 events carry the `cursor` member (the v2 software does, legacy does not)."
    )
    cursor_lookback_hours: float = Field(
        36.0,
        ge=0.0,
        le=24 * 365,
        description="Retention for cursors; the floor is a whole segment. 0 ignores all cursors.",
    )
    segment_events: int = Field(
        65_536, ge=16, le=10_000_000, description="Events per log segment, which is sealed when full."
    )
    tick_seconds: float = Field(0.05, gt=0.0, le=5.0, description="How often live events are generated.")
    ping_seconds: float = Field(30.0, gt=0.0, le=3600.0, description="Time between pings of the server.")
    deadline_seconds: float = Field(
        5.0,
        gt=0.0,
        le=600.0,
        description="Deadline of a pong, and of progress in a write; missing either drops the connection.",
    )
    cache_megabytes: int = Field(64, ge=1, le=4096, description="Memory for recently served blocks of frames.")
    max_subscribers: int = Field(
        100, ge=1, le=10_000, description="WebSocket connections served at a time; more get 503."
    )
    checkpoint_seconds: float = Field(
        30.0,
        gt=0.0,
        le=3600.0,
        description="Time between writes of the generator's state; after a crash the rest is read from the log.",
    )
    plan_entries: int = Field(
        100_000, ge=1, le=100_000, description="Work entries after which a page of planSnapshot ends."
    )
    api_key: str = Field(
        "", max_length=200, description="API key that archive requests must bring; empty asks for none."
    )
    legacy: bool = Field(
        False,
        description="Behave as the pre-2026 software: v1 only, timestamp cursors only, no `cursor` member, no archive.",
    )
    scenarios: tuple[str, ...] = Field(
        (),
        description="Scenarios switched on at start, as `name` or `name:every=1000,count=1`; see simulator/scenarios.py.",
    )

    @field_validator("scenarios")
    @classmethod
    def _known_scenarios(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        Scenarios(0, value)
        return value

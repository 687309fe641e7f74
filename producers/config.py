"""Settings of the source and of the producer process: frozen values, built once, passed down."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

PUBLIC_HOSTS = (
    "wss://jetstream.us-east.bsky.network",
    "wss://jetstream.us-west.bsky.network",
    "wss://jetstream1.us-east.bsky.network",
    "wss://jetstream2.us-west.bsky.network",
)
_NSID_PATTERN = re.compile(
    r"[a-zA-Z](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*(?:\.\*|\.[a-zA-Z][a-zA-Z0-9]{0,62})"
)
_DID_PATTERN = re.compile(r"did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]")

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class ArchiveSettings(BaseModel):
    """The archive of a v2 server, from which gaps can be filled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    automatic: bool = Field(default=False, description="fill gaps in the background as soon as they are noticed")
    url: str | None = Field(
        default=None, description="server with the archive, https://host; without one, the host that has the gap"
    )
    key: SecretStr | None = Field(
        default=None, description="API key, sent as a bearer token; self-hosted servers need none"
    )
    bytes_per_second: int = Field(
        default=1_500_000, ge=1_000, le=1_000_000_000, description="download rate that is not exceeded on average"
    )
    timeout: Seconds = Field(default=60.0, description="seconds without progress after which a request is repeated")
    attempts: int = Field(
        default=8, ge=1, le=1_000, description="attempts for one request before giving the gap up for now"
    )
    max_segment_bytes: int = Field(
        default=1 << 30, ge=1 << 20, le=1 << 36, description="largest segment file downloaded, into a temporary folder"
    )


class SourceSettings(BaseModel):
    """Where events come from and how they are asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hosts: tuple[str, ...] = Field(
        default=PUBLIC_HOSTS,
        min_length=1,
        max_length=32,
        description="Jetstream servers in order of preference, ws://host[:port] or wss://host[:port]",
    )
    protocol: Literal["auto", "v1", "v2"] = Field(
        default="auto", description="wire to speak; auto tries v2 first and v1 on a server that lacks it"
    )
    start: str = Field(
        default="live",
        description="where a producer without a cursor begins: live, oldest, or an RFC 3339 time with offset",
    )
    compression: Literal["none", "zstd"] = Field(
        default="none", description="zstd asks the server for compressed frames (v1 also needs dictionary)"
    )
    dictionary: Path | None = Field(
        default=None, description="file with the v1 zstd dictionary; v2 fetches its own from the server"
    )
    authorization: SecretStr | None = Field(
        default=None, description="value of an Authorization header for the websocket, if the server asks for one"
    )
    ca_file: Path | None = Field(
        default=None,
        description="file of PEM certificate authorities that wss:// servers may have, beside the system's",
    )
    collections: tuple[str, ...] = Field(
        default=(), max_length=100, description="only these record collections (NSID or prefix.*); empty = all"
    )
    dids: tuple[str, ...] = Field(default=(), max_length=10_000, description="only these accounts; empty = all")
    kinds: tuple[Literal["commit", "identity", "account", "sync"], ...] = Field(
        default=(), max_length=4, description="only these kinds of event (v2 only); empty = all"
    )
    max_message_bytes: int = Field(
        default=0, ge=0, le=2**32 - 1, description="ask the server to leave out larger events; 0 = none left out"
    )
    max_frame_bytes: int = Field(
        default=32 * 1024 * 1024, ge=1024 * 1024, le=1024**3, description="largest frame accepted, decompressed"
    )
    open_timeout: Seconds = Field(default=10.0, description="seconds for DNS, TCP, TLS and upgrade together")
    close_timeout: Seconds = Field(default=2.0, description="seconds to wait for the server's close frame")
    ping_interval: Seconds = Field(default=20.0, description="seconds between pings of ours")
    silence_timeout: Seconds = Field(
        default=30.0, description="seconds without an event (with a filter: without any byte) until reconnecting"
    )
    backoff_first: Seconds = Field(default=0.25, description="seconds before the second attempt to connect")
    backoff_longest: Seconds = Field(default=30.0, description="longest wait between attempts")
    failures_before_switch: int = Field(
        default=3, ge=1, le=1000, description="failed attempts in a row before the next host is tried"
    )
    return_after: Seconds = Field(
        default=600.0, description="seconds on another host before the preferred one is tried again"
    )
    switch_margin: Annotated[float, Field(ge=60, le=7200)] = Field(
        default=300.0, description="seconds of history asked for again on another host, or after a sequence was lost"
    )
    gap_tolerance: Seconds = Field(
        default=10.0, description="seconds between the resumed position and the first event that are no gap yet"
    )
    quiet_limit: Seconds = Field(
        default=43_200.0,
        description="with a filter: seconds without an event after which the time of listening replaces the sequence",
    )

    archive: ArchiveSettings = Field(default=ArchiveSettings(), description="filling gaps from a server's archive")

    @field_validator("hosts")
    @classmethod
    def _usable_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for url in hosts:
            try:
                parts = urlsplit(url)
                fits = parts.scheme in ("ws", "wss") and bool(parts.hostname) and not parts.query and not parts.fragment
                _ = parts.port
            except ValueError:
                fits = False
            if not fits:
                raise ValueError(f"{url!r} is not a source: use ws://host:port or wss://host")
            if parts.username or parts.password:
                raise ValueError(f"the source {parts.hostname!r} carries a password in its URL: use authorization")
        if len(set(hosts)) != len(hosts):
            raise ValueError("a host is listed twice")
        return hosts

    @field_validator("start")
    @classmethod
    def _known_start(cls, start: str) -> str:
        if start not in ("live", "oldest"):
            try:
                moment = datetime.fromisoformat(start)
            except ValueError:
                raise ValueError(f"{start!r} is neither live, oldest nor an RFC 3339 time") from None
            if moment.tzinfo is None:
                raise ValueError(f"{start!r} has no offset: write 2026-07-04T00:00:00Z")
        return start

    @field_validator("collections")
    @classmethod
    def _valid_collections(cls, collections: tuple[str, ...]) -> tuple[str, ...]:
        for collection in collections:
            if _NSID_PATTERN.fullmatch(collection) is None:
                raise ValueError(f"{collection!r} is neither a collection nor prefix.*")
        return collections

    @field_validator("dids")
    @classmethod
    def _valid_dids(cls, dids: tuple[str, ...]) -> tuple[str, ...]:
        for did in dids:
            if _DID_PATTERN.fullmatch(did) is None:
                raise ValueError(f"{did!r} is not a DID")
        return dids

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.collections and self.kinds and "commit" not in self.kinds:
            raise ValueError("collections constrains commits, but kinds leaves commits out")
        if self.kinds and self.protocol == "v1":
            raise ValueError("kinds is a filter of v2; v1 always sends commits, identities and accounts")
        if self.compression == "zstd" and self.protocol == "v1" and self.dictionary is None:
            raise ValueError("zstd on v1 needs dictionary: the path of the dictionary file")
        if self.backoff_first > self.backoff_longest:
            raise ValueError("backoff_first is longer than backoff_longest")
        return self

    @property
    def is_filtered(self) -> bool:
        """Whether long silence can be normal, because not all events are asked for."""
        return bool(self.collections or self.dids or self.kinds)


class ProducerSettings(BaseModel):
    """How events are handed to the broker and how the process stops."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_events: int = Field(
        default=2_000, ge=1, le=100_000, description="events per tracked batch (cursor step, trace span)"
    )
    batch_seconds: Annotated[float, Field(gt=0, le=10)] = Field(
        default=0.2, description="longest time a tracked batch stays open"
    )
    queue_events: int = Field(
        default=200_000, ge=1_000, le=10_000_000, description="unacknowledged events held; full = disconnect"
    )
    queue_mebibytes: int = Field(
        default=128, ge=8, le=2_048, description="memory for unacknowledged events; full = disconnect"
    )
    delivery_timeout: Annotated[float, Field(ge=5, le=3_600)] = Field(
        default=300.0, description="seconds until an unacknowledged event is given up and read again from the source"
    )
    cursor_interval: Annotated[float, Field(ge=0.1, le=60)] = Field(
        default=1.0, description="seconds between stored cursors"
    )
    cursor_timeout: Annotated[float, Field(ge=1, le=300)] = Field(
        default=30.0, description="seconds for reading the stored cursors at start"
    )
    shutdown_timeout: Annotated[float, Field(ge=1, le=300)] = Field(
        default=15.0, description="seconds from the request to stop until the process gives up waiting for the broker"
    )
    dead_letter_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2, description="share of bad frames among the last dead_letter_window that stops the producer"
    )
    dead_letter_window: int = Field(
        default=5_000, ge=100, le=1_000_000, description="frames over which dead_letter_share is measured"
    )

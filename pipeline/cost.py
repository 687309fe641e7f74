"""What running it costs: from events a day and bytes per event to disks, transfer and a monthly bill.

Prices are Hetzner's net list prices in euro a month, of November 2026 (docs/operations.md says how to renew them); pure
arithmetic, no look-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

PRICES_OF = "2026-11"
IPV4 = 0.50
BACKUP_SHARE = 0.20
VOLUME_PER_GB = 0.0572
BUCKET_BASE = 6.49
BUCKET_INCLUDED_TB = 1.0
BUCKET_PER_TB = 6.35
DOLLARS_PER_EURO = 1.1133
DAYS_PER_MONTH = 30.4
# What the system, the programs, the broker's spare room and a day of growth need beside the data.
RESERVED_GB = 15.0


@dataclass(frozen=True)
class Server:
    """One server type: cores, memory and disk in GB, price in euro a month."""

    name: str
    cores: int
    memory_gb: int
    disk_gb: int
    price: float


SERVERS = {
    server.name: server
    for server in (
        Server("cx33", 4, 8, 80, 8.49),
        Server("cx43", 8, 16, 160, 15.99),
        Server("cx53", 16, 32, 320, 29.49),
        Server("cax31", 8, 16, 160, 20.99),
        Server("cax41", 16, 32, 320, 40.99),
        Server("cpx22", 2, 4, 80, 19.49),
        Server("cpx32", 4, 8, 160, 35.49),
        Server("ccx13", 2, 8, 80, 42.99),
    )
}


@dataclass(frozen=True)
class Load:
    """What has to be kept. `topic_bytes_per_event` is what the broker's disk needs per event, compressed."""

    events_per_day: float
    bytes_per_event: float
    lake_days: float
    hot_days: float
    topic_days: float
    topic_bytes_per_event: float


@dataclass(frozen=True)
class Bill:
    """Sizes in GB, money in euro a month."""

    server: str
    lake_gb_per_day: float
    lake_gb: float
    hot_gb: float
    topics_gb: float
    volume_gb: int
    bucket_tb: float
    server_price: float
    ipv4_price: float
    backup_price: float
    volume_price: float
    bucket_price: float

    @property
    def total(self) -> float:
        """Euro a month."""
        return self.server_price + self.ipv4_price + self.backup_price + self.volume_price + self.bucket_price

    @property
    def dollars(self) -> float:
        """US dollars a month at the rate of the price list's month."""
        return self.total * DOLLARS_PER_EURO


def bill(load: Load, server: Server, *, bucket: bool, backups: bool) -> Bill:
    """The monthly bill of one server that holds `load`.

    With `bucket` the lake beyond its hot days lies in object storage, otherwise all of it on the server's disk and a
    volume, which is made as large as needed in steps of 10 GB.
    """
    per_day = load.events_per_day * load.bytes_per_event / 1e9
    lake_gb = per_day * load.lake_days
    hot_gb = per_day * min(load.hot_days, load.lake_days) if bucket else lake_gb
    topics_gb = load.events_per_day * load.topic_bytes_per_event * load.topic_days / 1e9
    lacking = hot_gb + topics_gb + RESERVED_GB - server.disk_gb
    volume = math.ceil(max(lacking, 0) / 10) * 10
    bucket_tb = lake_gb / 1000 if bucket else 0.0
    return Bill(
        server=server.name,
        lake_gb_per_day=per_day,
        lake_gb=lake_gb,
        hot_gb=hot_gb,
        topics_gb=topics_gb,
        volume_gb=volume,
        bucket_tb=bucket_tb,
        server_price=server.price,
        ipv4_price=IPV4,
        backup_price=server.price * BACKUP_SHARE if backups else 0.0,
        volume_price=volume * VOLUME_PER_GB,
        bucket_price=BUCKET_BASE + max(bucket_tb - BUCKET_INCLUDED_TB, 0) * BUCKET_PER_TB if bucket else 0.0,
    )

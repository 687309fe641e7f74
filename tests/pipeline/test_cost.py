"""Costs: the arithmetic of the reference's option A, and what must hold for any load."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cost import SERVERS, VOLUME_PER_GB, Load, bill


def test_the_planned_load_in_a_bucket_costs_what_the_reference_says() -> None:
    load = Load(8.1e6, 100, 365, 30, 7, 140)
    found = bill(load, SERVERS["cx43"], bucket=True, backups=True)
    assert found.volume_gb == 0
    assert found.total == pytest.approx(26.18, abs=0.01)


def test_what_does_not_fit_goes_to_a_volume() -> None:
    found = bill(Load(8.1e6, 100, 365, 30, 0, 0), SERVERS["cx43"], bucket=False, backups=False)
    assert found.hot_gb == pytest.approx(295.65)
    assert found.volume_gb == 160
    assert found.volume_price == pytest.approx(160 * VOLUME_PER_GB)


@given(
    events=st.floats(0, 1e9),
    size=st.floats(1, 1000),
    days=st.floats(0, 4000),
    hot=st.floats(0, 400),
    topic_days=st.floats(0, 60),
    server=st.sampled_from(list(SERVERS.values())),
    bucket=st.booleans(),
    backups=st.booleans(),
)
def test_disks_hold_the_data_and_more_data_never_costs_less(
    events: float, size: float, days: float, hot: float, topic_days: float, server: object, bucket: bool, backups: bool
) -> None:
    found = bill(Load(events, size, days, hot, topic_days, 140), server, bucket=bucket, backups=backups)  # type: ignore[arg-type]
    assert found.volume_gb + SERVERS[found.server].disk_gb + 1e-6 >= min(found.hot_gb, found.lake_gb) + found.topics_gb
    more = bill(Load(events * 2, size, days, hot, topic_days, 140), server, bucket=bucket, backups=backups)  # type: ignore[arg-type]
    assert more.total >= found.total

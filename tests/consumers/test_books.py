"""The books: consumed = rows + duplicates + dead letters, rows = what the files hold; whatever breaks that is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from consumers import maintenance, prepare
from consumers.config import MaintenanceConfig
from consumers.decode import Decoded, TopicRecords, decode
from consumers.errors import Unaccounted
from lake.manifest import Manifest, open_manifest
from lake.manifest.sql import SqlManifest
from lake.store import LakeStore
from pipeline.cli import cli
from schemas.telemetry import METRICS
from tests.consumers.local import commit
from tests.consumers.support import HOUR_US, START_US, events

NEVER = 1 << 62
GAUGE = "explorer.lake.unreconciled"


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return open_manifest(str(tmp_path / "manifest.sqlite"), create=True)


@pytest.fixture
def store(tmp_path: Path) -> LakeStore:
    return LakeStore(tmp_path / "lake")


def test_a_message_that_vanishes_in_decoding_stops_the_commit(
    store: LakeStore, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect of ours that loses a row before the books begin must not look like an event that never was."""

    def forgetful(records: TopicRecords, *rest: Any) -> Decoded:
        decoded = decode(records, *rest)
        return Decoded([frame.head(frame.height - 1) for frame in decoded.frames], decoded.bad)

    made = events(300)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "decode", forgetful)
        with pytest.raises(
            Unaccounted, match=r"(\d+) messages of bluesky\.\S+ gave \d+ rows and 0 dead letters"
        ) as told:
            commit(store, manifest, made)
    assert "stay in Kafka" in told.value.remedy
    assert manifest.snapshot().version == 0
    commit(store, manifest, made)
    hours = manifest.reconciliation(0, NEVER)
    assert sum(hour.consumed for hour in hours) == len(made)
    assert all(hour.closes for hour in hours)


@pytest.mark.parametrize("damage", ["a file is gone from the manifest", "a message was counted and is nowhere"])
def test_books_that_do_not_close_raise_the_alert_metric(
    store: LakeStore, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("test")
    monkeypatch.setattr(maintenance, "_unreconciled", meter.create_gauge(GAUGE))
    monkeypatch.setenv("EXPLORER_LAKE", str(store.root))
    monkeypatch.setenv("EXPLORER_MANIFEST", str(tmp_path / "manifest.sqlite"))
    made = events(900, span_us=2 * HOUR_US)
    # The second half comes twice.
    commit(store, manifest, made)
    commit(store, manifest, made[450:])

    def alarm() -> tuple[int, Any]:
        service = maintenance.MaintenanceService(
            MaintenanceConfig(clean_seconds=0.0), manifest, store, lambda facts: None
        )
        service._check_books(START_US + 3 * HOUR_US)
        found = reader.get_metrics_data()
        assert found is not None
        (metric,) = found.resource_metrics[0].scope_metrics[0].metrics
        assert metric.name == GAUGE
        assert GAUGE in METRICS
        return service.counts.unreconciled, metric.data.data_points[0].value

    assert alarm() == (0, 0)
    report = CliRunner().invoke(cli, ["lake", "report", "--since", "9d", "--hours"], catch_exceptions=False)
    assert report.exit_code == 0, report.output
    assert isinstance(manifest, SqlManifest)
    with manifest._transaction() as cursor:
        if damage.startswith("a file"):
            victim = manifest.snapshot().files("app.bsky.feed.like")[0].path
            cursor.execute("DELETE FROM files WHERE path = ?", (victim,))
        else:
            cursor.execute("UPDATE counts SET consumed = consumed + 1 WHERE topic = 'bluesky.app.bsky.feed.like'")
    hours = 1 if damage.startswith("a file") else 2
    assert alarm() == (hours, hours)
    report = CliRunner().invoke(cli, ["lake", "report", "--since", "9d", "--hours"], catch_exceptions=False)
    assert report.exit_code == 1
    assert report.output.count("DOES NOT CLOSE") == hours
    assert f"{hours} do not close" in report.output

"""Maintenance makes the engagement index of rolled files and keeps it up to date."""

from __future__ import annotations

import threading
from pathlib import Path

from lake import named_keys
from lake.manifest import HOUR_US
from tests.consumers.conftest import Lake
from tests.consumers.support import START_US, events
from tests.consumers.test_maintenance import maintenance
from tests.consumers.test_rollups import LIKE, POST, record, uri, write


def _side_files(lake: Lake) -> set[str]:
    folder = Path(lake.root) / named_keys.FOLDER
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_side_files_follow_the_rolled_files(lake: Lake) -> None:
    when = {"createdAt": "2026-11-23T00:00:00.000Z"}
    later = events(5, start_us=START_US + 3 * HOUR_US, span_us=1_000_000)
    liked = [record(number, "did:plc:b", LIKE, {**when, "subject": uri("did:plc:a", 1)}) for number in range(2, 5)]
    write(lake, [record(1, "did:plc:a", POST, {"text": "x", **when}), *liked, *later])
    maintenance(lake, rollup_seconds=0.0, index_engagement=False).run_once(threading.Event())
    assert _side_files(lake) == set()
    service = maintenance(lake, rollup_seconds=0.0)
    service.run_once(threading.Event())

    def wanted() -> set[str]:
        snapshot = lake.manifest.snapshot()
        rolled = [file for table in named_keys.NAMING for file in snapshot.files(table) if file.kind == "rolled"]
        return {f"{file.sha256}.named" for file in rolled} | {
            f"{file.sha256}.bounds" for file in rolled if file.table == POST
        }

    before = wanted()
    assert before
    assert _side_files(lake) == before
    assert service.counts.engagement_indexed + service.counts.bounds_made == len(before)

    write(lake, [record(6, "did:plc:c", LIKE, {**when, "subject": uri("did:plc:a", 1)})])
    service.run_once(threading.Event())
    assert wanted() != before
    assert _side_files(lake) == wanted()

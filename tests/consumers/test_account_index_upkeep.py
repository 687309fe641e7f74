"""Maintenance gives every rolled file its side file of accounts, and takes away those of files that went: what was erased is
counted nowhere any more."""

from __future__ import annotations

import threading
from pathlib import Path

from lake import account_index
from lake.account_index import AccountIndex, Activity
from lake.manifest import HOUR_US, LiveFile
from tests.consumers.conftest import Lake
from tests.consumers.support import START_US, events
from tests.consumers.test_maintenance import maintenance
from tests.consumers.test_rollups import POST, record, write

LIKE = "app.bsky.feed.like"


def _side_files(lake: Lake) -> set[str]:
    return {path.stem for path in (Path(lake.root) / account_index.FOLDER).iterdir()}


def _rolled(lake: Lake) -> list[LiveFile]:
    snapshot = lake.manifest.snapshot()
    return [file for table in snapshot.tables() for file in snapshot.files(table) if file.kind == "rolled"]


def _activity(lake: Lake, did: str) -> list[Activity]:
    index = AccountIndex(Path(lake.root))
    found = [index.activity(file, did) for file in _rolled(lake)]
    assert None not in found
    return [one for parts in found for one in parts or ()]


def test_side_files_follow_the_rolled_files(lake: Lake) -> None:
    later = events(5, start_us=START_US + 3 * HOUR_US, span_us=1_000_000)
    texts = {"text": "some text", "createdAt": "2026-11-23T00:00:00.000Z"}
    liked = {
        "subject": {
            "uri": f"at://did:plc:b/{POST}/3l",
            "cid": "bafyreihhzyo63cwyg7lxfvkepu4m6zhnl6dqwm4iq6rzjxjj4hqsg6hxza",
        },
        "createdAt": "2026-11-23T00:00:00.000Z",
    }
    write(
        lake,
        [
            record(0, "did:plc:a", POST, texts),
            record(1, "did:plc:a", POST, texts),
            record(2, "did:plc:a", LIKE, liked),
            *later,
        ],
    )
    maintenance(lake, rollup_seconds=0.0, index_accounts=False).run_once(threading.Event())
    assert _rolled(lake)
    assert not (Path(lake.root) / account_index.FOLDER).exists()
    service = maintenance(lake, rollup_seconds=0.0)
    service.run_once(threading.Event())
    before = _rolled(lake)
    assert service.counts.accounts_indexed == len(before)
    assert _side_files(lake) == {file.sha256 for file in before}
    assert _activity(lake, "did:plc:a") == [Activity(LIKE, 1, 0, 0, 1), Activity(POST, 2, 0, 0, 2)]
    assert _activity(lake, "did:plc:z") == []

    # The first post is deleted: maintenance merges the deletion and erases what it ends.
    write(lake, [record(5, "did:plc:a", POST, None, "delete")])
    service.run_once(threading.Event())
    after = _rolled(lake)
    assert {file.sha256 for file in after} != {file.sha256 for file in before}
    assert _side_files(lake) == {file.sha256 for file in after}
    assert _activity(lake, "did:plc:a") == [Activity(LIKE, 1, 0, 0, 1), Activity(POST, 2, 0, 1, 1)]

    (Path(lake.root) / account_index.FOLDER / "in-the-way").mkdir()
    service.run_once(threading.Event())
    assert service.counts.failures == 1
    assert service.counts.runs == 3, "what goes wrong here stops nothing else"

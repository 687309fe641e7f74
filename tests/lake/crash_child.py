"""A process that works on a lake until EXPLORER_CRASHPOINT kills it; started by test_crash_points."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from support import HOUR, LIKE, POST, START, Writer, account_row, commit_row, lake_rows

from lake.erase import erase
from lake.manifest import open_manifest
from lake.replay import Staging, plan_replay, replace
from lake.retire import unlink_retired
from lake.roll import roll_hour
from lake.steps import hook_from_environment
from lake.store import LakeStore

BATCHES = 3


def events(batch: int) -> dict[str, list[dict[str, object]]]:
    """Each batch holds two topics and two hours."""
    start = START + batch * 1000
    return {
        "post": [commit_row(POST, who, start + who) for who in range(5)],
        "like": [commit_row(LIKE, who, start + hour * HOUR + who) for hour in (0, 1) for who in range(5)],
    }


def replayed() -> list[dict[str, object]]:
    """All likes of the partition in their order, as code reads them that knows better: one more in hour 2, none in hour 1."""
    rows = [row for batch in range(BATCHES) for row in events(batch)["like"]]
    return [row if int(str(row["time_us"])) < START + HOUR else moved(row) for row in rows]


def moved(row: dict[str, object]) -> dict[str, object]:
    """The same event, an hour later."""
    return row | {"time_us": int(str(row["time_us"])) + HOUR}


def main(root: str, url: str, work: str) -> None:
    """Does all of `work`; a restarted process goes on where the manifest says."""
    hook = hook_from_environment(os.environ)
    store = LakeStore(root)
    manifest = open_manifest(url, create=True, hook=hook)
    with manifest.hold("writer", "child"):
        store.sweep("w1")
        writer = Writer(store, manifest)
        if work == "ingest":
            first = writer.positions[("bluesky." + POST, 0)].next_offset // 5
            for batch in range(first, BATCHES):
                writer.write(hook, **events(batch))
        if work == "maintain":
            for table in (POST, LIKE):
                roll_hour(store, manifest, table, START, hook=hook)
            if not manifest.snapshot().files("account"):
                writer.write(account=[account_row(1, START + 9 * HOUR, "deleted")])
            erase(store, manifest, hook=hook)
            unlink_retired(store, manifest, 1 << 62, hook=hook)
        if work == "replay":
            plan = plan_replay(manifest, LIKE, START, START + 3 * HOUR)
            plan = dataclasses.replace(plan, hours=(START, START + HOUR, START + 2 * HOUR))
            staging = Staging(store, plan)
            staging.add(lake_rows(LIKE, replayed(), 0, 0), {0: plan.ranges[0].end})
            replace(store, manifest, staging, hook=hook)
    manifest.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

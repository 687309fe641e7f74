"""Maintenance gives every rolled file of posts its side file for searches, and takes away those of files that went."""

from __future__ import annotations

import threading
from pathlib import Path

from api.text_skip import required
from lake import text_index
from lake.manifest import HOUR_US
from tests.consumers.conftest import Lake
from tests.consumers.support import START_US, Event, events
from tests.consumers.test_maintenance import maintenance
from tests.consumers.test_rollups import POST, record, write


def _side_files(lake: Lake) -> set[str]:
    return {path.stem for path in (Path(lake.root) / text_index.FOLDER).iterdir()}


def _post(number: int, text: str) -> Event:
    return record(number, "did:plc:a", POST, {"text": text, "createdAt": "2026-11-23T00:00:00.000Z"})


def test_side_files_follow_the_rolled_files(lake: Lake) -> None:
    later = events(5, start_us=START_US + 3 * HOUR_US, span_us=1_000_000)
    write(lake, [_post(1, "zeitgeist of today"), _post(2, "sourdough"), *later])
    maintenance(lake, rollup_seconds=0.0, index_texts=False).run_once(threading.Event())
    assert not (Path(lake.root) / text_index.FOLDER).exists()
    service = maintenance(lake, rollup_seconds=0.0)
    service.run_once(threading.Event())
    before = [file for file in lake.manifest.snapshot().files(POST) if file.kind == "rolled"]
    assert before
    assert service.counts.texts_indexed == len(before)
    assert _side_files(lake) == {file.sha256 for file in before}
    root = Path(lake.root)
    assert text_index.parts(root, before, required("zeitgeist"))
    assert not text_index.parts(root, before, required("monkeypox"))

    write(lake, [_post(3, "monkeypox")])
    service.run_once(threading.Event())
    after = [file for file in lake.manifest.snapshot().files(POST) if file.kind == "rolled"]
    assert {file.sha256 for file in after} != {file.sha256 for file in before}
    assert _side_files(lake) == {file.sha256 for file in after}
    assert text_index.parts(root, after, required("monkeypox"))

    (root / text_index.FOLDER / "in-the-way").mkdir()
    service.run_once(threading.Event())
    assert service.counts.failures == 1
    assert service.counts.runs == 3, "what goes wrong here stops nothing else"

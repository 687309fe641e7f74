"""Lakes and messages of every released layout, read by the present code: nothing that was written becomes unreadable."""

from __future__ import annotations

import json
import tarfile
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from api.config import ApiSettings
from api.service import ApiService
from lake.erase import erase
from lake.manifest import Manifest, open_manifest
from lake.rebuild import rebuild
from lake.retire import unlink_retired
from lake.roll import roll_hour
from lake.store import LakeStore
from lake.verify import verify
from pipeline.cli import cli
from tests.golden import reading
from tests.golden.make_release import commit

RELEASES = sorted(Path(__file__).with_name("releases").iterdir())
NEVER = 1 << 62


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


@pytest.fixture
def lake(release: Path, tmp_path: Path) -> Path:
    """A copy of the released lake that a test may change."""
    with tarfile.open(release / "lake.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def expected(release: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((release / "expected.json").read_text())
    return found


def messages_of(release: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((release / "messages.json").read_text())["messages"]
    return found


def registry_of(release: Path) -> dict[int, tuple[str, int]]:
    found = json.loads((release / "messages.json").read_text())["registry"]
    return {int(number): (name, version) for number, (name, version) in found.items()}


def same_content(store: LakeStore, manifest: Manifest, expected: dict[str, Any]) -> None:
    """Every event that has its content gives the source's frame; every other one keeps its identity and reason."""
    alive, erased = reading.frames(store, manifest)
    assert alive == expected["frames"]
    assert erased == expected["erased"]
    assert reading.current_posts(store, manifest) == expected["current_posts"]


def test_the_released_lake_is_read_as_it_was(lake: Path, expected: dict[str, Any]) -> None:
    with reading.opened(lake) as (store, manifest):
        same_content(store, manifest, expected)
        assert reading.books(manifest) == expected["books"]
        assert reading.positions(manifest) == expected["positions"]
        assert [gap.id for gap in manifest.gaps(0, NEVER)] == [gap["id"] for gap in expected["gaps"]]
        found = verify(store, manifest, deep=True, strays_older_than_us=NEVER)
    assert (found.findings, found.strays.orphans, found.strays.foreign) == ((), (), ())
    assert found.rows == len(expected["frames"]) + len(expected["erased"])


def test_messages_in_both_framings_are_decoded(release: Path, expected: dict[str, Any]) -> None:
    messages = messages_of(release)
    assert {one["value"][:2] for one in messages} == {"ww", "AA"}, "both framings are there, in base64"
    frames, bad = reading.message_frames(messages, registry_of(release))
    assert {"count": len(frames), "digest": reading.digest(frames), "bad": bad} == expected["message_frames"]
    assert all(frame in frames for frame in expected["frames"])


def test_maintenance_works_on_released_files(lake: Path, expected: dict[str, Any]) -> None:
    with reading.opened(lake) as (store, manifest):
        for table in manifest.snapshot().tables():
            for hour_us in sorted({file.hour_us for file in manifest.snapshot().files(table)}):
                roll_hour(store, manifest, table, hour_us)
        assert erase(store, manifest).complete
        unlink_retired(store, manifest, NEVER)
        alive, erased = reading.frames(store, manifest)
        # The deletion that was pending is applied, everything else is as it was.
        assert len(alive) < len(expected["frames"])
        assert [frame for frame in alive if frame not in expected["frames"]] == []
        assert len(alive) + len(erased) == len(expected["frames"]) + len(expected["erased"])
        assert reading.current_posts(store, manifest) == expected["current_posts"]
        assert verify(store, manifest, deep=True, strays_older_than_us=NEVER).findings == ()
        assert all(hour.closes for hour in manifest.reconciliation(0, NEVER))


def test_a_lost_manifest_is_rebuilt_from_released_files(lake: Path, release: Path, expected: dict[str, Any]) -> None:
    manifest = open_manifest(str(lake / "again.sqlite"), create=True)
    store = LakeStore(lake / "lake")
    found = rebuild(store, manifest)
    assert (found.incomplete, found.merged, found.damaged) == ((), (), ())
    same_content(store, manifest, expected)
    # Where the last messages of a partition were dropped, no file tells of them: they are read and dropped again.
    reached = reading.positions(manifest)
    behind = [one for one in messages_of(release) if one["offset"] >= reached[f"{one['topic']}/{one['partition']}"]]
    assert 0 < len(behind) < 5
    commit(store, manifest, behind, "writer-0", registry_of(release))
    same_content(store, manifest, expected)
    assert {key: max(at, reached[key]) for key, at in reading.positions(manifest).items()} == reading.positions(
        manifest
    )
    assert all(reading.positions(manifest)[key] >= at - 1 for key, at in expected["positions"].items())
    manifest.close()


def test_the_command_prints_the_source_frames(
    lake: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPLORER_LAKE", str(lake / "lake"))
    monkeypatch.setenv("EXPLORER_MANIFEST", str(lake / "manifest.sqlite"))
    with reading.opened(lake):
        # A manifest of an older layout is migrated by the first process that writes.
        pass
    result = CliRunner().invoke(cli, ["events", "--from", "lake"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    frames = [json.loads(line) for line in result.stdout.splitlines()]
    assert sorted(frames, key=lambda frame: json.dumps(frame, sort_keys=True)) == expected["frames"]


def test_the_api_answers_from_a_released_lake(lake: Path, expected: dict[str, Any]) -> None:
    with reading.opened(lake):
        pass
    settings = ApiSettings(port=0, state_dir=lake / "state", memory_limit_mb=256)
    service = ApiService(settings, str(lake / "lake"), str(lake / "manifest.sqlite"), lambda _: None)
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(stop,))
    thread.start()
    try:
        assert service.ready.wait(20)
        with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=60) as client:
            everything = client.get("/v1/search", params={"limit": 100}).json()["results"]
            words = client.get("/v1/search", params={"text": "open hour"}).json()["results"]
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    shown = [(did, text) for did, text in expected["current_posts"] if did not in hidden_accounts(expected)]
    assert len(shown) < len(expected["current_posts"]), "some account is suspended"
    assert sorted(((row["did"], row["text"]) for row in everything), key=repr) == shown
    assert sorted(row["text"] for row in words) == ["open hour 0", "open hour 1"]


def hidden_accounts(expected: dict[str, Any]) -> set[str]:
    """The accounts whose last state is not active."""
    states = [frame["payload"] for frame in expected["frames"] if "account" in frame["payload"]]
    newest = {state["did"]: state["account"]["active"] for state in sorted(states, key=lambda state: state["time"])}
    return {did for did, active in newest.items() if not active}


def test_the_layout_is_that_of_the_newest_release() -> None:
    newest = json.loads((max(RELEASES, key=_version) / "expected.json").read_text())["layout"]
    assert reading.layout() == newest, (
        "the columns of the lake's files changed: run `python -m tests.golden.make_release <version>` for the release that"
        " brings this, commit the folder, and raise TABLE_VERSION"
    )


def _version(release: Path) -> tuple[int, ...]:
    return tuple(map(int, release.name.split(".")))


def test_released_columns_are_never_dropped_or_retyped() -> None:
    now = reading.layout()
    for release in RELEASES:
        for table, columns in json.loads((release / "expected.json").read_text())["layout"].items():
            assert columns.items() <= now[table].items(), f"{table} of {release.name}"


def test_a_released_lake_goes_on_growing(lake: Path, release: Path, expected: dict[str, Any]) -> None:
    """The messages come again, as after a restart: every one of them is known."""
    again = [one | {"offset": one["offset"] + 10_000} for one in messages_of(release)]
    with reading.opened(lake) as (store, manifest):
        before = sum(hour.duplicates for hour in manifest.reconciliation(0, NEVER))
        commit(store, manifest, again, "writer-0", registry_of(release))
        same_content(store, manifest, expected)
        hours = manifest.reconciliation(0, NEVER)
        assert all(hour.closes for hour in hours)
        assert sum(hour.duplicates for hour in hours) == before + expected["message_frames"]["count"]


def test_a_release_is_small(release: Path) -> None:
    assert sum(file.stat().st_size for file in release.iterdir()) < 300_000

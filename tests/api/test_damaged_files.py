"""A file of the lake that is missing or torn: whoever asks for its hour is told, nobody gets a shorter answer in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.api.lake_builder import LakeBuilder, did


def missing(file: Path) -> None:
    file.unlink()


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-300])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [missing, torn, empty])
@pytest.mark.parametrize("path", ["/v1/search", "/v1/counts", "/v1/aggregate?by=lang", "/v1/search?text=hour"])
def test_one_damaged_file_among_others_is_an_error_for_its_hour_only(
    builder: LakeBuilder, client: httpx.Client, damage: Callable[[Path], None], path: str
) -> None:
    for hour in range(3):
        builder.post(did(hour), f"hour {hour}", langs=["en"])
        builder.commit()
        builder.tick(3600)
    builder.maintain()
    files = builder.manifest.snapshot().files("app.bsky.feed.post")
    assert len(files) == 3
    damage(builder.store.absolute(files[0].path))
    answer = client.get(path)
    assert answer.status_code == 503, answer.text
    assert "hour 2" not in answer.text
    assert answer.json()["detail"]
    # The hours beside it are answered.
    separator = "&" if "?" in path else "?"
    beside = client.get(f"{path}{separator}start=2026-03-01T11:00:00Z&end=2026-03-01T13:00:00Z&clock=arrival")
    assert beside.status_code == 200, beside.text

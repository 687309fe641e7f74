"""The web page in a real browser: what a person sees of a search, of a mistake and of a harmful post."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.api.conftest import MakeClient, builder, make_client
from tests.api.lake_builder import LakeBuilder, did

__all__ = ["builder", "make_client"]

BROWSER_SECONDS = 120
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def dom(url: str, profile: Path) -> str:
    """The page's document as the browser has it once its scripts have run."""
    browser = shutil.which("chromium")
    assert browser, "chromium is not installed: apt-get install chromium (make test installs it when run as root)"
    answer = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=20000", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=BROWSER_SECONDS,
        check=True,
    )
    return answer.stdout


@pytest.fixture
def posts(builder: LakeBuilder) -> LakeBuilder:
    builder.post(did(1), "a heron at dawn", langs=["en"])
    builder.post(did(2), "<img src=x onerror=\"document.title='owned'\"> heron", langs=["en"])
    gone = builder.post(did(3), "a heron that was deleted", langs=["en"])
    builder.post(did(3), "nothing of that kind", langs=["en"])
    builder.delete(gone["uri"])
    builder.commit()
    return builder


@pytest.mark.timeout(400)
def test_a_search_shows_its_posts_and_not_the_deleted_one(
    posts: LakeBuilder, make_client: MakeClient, tmp_path: Path
) -> None:
    page = dom(f"{make_client().base_url}/?text=heron", tmp_path / "profile")
    assert "a heron at dawn" in page
    assert "nothing of that kind" not in page
    assert "a heron that was deleted" not in page


@pytest.mark.timeout(400)
def test_a_post_with_markup_stays_text(posts: LakeBuilder, make_client: MakeClient, tmp_path: Path) -> None:
    page = dom(f"{make_client().base_url}/?text=heron", tmp_path / "profile")
    assert "&lt;img src=x onerror=" in page
    assert "<img src=x" not in page.lower()
    assert "<title>owned" not in page


@pytest.mark.timeout(400)
def test_a_mistake_is_named_where_the_person_looks(posts: LakeBuilder, make_client: MakeClient, tmp_path: Path) -> None:
    page = dom(f"{make_client().base_url}/?text=%22heron", tmp_path / "profile")
    assert "quote" in page.lower()
    assert "Traceback" not in page

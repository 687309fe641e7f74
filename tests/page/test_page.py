"""The web page in a real browser: what a person sees of a search, of a mistake and of a harmful post."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.api.conftest import MakeClient, builder, make_client
from tests.api.lake_builder import LakeBuilder, did
from tests.page.browser import BROWSER_SECONDS, FLAGS, chromium, tab

__all__ = ["builder", "make_client"]


def dom(url: str, profile: Path) -> str:
    """The page's document as the browser has it once its scripts have run."""
    answer = subprocess.run(
        [chromium(), *FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=20000", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=BROWSER_SECONDS,
        check=True,
    )
    # Words that were searched for stand in marks.
    return re.sub("</?mark>", "", answer.stdout)


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


@pytest.mark.timeout(400)
def test_an_empty_archive_says_so(builder: LakeBuilder, make_client: MakeClient, tmp_path: Path) -> None:
    page = dom(f"{make_client().base_url}/", tmp_path / "profile")
    assert "The archive is empty so far" in page
    assert "the archive is empty" in page


@pytest.mark.timeout(400)
def test_from_a_search_to_a_file_and_a_link_to_cite(
    builder: LakeBuilder, make_client: MakeClient, tmp_path: Path
) -> None:
    for number in range(120):
        builder.post(did(number % 3), f"heron number {number}", langs=["en"])
        builder.tick(120)
    version = builder.commit()
    base = str(make_client().base_url).rstrip("/")
    with tab(tmp_path / "profile") as page:
        page.open(f"{base}/?text=heron")
        page.wait("document.querySelectorAll('#results li').length === 50")
        assert page.value("document.querySelector('#results mark').textContent") == "heron"
        assert "120 posts, by hour" in page.wait("document.querySelector('#chart figcaption').textContent")
        status = page.value("document.getElementById('status').textContent")
        assert f"snapshot {version}" in status
        assert "no known gaps" in status
        page.value("document.getElementById('more').click()")
        page.wait("document.querySelectorAll('#results li').length === 100")

        page.value("document.getElementById('export-open').click()")
        assert "120 posts" in page.wait("/posts, about/.exec(estimate.textContent) && estimate.textContent")
        page.value("document.querySelector('#export button').click()")
        page.wait("document.querySelector('#made a') !== null")
        assert f"snapshot {version}" in page.value("document.querySelector('#made .cite').textContent")
        rows = page.value("fetch(document.querySelector('#made a').href).then((answer) => answer.text())").splitlines()
        assert len(rows) == 121
        assert rows[0].startswith('"uri","time","did","handle","text"')

        page.value("document.querySelector('#chart g').dispatchEvent(new MouseEvent('click', { bubbles: true }))")
        page.wait("document.querySelectorAll('#results li').length === 30")
        assert "start=2026-03-01T10" in page.value("location.search")
        builder.post(did(1), "heron at night", langs=["en"])
        builder.commit()
        page.open(f"{base}/?text=heron&start=2026-03-01T13:00&as_of={version}")
        page.wait("/since then 0 posts/.exec(document.getElementById('status').textContent)")
        assert "heron at night" not in page.value("document.body.innerText")
        assert page.problems == []

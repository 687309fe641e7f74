"""docs/api.md: its examples run, and nothing of the API is missing from it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from api.aggregates import Group
from api.errors import Problem
from api.filters import PostQuery
from tests.api.lake_builder import LakeBuilder, did

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "api.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(sh|python|r)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
RUN = [(number, kind, code) for number, (kind, code) in enumerate(BLOCKS)]
PROGRAMS = {
    # A shell example is tried the way a reader runs it: every curl must get an answer that is no error.
    "sh": ("bash", "-euo", "pipefail", "-c"),
    "python": (sys.executable, "-c"),
    "r": ("Rscript", "--vanilla", "-e"),
}


def fill(builder: LakeBuilder) -> None:
    """What the examples ask about."""
    builder.identity(did(1), "alice.example.com")
    for number in range(60):
        tags = ["science"] if number % 2 else None
        image = {"$type": "app.bsky.embed.images", "images": [{"alt": "x"}]} if number % 3 else None
        parent = builder.post(did(1 + number % 2), f"Climate {number}", langs=["en"], tags=tags, embed=image)
        builder.tick(700)
        builder.post(did(3), "a reply", reply_parent_uri=parent["uri"], reply_root_uri=parent["uri"])
        builder.record("app.bsky.feed.like", did(4), subject_uri=parent["uri"], subject_cid=parent["cid"])
    builder.delete(parent["uri"])
    builder.commit()


@pytest.mark.parametrize(("number", "kind", "code"), RUN, ids=[f"{kind}-{number}" for number, kind, _ in RUN])
def test_an_example_runs(
    builder: LakeBuilder, client: httpx.Client, tmp_path: Path, number: int, kind: str, code: str
) -> None:
    fill(builder)
    path = os.pathsep.join([str(ROOT / "clients" / "python" / "src"), str(ROOT)])
    environment = os.environ | {"API": str(client.base_url).rstrip("/"), "PYTHONPATH": path}
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [*PROGRAMS[kind], code], cwd=work, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    output = done.stdout + "".join(file.read_text("utf-8") for file in work.glob("*.csv"))
    assert output.strip()
    expects_problem = "hashtags=" in code or "3aaaaaaaaaaaa" in code
    assert ('"/problems/' in output) is ("hashtags=" in code)
    if kind == "sh" and "/v1/search" in code and not expects_problem:
        assert "Climate" in output or "/labels/" in code


def test_nothing_is_missing(client: httpx.Client) -> None:
    description = client.get("/openapi.json").json()
    for path in description["paths"]:
        assert path.replace("/versions/{version}", "/versions/{version}") in TEXT or path.split("/{")[0] in TEXT, path
    for name in PostQuery.model_fields:
        assert f"`{name}" in TEXT, name
    for group in Group:
        assert f"`{group}`" in TEXT, group
    for problem in Problem:
        if problem is not Problem.INTERNAL:
            assert f"| `{problem.slug}` | {problem.status} |" in TEXT, problem

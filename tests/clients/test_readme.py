"""The recipes of the client's README, run as they stand against a real service."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.lake_builder import START_US, LakeBuilder, did
from tests.clients.conftest import MakeExplorer

README = Path(__file__).parents[2] / "clients" / "python" / "README.md"
WORDS = ("climate", "global warming", "election", "vaccine", "nothing")


def blocks(language: str) -> list[str]:
    """The README's examples in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture
def service(builder: LakeBuilder, make_explorer: MakeExplorer, tmp_path: Path) -> str:
    """A service over posts that the recipes find something in; its address."""
    made = [
        builder.post(did(number % 4), f"{WORDS[number % 5]} {number}", langs=["en"], tags=["bluesky"])
        for number in range(40)
        if builder.tick(60)
    ]
    builder.commit()
    rows = "".join(f"{post['uri']},{number / 10}\n" for number, post in enumerate(made[:9]))
    (tmp_path / "toxicity.csv").write_text("uri,score\n" + rows)
    return str(make_explorer()._http._client.base_url).rstrip("/")


def run(command: list[str], folder: Path) -> str:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def since(text: str, service: str) -> str:
    """A recipe for our service, whose posts are of 2026-03-01: ages would depend on today."""
    return re.sub(
        r"(start['\"]?\s*[=:]\s*['\"]?)(?:7d|30d)", r"\g<1>2026-02-01", text.replace("http://127.0.0.1:8080", service)
    )


def test_the_python_recipe(service: str, tmp_path: Path) -> None:
    assert START_US < 1_775_000_000_000_000
    (recipe,) = blocks("python")
    out = run([sys.executable, "-W", "error", "-c", since(recipe, service)], tmp_path)
    assert "climate" in out
    assert ".parquet 8 " in out
    assert list(tmp_path.glob("*.parquet"))


def test_the_curl_recipes(service: str, tmp_path: Path) -> None:
    (recipe,) = blocks("sh")
    out = run(["bash", "-euo", "pipefail", "-c", since(recipe, service)], tmp_path)
    assert '"results"' in out
    assert len((tmp_path / "climate.ndjson").read_text().splitlines()) == 8
    assert "\t" in out


def test_the_r_recipe(service: str, tmp_path: Path) -> None:
    (recipe,) = blocks("r")
    out = run(["Rscript", "--vanilla", "-e", since(recipe, service)], tmp_path)
    assert "[1] 8" in out
    assert "Bluesky Post Explorer, snapshot 1 of" in out
    assert len((tmp_path / "posts.csv").read_text("utf-8").splitlines()) == 1 + 8

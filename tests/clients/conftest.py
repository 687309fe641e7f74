"""The Python client's tests: a real service over a small lake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from post_explorer_client import Explorer, Retry

from tests.api.conftest import MakeClient, builder, make_client
from tests.api.lake_builder import LakeBuilder, did

__all__ = ["builder", "make_client"]

MakeExplorer = Callable[..., Explorer]


@pytest.fixture
def posts(builder: LakeBuilder) -> LakeBuilder:
    """A lake of 57 posts by five authors over 19 hours, three of them deleted."""
    made = []
    for number in range(60):
        made.append(builder.post(did(number % 5), f"post {number}", langs=["en" if number % 2 else "de"]))
        builder.tick(1200)
    for number in (3, 30, 59):
        builder.delete(made[number]["uri"])
    builder.commit()
    return builder


@pytest.fixture
def make_explorer(make_client: MakeClient) -> Iterator[MakeExplorer]:
    """Starts a service with settings, and gives clients of it."""
    opened: list[Explorer] = []

    def make(key: str | None = None, **settings: Any) -> Explorer:
        url = str(make_client(**settings).base_url)
        opened.append(Explorer(url, key, retry=Retry(first_pause=0.01)))
        return opened[-1]

    yield make
    for explorer in opened:
        explorer.close()


@pytest.fixture
def explorer(posts: LakeBuilder, make_explorer: MakeExplorer) -> Explorer:
    """A client of a service over `posts`."""
    return make_explorer()

"""The documents' check finds what the code does not have."""

from __future__ import annotations

import pytest

from pipeline import docs_check


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("see [this](nowhere.md)", "the link to nowhere.md leads nowhere"),
        ("`lake/nothing.py`", "there is no lake/nothing.py"),
        ("`lake/commit.py:nothing`", "lake/commit.py has no nothing"),
        ("run `make nothing`", "the Makefile has no target nothing"),
        ("run `post-explorer nothing`", "there is no command post-explorer nothing"),
        ("set EXPLORER_NOTHING_AT_ALL", "there is no setting EXPLORER_NOTHING_AT_ALL"),
    ],
)
def test_what_is_not_there_is_found(text: str, problem: str) -> None:
    found = list(docs_check.broken_mentions(docs_check.ROOT / "README.md", text))
    assert [entry.partition(": ")[2] for entry in found] == [problem]


@pytest.mark.parametrize(
    "text",
    [
        "[a](LICENSE) [b](https://example.com/x) [c](README.md#what)",
        "`lake/commit.py:commit_batch` `consumers/writer.py:Writer.take` `schemas/topics.py:TOPICS`",
        "`make demo DURATION=90` and `post-explorer --demo lake report`",
        "EXPLORER_SCHEMA_REGISTRY, EXPLORER_CONFIG, EXPLORER_WRITER_BATCH_ROWS and EXPLORER_…",
    ],
)
def test_what_is_there_is_not(text: str) -> None:
    assert list(docs_check.broken_mentions(docs_check.ROOT / "README.md", text)) == []

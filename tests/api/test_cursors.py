"""Cursors: what is encoded comes back for the same query, and for nothing else."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.cursors import Cursor, CursorCodec, CursorError, query_digest

CODEC = CursorCodec(b"s" * 32)
KEYS = st.lists(st.one_of(st.integers(-(2**63), 2**63), st.text(max_size=20)), max_size=5).map(tuple)


@given(KEYS)
def test_cursors_come_back(key: tuple[int | str, ...]) -> None:
    digest = query_digest({"text": "x"})
    assert CODEC.decode(CODEC.encode(Cursor(key), digest), digest) == Cursor(key)


@given(KEYS)
def test_cursors_belong_to_one_query_and_one_server(key: tuple[int | str, ...]) -> None:
    text = CODEC.encode(Cursor(key), query_digest({"text": "x"}))
    with pytest.raises(CursorError, match="another query"):
        CODEC.decode(text, query_digest({"text": "y"}))
    with pytest.raises(CursorError, match="another query"):
        CursorCodec(b"t" * 32).decode(text, query_digest({"text": "x"}))


@given(KEYS, st.integers(0, 10_000), st.sampled_from(string.ascii_letters + string.digits + "-_!ä"))
def test_a_changed_cursor_is_refused(key: tuple[int | str, ...], position: int, char: str) -> None:
    digest = query_digest({})
    text = CODEC.encode(Cursor(key), digest)
    position %= len(text)
    changed = text[:position] + char + text[position + 1 :]
    try:
        assert CODEC.decode(changed, digest) == Cursor(key)
    except CursorError:
        return


@given(st.text(max_size=600))
def test_any_text_is_refused_politely(text: str) -> None:
    with pytest.raises(CursorError):
        CODEC.decode(text, query_digest({}))

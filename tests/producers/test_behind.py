"""How far a host is behind: what commits say of when they were made, against single accounts with wrong clocks."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from lake.base32 import decode_tids, encode_tids
from producers.behind import Behind
from producers.wire import Commit
from schemas.identity import tid_micros
from tests.producers.scripted import tid

T = 1_780_000_000_000_000
HOUR = 3_600_000_000


def like(time_us: int, rev: str) -> Commit:
    return Commit(1, time_us, "did:plc:a", "create", "app.bsky.feed.like", "3mptbyplj5d2a", rev, None, b"{}")


@given(st.integers(0, 2**53 - 1))
def test_the_time_of_a_tid(micros: int) -> None:
    assert tid_micros(tid(micros)) == micros
    text = bytes(encode_tids(np.array([micros << 10 | 7], np.int64))[0]).decode()
    assert tid_micros(text) == micros


@given(st.text("234567abcdefghijklmnopqrstuvwxyz0189_+- AZé", min_size=12, max_size=14))
@example("_234567abcdef")
@example("+34567abcdefg")
@example("3mptbyplj5d2 ")
def test_what_is_no_tid_has_no_time(text: str) -> None:
    digits = len(text) == 13 and set(text) <= set("234567abcdefghijklmnopqrstuvwxyz")
    assert (tid_micros(text) is not None) == digits
    if digits and text[0] in "234567abcdefghij":
        numbers, valid = decode_tids(np.frombuffer(text.encode(), np.uint8).reshape(1, 13))
        assert valid[0]
        assert int(numbers[0]) >> 10 == tid_micros(text)


@given(st.integers(0, 12), st.integers(0, 24 * HOUR))
def test_most_commits_outvote_wrong_clocks(wrong: int, behind_us: int) -> None:
    behind = Behind()
    assert behind.made_us(T) is None
    for number in range(25):
        made = T - 10**15 if number < wrong else T - behind_us
        behind.note(like(T, tid(made)))
    assert behind.made_us(T) == T - behind_us


def test_a_day_is_the_most_and_the_future_is_now() -> None:
    behind = Behind()
    behind.note(like(T, "self"))
    assert behind.micros is None
    behind.note(like(T, tid(T - 10**15)))
    assert behind.made_us(T) == T - 24 * HOUR
    for _ in range(25):
        behind.note(like(T, tid(T + HOUR)))
    assert behind.made_us(T) == T

"""Columns of messages: places in one buffer hold what a list of byte strings holds, wherever the bytes came from."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from consumers import native_client
from consumers.librdkafka import MESSAGE
from consumers.records import Arena, Slices, TopicRecords

TEXTS = st.one_of(st.none(), st.binary(max_size=4), st.binary(min_size=5, max_size=300))
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), max_size=30)


def records(pairs: Sequence[tuple[bytes | None, bytes | None]], first_offset: int = 0) -> TopicRecords:
    count = len(pairs)
    return TopicRecords.of(
        "topic",
        np.arange(count, dtype=np.int32) % 3,
        np.arange(first_offset, first_offset + count),
        np.arange(count) + 1000,
        [key for key, _ in pairs],
        [value for _, value in pairs],
    )


def pairs_of(found: TopicRecords) -> list[tuple[bytes | None, bytes | None]]:
    return list(zip(found.keys, found.values, strict=True))


def check(slices: Slices, expected: Sequence[bytes | None]) -> None:
    assert list(slices) == list(expected)
    assert slices.arrow().to_pylist() == list(expected)
    assert slices.total == sum(len(text) for text in expected if text is not None)


@given(PAIRS, st.randoms(use_true_random=False))
def test_columns_hold_what_lists_hold(pairs: list[tuple[bytes | None, bytes | None]], rng: random.Random) -> None:
    made = records(pairs)
    check(made.keys, [key for key, _ in pairs])
    check(made.values, [value for _, value in pairs])
    places = np.array(sorted(rng.sample(range(len(pairs)), rng.randrange(len(pairs) + 1))), np.int64)
    assert pairs_of(made.at(places)) == [pairs[place] for place in places]
    assert made.at(places).offsets.tolist() == places.tolist()
    for size in {len(value) for _, value in pairs if value}:
        same = np.flatnonzero(made.values.size == size)
        rows = made.values.matrix(same, size)
        assert [row.tobytes() for row in rows] == [value for _, value in pairs if value and len(value) == size]


@given(st.lists(PAIRS, min_size=1, max_size=4))
def test_parts_are_joined_in_their_order(parts: list[list[tuple[bytes | None, bytes | None]]]) -> None:
    joined = TopicRecords.joined([records(pairs, 100 * number) for number, pairs in enumerate(parts)])
    assert pairs_of(joined) == [pair for pairs in parts for pair in pairs]
    assert joined.offsets.tolist() == [100 * n + i for n, pairs in enumerate(parts) for i in range(len(pairs))]
    check(joined.values, [value for pairs in parts for _, value in pairs])


def laid_out(pairs: Sequence[tuple[bytes | None, bytes | None]], memory: np.ndarray, rng: random.Random) -> np.ndarray:
    """The messages as the client's structures over `memory`, in which their bytes lie anywhere, some of them far apart."""
    slots: list[tuple[int, str, bytes]] = []
    messages = np.zeros(len(pairs), MESSAGE)
    for number, pair in enumerate(pairs):
        messages["offset"][number] = number * 2
        for name, text in zip(("key", "value"), pair, strict=True):
            if text is not None:
                slots.append((number, name, text))
    places = list(range(0, len(memory) - 700, 700))
    start, jumps, at = memory.ctypes.data, rng.random() < 0.7, 0
    rng.shuffle(places)
    for number, name, text in slots:
        if jumps and rng.random() < 0.2:
            at = places.pop()
        if at + len(text) > len(memory):
            at = 0
        if memory[at : at + len(text)].any():
            at = next(place for place in places if not memory[place : place + 700].any())
        memory[at : at + len(text)] = np.frombuffer(text, np.uint8)
        messages[name][number], messages[f"{name}_size"][number] = start + at, len(text)
        at += len(text) + rng.choice([0, 7, 30])
    return messages


SOLID = st.one_of(st.none(), st.binary(max_size=300).map(lambda text: text.replace(b"\x00", b"x")))


@given(st.lists(st.tuples(SOLID, SOLID), min_size=1, max_size=25), st.randoms(use_true_random=False), st.booleans())
def test_bytes_are_found_wherever_the_client_has_put_them(
    pairs: list[tuple[bytes | None, bytes | None]], rng: random.Random, full: bool
) -> None:
    memory = np.zeros(400_000, np.uint8)
    messages = laid_out(pairs, memory, rng)
    arena = Arena(0 if full else 1_000_000)
    before, _ = arena.room(0 if full else 123)
    before[:123] = 0xAA
    found = native_client._columns("topic", messages, np.arange(len(pairs)), arena)
    memory[:] = 0xFF
    assert (before[:123] == 0xAA).all()
    assert pairs_of(found) == pairs
    assert found.offsets.tolist() == [number * 2 for number in range(len(pairs))]
    check(found.keys, [key for key, _ in pairs])
    check(found.values, [value for _, value in pairs])


def test_the_memory_of_a_batch_is_used_again_only_when_nobody_reads_it() -> None:
    arena = Arena(1000)
    data, begin = arena.room(600)
    assert (begin, len(data)) == (0, 1000)
    own, begin = arena.room(600)
    assert (begin, len(own)) == (0, 600)
    again, begin = arena.room(400)
    assert again is data
    assert begin == 600
    address = data.ctypes.data
    kept = Slices(data, np.array([0]), np.array([4]))
    data[:4] = 7
    arena.next_batch()
    del data, again
    other, begin = arena.room(1000)
    other[:] = 9
    assert begin == 0
    assert kept[0] == b"\x07" * 4
    del kept
    address = other.ctypes.data
    arena.next_batch()
    del other
    reused, begin = arena.room(10)
    assert (reused.ctypes.data, begin) == (address, 0)
    arena.give_back()
    del reused
    assert len(arena.room(10)[0]) == 1000


def test_columns_of_nothing() -> None:
    empty = records([])
    assert isinstance(empty.values.arrow(), pa.LargeBinaryArray)
    assert len(empty.at(np.array([], np.int64))) == 0
    assert empty.values.matrix(np.array([], np.int64), 5).shape == (0, 5)


def test_what_lies_between_far_places_is_not_touched() -> None:
    """It may be memory that cannot be read."""
    memory = np.zeros(100_000, np.uint8)
    messages = np.zeros(3, MESSAGE)
    messages["value"] = memory.ctypes.data + np.array([0, 50_000, 54_000])
    messages["value_size"] = 10
    found = native_client._columns("topic", messages, np.zeros(3, np.int64), Arena(0))
    # The last two are less than a page apart.
    assert len(found.values.data) == 10 + 4_010
